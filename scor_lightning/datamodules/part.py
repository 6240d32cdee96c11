"""The parts of a data set: its official training, validation and test data, as they were read."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.folder_index import read_cache
from scor_lightning.datamodules.images import Images, ImagesInMemory


@dataclass(frozen=True)
class Part:
    """The images of a part of a data set, or what replaces them: features of a frozen body, or decoded images.

    Args:
        images: The images or features with their targets.
        paths: The image files, relative to the folder of the data set, bytes ``[N]``, also if something replaces the images;
            None if they are not files.
    """

    images: Images
    paths: npt.NDArray[np.bytes_] | None = None

    @property
    def targets(self) -> Tensor:
        """Class indices, int64 ``[N]``."""
        return self.images.targets

    @property
    def file_names(self) -> list[str]:
        """The paths as text; empty if the images are not files."""
        return [] if self.paths is None else [os.fsdecode(path) for path in self.paths.tolist()]


def make_part(images: Images, features: Path | None) -> Part:
    """Make a part of loaded images, or of the features that replace them.

    Args:
        images: The images.
        features: File of their features, or None.

    Raises:
        ValueError: If the file is gone or damaged.
    """
    paths = images.paths if isinstance(images, ImageFiles) else None
    return Part(images if features is None else ImagesInMemory(read_features(features), images.targets), paths)


def read_features(file: Path) -> Tensor:
    """Read the features of a part, float32 ``[N, D]``, from a NumPy archive.

    Raises:
        ValueError: If the file is gone or damaged.
    """
    kept = read_cache(file)
    if kept is None:
        raise ValueError(f"Expected features in {str(file)!r} but the file is gone or damaged; start the command again")
    return torch.from_numpy(kept["features"])
