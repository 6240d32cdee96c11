"""The base class of all data modules: the split, the imbalance, the transforms and the loaders."""

import copy
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from typing_extensions import Self

from scor_lightning.datamodules.checks import (
    channel_values,
    check_at_least,
    check_choices,
    check_fractions,
    check_loaded,
    check_prepared_alike,
    check_readable,
)
from scor_lightning.datamodules.held import SHARE, Holding
from scor_lightning.datamodules.images import Batch, Images
from scor_lightning.datamodules.imbalance import Imbalance
from scor_lightning.datamodules.loader import SAMPLING_POWER, Loading, Sampling, sampling_weights
from scor_lightning.datamodules.part import Part, make_part, read_features
from scor_lightning.datamodules.sampler import ResumableDataLoader
from scor_lightning.datamodules.split import Split, SplitName, SplitSettings, obtain_split, split_path, write_split
from scor_lightning.datamodules.summary import notes_on_classes, summarize_split
from scor_lightning.datamodules.transforms import (
    apply_transform,
    compose,
    describe_transform,
    prepared_size,
)
from scor_lightning.description import DataDescription

# Of ImageNet's training images in [0, 1]; https://pytorch.org/vision/stable/models.html
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageDataModule(LightningDataModule, ABC):
    """Images and labels, made imbalanced, split, augmented and batched.

    With ``evaluation="official"``, the data set's own test set is used: the validation set is split off the training data,
    stratified, before the remaining training images are made imbalanced. ``evaluation="holdout"`` is the SCoR paper's
    protocol: the training data are reduced first, then split at random into 80 % for training and 20 % for testing, so
    that the test set is as imbalanced as the training set. If a data set has no test set, a stratified fifth of its
    training data is used. Subset and split depend on ``seed`` alone, not on the seed of the training.

    A subclass describes the data by the class attributes below and implements :meth:`load`.

    Args:
        batch_size: Images per batch, the total over all processes.
        imbalance: Imbalance of the training set; None leaves it unchanged.
        evaluation: Source of the test set, see above.
        val_fraction: Share of the training data that becomes the validation set, in [0, 1); ignored if the data set has its
            own validation set. With 0 there is no validation set, and the last checkpoint is tested.
        sampling: ``"instance"`` draws every training image once per epoch. ``"class_balanced"`` draws as many images,
            all classes equally often, and ``"square_root"`` draws each class in proportion to the square root of its
            size (`Kang et al. 2020 <https://arxiv.org/abs/1910.09217>`_); rare images are then repeated.
        sampling_start: Share of the epochs, in [0, 1), after which ``sampling`` takes effect: deferred re-sampling. Before
            that, every training image is drawn once per epoch.
        partner_sampling: How partners are drawn for mixing methods that need them, such as :class:`~scor_lightning.mixing.CMO`;
            each batch is followed by equally many partners. None draws none.
        seed: Seed of the subset, the split, the order of the batches and the augmentation.
        num_workers: Processes that load batches. None uses the free cores if images are decoded or augmented one by one, and
            0 if batches are made from images in memory.
        resolution: Height and width in pixels of the network's input; None keeps the stored size, or resizes to
            224 x 224 if sizes differ.
        train_transforms: Augmentation of training images, transforms of ``torchvision.transforms.v2`` on uint8
            ``[C, H, W]``; None uses the data set's own, an empty list none. The random numbers of an image are a
            function of ``(seed, epoch, index)``; transforms should draw them from torch.
        eval_transforms: Preprocessing of validation and test images, deterministic; None uses the data set's own.
        split_file: File with the indices of the three sets. It is written if it does not exist, and read instead of
            drawing a split if it does.
        augment: False prepares training images like evaluation images, so that the features of a frozen body are computed
            once per image.
        cache: Folder for the features of frozen bodies; None is the user's cache folder.
        mean: Mean of each channel, for images in [0, 1], for normalisation; None uses that of the network's pretrained
            weights, or the data set's own.
        std: Standard deviation of each channel, for the same; given together with ``mean``.

    Attributes:
        features: Files of the features that replace the images, by part of the data set; empty if there are none.
        features_computed: Settings with which they were computed: ``memory_format``, ``precision`` and ``device``.
        memory_share: Share of the free memory, in [0, 1], up to which image files are decoded once and held in memory, after
            the transforms that training and evaluation share, if there is more than one epoch. Other files are decoded in
            every epoch.
        description: The description of the data, set by :meth:`setup`.
        num_classes: Number of classes K.
        class_names: Their K names.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the network's input.
        native_size: Height and width (H, W) of the stored images; None if they differ.
        default_resolution: Height and width if ``resolution`` is None, unless they are the stored ones or 224.
        mean: Mean of each channel for images in [0, 1].
        std: Standard deviation of each channel for images in [0, 1].
        train_transform: The transform of training images, or None.
        eval_transform: The transform of validation and test images, or None.

    Raises:
        ValueError: If an argument is out of range, or ``eval_transforms`` returns images of several sizes.
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
        sampling: Sampling = "instance",
        sampling_start: float = 0.0,
        partner_sampling: Sampling | None = None,
        seed: int = 0,
        num_workers: int | None = None,
        resolution: int | None = None,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        split_file: str | None = None,
        augment: bool = True,
        cache: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, resolution=resolution)
        check_at_least(0, seed=seed, num_workers=num_workers)
        check_fractions(val_fraction=val_fraction, sampling_start=sampling_start)
        check_choices(("official", "holdout"), evaluation=evaluation)
        check_choices(SAMPLING_POWER, sampling=sampling)
        check_choices((None, *SAMPLING_POWER), partner_sampling=partner_sampling)
        self.batch_size = batch_size
        self.imbalance = imbalance
        self.evaluation = evaluation
        self.val_fraction = val_fraction
        self.sampling = sampling
        self.sampling_start = sampling_start
        self.partner_sampling = partner_sampling
        self.seed = seed
        self.num_workers = num_workers
        self.resolution = resolution
        self.split_file = split_file
        self.cache = cache
        for name in ("num_classes", "class_names", "in_channels"):
            if name not in dir(self):  # unlike hasattr, it evaluates no property
                raise ValueError(f"Expected a class attribute `{name}` of {type(self).__name__} but it has none")
        self.normalizes = mean is not None
        given = (mean, std) if mean is not None or std is not None else (self.mean, self.std)
        self.mean, self.std = channel_values(*given, self.in_channels)
        self.features: dict[SplitName, Path] = {}
        self.features_computed: dict[str, str] = {}
        self.memory_share = SHARE
        if not augment and train_transforms is not None:
            raise ValueError("Expected no `train_transforms` with `augment` false, which takes those for evaluation")
        side = resolution or self.default_resolution
        size = (side, side) if side else self.native_size or (224, 224)
        self.eval_transform = compose(
            self.default_eval_transforms(size) if eval_transforms is None else eval_transforms
        )
        self.train_transform = self.eval_transform
        if augment:
            self.train_transform = compose(
                self.default_train_transforms(size) if train_transforms is None else train_transforms
            )
        self._prepares_pictures = self.eval_transform
        self.image_size = prepared_size(self.eval_transform, self.in_channels, self.native_size)
        self._parts: dict[SplitName, Part | None] = {}  # shared with copies that have another seed
        self._split: Split | None = None
        self.description: DataDescription | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude images and trainer, which another process loads itself; a copy requires :meth:`setup`."""
        return {**vars(self), "_parts": {}, "_split": None, "description": None, "trainer": None}

    @abstractmethod
    def load(self, split: SplitName) -> Images | None:
        """Read the official training, validation or test data without touching the network; None if there are none."""

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the data set's own training transform to a size (H, W)."""
        return self.default_eval_transforms(size)

    def default_eval_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the data set's own deterministic transform to a size (H, W)."""
        return [] if self.native_size == size else [v2.Resize(size)]

    def setup(self, stage: str | None = None) -> None:
        """Split the data and apply the imbalance, once for all stages. Before a training, print the data summary.

        Raises:
            ValueError: If a target is outside 0..K-1, a class has no training images left, or ``split_file`` belongs to other
                data or settings.
        """
        if self._split is None:
            file = split_path(self.split_file)
            self.part("train")  # some data sets read their class names here
            class_names, kind = tuple(map(str, self.class_names)), type(self).__name__
            if len(class_names) != self.num_classes:
                raise ValueError(f"Expected {self.num_classes} class names of {kind} but got {len(class_names)}")
            settings = SplitSettings(
                data=kind,
                class_names=class_names,
                imbalance=self.imbalance,
                evaluation=self.evaluation,
                val_fraction=self.val_fraction,
                seed=self.seed,
            )
            self._split = obtain_split(settings, file, self.part)
            self.description = DataDescription(
                class_names=class_names,
                class_counts=tuple(self._split.counts["train"].tolist()),
                reduced_classes=self._split.reduced_classes,
                image_size=self.image_size,
                mean=tuple(self.mean),
                std=tuple(self.std),
                eval_transform=describe_transform(self.eval_transform),
            )
        if stage == "fit":
            self._show_summary()
            holding = self._holding()
            for name, images in holding.decode(self._used_images()).items():
                self._parts[name] = replace(self._used_part(name), images=images)
            if not holding.features_follow:
                check_readable(self.split, self.trainer)
            if not self.features:
                check_prepared_alike(self.split, self.train_transform, self.eval_transform)

    @classmethod
    def arguments(cls) -> list[str]:
        """List the names of all arguments, including those of base classes."""
        inits = (
            kind.__init__ for kind in cls.__mro__ if issubclass(kind, ImageDataModule) and "__init__" in vars(kind)
        )
        parameters = [p for init in inits for p in inspect.signature(init).parameters.values()]
        named = (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self")
        return list(dict.fromkeys(named))

    def with_seed(self, seed: int) -> Self:
        """Return a copy with another seed, which draws another subset and split from the same loaded images."""
        self.part("train")  # some data sets read their class names here
        other = copy.copy(self)
        other.seed, other._parts = seed, self._parts
        return other

    def share_images(self, known: dict[bytes, dict[SplitName, Part | None]]) -> None:
        """Share loaded images with data modules of the same class and arguments.

        Args:
            known: Parts by class and arguments; this module's are looked up in it or added to it.
        """
        self._parts = known.setdefault(cloudpickle.dumps(self), self._parts)

    def part(self, name: SplitName) -> Part | None:
        """Return a part of the data set, which is read once and checked; None if there is none.

        Args:
            name: The part.

        Raises:
            ValueError: If its images or targets contradict the class attributes.
        """
        if name not in self._parts:
            images, kind = self.load(name), type(self).__name__
            if images is not None:
                check_loaded(images, name, kind, self.num_classes, self.in_channels, self.native_size)
            self._parts[name] = None if images is None else make_part(images, self.features.get(name))
        return self._parts[name]

    def _used_part(self, name: SplitName) -> Part:
        part = self.part(name)
        assert part is not None  # the split refers to it
        return part

    def num_features(self, name: SplitName) -> int:
        """Return the number of features D of a part of the data set whose images are replaced by features."""
        return read_features(self.features[name]).shape[1]

    def sources(self) -> list[SplitName]:
        """List the parts of the data set from which the three sets are drawn; requires :meth:`setup`."""
        return self._after_setup().parts

    def source(self, name: SplitName, num_workers: int | None = None) -> tuple[Images, DataLoader[Batch]]:
        """Return all images of a part of the data set, and a loader that yields them in order, prepared for evaluation.

        Args:
            name: The part.
            num_workers: Processes that load batches, unless the data module has a number.
        """
        images = self._used_part(name).images
        index = torch.arange(len(images.targets))
        return images, self._loading(num_workers).evaluation_loader(images, index, self.eval_transform)

    def pictures(self, name: SplitName, positions: Sequence[int]) -> Tensor:
        """Return images of a set, prepared for evaluation, also if features replace them; requires :meth:`setup`.

        Args:
            name: The set.
            positions: Their indices in the set, from 0.

        Returns:
            uint8 or float ``[n, C, H, W]``.
        """
        split = self._after_setup()
        images = self.load(split.sources[name])
        assert images is not None  # the split refers to it
        pixels, _ = images[split.indices[name][list(positions)]]
        return apply_transform(self._prepares_pictures, pixels, seeds=None)

    def use_features(self, files: Mapping[SplitName, Path], computed: Mapping[str, str]) -> None:
        """Replace the images by the features of frozen bodies, see :mod:`scor_lightning.features`.

        Args:
            files: NumPy archives with ``features``, float32 ``[N, D]``, by part of the data set.
            computed: Settings with which they were computed, for reports: ``memory_format``, ``precision`` and ``device``.
        """
        self.features, self.features_computed = dict(files), dict(computed)
        self._parts = {}
        self._prepares_pictures = self.eval_transform
        self.train_transform = self.eval_transform = None

    def save_split(self, path: str | os.PathLike[str]) -> None:
        """Write the indices of the three sets to a JSON file, for ``split_file``; requires :meth:`setup`."""
        write_split(self._after_setup(), Path(path), {name: self._used_part(name) for name in self.sources()})

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class after the imbalance, int64 ``[K]``; requires :meth:`setup`."""
        return self._after_setup().counts["train"].clone()

    def _after_setup(self) -> Split:
        if self._split is None:
            raise RuntimeError("Expected `setup()` to be called before the data are used")
        return self._split

    def split(self, name: SplitName) -> tuple[Images, Tensor]:
        """Return the data of a set and the indices that belong to it, int64 ``[n]``; requires :meth:`setup`."""
        split = self._after_setup()
        return self._used_part(split.sources[name]).images, split.indices[name]

    def resampling_ratio(self) -> float | None:
        """Return n_test/n_train before the imbalance if the seed determines the test images, otherwise None."""
        return self._after_setup().resampling_ratio

    def summary(self) -> str:
        """Return the data summary: the sets, the imbalance and the first class counts; requires :meth:`setup`."""
        shape = (self.in_channels, *self.image_size)
        return summarize_split(
            self._after_setup(), shape, self._holding().bytes_to_hold(self._used_images()), self.notes()
        )

    def notes(self) -> list[str]:
        """Describe the classes whose test results are uncertain or missing, one line each; requires :meth:`setup`."""
        return notes_on_classes(self._after_setup())

    def _holding(self) -> Holding:
        return Holding(self.train_transform, self.eval_transform, self.in_channels, self.memory_share, self.trainer)

    def _used_images(self) -> dict[SplitName, Images]:
        return {name: self._used_part(name).images for name in self.sources()}

    @rank_zero_only
    def _show_summary(self) -> None:
        print(self.summary(), flush=True)

    def train_dataloader(self) -> ResumableDataLoader:
        """Return shuffled batches whose order and augmentation depend only on seed and epoch."""
        images, index = self.split("train")
        loading, targets, counts = self._loading(), images.targets[index], self.class_counts
        weights, first_epoch, partner_weights = None, 0, None
        if self.sampling != "instance":
            weights = sampling_weights(self.sampling, counts, targets)
            first_epoch = loading.first_epoch_after(self.sampling_start)
        if self.partner_sampling is not None:
            partner_weights = sampling_weights(self.partner_sampling, counts, targets)
        return loading.training_loader(images, index, self.train_transform, weights, first_epoch, partner_weights)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation set in its order, or no loader if there is none."""
        return self._evaluation_loader("val") if len(self.split("val")[1]) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test set in its order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the test set in its order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, name: SplitName) -> DataLoader[Batch]:
        return self._loading().evaluation_loader(*self.split(name), self.eval_transform)

    def _loading(self, num_workers: int | None = None) -> Loading:
        chosen = num_workers if self.num_workers is None else self.num_workers
        return Loading(self.batch_size, self.seed, chosen, self.trainer)
