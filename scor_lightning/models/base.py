"""The interface of backbones, with timm's names, and the initialisation of their heads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scor_lightning.seeding import Purpose, derived_seed, seeded


class Backbone(nn.Module, ABC):
    """A network for images: a body that computes features, and a head that maps them to logits.

    Losses may read the features, fine-tuning distinguishes head and body, and a method may replace the head.

    Attributes:
        num_classes: Number of classes K.
        num_features: Number of features D.
        head: Maps features ``[B, D]`` to logits ``[B, K]``.
        mean: Mean of each channel that its pretrained weights expect, for images in [0, 1], instead of the data module's; None
            uses the data module's.
        std: Standard deviation likewise.
    """

    num_classes: int
    num_features: int
    head: nn.Module
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of images ``[B, C, H, W]``."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of images ``[B, C, H, W]``."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits


def build_head(head: Callable[[int, int], nn.Module], num_features: int, num_classes: int) -> nn.Module:
    """Build a head with separate random numbers, so that networks with the same seed differ only in their heads.

    The numbers are derived from torch's initial seed; the weights of the body do not depend on the head.

    Args:
        head: Builds the classifier from (D, K).
        num_features: Number of features D.
        num_classes: Number of classes K, >= 1.

    Raises:
        ValueError: If num_classes < 1.
    """
    if num_classes < 1:
        raise ValueError(f"Expected `num_classes` >= 1 but got {num_classes}")
    with seeded(derived_seed(Purpose.HEAD, torch.initial_seed())):
        return head(num_features, num_classes)


def check_images(in_channels: int, image_size: tuple[int, int]) -> None:
    """Check the channels and the size (H, W) of a network's inputs.

    Raises:
        ValueError: If one of them is below 1.
    """
    if in_channels < 1:
        raise ValueError(f"Expected `in_channels` >= 1 but got {in_channels}")
    if min(image_size) < 1:
        raise ValueError(f"Expected `image_size` >= 1 but got {tuple(image_size)}")


@contextmanager
def batch_norm_explained() -> Iterator[None]:
    """Replace the error of a batch norm that is trained on one image by an explanation."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "Expected `--data.batch_size` of at least 2 per process for a network with batch norm but got a batch of 1 image"
        ) from error
