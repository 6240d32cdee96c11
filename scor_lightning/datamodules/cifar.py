"""CIFAR-10 and CIFAR-100; long-tailed with :class:`~scor_lightning.datamodules.LongTail`."""

import torch
from torch import nn
from torchvision.datasets import CIFAR10, CIFAR100

from scor_lightning.datamodules.images import ImagesInMemory
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.torchvision import TorchvisionDataModule
from scor_lightning.datamodules.transforms import RandomCropAndFlip


class CIFAR10DataModule(TorchvisionDataModule):
    """50,000 and 10,000 images of 32 x 32 pixels in 10 classes, `Krizhevsky 2009 <https://www.cs.toronto.edu/~kriz/cifar.html>`_.

    Training images are randomly cropped after padding by 4 pixels and flipped, as in the SCoR paper and in the long-tail
    literature. CIFAR-10-LT is ``imbalance=LongTail(ratio=100), val_fraction=0``. Mean and standard deviation
    are those of the SCoR paper. The arguments are those of
    :class:`~scor_lightning.datamodules.TorchvisionDataModule`.
    """

    title = "CIFAR-10"
    place = "cifar-10-batches-py"
    num_classes = 10
    class_names: tuple[str, ...] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    in_channels = 3
    native_size = (32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    _kind = CIFAR10

    def open(self, split: SplitName, download: bool) -> CIFAR10 | None:
        """Open torchvision's data set, which checks the files' sums."""
        return None if split == "val" else self._kind(self.root, train=split == "train", download=download)

    def read(self, data: CIFAR10) -> ImagesInMemory:
        """Return the images of all batches."""
        self.class_names = tuple(data.classes)
        return ImagesInMemory(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the crop and flip."""
        return [*self.default_eval_transforms(size), RandomCropAndFlip(padding=4)]


class CIFAR100DataModule(CIFAR10DataModule):
    """50,000 and 10,000 images of 32 x 32 pixels in 100 classes, `Krizhevsky 2009 <https://www.cs.toronto.edu/~kriz/cifar.html>`_.

    Augmented as CIFAR-10. Mean and standard deviation are those of the training images. The arguments are those of
    :class:`~scor_lightning.datamodules.TorchvisionDataModule`.
    """

    title = "CIFAR-100"
    place = "cifar-100-python"
    num_classes = 100
    class_names = tuple(str(c) for c in range(100))  # until the data are read
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)
    _kind = CIFAR100
