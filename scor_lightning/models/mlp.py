"""The multilayer perceptron of the SCoR paper."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from scor_lightning.models.base import Backbone, build_head, check_images


class MLP(Backbone):
    """Fully connected layers with ReLU: 784-128-10 on MNIST, as in the SCoR paper.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the images.
        hidden: Widths of the hidden layers; the last is the number of features D.
        head: Builds the classifier from (D, K).

    Example:
        >>> import torch
        >>> MLP(num_classes=10)(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        hidden: Sequence[int] = (128,),
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        check_images(in_channels, image_size)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"Expected `hidden` to name at least one positive width but got {list(hidden)}")
        self.num_classes = num_classes
        self.num_features = hidden[-1]
        widths = [in_channels * prod(image_size), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = build_head(head, self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of images ``[B, C, H, W]``."""
        features: Tensor = self.body(images)
        return features
