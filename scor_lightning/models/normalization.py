"""Normalisation of images, the first step of every classifier."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scor_lightning.functional.images import normalize_bytes


class Normalization(nn.Module):
    """Normalises uint8 images ``[B, C, H, W]`` on their device; float images are unchanged.

    Mean and standard deviation are non-persistent buffers, because they are part of the data description.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 1, 1), persistent=False)

    def set(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Set the mean and standard deviation of each channel, for images in [0, 1]; None keeps both."""
        if mean is not None and std is not None:
            self.mean = self.mean.new_tensor(mean).view(-1, 1, 1)
            self.std = self.std.new_tensor(std).view(-1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return images as floats."""
        return normalize_bytes(images, self.mean, self.std) if images.dtype == torch.uint8 else images
