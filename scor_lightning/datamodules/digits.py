"""The 8 x 8 digits of scikit-learn."""

import torch

from scor_lightning.datamodules.base import ImageDataModule
from scor_lightning.datamodules.images import ImagesInMemory
from scor_lightning.datamodules.imbalance import draw_per_class
from scor_lightning.datamodules.split import SplitName
from scor_lightning.seeding import Purpose, derived_generator


class DigitsDataModule(ImageDataModule):
    """1,797 handwritten digits of 8 x 8 pixels, bundled with scikit-learn: no download, seconds to train.

    The data set has no official test set; a fixed stratified fifth, the same for every seed, is used. Pixel values 0..16
    are scaled to bytes, so that a digit can be predicted from an image file.

    The arguments are those of :class:`~scor_lightning.datamodules.ImageDataModule`.

    Example:
        >>> from scor_lightning.datamodules import ReduceClasses
        >>> data = DigitsDataModule(imbalance=ReduceClasses(factor=0.1, classes=[3]))
        >>> data.setup()
        >>> data.class_counts
        tensor([128, 131, 128,  13, 131, 131, 131, 129, 125, 130])
    """

    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    in_channels = 1
    native_size = (8, 8)
    mean = (0.0,)  # images stay in [0, 1], as for MNIST in the paper
    std = (1.0,)

    def load(self, split: SplitName) -> ImagesInMemory | None:
        """Read the bundled digits."""
        if split == "val":
            return None
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        targets = torch.from_numpy(digits.target).long()
        test = draw_per_class(targets, (targets.bincount() / 5).round().long(), derived_generator(Purpose.DIGITS_TEST))
        chosen = torch.zeros(len(targets), dtype=torch.bool)
        chosen[test] = True
        if split == "train":
            chosen = ~chosen
        return ImagesInMemory(images[chosen], targets[chosen])
