"""Residual networks for small images: the SCoR paper's and the long-tail literature's."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from scor_lightning.models.base import Backbone, build_head, check_images


class PaperResNet(Backbone):
    """The residual network of the SCoR paper for CIFAR-10: 134 M parameters at 32 x 32 pixels.

    It has a convolution to 32 channels, four residual blocks of four convolutions each, a convolution to 64 channels, and a
    fully connected layer of 2,048 units over all pixels with dropout, whose outputs are the features. Every convolution is
    3 x 3 at full resolution.

    Weights can be exchanged with the paper's own package (PyPI ``scor``): :meth:`load_state_dict` accepts its
    ``state_dict``, and :meth:`reference_state_dict` returns one for it.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the images.
        head: Builds the classifier from (2048, K).

    Example:
        >>> import torch
        >>> PaperResNet(num_classes=10, image_size=(8, 8))(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        check_images(in_channels, image_size)
        self.num_classes = num_classes
        self.num_features = 2048
        blocks: list[nn.Module] = []
        for _ in range(4):
            blocks += [_PaperBlock(32), nn.ReLU()]
        self.sequence = nn.Sequential(
            nn.Conv2d(in_channels, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            *blocks,
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * image_size[0] * image_size[1], self.num_features),
            nn.Dropout(0.5),
            nn.ReLU(),
        )
        self.head = build_head(head, self.num_features, num_classes)
        self.register_load_state_dict_pre_hook(_take_reference_names)  # type: ignore[no-untyped-call]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, 2048]`` of images ``[B, C, H, W]``."""
        features: Tensor = self.sequence(images)
        return features

    def reference_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the names of the paper's package, in which the head is the end of the sequence."""
        return {_renamed(name, "head.", f"sequence.{len(self.sequence)}."): v for name, v in self.state_dict().items()}


class _PaperBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(4):
            convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
        self.sequence = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.sequence(x) + x
        return out


def _renamed(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def _take_reference_names(module: PaperResNet, state: dict[str, Any], prefix: str, *_: Any) -> None:
    last = f"{prefix}sequence.{len(module.sequence)}."
    for name in [name for name in state if name.startswith(last)]:
        state[_renamed(name, last, f"{prefix}head.")] = state.pop(name)


class CifarResNet(Backbone):
    """The residual networks for 32 x 32 pixels of He et al.: ResNet-20, -32, -44, -56 and -110.

    Three stages of 16, 32 and 64 channels, each of ``(depth - 2) / 6`` blocks of two 3 x 3 convolutions, then the mean
    over the image. At the start of a stage, the shortcut takes every second pixel and pads the new channels with zeros
    (their option A, without parameters). Convolutions and a linear head are initialised as by
    `He et al. 2015 <https://arxiv.org/abs/1502.01852>`_. ResNet-32 has 0.46 M parameters and is the usual network of
    long-tailed CIFAR.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385,
    section 4.2.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the images, each at least 4.
        depth: Layers with weights, ``6 n + 2``: 20, 32, 44, 56 or 110 in the paper.
        head: Builds the classifier from (64, K).

    Raises:
        ValueError: If depth does not have that form, or the images are smaller than 4 pixels.

    Example:
        >>> import torch
        >>> network = CifarResNet(num_classes=10, depth=32)
        >>> network(torch.rand(4, 3, 32, 32)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([4, 10]), 464154)
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        depth: int = 32,
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        check_images(in_channels, image_size)
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"Expected `depth` to be 6 n + 2, such as 20, 32, 44, 56 or 110, but got {depth}")
        if min(image_size) < 4:
            raise ValueError(
                f"Expected `image_size` of at least 4 pixels, which are halved twice, but got {tuple(image_size)}"
            )
        self.num_classes = num_classes
        self.num_features = 64
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        ]
        fan_in = 16
        for fan_out in (16, 32, 64):
            for _ in range((depth - 2) // 6):
                layers.append(_CifarBlock(fan_in, fan_out))
                fan_in = fan_out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        _initialise(self.body)
        self.head = build_head(lambda *sizes: _initialise(head(*sizes)), self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, 64]`` of images ``[B, C, H, W]``."""
        features: Tensor = self.body(images)
        return features


def _initialise(part: nn.Module) -> nn.Module:
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return part


class _CifarBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride = fan_out // fan_in
        self.new_channels = fan_out - fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, kernel_size=3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            half = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(out + x)
