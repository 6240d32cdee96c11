"""MNIST."""

from typing import Literal

from torchvision.datasets import MNIST

from scor_lightning.datamodules.base import ImageDataModule, ImagesInMemory
from scor_lightning.datamodules.imbalance import Imbalance


class MNISTDataModule(ImageDataModule):
    """60,000 and 10,000 handwritten digits of 28 x 28 pixels, `LeCun et al. 1998 <http://yann.lecun.com/exdb/mnist>`_.

    Args:
        root: Folder that holds, or is to hold, ``MNIST/raw``.
        batch_size: See :class:`ImageDataModule`, as for the arguments below.
        imbalance: What to do to the training set.
        evaluation: Where the test set comes from.
        val_fraction: Share of the training data that becomes the validation set.
        sampling: How training images are drawn.
        seed: Seed of the subset, the split and the order of the batches.
        num_workers: Processes that load batches.
        download: Download the data to ``root`` where they are not there yet.
    """

    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    in_channels = 1
    image_size = (28, 28)
    mean = (0.0,)  # the paper's package trains on images in [0, 1] as they are
    std = (1.0,)

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        imbalance: Imbalance | None = None,
        evaluation: Literal["official", "holdout"] = "official",
        val_fraction: float = 0.1,
        sampling: Literal["instance", "square_root", "class_balanced"] = "instance",
        seed: int = 0,
        num_workers: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__(batch_size, imbalance, evaluation, val_fraction, sampling, seed, num_workers)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download the data if asked to, or see that they are there.

        Raises:
            FileNotFoundError: If they are not.
            ValueError: If the download fails.
        """
        try:
            MNIST(self.root, download=self.download)
        except (RuntimeError, OSError) as error:
            if self.download:
                raise ValueError(f"Expected to download MNIST to {self.root!r} but it failed: {error}") from error
            raise FileNotFoundError(
                f"Expected MNIST in {self.root!r} but it is not there. Download it with `--data.download true`, "
                f"or put its four files into {self.root}/MNIST/raw, or name another folder with `--data.root`"
            ) from error

    def load(self, split: Literal["train", "test"]) -> ImagesInMemory:
        """Read the IDX files."""
        data = MNIST(self.root, train=split == "train")
        return ImagesInMemory(data.data.unsqueeze(1), data.targets.long())
