"""What every backbone has, by timm's names."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """A network for images: a body that computes features, and a head that turns them into logits.

    Losses read the features, fine-tuning treats head and body apart, and a method may need a head of its own.

    Attributes:
        num_classes: Number of classes K.
        num_features: Number of features D.
        head: Turns features ``[B, D]`` into logits ``[B, K]``.
    """

    num_classes: int
    num_features: int
    head: nn.Module

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Turn images ``[B, C, H, W]`` into features ``[B, D]``."""

    def forward(self, images: Tensor) -> Tensor:
        """Turn images ``[B, C, H, W]`` into logits ``[B, K]``."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits
