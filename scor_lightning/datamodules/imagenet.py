"""ImageNet, its long-tailed subset, and data in its form."""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.datasets import FakeData
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from scor_lightning.datamodules.base import Images, Split
from scor_lightning.datamodules.image_folder import ImageFolderDataModule
from scor_lightning.datamodules.imbalance import Imbalance


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet as it is unpacked: ``train`` and ``val`` with a folder a class; ``val`` is the test set.

    The validation set is split off the training data, so that no choice is made on the test set. ImageNet-LT is the
    same folder with its published lists. Training images are cropped at random and flipped, test images resized to
    256/224 of the resolution and cropped in the middle.
    `Russakovsky et al. 2015 <https://www.image-net.org>`_; `Liu et al. 2019 <https://arxiv.org/abs/1904.05160>`_.

    Args:
        root: Folder that holds ``train`` and ``val``.
        fake: Random images in place of files, as many as ImageNet has, for trying out speed and settings. They are
            torchvision's ``FakeData``, with the classes in turn, so that the counts are known without making them.
        train_list: List file of the training images, in place of folders.
        val_list: List file of the validation images.
        test_list: List file of the test images.
        unreadable: What to do with images that cannot be read, as in
            :class:`~scor_lightning.datamodules.ImageFolderDataModule`.
        batch_size: See :class:`ImageDataModule`, as for the arguments below.
        imbalance: What to do to the training set.
        evaluation: Where the test set comes from.
        val_fraction: Share of the training data that becomes the validation set.
        sampling: How training images are drawn.
        seed: Seed of the subset, the split, the order of the batches and the augmentation.
        num_workers: Processes that load batches.
        resolution: Height and width of the images that the network gets, 224 by default.
        train_transforms: Augmentation of training images.
        eval_transforms: Preprocessing of validation and test images.
        split_file: File of the indices of the three sets.

    Raises:
        FileNotFoundError: If ``train`` or ``val`` is not there.
        ValueError: If they name different classes, or another argument lies outside its range.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        fake: bool = False,
        train_list: str | None = None,
        val_list: str | None = None,
        test_list: str | None = None,
        unreadable: Literal["error", "skip"] = "error",
        batch_size: int = 256,
        imbalance: Imbalance | None = None,
        evaluation: Literal["official", "holdout"] = "official",
        val_fraction: float = 0.01,
        sampling: Literal["instance", "square_root", "class_balanced"] = "instance",
        seed: int = 0,
        num_workers: int | None = None,
        resolution: int | None = None,
        train_transforms: list[nn.Module] | None = None,
        eval_transforms: list[nn.Module] | None = None,
        split_file: str | None = None,
    ) -> None:
        super().__init__(
            root,
            train_list,
            val_list,
            test_list,
            unreadable,
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
        self.fake = fake

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders."""
        if self.fake:
            return tuple(map(str, range(1000)))
        if not self.train_list and not (self._folder("train") and self._folder("val")):
            raise FileNotFoundError(
                f"Expected `train` and `val` with a folder a class in {self.root!r}, as "
                f"https://github.com/pytorch/examples/tree/main/imagenet unpacks ImageNet, but they are not there; name "
                f"their folder with `--data.root`, or try `--data.fake true`"
            )
        return super().class_names

    def load(self, split: Split) -> Images | None:  # type: ignore[override]
        """List the images of a split."""
        if self.fake:
            return {"train": _Fake(1_281_167), "val": None, "test": _Fake(50_000, first=1_281_167)}[split]
        if self.train_list:
            return super().load(split)
        return None if split == "val" else super().load("train" if split == "train" else "val")

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Give the random crop and flip."""
        return [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]

    def default_eval_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Give the resize and central crop."""
        return [v2.Resize(round(size[0] * 256 / 224)), v2.CenterCrop(size)]


class _Fake:
    """Random images of 224 x 224 pixels in 1,000 classes."""

    def __init__(self, size: int, first: int = 0) -> None:
        self.data = FakeData(size, (3, 224, 224), 1000, random_offset=first)
        self.targets = torch.arange(size) % 1000

    def __getitem__(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        return [pil_to_tensor(self.data[i][0]) for i in index.tolist()], self.targets[index]
