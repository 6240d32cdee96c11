"""A small convolutional network."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from scor_lightning.models.base import Backbone, build_head, check_images


class ConvNet(Backbone):
    """Blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 pooling, followed by the mean over the image.

    A network for small images with 0.1 M parameters at the default widths.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the images, each at least ``2 ** len(widths)``.
        widths: Channels of the blocks; the last is the number of features D.
        head: Builds the classifier from (D, K).

    Raises:
        ValueError: If the images are too small for the number of blocks.

    Example:
        >>> import torch
        >>> ConvNet(num_classes=10)(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        widths: Sequence[int] = (32, 64, 128),
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        check_images(in_channels, image_size)
        if min(image_size) < 2 ** len(widths):
            raise ValueError(
                f"Expected `image_size` of at least {2 ** len(widths)} pixels for {len(widths)} blocks "
                f"but got {tuple(image_size)}"
            )
        self.num_classes = num_classes
        self.num_features = widths[-1]
        blocks = []
        for fan_in, fan_out in zip([in_channels, *widths], widths, strict=False):
            convolution = nn.Conv2d(fan_in, fan_out, kernel_size=3, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(fan_out), nn.ReLU(), nn.MaxPool2d(2)))
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = build_head(head, self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of images ``[B, C, H, W]``."""
        features: Tensor = self.body(images)
        return features
