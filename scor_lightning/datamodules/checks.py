"""Checks of a data module: of its arguments, of what it loaded, and, before a training, of the images of all sets."""

from collections.abc import Callable, Collection
from math import isfinite
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.folder_index import readable
from scor_lightning.datamodules.images import Images, ImagesInMemory, remaining_transform
from scor_lightning.datamodules.split import SPLITS, SplitName
from scor_lightning.datamodules.transforms import apply_transform

Channels = tuple[float, ...]
_TRIED = 8  # number of images of each set that are prepared as a trial
_SCALE = 16.0  # maximum ratio between the largest values of two sets


def check_at_least(least: int, **arguments: int | None) -> None:
    """Check that each number, given by name, is at least ``least``; None is allowed. Raise a ``ValueError`` otherwise."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise ValueError(f"Expected `{name}` >= {least} but got {value}")


def check_fractions(**arguments: float) -> None:
    """Check that numbers, given by name, are in [0, 1); otherwise raise a ``ValueError``."""
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise ValueError(f"Expected `{name}` in [0, 1) but got {value}")


def check_choices(allowed: Collection[Any], **arguments: Any) -> None:
    """Check that values, given by name, are among the allowed ones; otherwise raise a ``ValueError``."""
    for name, value in arguments.items():
        if value not in allowed:
            known = ", ".join(map(str, filter(None, allowed)))
            raise ValueError(f"Expected `{name}` to be one of {known} but got {value!r}")


def channel_values(mean: Channels | None, std: Channels | None, channels: int) -> tuple[Channels, Channels]:
    """Return mean and standard deviation with one value for each channel.

    Args:
        mean: One value, or one for each channel.
        std: Likewise, > 0.
        channels: Number of channels C.

    Raises:
        ValueError: If one is missing, of another length, or out of range.
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            raise ValueError(f"Expected `mean` and `std` together but got no `{name}`")
        if len(values) not in (1, channels):
            raise ValueError(
                f"Expected `mean` and `std` with one value for each of {channels} channels but got `{name}` {tuple(values)}"
            )
        if not all(isfinite(value) and (value > 0 or name == "mean") for value in values):
            raise ValueError(f"Expected `{name}` to be finite, and `std` > 0, but got {tuple(values)}")
    assert mean is not None
    assert std is not None
    wide = channels // len(mean), channels // len(std)
    return tuple(map(float, mean)) * wide[0], tuple(map(float, std)) * wide[1]


def check_loaded(
    images: Any, part: SplitName, kind: str, num_classes: int, in_channels: int, native_size: tuple[int, int] | None
) -> None:
    """Check what a data module loaded against its class attributes.

    Args:
        images: What its ``load`` returned.
        part: The part of the data set.
        kind: Name of its class.
        num_classes: Its number of classes K.
        in_channels: Its number of channels.
        native_size: Its size (H, W) of the stored images; None if they differ.

    Raises:
        ValueError: If the two contradict each other.
    """
    if not isinstance(images, ImagesInMemory | ImageFiles) and not isinstance(getattr(images, "targets", None), Tensor):
        raise ValueError(  # noqa: TRY004 (as for other wrong data)
            f"Expected {kind} to load ImagesInMemory(images, targets) or ImageFiles(paths, targets) but got "
            f"{type(images).__name__}"
        )
    if isinstance(images, ImagesInMemory) and not images.prepared:
        _check_shape(images, kind, in_channels, native_size)
    _check_targets(images.targets, part, kind, num_classes)


def _check_shape(images: ImagesInMemory, kind: str, in_channels: int, native_size: tuple[int, int] | None) -> None:
    if images.images.ndim != 4:
        raise ValueError(f"Expected images [N, C, H, W] of {kind} but got the shape {list(images.images.shape)}")
    channels, *size = images.images.shape[1:]
    stated_size = native_size and tuple(native_size)
    for name, stated, found in (("in_channels", in_channels, channels), ("native_size", stated_size, tuple(size))):
        if stated != found:
            raise ValueError(f"Expected `{name} = {found}` in {kind}, as its images in memory have, but got {stated}")


def _check_targets(targets: Tensor, part: SplitName, kind: str, num_classes: int) -> None:
    if targets.ndim != 1 or targets.is_floating_point():
        raise ValueError(
            f"Expected class indices [N] as targets of {kind} but got {targets.dtype} {list(targets.shape)}"
        )
    if not len(targets):
        raise ValueError(f"Expected images in the {part} data of {kind} but got none")
    low, high = targets.aminmax()
    if low < 0 or high >= num_classes:
        wrong = int(low if low < 0 else high)
        raise ValueError(f"Expected targets in 0..{num_classes - 1} but got {wrong} in the {part} data")


def check_readable(split: Callable[[SplitName], tuple[Images, Tensor]], trainer: Trainer | None) -> None:
    """Check that every validation and test image file can be read; each process checks a share.

    Args:
        split: Returns the images of a set and the indices that belong to it.
        trainer: The trainer of the run; without one, or for a trial run, nothing is checked.

    Raises:
        ValueError: If a file cannot be read.
    """
    if trainer is None or vars(trainer).get("fast_dev_run"):
        return
    for name in ("val", "test"):
        images, index = split(name)
        if not isinstance(images, ImageFiles) or not len(index):
            continue
        files = images.of(index[trainer.global_rank :: trainer.world_size])
        broken = (~readable(files, trainer.progress_bar_callback is not None)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(
                f"Expected {name} images that can be read but {len(broken):,} of {len(files):,} cannot, such as "
                f"{files.path(broken[0])!r}{files.remedy}"
            )


def check_prepared_alike(
    split: Callable[[SplitName], tuple[Images, Tensor]],
    train_transform: nn.Module | None,
    eval_transform: nn.Module | None,
) -> None:
    """Check that some prepared training and evaluation images have the same type and a similar range.

    Args:
        split: Returns the images of a set and the indices that belong to it.
        train_transform: The transform of training images.
        eval_transform: The transform of validation and test images.

    Raises:
        ValueError: If they differ.
    """
    found: dict[SplitName, Tensor] = {}
    for name in SPLITS:
        images, index = split(name)
        some = index[torch.linspace(0, len(index) - 1, min(_TRIED, len(index))).long()]
        if len(some):
            transform, seeds = eval_transform, None
            if name == "train":
                transform, seeds = train_transform, torch.arange(len(some))
            found[name] = apply_transform(remaining_transform(transform, images), images[some][0], seeds)
    for name in found.keys() - {"train"}:
        first, other = found["train"], found[name]
        if first.dtype != other.dtype:
            raise ValueError(
                f"Expected `train_transforms` and `eval_transforms` to give images of one type but got "
                f"{_type_name(first)} for training and {_type_name(other)} for {name}"
            )
        peaks = [float(images.abs().max()) for images in (first, other)]
        if first.is_floating_point() and min(peaks) > 0 and max(peaks) > _SCALE * min(peaks):
            raise ValueError(
                f"Expected `train_transforms` and `eval_transforms` to give images of one range but the largest value is "
                f"{peaks[0]:.3g} for training and {peaks[1]:.3g} for {name}; scale both alike"
            )


def _type_name(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")
