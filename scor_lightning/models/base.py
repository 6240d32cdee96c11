"""The contract of backbones, by timm's names, and how their heads are built."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scor_lightning.seeding import Purpose, derived_seed, seeded


class Backbone(nn.Module, ABC):
    """A network for images: a body that computes features, and a head that turns them into logits.

    Losses read the features, fine-tuning treats head and body apart, and a method may need a head of its own.

    Attributes:
        num_classes: Number of classes K.
        num_features: Number of features D.
        head: Turns features ``[B, D]`` into logits ``[B, K]``.
        mean: Mean of each channel that its pretrained weights expect, for images in [0, 1], instead of the data module's; None
            takes the data module's.
        std: Standard deviation likewise.
    """

    num_classes: int
    num_features: int
    head: nn.Module
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images ``[B, C, H, W]`` into features ``[B, D]``."""

    def forward(self, images: Tensor) -> Tensor:
        """Turn images ``[B, C, H, W]`` into logits ``[B, K]``."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits


def build_head(head: Callable[[int, int], nn.Module], num_features: int, num_classes: int) -> nn.Module:
    """Build a head from numbers of its own, so that networks of one seed differ in nothing but their heads.

    The numbers follow from torch's initial seed; those that the body draws are the same with every head.

    Args:
        head: Makes the classifier from (D, K).
        num_features: Number of features D.
        num_classes: Number of classes K, >= 1.

    Raises:
        ValueError: If there are no classes.
    """
    if num_classes < 1:
        raise ValueError(f"Expected `num_classes` >= 1 but got {num_classes}")
    with seeded(derived_seed(Purpose.HEAD, torch.initial_seed())):
        return head(num_features, num_classes)


def check_images(in_channels: int, image_size: tuple[int, int]) -> None:
    """Check the channels and the size (H, W) of a network's images.

    Raises:
        ValueError: If one of them is below 1.
    """
    if in_channels < 1:
        raise ValueError(f"Expected `in_channels` >= 1 but got {in_channels}")
    if min(image_size) < 1:
        raise ValueError(f"Expected `image_size` >= 1 but got {tuple(image_size)}")


@contextmanager
def batch_norm_explained() -> Iterator[None]:
    """Explain the error of a batch norm that is trained on one image."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "Expected `--data.batch_size` of at least 2 per process for a network with batch norm but got a batch of 1 image"
        ) from error
