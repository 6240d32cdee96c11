"""The Oxford-IIIT Pet data set."""

import torch
from torch import nn
from torchvision.datasets import OxfordIIITPet

from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.torchvision import TorchvisionDataModule
from scor_lightning.datamodules.transforms import paper_augmentation


class OxfordPetsDataModule(TorchvisionDataModule):
    """3,680 and 3,669 photographs of cats and dogs of 37 breeds, `Parkhi et al. 2012 <https://www.robots.ox.ac.uk/~vgg/data/pets>`_.

    The arguments are those of :class:`~scor_lightning.datamodules.TorchvisionDataModule`.
    """

    title = "Oxford-IIIT Pet"
    place = "oxford-iiit-pet"
    num_classes = 37
    class_names = tuple(str(c) for c in range(37))  # until the data are read
    in_channels = 3

    def open(self, split: SplitName, download: bool) -> OxfordIIITPet | None:
        """Open torchvision's data set, which verifies the archives' checksums."""
        if split == "val":
            return None
        return OxfordIIITPet(self.root, split="trainval" if split == "train" else "test", download=download)

    def read(self, data: OxfordIIITPet) -> ImageFiles:
        """Return the paths and targets, which torchvision stores in private attributes."""
        self.class_names = tuple(data.classes)
        return ImageFiles([str(path) for path in data._images], torch.tensor(data._labels))

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the SCoR paper's transform."""
        return paper_augmentation(size)
