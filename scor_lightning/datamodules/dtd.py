"""The Describable Textures Dataset."""

from typing import Any

import torch
from torch import nn
from torchvision.datasets import DTD

from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.torchvision import TorchvisionDataModule
from scor_lightning.datamodules.transforms import paper_augmentation


class DTDDataModule(TorchvisionDataModule):
    """1,880, 1,880 and 1,880 photographs of textures of 47 kinds, `Cimpoi et al. 2014 <https://www.robots.ox.ac.uk/~vgg/data/dtd>`_.

    Args:
        root: Folder of ``dtd``, or to which it is downloaded.
        partition: Number of the published partition, 1 to 10.
        **kwargs: Arguments of :class:`~scor_lightning.datamodules.TorchvisionDataModule`. With ``val_fraction=0`` the
            published validation set is not used.

    Raises:
        ValueError: If ``partition`` is not in 1..10, or another argument is out of range.
    """

    title = "DTD"
    place = "dtd/dtd"
    num_classes = 47
    class_names = tuple(str(c) for c in range(47))  # until the data are read
    in_channels = 3

    def __init__(self, root: str = "data", partition: int = 1, **kwargs: Any) -> None:
        if not 1 <= partition <= 10:
            raise ValueError(f"Expected `partition` in 1..10 but got {partition}")
        super().__init__(root, **kwargs)
        self.partition = partition

    def open(self, split: SplitName, download: bool) -> DTD:
        """Open torchvision's data set, which verifies the archive's checksum; images are paths."""
        return DTD(self.root, split=split, partition=self.partition, download=download, loader=str)

    def read(self, data: DTD) -> ImageFiles:
        """Return the paths and targets."""
        self.class_names = tuple(data.classes)
        paths, targets = zip(*(data[i] for i in range(len(data))), strict=True)
        return ImageFiles(paths, torch.tensor(targets))

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the SCoR paper's transform."""
        return paper_augmentation(size)
