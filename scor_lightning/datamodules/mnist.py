"""MNIST and Fashion-MNIST."""

from torchvision.datasets import MNIST, FashionMNIST

from scor_lightning.datamodules.images import ImagesInMemory
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.torchvision import TorchvisionDataModule


class MNISTDataModule(TorchvisionDataModule):
    """60,000 and 10,000 handwritten digits of 28 x 28 pixels, `LeCun et al. 1998 <http://yann.lecun.com/exdb/mnist>`_.

    The images stay in [0, 1] and are not augmented, as in the SCoR paper. The arguments are those of
    :class:`~scor_lightning.datamodules.TorchvisionDataModule`.
    """

    title = "MNIST"
    place = "MNIST/raw"
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    in_channels = 1
    native_size = (28, 28)
    mean = (0.0,)
    std = (1.0,)

    def open(self, split: SplitName, download: bool) -> MNIST | None:
        """Open torchvision's data set."""
        return None if split == "val" else MNIST(self.root, train=split == "train", download=download)

    def read(self, data: MNIST) -> ImagesInMemory:
        """Return the images as stored in the IDX files."""
        return ImagesInMemory(data.data.unsqueeze(1), data.targets.long())


class FashionMNISTDataModule(MNISTDataModule):
    """60,000 and 10,000 pictures of clothes of 28 x 28 pixels, `Xiao et al. 2017 <https://arxiv.org/abs/1708.07747>`_.

    Mean and standard deviation are those of the training images. The arguments are those of
    :class:`~scor_lightning.datamodules.TorchvisionDataModule`.
    """

    title = "Fashion-MNIST"
    place = "FashionMNIST/raw"
    class_names = tuple(FashionMNIST.classes)
    mean = (0.2860,)
    std = (0.3530,)

    def open(self, split: SplitName, download: bool) -> MNIST | None:
        """Open torchvision's data set."""
        return None if split == "val" else FashionMNIST(self.root, train=split == "train", download=download)
