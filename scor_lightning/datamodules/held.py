"""Image files that are decoded once and then held in memory."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from torch import Tensor, nn
from tqdm import tqdm

from scor_lightning.datamodules.decode import ImageFiles
from scor_lightning.datamodules.images import Images, ImagesInMemory
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.transforms import (
    VARIOUS_SIZES,
    apply_transform,
    compose,
    same_transform,
    transform_steps,
)

SHARE = 0.25  # maximum share of the free memory for the images of a data module


def available_memory() -> float:
    """Return the available memory in bytes; infinite if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return float("inf")


def shared_steps(train: nn.Module | None, evaluation: nn.Module | None, channels: int) -> tuple[int, int]:
    """Count the leading steps that two transforms share and that return uint8 images of one size.

    They are deterministic, because those for evaluation are.

    Args:
        train: Transform of training images.
        evaluation: Transform of validation and test images.
        channels: Channels C of the images.

    Returns:
        Number of steps, and bytes of an image after them; (0, 0) if the sizes of images differ after any number of steps.
    """
    first, second = transform_steps(train), transform_steps(evaluation)
    shared = 0
    while shared < min(len(first), len(second)) and same_transform(first[shared], second[shared]):
        shared += 1
    blanks = [torch.zeros(channels, *size, dtype=torch.uint8) for size in VARIOUS_SIZES]
    for steps in range(shared, 0, -1):
        try:
            images = apply_transform(compose(second[:steps]), blanks, seeds=None)
        except ValueError:  # images of several sizes
            continue
        if images.dtype == torch.uint8:
            return steps, prod(images.shape[1:])
    return 0, 0


def bytes_to_hold(parts: Mapping[SplitName, Images], each: int, share: float) -> int:
    """Return the size of a data set's images in memory in bytes; 0 if they are not files or exceed a share of the memory."""
    if not all(isinstance(images, ImageFiles) for images in parts.values()):
        return 0
    if not each:
        return 0
    needed = each * sum(len(images.targets) for images in parts.values())
    return needed if needed <= share * available_memory() else 0


def decode_all(images: ImageFiles, transform: nn.Module | None, steps: int, name: SplitName) -> ImagesInMemory:
    """Decode all images and apply the first steps of a transform, with a progress bar.

    Args:
        images: The files.
        transform: The transform, deterministic in these steps.
        steps: Number of steps to apply.
        name: Name for the progress bar.
    """
    prepare = nn.Sequential(*transform_steps(transform)[:steps])

    def decode(index: int) -> Tensor:
        image: Tensor = prepare(images.read(index))
        return image

    with ThreadPoolExecutor(suggested_max_num_workers(1) + 1) as pool:
        decoded = pool.map(decode, range(len(images)))
        first_process = os.environ.get("LOCAL_RANK", "0") == "0"
        held = None
        with tqdm(
            total=len(images),
            desc=f"decoding {name} images",
            unit="image",
            leave=False,
            disable=None if first_process else True,  # None shows it only on a terminal
        ) as bar:
            for i, image in enumerate(decoded):
                if held is None:
                    held = torch.empty(len(images), *image.shape, dtype=torch.uint8)
                held[i] = image
                bar.update()
    assert held is not None  # `check_loaded` has checked that there are images
    return ImagesInMemory(held, images.targets, steps)
