"""ConvNeXt with the SCoR paper's head."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from scor_lightning.models.heads import MLPHead
from scor_lightning.models.torchvision import TorchvisionBackbone


class ConvNeXtClassifier(TorchvisionBackbone):
    """ConvNeXt as the SCoR paper fine-tunes it: D features, a hidden layer of 512 units, K classes.

    The features are the mean over the image followed by the network's last layer norm, which is part of the weights; the
    paper's package omits that norm. D is 768 (tiny, small), 1024 (base) or 1536 (large).

    Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022, https://arxiv.org/abs/2201.03545; torchvision's networks.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels C of the images, 1 or 3.
        image_size: Height and width (H, W) of the images, each at least 32.
        size: Size of the network.
        weights: As in :class:`TorchvisionBackbone`.
        head: Builds the classifier from (D, K).

    Raises:
        ValueError: If size has another value than those named, or as in :class:`TorchvisionBackbone`.

    Example:
        >>> import torch
        >>> network = ConvNeXtClassifier(num_classes=102)
        >>> network(torch.rand(1, 3, 64, 64)).shape, network.num_features
        (torch.Size([1, 102]), 768)
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        size: Literal["tiny", "small", "base", "large"] = "tiny",
        weights: str | None = None,
        head: Callable[[int, int], nn.Module] = MLPHead,
    ) -> None:
        if size not in ("tiny", "small", "base", "large"):
            raise ValueError(f"Expected `size` to be 'tiny', 'small', 'base' or 'large' but got {size!r}")
        super().__init__(num_classes, in_channels, image_size, f"convnext_{size}", weights, head)
