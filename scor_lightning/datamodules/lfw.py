"""Labeled Faces in the Wild."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from scor_lightning.datamodules.base import ImageDataModule
from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.folder_index import FolderIndex, index_folder
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.transforms import paper_augmentation


class LFWDataModule(ImageDataModule):
    """Faces of the people with enough photographs, `Huang et al. 2007 <http://vis-www.cs.umass.edu/lfw>`_.

    Of 5,749 people, 423 have at least 5 photographs; the others are ignored. There is no official test set for
    classification; a stratified fifth of the photographs is used. The SCoR paper's random split is
    ``evaluation="holdout"``.

    Args:
        root: Folder with one subfolder per person, or scikit-learn's data folder with ``lfw_home/lfw_funneled``.
        min_images: Minimum number of photographs of a person, at least 1.
        download: Download the data to ``root`` by scikit-learn if they are missing.
        **kwargs: Arguments of :class:`~scor_lightning.datamodules.ImageDataModule`.

    Raises:
        ValueError: If ``min_images`` is below 1, or another argument is out of range.
    """

    in_channels = 3

    def __init__(self, root: str = "data", min_images: int = 5, download: bool = False, **kwargs: Any) -> None:
        if min_images < 1:
            raise ValueError(f"Expected `min_images` >= 1 but got {min_images}")
        super().__init__(**kwargs)
        self.root = root
        self.min_images = min_images
        self.download = download

    @property
    def _folder(self) -> str:
        downloaded = os.path.join(self.root, "lfw_home", "lfw_funneled")
        return downloaded if os.path.isdir(downloaded) or self.download else self.root

    def prepare_data(self) -> None:
        """Download the data if requested, or check that they exist.

        Raises:
            FileNotFoundError: If they do not.
            ValueError: If the download fails.
        """
        if os.path.isdir(self._folder):
            return
        if not self.download:
            raise FileNotFoundError(
                f"Expected a folder of faces but there is no folder {self.root!r}. Download them with "
                f"`--data.download true`, or name another folder with `--data.root`"
            )
        from sklearn.datasets import fetch_lfw_people

        Path(self.root).mkdir(parents=True, exist_ok=True)
        with FileLock(os.path.join(self.root, "lfw.lock")):
            try:
                # One pixel of each, because only the files are needed.
                fetch_lfw_people(data_home=self.root, min_faces_per_person=1, slice_=(slice(0, 1),) * 2, resize=None)
            except OSError as error:
                raise ValueError(f"Expected to download LFW to {self.root!r} but it failed: {error}") from error

    @cached_property
    def _index(self) -> FolderIndex:
        self.prepare_data()  # the command line reads the number of classes before Lightning prepares the data
        everybody = index_folder(self._folder)
        counts = np.bincount(everybody.targets, minlength=len(everybody.classes))
        enough = counts >= self.min_images
        if not enough.any():
            raise ValueError(
                f"Expected people with at least `min_images` = {self.min_images} photographs in {self._folder!r} but "
                f"the most are {counts.max()}"
            )
        kept = enough[everybody.targets]
        names = tuple(name for name, there in zip(everybody.classes, enough.tolist(), strict=True) if there)
        return FolderIndex(names, everybody.paths[kept], (enough.cumsum() - 1)[everybody.targets[kept]])

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of people K with enough photographs."""
        return len(self._index.classes)

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Their names."""
        return self._index.classes

    def load(self, split: SplitName) -> ImageFiles | None:
        """List the photographs."""
        if split != "train":
            return None
        return ImageFiles(self._index.paths, torch.from_numpy(self._index.targets), self._folder)

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the SCoR paper's transform."""
        return paper_augmentation(size)
