"""Images with their classes: in memory, or as a transformed subset of a data set."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from scor_lightning.datamodules.sampler import Draws
from scor_lightning.datamodules.transforms import apply_transform, compose, transform_steps

Batch = tuple[Tensor, Tensor]


class Images(Protocol):
    """Images with their classes, indexed by tensors."""

    targets: Tensor
    """Class indices, int64 ``[N]``."""

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor | Sequence[Tensor], Tensor]:
        """Return the images, uint8 ``[B, C, H, W]`` or B of ``[C, H, W]``, and the targets ``[B]`` of the indices."""


class ImagesInMemory(Dataset[Batch]):
    """A small data set as two tensors, read a whole batch at a time.

    Args:
        images: uint8 ``[N, C, H, W]``.
        targets: Class indices, int64 ``[N]``.
        prepared: Number of leading steps of the data module's transforms that were already applied.
    """

    def __init__(self, images: Tensor, targets: Tensor, prepared: int = 0) -> None:
        self.images = images
        self.targets = targets
        self.prepared = prepared

    def __getitem__(self, index: Tensor) -> Batch:
        """Return the images ``[B, C, H, W]`` and targets ``[B]`` of the indices ``[B]``."""
        # A blocking copy would wait for all queued work of the device.
        index = index.to(self.images.device, non_blocking=True)
        return self.images.index_select(0, index), self.targets[index]  # 20x faster than images[index]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    def to(self, device: torch.device) -> "ImagesInMemory":
        """Return the same data on a device."""
        return ImagesInMemory(self.images.to(device), self.targets.to(device), self.prepared)


def remaining_transform(transform: nn.Module | None, images: Images) -> nn.Module | None:
    """Return the steps of a transform that still have to be applied to images."""
    if isinstance(images, ImagesInMemory) and images.prepared:
        return compose(transform_steps(transform)[images.prepared :])
    return transform


class TransformedImages(Dataset[Batch]):
    """Some images of a data set, indexed by batches of draws.

    Args:
        data: The images.
        index: Indices of the images, int64 ``[n]``.
        transform: The transform to apply, or None.
    """

    def __init__(self, data: Images, index: Tensor, transform: nn.Module | None) -> None:
        self.data = data
        self.index = index
        self.transform = transform

    def __getitem__(self, draws: Draws) -> Batch:
        """Return the transformed images ``[B, C, H, W]`` and the targets ``[B]`` of a batch."""
        images, targets = self.data[self.index[draws.positions]]
        return apply_transform(self.transform, images, draws.seeds), targets

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.index)
