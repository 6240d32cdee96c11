"""Flowers102."""

import torch
from torch import nn
from torchvision.datasets import Flowers102

from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.torchvision import TorchvisionDataModule
from scor_lightning.datamodules.transforms import paper_augmentation


class Flowers102DataModule(TorchvisionDataModule):
    """1,020, 1,020 and 6,149 photographs of flowers of 102 kinds, `Nilsback and Zisserman 2008 <https://www.robots.ox.ac.uk/~vgg/data/flowers/102>`_.

    The arguments are those of :class:`~scor_lightning.datamodules.TorchvisionDataModule`.
    """

    title = "Flowers102"
    place = "flowers-102"
    num_classes = 102
    class_names = tuple(Flowers102.classes)
    in_channels = 3

    def open(self, split: SplitName, download: bool) -> Flowers102:
        """Open torchvision's data set, which verifies the files' checksums; images are paths."""
        return Flowers102(self.root, split=split, download=download, loader=str)

    def read(self, data: Flowers102) -> ImageFiles:
        """Return the paths and targets."""
        paths, targets = zip(*(data[i] for i in range(len(data))), strict=True)
        return ImageFiles(paths, torch.tensor(targets))

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the SCoR paper's transform."""
        return paper_augmentation(size)
