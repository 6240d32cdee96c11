"""The Describable Textures Dataset."""

from typing import Literal

import torch
from torch import nn
from torchvision.datasets import DTD

from scor_lightning.datamodules.base import Split, TorchvisionDataModule
from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.imbalance import Imbalance
from scor_lightning.datamodules.transforms import paper_augmentation


class DTDDataModule(TorchvisionDataModule):
    """1,880, 1,880 and 1,880 photographs of textures of 47 kinds, `Cimpoi et al. 2014 <https://www.robots.ox.ac.uk/~vgg/data/dtd>`_.

    Args:
        root: Folder that holds, or is to hold, ``dtd``.
        partition: Which of the ten published partitions, 1 to 10.
        batch_size: See :class:`ImageDataModule`, as for the arguments below.
        imbalance: What to do to the training set.
        evaluation: Where the test set comes from.
        val_fraction: With 0 the published validation set is not used.
        sampling: How training images are drawn.
        seed: Seed of the subset, the split, the order of the batches and the augmentation.
        num_workers: Processes that load batches.
        download: Download the data to ``root`` where they are not there yet.
        resolution: Height and width of the images that the network gets.
        train_transforms: Augmentation of training images.
        eval_transforms: Preprocessing of validation and test images.
        split_file: File of the indices of the three sets.

    Raises:
        ValueError: If ``partition`` is not in 1..10, or another argument lies outside its range.
    """

    title = "DTD"
    place = "dtd/dtd"
    num_classes = 47
    class_names = tuple(str(c) for c in range(47))  # until the data are read
    in_channels = 3

    def __init__(
        self,
        root: str = "data",
        partition: int = 1,
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
        if not 1 <= partition <= 10:
            raise ValueError(f"Expected `partition` in 1..10 but got {partition}")
        self.partition = partition
        super().__init__(
            root,
            batch_size,
            imbalance,
            evaluation,
            val_fraction,
            sampling,
            seed,
            num_workers,
            download,
            resolution,
            train_transforms,
            eval_transforms,
            split_file,
        )

    def open(self, split: Split, download: bool) -> DTD:
        """Open torchvision's data set, which checks the archive's sum; an image is its path."""
        return DTD(self.root, split=split, partition=self.partition, download=download, loader=str)

    def read(self, data: DTD) -> ImageFiles:
        """Take the paths."""
        self.class_names = tuple(data.classes)
        paths, targets = zip(*(data[i] for i in range(len(data))), strict=True)
        return ImageFiles(paths, torch.tensor(targets))

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Give the SCoR paper's transform."""
        return paper_augmentation(size)
