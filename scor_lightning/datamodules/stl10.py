"""STL-10."""

import torch
from torch import nn
from torchvision.datasets import STL10

from scor_lightning.datamodules.images import ImagesInMemory
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.torchvision import TorchvisionDataModule
from scor_lightning.datamodules.transforms import paper_augmentation


class STL10DataModule(TorchvisionDataModule):
    """5,000 and 8,000 labelled images of 96 x 96 pixels in 10 classes, `Coates et al. 2011 <https://cs.stanford.edu/~acoates/stl10>`_.

    They are enlarged to 224 x 224 by default, as in the SCoR paper; ``resolution=96`` keeps their size. The arguments are those of :class:`~scor_lightning.datamodules.TorchvisionDataModule`.
    """

    title = "STL-10"
    place = "stl10_binary"
    num_classes = 10
    class_names: tuple[str, ...] = (
        "airplane",
        "bird",
        "car",
        "cat",
        "deer",
        "dog",
        "horse",
        "monkey",
        "ship",
        "truck",
    )
    in_channels = 3
    native_size = (96, 96)
    default_resolution = 224

    def open(self, split: SplitName, download: bool) -> STL10 | None:
        """Open torchvision's data set, which verifies the files' checksums."""
        return None if split == "val" else STL10(self.root, split=split, download=download)

    def read(self, data: STL10) -> ImagesInMemory:
        """Return the images as stored in the binary files."""
        return ImagesInMemory(torch.from_numpy(data.data).contiguous(), torch.from_numpy(data.labels).long())

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the SCoR paper's transform."""
        return paper_augmentation(size)
