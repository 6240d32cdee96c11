"""Image files as uint8 tensors."""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

_JPEG = bytes((0xFF, 0xD8, 0xFF))
_SMALL = 2**26  # size of a set of images up to which contents are compared, in bytes
_MARKERS = 2**17  # bytes at the beginning of a JPEG that contain its size and Exif data
_MOST_PIXELS = 2 * 89_478_485  # Pillow's limit for the formats that it decodes


# Pillow only recognises these, or needs other programs or data for them.
_NOT_DECODED = {"BUFR", "EPS", "FITS", "FTEX", "GBR", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "WMF"}


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file extensions, such as ``.jpg``, of all formats that Pillow reads."""
    kinds = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in kinds.items() if kind in Image.OPEN and kind not in _NOT_DECODED)


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image of any usual format as RGB, in its Exif orientation.

    JPEG is decoded by torchvision, other formats by Pillow. 16 bits per channel are reduced to the upper 8; palettes, gray
    and CMYK are converted to RGB; transparency is ignored. TIFF with 32 bits per channel is refused, as its range is
    unknown.

    Args:
        path: The file.

    Returns:
        uint8 ``[3, H, W]``.

    Raises:
        ValueError: If it cannot be read; the message names the file.
    """
    try:
        data = read_file(os.fspath(path))
        start = data[:_MARKERS].numpy().tobytes()
        if start.startswith(_JPEG) and not _orientation_comes_late(start):
            height, width = _jpeg_size(start)
            if height * width > _MOST_PIXELS:
                raise ValueError(f"it has {height:,} x {width:,} pixels, more than {_MOST_PIXELS:,}")
            decoded: Tensor = decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        else:
            with Image.open(path) as image:
                if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                    raise ValueError(
                        "its pixels have 32 bits per channel and no known range; convert it to 8 or 16 bits"
                    )
                decoded = pil_to_tensor(_rgb(ImageOps.exif_transpose(image)))
        return decoded
    except (RuntimeError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = re.sub(r".*\.cpp:\d+, ", "", str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise ValueError(f"Expected an image but {os.fspath(path)!r} cannot be read: {reason}") from error


def _jpeg_size(start: bytes) -> tuple[int, int]:
    """Return height and width from the header of a JPEG; (0, 0) if it is not in the first bytes."""
    at = 2
    while at + 9 <= len(start) and start[at] == 0xFF:
        marker, length = start[at + 1], int.from_bytes(start[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (
            0xC4,
            0xC8,
            0xCC,
        ):  # a frame header; the three exceptions are tables
            return int.from_bytes(start[at + 5 : at + 7], "big"), int.from_bytes(start[at + 7 : at + 9], "big")
        at += 2 + length if marker != 0xFF else 1  # fill bytes
    return 0, 0


def _orientation_comes_late(start: bytes) -> bool:
    """Return whether the Exif data of a JPEG follow others with the same marker, where torchvision does not find them."""
    exif = start.find(b"Exif\0\0")
    return exif >= 0 and 0 <= start.find(b"\xff\xe1") < exif - 4


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips values at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


class ImageFiles(Dataset[tuple[list[Tensor], Tensor]]):
    """Images on disk, decoded on access.

    Args:
        paths: N paths; relative ones are below ``root``. They are stored as one array of bytes, which worker processes
            share.
        targets: Class indices, int64 ``[N]``.
        root: Folder of the images.
        remedy: Text to append to the error for an unreadable image.
    """

    def __init__(
        self, paths: "Sequence[str] | npt.NDArray[np.bytes_]", targets: Tensor, root: str = "", remedy: str = ""
    ) -> None:
        self.paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(path) for path in paths])
        self.targets = targets
        self.root = root
        self.remedy = remedy

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def state(self) -> bytes:
        """Return a fingerprint for caches: the content of small sets, sizes and times of others."""
        stats = [os.stat(self.path(i)) for i in range(len(self))]
        if sum(stat.st_size for stat in stats) <= _SMALL:
            digest = hashlib.sha256()
            for i in range(len(self)):
                digest.update(hashlib.sha256(Path(self.path(i)).read_bytes()).digest())
            return digest.digest()
        return np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats], np.int64).tobytes()

    def __getitem__(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the images ``[3, H, W]``, of any sizes, and targets ``[B]`` of the indices ``[B]``."""
        return [self.read(i) for i in index.tolist()], self.targets[index]

    def read(self, index: int) -> Tensor:
        """Decode an image, uint8 ``[3, H, W]``."""
        try:
            return read_image(self.path(index))
        except ValueError as error:
            raise ValueError(f"{error}{self.remedy}") from error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    def of(self, index: Tensor) -> "ImageFiles":
        """Return some of the images, by indices or by a mask."""
        return ImageFiles(self.paths[index.numpy()], self.targets[index], self.root, self.remedy)

    def readable(self, progress: bool = True) -> Tensor:
        """Return which images can be decoded, bool ``[N]``, with a progress bar unless ``progress`` is False."""

        def check(index: int) -> bool:
            try:
                self.read(index)
            except ValueError:
                return False
            return True

        with ThreadPoolExecutor(suggested_max_num_workers(1) + 1) as pool:
            checked = pool.map(check, range(len(self)))
            where = f"Checking {len(self):,} images below {self.root or Path.cwd()}"
            return torch.tensor(
                list(tqdm(checked, where, len(self), unit="image", disable=not progress)), dtype=torch.bool
            )
