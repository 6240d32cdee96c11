"""Data sets that torchvision downloads and reads."""

import os
from abc import abstractmethod
from typing import Any

from scor_lightning.datamodules.base import ImageDataModule
from scor_lightning.datamodules.images import Images
from scor_lightning.datamodules.split import SPLITS, SplitName


class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision, which knows where to download it, its checksums and its format.

    Args:
        root: Folder of the data, or to which they are downloaded.
        download: Download the data to ``root`` if they are missing.
        **kwargs: Arguments of :class:`~scor_lightning.datamodules.ImageDataModule`.
    """

    title: str
    """Name of the data set, for messages."""
    place: str
    """Subfolder of ``root`` with the files that torchvision reads, for messages, such as ``"MNIST/raw"``."""

    def __init__(self, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.download = download

    @abstractmethod
    def open(self, split: SplitName, download: bool) -> Any:
        """Open torchvision's data set; None if it has no such split."""

    @abstractmethod
    def read(self, data: Any) -> Images:
        """Return images and targets of torchvision's data set."""

    def prepare_data(self) -> None:
        """Download the data if requested, or check that they exist.

        Raises:
            FileNotFoundError: If they do not.
            ValueError: If the download fails.
        """
        for split in SPLITS if self.download else ("train",):
            self._opened(split, self.download)

    def load(self, split: SplitName) -> Images | None:
        """Read a split."""
        data = self._opened(split, download=False)
        return None if data is None else self.read(data)

    def _opened(self, split: SplitName, download: bool) -> Any:
        try:
            return self.open(split, download)
        except (RuntimeError, OSError) as error:
            if download:
                raise ValueError(f"Could not download {self.title} to {self.root!r}: {error}") from error
            raise FileNotFoundError(
                f"{self.title} was not found in {self.root!r}: download it with `--data.download true`, put its files "
                f"into {os.path.normpath(os.path.join(self.root, self.place))!r}, or name another folder with `--data.root`"
                f"{f' ({error})' if isinstance(error, OSError) else ''}"
            ) from error
