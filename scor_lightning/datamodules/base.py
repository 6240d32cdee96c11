"""What all data modules share: the split, the imbalance, the transforms and the loaders."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from scor_lightning.datamodules.imbalance import Imbalance, draw_per_class
from scor_lightning.datamodules.sampler import BatchSampler, Draws, ResumableDataLoader
from scor_lightning.datamodules.transforms import BatchTransform, apply_transform, compose, describe_transform
from scor_lightning.files import write_whole
from scor_lightning.functional.random import Purpose, derived_generator
from scor_lightning.signals import leave_signals_to_the_main_process

Batch = tuple[Tensor, Tensor]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# Of ImageNet's training images in [0, 1]; https://pytorch.org/vision/stable/models.html
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUMMARY_ROWS = 10
# An image of class c is drawn in proportion to n_c ** -power, so class c in proportion to n_c ** (1 - power).
_SAMPLING_POWER = {"instance": 0.0, "square_root": 0.5, "class_balanced": 1.0}


class Images(Protocol):
    """Images with their classes, read by tensors of indices."""

    targets: Tensor
    """Class indices, int64 ``[N]``."""

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor | Sequence[Tensor], Tensor]:
        """Give the images, uint8 ``[B, C, H, W]`` or B of ``[C, H, W]``, and the targets ``[B]`` of the indices."""


class ImagesInMemory(Dataset[Batch]):
    """A small data set as two tensors, read a whole batch at a time.

    Args:
        images: uint8 ``[N, C, H, W]``.
        targets: Class indices, int64 ``[N]``.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images
        self.targets = targets

    def __getitem__(self, index: Tensor) -> Batch:
        """Give the images ``[B, C, H, W]`` and targets ``[B]`` of the indices ``[B]``."""
        index = index.to(self.images.device)
        return self.images.index_select(0, index), self.targets[index]  # twenty times as fast as images[index]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.targets)

    def to(self, device: torch.device) -> "ImagesInMemory":
        """Give the same data on a device."""
        return ImagesInMemory(self.images.to(device), self.targets.to(device))


class ImageDataModule(LightningDataModule, ABC):
    """Images and labels, made imbalanced, split, augmented and batched.

    ``evaluation="official"`` tests on the data set's own test set: the validation set is split off the training data
    first, stratified, then the imbalance is made in what is left. ``evaluation="holdout"`` is the SCoR paper's
    protocol: the training data are reduced first, then split at random into 80 % for training and 20 % for the test,
    which so is as imbalanced as the training set. A data set without a test set gives a fifth of its training data for
    one, stratified. Subset and split depend on ``seed`` alone, whatever seed the training has.

    A subclass says what the data are by the attributes below and by :meth:`load`.

    Args:
        batch_size: Images a batch, the total over all processes.
        imbalance: What to do to the training set; None leaves it as it is.
        evaluation: Where the test set comes from.
        val_fraction: Share of the training data that becomes the validation set, in [0, 1); a data set with a
            validation set of its own gives that instead. With 0 there is none, hence no best checkpoint, and the last
            one is tested.
        sampling: ``"instance"`` gives every training image once an epoch. ``"class_balanced"`` draws as many images,
            each class as often as any other, and ``"square_root"`` each class in proportion to the square root of its
            size (`Kang et al. 2020 <https://arxiv.org/abs/1910.09217>`_); rare images then come several times.
        seed: Seed of the subset, the split, the order of the batches and the augmentation.
        num_workers: Processes that load batches. None takes as many as there are free cores where images are decoded
            or augmented one by one, and none where batches come out of memory.
        resolution: Height and width in pixels that images have when they reach the network; None leaves them as they
            are stored, or makes them 224 x 224 where they differ.
        train_transforms: Augmentation of training images, transforms of ``torchvision.transforms.v2`` on uint8
            ``[C, H, W]``; None is the data set's own, an empty list none. Each image's random numbers follow from
            ``(seed, epoch, index)``; it should take them from torch.
        eval_transforms: Preprocessing of validation and test images, deterministic; None is the data set's own.
        split_file: File of the indices of the three sets. It is written where there is none, and read back, in place
            of a split of its own, where there is one.

    Attributes:
        num_classes: Number of classes K.
        class_names: Their K names.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the images that the network gets.
        native_size: Height and width (H, W) of the images as stored; None where they differ.
        default_resolution: Height and width without ``resolution``, where they are not those stored, or 224.
        mean: Mean of each channel for images in [0, 1].
        std: Standard deviation of each channel for images in [0, 1].
        train_transform: What is done to training images, or None.
        eval_transform: What is done to validation and test images, or None.

    Raises:
        ValueError: If an argument lies outside its range, or ``eval_transforms`` gives images of several sizes.
    """

    num_classes: int
    class_names: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    native_size: tuple[int, int] | None = None
    default_resolution: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __init__(
        self,
        batch_size: int = 64,
        imbalance: Imbalance | None = None,
        evaluation: Literal["official", "holdout"] = "official",
        val_fraction: float = 0.1,
        sampling: Literal["instance", "square_root", "class_balanced"] = "instance",
        seed: int = 0,
        num_workers: int | None = None,
        resolution: int | None = None,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        split_file: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` >= 1 but got {batch_size}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"Expected `val_fraction` in [0, 1) but got {val_fraction}")
        if evaluation not in ("official", "holdout"):
            raise ValueError(f"Expected `evaluation` to be 'official' or 'holdout' but got {evaluation!r}")
        if sampling not in _SAMPLING_POWER:
            raise ValueError(f"Expected `sampling` to be one of {', '.join(_SAMPLING_POWER)} but got {sampling!r}")
        if seed < 0:
            raise ValueError(f"Expected `seed` >= 0 but got {seed}")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"Expected `num_workers` >= 0 but got {num_workers}")
        if resolution is not None and resolution < 1:
            raise ValueError(f"Expected `resolution` >= 1 but got {resolution}")
        self.batch_size = batch_size
        self.imbalance = imbalance
        self.evaluation = evaluation
        self.val_fraction = val_fraction
        self.sampling = sampling
        self.seed = seed
        self.num_workers = num_workers
        self.resolution = resolution
        self.split_file = split_file
        side = resolution or self.default_resolution
        size = (side, side) if side else self.native_size or (224, 224)
        self.train_transform = compose(
            self.default_train_transforms(size) if train_transforms is None else train_transforms
        )
        self.eval_transform = compose(
            self.default_eval_transforms(size) if eval_transforms is None else eval_transforms
        )
        self.image_size = self._size_after_preprocessing()
        self._sets: dict[str, tuple[Images, Tensor]] = {}

    @abstractmethod
    def load(self, split: Split) -> Images | None:
        """Read the official training, validation or test data without touching the network; None if there are none."""

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Give the data set's own training transform to a size (H, W)."""
        return self.default_eval_transforms(size)

    def default_eval_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Give the data set's own deterministic transform to a size (H, W)."""
        return [] if self.native_size == size else [v2.Resize(size)]

    def setup(self, stage: str | None = None) -> None:
        """Split the data and make the imbalance; the same at every stage, so done once. Before a training, say what is there.

        Raises:
            ValueError: If a target lies outside 0..K-1, a class ends without training images, or ``split_file`` is of
                other data or settings.
        """
        if not self._sets:
            kept = Path(self.split_file) if self.split_file else None
            if kept is not None and kept.is_file():
                self._sets = self._read_split(kept)
            else:
                self._sets = self._draw_split()
                if kept is not None:
                    self.save_split(kept)
            if self.val_fraction and not len(self.split("val")[1]):
                raise ValueError(
                    f"Expected a validation image but no class has enough for `val_fraction` = {self.val_fraction} to "
                    f"be one; raise it, or do without by 0"
                )
            counts = self.class_counts
            if not counts.all():
                missing = self.class_names[int((counts == 0).nonzero()[0])]
                raise ValueError(
                    f"Expected a training image of every class but got none of {missing!r}: leave that class out of the data"
                )
        if stage == "fit":
            self._show_summary()

    def _draw_split(self) -> dict[str, tuple[Images, Tensor]]:
        data = self._checked("train")
        train = torch.arange(len(data.targets))
        if self.evaluation == "holdout":
            train = self._imbalanced(data.targets, train)
            order = train[torch.randperm(len(train), generator=derived_generator(Purpose.HOLDOUT, self.seed))]
            cut = int(0.8 * len(order))
            train, test = order[:cut].sort().values, (data, order[cut:].sort().values)
        elif (own_test := self._checked("test", optional=True)) is not None:
            test = own_test, torch.arange(len(own_test.targets))
        else:
            train, held_out = self._without(data.targets, train, 0.2, Purpose.TEST)
            test = data, held_out
        own_val = self._checked("val", optional=True) if self.val_fraction else None
        if own_val is not None:
            val = own_val, torch.arange(len(own_val.targets))
        else:
            train, held_out = self._without(data.targets, train, self.val_fraction, Purpose.VALIDATION)
            val = data, held_out
        if self.evaluation == "official":
            train = self._imbalanced(data.targets, train)
        return {"train": (data, train), "val": val, "test": test}

    def save_split(self, path: str | os.PathLike[str]) -> None:
        """Write the indices of the three sets to a JSON file, for ``split_file``; needs :meth:`setup`."""
        train_data = self.split("train")[0]
        own: dict[str, str] = {}
        digests: dict[str, str] = {}
        indices: dict[str, Any] = {}
        for name in SPLITS:
            own[name] = "train" if self.split(name)[0] is train_data else name
            indices[name] = self.split(name)[1].tolist()
            digests[name] = _digest(self.split(name)[0].targets)
        content = {"settings": self._split_settings(), "from": own, "targets": digests, **indices}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), json.dumps(content))

    def _read_split(self, path: Path) -> dict[str, tuple[Images, Tensor]]:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Expected the indices of a split in {str(path)!r} but it cannot be read: {error}"
            ) from error
        settings = self._split_settings()
        for name, before in content.get("settings", {}).items():
            if settings[name] != before:
                raise ValueError(
                    f"Expected the {name} = {before} that {str(path)!r} was made with but got {settings[name]}; "
                    f"name another `split_file` for another split"
                )
        sources: dict[str, Images] = {}
        sets: dict[str, tuple[Images, Tensor]] = {}
        for name in SPLITS:
            source = content["from"][name]
            data = sources.setdefault(source, self._checked(source))
            if _digest(data.targets) != content["targets"][name]:
                raise ValueError(f"Expected the {source} data that {str(path)!r} was made for but got others")
            sets[name] = data, torch.tensor(content[name], dtype=torch.int64)
        return sets

    def _split_settings(self) -> dict[str, Any]:
        return {
            "data": type(self).__name__,
            "imbalance": str(self.imbalance),
            "evaluation": self.evaluation,
            "val_fraction": self.val_fraction,
            "seed": self.seed,
        }

    @property
    def eval_transform_description(self) -> list[dict[str, Any]] | None:
        """What is done to validation and test images, in plain values; None if it cannot be written down."""
        return describe_transform(self.eval_transform)

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class after the imbalance, int64 ``[K]``; needs :meth:`setup`."""
        return self._counts("train")

    def _counts(self, name: Split) -> Tensor:
        data, index = self.split(name)
        return torch.bincount(data.targets[index], minlength=self.num_classes)

    def split(self, name: Split) -> tuple[Images, Tensor]:
        """Give the data of a set and which of them belong to it, int64 ``[n]``; needs :meth:`setup`."""
        if not self._sets:
            raise RuntimeError("Expected `setup()` to be called before the data are used")
        return self._sets[name]

    def summary(self) -> str:
        """Describe the data on one screen: the sets, the imbalance and the first class counts; needs :meth:`setup`."""
        name = type(self).__name__.removesuffix("DataModule")
        shape = " x ".join(map(str, (self.in_channels, *self.image_size)))
        made = f"{self.imbalance or 'no imbalance'}, evaluation {self.evaluation}, data seed {self.seed}"
        lines = ["", f"{name}: {self.num_classes} classes, images of {shape}; {made}", ""]
        lines.append(f"{'set':<12}{'images':>10}   {'largest class':<26}{'smallest class':<26}{'ratio':>8}")
        counts = {name: self._counts(name) for name in SPLITS}
        for name, title in zip(SPLITS, ("training", "validation", "test"), strict=True):
            sizes = counts[name]
            if not sizes.any():
                continue
            most, least = int(sizes.argmax()), int(sizes.argmin())
            ratio = f"{sizes[most] / sizes[least]:.1f}" if sizes[least] else "-"
            ends = [f"{sizes[c]:,} {self.class_names[c]}"[:24] for c in (most, least)]
            lines.append(f"{title:<12}{sizes.sum():>10,}   {ends[0]:<26}{ends[1]:<26}{ratio:>8}")
        shown = min(self.num_classes, SUMMARY_ROWS)
        width = max(len("class"), *(len(class_name) for class_name in self.class_names[:shown]))
        lines += ["", f"{'class':<{width}}  {'training':>10}{'validation':>12}{'test':>10}"]
        for c in range(shown):
            row = [f"{counts[name][c]:,}" for name in SPLITS]
            lines.append(f"{self.class_names[c]:<{width}}  {row[0]:>10}{row[1]:>12}{row[2]:>10}")
        if shown < self.num_classes:
            lines.append(f"... and {self.num_classes - shown:,} more")
        return "\n".join([*lines, ""])

    @rank_zero_only
    def _show_summary(self) -> None:
        print(self.summary(), flush=True)

    @property
    def reduced_classes(self) -> Tensor:
        """Which classes the imbalance says that it reduces, bool ``[K]``; needs :meth:`setup`."""
        if self.imbalance is None:
            return torch.zeros(self.num_classes, dtype=torch.bool)
        data, _ = self.split("train")
        available = torch.ones(len(data.targets), dtype=torch.bool)
        if self.evaluation == "official":  # the other sets were split off before the imbalance
            for name in ("val", "test"):
                source, index = self.split(name)
                if source is data:
                    available[index] = False
        sizes = torch.bincount(data.targets[available], minlength=self.num_classes)
        return self.imbalance.resolve(self.class_names).reduced(sizes, self.seed)

    def train_dataloader(self) -> ResumableDataLoader:
        """Give shuffled batches whose order and augmentation depend on seed and epoch alone."""
        data, index = self.split("train")
        weights = None
        if self.sampling != "instance":
            weights = self.class_counts[data.targets[index]].double() ** -_SAMPLING_POWER[self.sampling]
        sampler = self._sampler(len(index), shuffle=True, weights=weights)
        one_by_one = not isinstance(self.train_transform, BatchTransform | None)
        data, options = self._place(data, one_by_one)
        return ResumableDataLoader(_Transformed(data, index, self.train_transform), sampler, **options)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Give the validation set in its order, or no loader where there is none."""
        return self._evaluation_loader("val") if len(self.split("val")[1]) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Give the test set in its order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Give the test set in its order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, name: Split) -> DataLoader[Batch]:
        data, index = self.split(name)
        data, options = self._place(data, one_by_one=False)
        sampler = self._sampler(len(index), shuffle=False)
        return DataLoader(
            _Transformed(data, index, self.eval_transform),
            batch_size=None,
            sampler=sampler,
            worker_init_fn=leave_signals_to_the_main_process,
            **options,
        )

    def _place(self, data: Images, one_by_one: bool) -> tuple[Images, dict[str, Any]]:
        """Choose who makes the batches: worker processes, or for data in memory the device that trains."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        in_memory = isinstance(data, ImagesInMemory)
        workers = self.num_workers
        if workers is None:
            processes = self.trainer.num_devices if self.trainer else 1
            workers = 0 if in_memory and not one_by_one else suggested_max_num_workers(processes)
        on_cuda = device.type == "cuda"
        if isinstance(data, ImagesInMemory) and on_cuda and workers == 0 and not one_by_one:
            return data.to(device), {"num_workers": 0}
        return data, {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": on_cuda}

    def _sampler(self, size: int, shuffle: bool, weights: Tensor | None = None) -> BatchSampler:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return BatchSampler(
            size,
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            weights=weights,
            num_replicas=replicas,
            rank=rank,
        )

    def _size_after_preprocessing(self) -> tuple[int, int]:
        sizes = [self.native_size] if self.native_size else [(300, 400), (400, 300)]
        blanks = [torch.zeros(self.in_channels, *size, dtype=torch.uint8) for size in sizes]
        height, width = apply_transform(self.eval_transform, blanks, seeds=None).shape[-2:]
        return height, width

    def _checked(self, split: Split, optional: bool = False) -> Any:
        data = self.load(split)
        if data is None:
            if optional:
                return None
            raise ValueError(f"Expected {split} data but {type(self).__name__} has none")
        if not len(data.targets):
            raise ValueError(f"Expected images in the {split} data of {type(self).__name__} but got none")
        low, high = data.targets.aminmax()
        if low < 0 or high >= self.num_classes:
            wrong = int(low if low < 0 else high)
            raise ValueError(f"Expected targets in 0..{self.num_classes - 1} but got {wrong} in the {split} data")
        return data

    def _imbalanced(self, targets: Tensor, index: Tensor) -> Tensor:
        if self.imbalance is None:
            return index
        imbalance = self.imbalance.resolve(self.class_names)
        return index[imbalance.keep(targets[index], self.num_classes, self.seed)]

    def _without(self, targets: Tensor, index: Tensor, fraction: float, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Split a share of each class off."""
        sizes = torch.bincount(targets[index], minlength=self.num_classes)
        generator = derived_generator(purpose, self.seed)
        held_out = draw_per_class(targets[index], (sizes * fraction).round().long(), generator)
        kept = torch.ones(len(index), dtype=torch.bool)
        kept[held_out] = False
        return index[kept], index[held_out]


class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision, which knows where to download it, its checksums and its format.

    Args:
        root: Folder that holds, or is to hold, the data.
        batch_size: See :class:`ImageDataModule`, as for the arguments below.
        imbalance: What to do to the training set.
        evaluation: Where the test set comes from.
        val_fraction: Share of the training data that becomes the validation set.
        sampling: How training images are drawn.
        seed: Seed of the subset, the split, the order of the batches and the augmentation.
        num_workers: Processes that load batches.
        download: Download the data to ``root`` where they are not there yet.
        resolution: Height and width of the images that the network gets.
        train_transforms: Augmentation of training images.
        eval_transforms: Preprocessing of validation and test images.
        split_file: File of the indices of the three sets.
    """

    title: str
    """What the data set is called."""
    place: str
    """What of ``root`` holds the data."""

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        imbalance: Imbalance | None = None,
        evaluation: Literal["official", "holdout"] = "official",
        val_fraction: float = 0.1,
        sampling: Literal["instance", "square_root", "class_balanced"] = "instance",
        seed: int = 0,
        num_workers: int | None = None,
        download: bool = False,
        resolution: int | None = None,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        split_file: str | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            imbalance,
            evaluation,
            val_fraction,
            sampling,
            seed,
            num_workers,
            resolution,
            train_transforms,
            eval_transforms,
            split_file,
        )
        self.root = root
        self.download = download

    @abstractmethod
    def open(self, split: Split, download: bool) -> Any:
        """Open torchvision's data set; None where it has no such split."""

    @abstractmethod
    def read(self, data: Any) -> Images:
        """Take images and targets out of torchvision's data set."""

    def prepare_data(self) -> None:
        """Download the data if asked to, or see that they are there.

        Raises:
            FileNotFoundError: If they are not.
            ValueError: If the download fails.
        """
        try:
            self.open("train", self.download)
        except (RuntimeError, OSError) as error:
            if self.download:
                raise ValueError(
                    f"Expected to download {self.title} to {self.root!r} but it failed: {error}"
                ) from error
            raise FileNotFoundError(
                f"Expected {self.title} in {self.root!r} but it is not there. Download it with `--data.download true`, "
                f"or put its files into {os.path.join(self.root, self.place)}, or name another folder with "
                f"`--data.root`"
            ) from error

    def load(self, split: Split) -> Images | None:
        """Read a split."""
        data = self.open(split, download=False)
        return None if data is None else self.read(data)


class _Transformed(Dataset[Batch]):
    """Some samples of a data set, by batches of draws."""

    def __init__(self, data: Images, index: Tensor, transform: nn.Module | None) -> None:
        self.data = data
        self.index = index
        self.transform = transform

    def __getitem__(self, draws: Draws) -> Batch:
        images, targets = self.data[self.index[draws.positions]]
        return apply_transform(self.transform, images, draws.seeds), targets

    def __len__(self) -> int:
        return len(self.index)


def _digest(targets: Tensor) -> str:
    return f"{len(targets)} images, {hashlib.sha256(targets.numpy().tobytes()).hexdigest()[:16]}"
