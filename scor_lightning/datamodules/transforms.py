"""Augmentation as a pure function of seeds, and serialisable preprocessing."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

VARIOUS_SIZES = ((300, 400), (400, 300))  # heights and widths of two images that stand for images of any size


class BatchTransform(nn.Module, ABC):
    """An augmentation of a whole batch at once, with one seed per image."""

    @abstractmethod
    def augment(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 or float ``[B, C, H, W]``.
            seeds: Random bits of each image, int64 ``[B]``, uniform in [0, 2**62).
        """

    def forward(self, image: Tensor) -> Tensor:
        """Augment one image ``[C, H, W]`` with bits of torch's generator, like other transforms."""
        return self.augment(image.unsqueeze(0), torch.randint(2**62, (1,))).squeeze(0)


class RandomCropAndFlip(BatchTransform):
    """Randomly crop an image with black padding to its own size, and flip it with probability one half.

    The distribution is that of ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip()``, computed in one gather per
    batch.

    Args:
        padding: Padding on each side, in pixels, at least 0.

    Raises:
        ValueError: If ``padding`` is negative.

    Example:
        >>> RandomCropAndFlip(padding=4)(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        if padding < 0:
            raise ValueError(f"Expected `padding` >= 0 but got {padding}")
        self.padding = padding

    def augment(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Crop and flip a batch ``[B, C, H, W]``."""
        b, c, h, w = images.shape
        p = self.padding
        seeds = seeds.to(images.device, non_blocking=True)  # a blocking copy would wait for all queued work
        # Distant bits of the seed serve as independent draws.
        flip, top, left = seeds[:, None] % 2 == 1, (seeds >> 8) % (2 * p + 1), (seeds >> 32) % (2 * p + 1)
        across = torch.arange(w, device=images.device)
        rows = top[:, None] + torch.arange(h, device=images.device)
        columns = left[:, None] + torch.where(flip, across.flip(0), across)
        pixels = rows[:, :, None] * (w + 2 * p) + columns[:, None, :]
        padded = F.pad(images, (p, p, p, p)).flatten(2)
        return padded.gather(2, pixels.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)

    def extra_repr(self) -> str:
        """Show the padding."""
        return f"padding={self.padding}"


def transform_steps(transform: nn.Module | None) -> list[nn.Module]:
    """List the transforms that a transform is composed of."""
    if transform is None:
        return []
    return list(transform.transforms) if isinstance(transform, v2.Compose) else [transform]


def compose(transforms: Sequence[nn.Module]) -> nn.Module | None:
    """Compose transforms; None if there are none."""
    if len(transforms) > 1:
        composed: nn.Module = v2.Compose(list(transforms))
        return composed
    return transforms[0] if transforms else None


def apply_transform(transform: nn.Module | None, images: Tensor | Sequence[Tensor], seeds: Tensor | None) -> Tensor:
    """Transform a batch; the random numbers of each image come from its seed, and the process's generator is unchanged.

    Args:
        transform: A transform of torchvision's ``v2``, or a :class:`BatchTransform`.
        images: ``[B, C, H, W]``, or B images ``[C, H, W]`` of any sizes.
        seeds: int64 ``[B]``; None if the transform is deterministic.

    Returns:
        Images ``[B, C, H, W]``.

    Raises:
        ValueError: If the transformed images have different sizes.
    """
    if isinstance(images, Tensor):
        if transform is None:
            return images
        if seeds is None:
            transformed: Tensor = transform(images)
            return transformed
        if isinstance(transform, BatchTransform):
            return transform.augment(images, seeds)
    results = []
    with torch.random.fork_rng(devices=[]):
        for i, image in enumerate(images):
            if seeds is not None:
                torch.default_generator.manual_seed(int(seeds[i]))
            results.append(image if transform is None else transform(image))
    if len({result.shape for result in results}) > 1:
        sizes = " and ".join(str(tuple(shape)) for shape in sorted({result.shape for result in results})[:2])
        raise ValueError(f"Expected the transform to give images of one size but got {sizes}; end it with a crop")
    return torch.stack(results)


def prepared_size(transform: nn.Module | None, channels: int, native_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the height and width (H, W) of images after a deterministic transform.

    Args:
        transform: The transform.
        channels: Channels C of the images.
        native_size: Their height and width (H, W) before it; None if they differ.

    Raises:
        ValueError: If images of several sizes are transformed to several sizes.
    """
    sizes = (native_size,) if native_size else VARIOUS_SIZES
    blanks = [torch.zeros(channels, *size, dtype=torch.uint8) for size in sizes]
    height, width = apply_transform(transform, blanks, seeds=None).shape[-2:]
    return height, width


def same_transform(first: nn.Module | None, second: nn.Module | None) -> bool:
    """Return whether two transforms are the same object, or have the same description."""
    described = describe_transform(first)
    return first is second or (described is not None and described == describe_transform(second))


def describe_transform(transform: nn.Module | None) -> list[dict[str, Any]] | None:
    """Describe a deterministic transform by plain values, which a checkpoint can store without pickling code.

    Args:
        transform: One of torchvision's ``v2``, or a ``Compose`` of some.

    Returns:
        ``class_path`` and ``init_args`` of each; None if its arguments cannot be determined.

    Example:
        >>> describe_transform(v2.CenterCrop(224))
        [{'class_path': 'torchvision.transforms.v2.CenterCrop', 'init_args': {'size': [224, 224]}}]
    """
    described = []
    for step in transform_steps(transform):
        kind = type(step)
        if getattr(v2, kind.__name__, None) is not kind:
            return None
        arguments = {}
        for name in inspect.signature(kind).parameters:
            if not hasattr(step, name):
                return None
            value = getattr(step, name)
            value = value.value if isinstance(value, Enum) else value
            value = list(value) if isinstance(value, tuple) else value
            if not isinstance(value, int | float | str | bool | list | None):
                return None
            arguments[name] = value
        described.append({"class_path": f"torchvision.transforms.v2.{kind.__name__}", "init_args": arguments})
    return described


def build_transform(description: Sequence[dict[str, Any]]) -> nn.Module | None:
    """Build a transform from the result of :func:`describe_transform`.

    Raises:
        ValueError: If it names anything other than a transform of torchvision's ``v2``.
    """
    steps: list[nn.Module] = []
    for step in description:
        module, _, name = step["class_path"].rpartition(".")
        kind: Any = getattr(v2, name, None)
        known = module == "torchvision.transforms.v2" and inspect.isclass(kind) and issubclass(kind, v2.Transform)
        if not known:
            raise ValueError(f"Expected a transform of torchvision.transforms.v2 but got {step['class_path']!r}")
        arguments = dict(step["init_args"])
        if isinstance(arguments.get("interpolation"), str):
            arguments["interpolation"] = v2.InterpolationMode(arguments["interpolation"])
        steps.append(kind(**arguments))
    return compose(steps)


def paper_augmentation(size: tuple[int, int]) -> list[nn.Module]:
    """Return the training transform of the SCoR paper for photographs: resize, flip, rotate, jitter the colours."""
    return [
        v2.Resize(size),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(15),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]
