"""Features of frozen bodies: computed once per data set, kept on disk, and trained on like images in memory."""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from filelock import FileLock
from lightning.fabric.utilities.data import suggested_max_num_workers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from scor_lightning.datamodules import ImageDataModule, ImagesInMemory
from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.folder_index import cache_file, read_cache, write_cache
from scor_lightning.datamodules.images import Batch, Images
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.transforms import describe_transform, same_transform
from scor_lightning.description import channel_statistics
from scor_lightning.files import printable
from scor_lightning.models.normalization import Normalization
from scor_lightning.parts import features_of, reset_parameters
from scor_lightning.seeding import Purpose, derived_seed, seeded

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_TRIAL = 16  # number of images in the trial of a memory format


def use_features(data: ImageDataModule, backbone: nn.Module, device: torch.device, precision: str = "32-true") -> bool:
    """Replace the images of a data module by their features from a frozen body.

    They are computed once for each image, in evaluation mode, and kept in the cache folder. The cache key covers the body's weights,
    the preprocessing, the memory format, the precision, and the images: path, size and time of files, or the content of small
    sets and of images in memory. With several processes, one computes and the others wait. Deleting the folder is safe.

    Args:
        data: The data, set up; changed in place.
        backbone: The network, with ``forward_features`` and ``head``.
        device: Where to compute.
        precision: As of Lightning's ``Trainer``; the mixed ones compute under autocast.

    Returns:
        Whether the images were replaced. They are not if training images are augmented, as their features then differ between
        epochs.

    Raises:
        ValueError: If a feature is not finite, or the disk is full.
    """
    if not same_transform(data.train_transform, data.eval_transform):
        return False
    if data.features:
        return True
    body = _Body(data, backbone, device, precision)
    files = {source: body.features(source) for source in data.sources()}
    data.use_features(files, {"memory_format": str(body.chosen), "precision": precision, "device": device.type})
    return True


def body_key(backbone: nn.Module) -> str:
    """Return a checksum of the modules and weights of a network without its head."""
    digest = hashlib.sha256()
    for name, child in backbone.named_children():
        if name != "head":
            digest.update(f"{name} {child!r}\n".encode())
    for name, value in backbone.state_dict().items():
        if not name.startswith("head.") and isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureHead(nn.Module):
    """The head of a network as a separate network, whose inputs are features ``[B, D]``.

    Args:
        head: Maps features to logits; it is copied and re-initialised, like the head of the whole network.
        num_features: Number of features D.
        num_classes: Number of classes K.
        body: Description of the body in the ``repr``, such as its checksum.
    """

    def __init__(self, head: nn.Module, num_features: int, num_classes: int, body: str = "") -> None:
        super().__init__()
        self.body = body
        self.num_features = num_features
        self.num_classes = num_classes
        self.head = head
        with seeded(derived_seed(Purpose.HEAD, torch.initial_seed())):
            reset_parameters(head)

    def extra_repr(self) -> str:
        """Show the body."""
        return f"body={self.body!r}"

    def forward_features(self, features: Tensor) -> Tensor:
        """Return the features as they are."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of features ``[B, D]``."""
        logits: Tensor = self.head(features)
        return logits


class _Body:
    def __init__(self, data: ImageDataModule, backbone: nn.Module, device: torch.device, precision: str) -> None:
        self.data, self.backbone, self.device, self.precision = data, backbone, device, precision
        self.normalize = Normalization()
        expected = channel_statistics(data, backbone)
        self.normalize.set(expected.mean, expected.std)
        self.normalize.to(device)
        about = {
            "preprocessing": describe_transform(data.eval_transform) or repr(data.eval_transform),
            "mean": expected.mean,
            "std": expected.std,
            "precision": precision,
            "device": device.type,
        }
        self.key = [body_key(backbone).encode(), json.dumps(about).encode()]
        self.chosen: str | None = None

    def features(self, source: SplitName) -> Path:
        """Return the file of the features of a split; compute them if it does not exist."""
        images, _ = self.data.source(source)
        print_of = _fingerprint(images)
        files = {name: self._file(name, print_of) for name in _FORMATS}
        with FileLock(next(iter(files.values())).with_suffix(".lock")):
            for name, file in files.items():
                if file.is_file():
                    kept = read_cache(file)
                    self.chosen = self.chosen or name
                    if kept is not None and len(kept.get("features", ())) == len(images.targets):
                        return file
                    print(
                        f"The cache file {printable(str(file))} is damaged; its features are computed again", flush=True
                    )
            features = self._compute(source, images)
            file = files[str(self.chosen)]
            write_cache(file, features=features.numpy())
            if not file.is_file():  # a full disk
                print(
                    f"The features cannot be written below {printable(str(file.parent))}; they are kept for this run alone"
                )
                file = _temporary_folder() / file.name
                write_cache(file, features=features.numpy())
                if not file.is_file():
                    raise ValueError(
                        f"Expected room for features of {features.nbytes / 1e6:,.0f} MB but the disks are full; name another by "
                        "`--data.cache`"
                    )
        return file

    def _file(self, memory_format: str, print_of: bytes | None) -> Path:
        file = None
        if print_of is not None:
            file = cache_file("features", *self.key, memory_format.encode(), print_of, folder=self.data.cache)
        return file or _temporary_folder() / f"{memory_format}-{hashlib.sha256(print_of or b'').hexdigest()[:32]}.npz"

    @torch.no_grad()
    def _compute(self, source: SplitName, images: Images) -> Tensor:
        modes = {module: module.training for module in self.backbone.modules()}
        self.backbone.eval().to(self.device)
        # On the CPU the body needs the cores: on few of them, workers would compete with it.
        workers = suggested_max_num_workers(1) // 4 if self.device.type == "cpu" else None
        _, loader = self.data.source(source, workers)
        self.chosen = self.chosen or self._trial(loader)
        layout = _FORMATS[self.chosen]
        if self.chosen == "channels_last":
            self.backbone.to(memory_format=torch.channels_last)
        found = []
        with tqdm(total=len(images.targets), desc=f"features of {source} images", unit="image", mininterval=0.5) as bar:
            for batch, _ in loader:
                with self._autocast():
                    prepared = self.normalize(batch.to(self.device, non_blocking=True)).contiguous(memory_format=layout)
                    features = features_of(self.backbone, prepared).float()
                found.append(features.cpu())
                bar.update(len(batch))
        if self.chosen == "channels_last":
            self.backbone.to(memory_format=torch.contiguous_format)
        for module, training in modes.items():
            module.training = training
        whole = torch.cat(found)
        wrong = (~whole.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            name = images.path(wrong[0]) if isinstance(images, ImageFiles) else f"number {wrong[0]}"
            raise ValueError(
                f"Expected finite features but {len(wrong)} of {len(whole)} {source} images have others, such as "
                f"{printable(name)!r}: check the weights of the network, or raise `--trainer.precision`"
            )
        return whole

    def _autocast(self) -> AbstractContextManager[object]:
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        if self.precision in kinds:
            return torch.autocast(self.device.type, kinds[self.precision])
        return nullcontext()

    def _trial(self, loader: DataLoader[Batch]) -> str:
        """Return the faster memory format of the body, measured on some images."""
        if not any(isinstance(module, nn.Conv2d) for module in self.backbone.modules()):
            return "contiguous"
        images = self.normalize(next(iter(loader))[0][:_TRIAL].to(self.device))
        seconds = {}
        for name, layout in _FORMATS.items():
            self.backbone.to(memory_format=layout)
            prepared = images.contiguous(memory_format=layout)
            for _ in range(2):  # the first pass selects kernels
                self._wait()
                began = time.perf_counter()
                with self._autocast():
                    features_of(self.backbone, prepared)
                self._wait()
                seconds[name] = time.perf_counter() - began
        self.backbone.to(memory_format=torch.contiguous_format)
        return min(seconds, key=lambda name: seconds[name])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _fingerprint(images: Images) -> bytes | None:
    """Return a fingerprint of images; None if they have none."""
    if isinstance(images, ImageFiles):
        return os.fsencode(images.root) + images.paths.tobytes() + images.state()
    if isinstance(images, ImagesInMemory):
        return hashlib.sha256(images.images.contiguous().flatten().view(torch.uint8).numpy().tobytes()).digest()
    return None


_FOLDERS: list[Path] = []


def _temporary_folder() -> Path:
    if not _FOLDERS:
        folder = Path(tempfile.mkdtemp(prefix="scor-features-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _FOLDERS.append(folder)
    return _FOLDERS[0]
