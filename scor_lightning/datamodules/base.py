"""What all data modules share: the split, the imbalance and the loaders."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scor_lightning.datamodules.imbalance import Imbalance, draw_per_class
from scor_lightning.datamodules.sampler import BatchSampler, ResumableDataLoader
from scor_lightning.functional.random import Purpose, derived_generator

Batch = tuple[Tensor, Tensor]
# An image of class c is drawn in proportion to n_c ** -power, so class c in proportion to n_c ** (1 - power).
_SAMPLING_POWER = {"instance": 0.0, "square_root": 0.5, "class_balanced": 1.0}


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
        return self.images[index], self.targets[index]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.targets)


class ImageDataModule(LightningDataModule, ABC):
    """Images and labels, made imbalanced, split and batched.

    ``evaluation="official"`` tests on the data set's own test set: the validation set is split off the training data
    first, stratified, then the imbalance is made in what is left. ``evaluation="holdout"`` is the SCoR paper's
    protocol: the training data are reduced first, then split at random into 80 % for training and 20 % for the test,
    which so is as imbalanced as the training set. Subset and split depend on ``seed`` alone, whatever seed the
    training has.

    A subclass says what the data are by the attributes below and by :meth:`load`.

    Args:
        batch_size: Images a batch, the total over all processes.
        imbalance: What to do to the training set; None leaves it as it is.
        evaluation: Where the test set comes from.
        val_fraction: Share of the training data that becomes the validation set, in [0, 1). Without a validation set
            there is no best checkpoint and the last one is tested.
        sampling: ``"instance"`` gives every training image once an epoch. ``"class_balanced"`` draws as many images,
            each class as often as any other, and ``"square_root"`` each class in proportion to the square root of its
            size (`Kang et al. 2020 <https://arxiv.org/abs/1910.09217>`_); rare images then come several times.
        seed: Seed of the subset, the split and the order of the batches.
        num_workers: Processes that load batches; data held in memory need none.

    Attributes:
        num_classes: Number of classes K.
        class_names: Their K names.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the images.
        mean: Mean of each channel for images in [0, 1].
        std: Standard deviation of each channel for images in [0, 1].

    Raises:
        ValueError: If ``batch_size``, ``val_fraction`` or ``num_workers`` lies outside its range.
    """

    num_classes: int
    class_names: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int = 64,
        imbalance: Imbalance | None = None,
        evaluation: Literal["official", "holdout"] = "official",
        val_fraction: float = 0.1,
        sampling: Literal["instance", "square_root", "class_balanced"] = "instance",
        seed: int = 0,
        num_workers: int = 0,
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
        if num_workers < 0:
            raise ValueError(f"Expected `num_workers` >= 0 but got {num_workers}")
        self.batch_size = batch_size
        self.imbalance = imbalance
        self.evaluation = evaluation
        self.val_fraction = val_fraction
        self.sampling = sampling
        self.seed = seed
        self.num_workers = num_workers
        self._sets: dict[str, tuple[ImagesInMemory, Tensor]] = {}

    @abstractmethod
    def load(self, split: Literal["train", "test"]) -> ImagesInMemory:
        """Read the official training or test data, without touching the network."""

    def setup(self, stage: str | None = None) -> None:
        """Split the data and make the imbalance; the same at every stage, so done once.

        Raises:
            ValueError: If a target lies outside 0..K-1, or a class ends without training images.
        """
        if self._sets:
            return
        data = self._checked("train")
        train = torch.arange(len(data))
        if self.evaluation == "holdout":
            train = self._imbalanced(data.targets, train)
            order = train[torch.randperm(len(train), generator=derived_generator(Purpose.HOLDOUT, self.seed))]
            cut = int(0.8 * len(order))
            train, test = order[:cut].sort().values, order[cut:].sort().values
            train, val = self._without_validation(data.targets, train)
            test_data = data
        else:
            train, val = self._without_validation(data.targets, train)
            train = self._imbalanced(data.targets, train)
            test_data = self._checked("test")
            test = torch.arange(len(test_data))
        counts = torch.bincount(data.targets[train], minlength=self.num_classes)
        if not counts.all():
            missing = int((counts == 0).nonzero()[0])
            raise ValueError(f"Expected a training image of every class but got none of {self.class_names[missing]!r}")
        self._sets = {"train": (data, train), "val": (data, val), "test": (test_data, test)}

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class after the imbalance, int64 ``[K]``; needs :meth:`setup`."""
        data, train = self._split("train")
        return torch.bincount(data.targets[train], minlength=self.num_classes)

    def train_dataloader(self) -> ResumableDataLoader:
        """Give shuffled batches whose order depends on seed and epoch alone."""
        data, index = self._split("train")
        weights = None
        if self.sampling != "instance":
            weights = self.class_counts[data.targets[index]].double() ** -_SAMPLING_POWER[self.sampling]
        sampler = self._sampler(len(index), shuffle=True, weights=weights)
        return ResumableDataLoader(
            _Indexed(data, index), sampler, self.num_workers, persistent_workers=self.num_workers > 0
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Give the validation set in its order, or no loader where there is none."""
        return self._evaluation_loader("val") if len(self._split("val")[1]) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Give the test set in its order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Give the test set in its order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        data, index = self._split(split)
        sampler = self._sampler(len(index), shuffle=False)
        return DataLoader(_Indexed(data, index), batch_size=None, sampler=sampler, num_workers=self.num_workers)

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

    def _split(self, name: str) -> tuple[ImagesInMemory, Tensor]:
        if not self._sets:
            raise RuntimeError("Expected `setup()` to be called before the data are used")
        return self._sets[name]

    def _checked(self, split: Literal["train", "test"]) -> ImagesInMemory:
        data = self.load(split)
        low, high = data.targets.aminmax()
        if low < 0 or high >= self.num_classes:
            wrong = int(low if low < 0 else high)
            raise ValueError(f"Expected targets in 0..{self.num_classes - 1} but got {wrong} in the {split} data")
        return data

    def _imbalanced(self, targets: Tensor, index: Tensor) -> Tensor:
        if self.imbalance is None:
            return index
        return index[self.imbalance.keep(targets[index], self.num_classes, self.seed)]

    def _without_validation(self, targets: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        sizes = torch.bincount(targets[index], minlength=self.num_classes)
        val = draw_per_class(
            targets[index], (sizes * self.val_fraction).round().long(), derived_generator(Purpose.VALIDATION, self.seed)
        )
        train = torch.ones(len(index), dtype=torch.bool)
        train[val] = False
        return index[train], index[val]


class _Indexed(Dataset[Batch]):
    """Some samples of a data set, by batches of positions."""

    def __init__(self, data: ImagesInMemory, index: Tensor) -> None:
        self.data = data
        self.index = index

    def __getitem__(self, position: Tensor) -> Batch:
        return self.data[self.index[position]]

    def __len__(self) -> int:
        return len(self.index)
