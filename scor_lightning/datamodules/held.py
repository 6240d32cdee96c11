"""Image files that are decoded once and then held in memory."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import Trainer
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


@dataclass(frozen=True)
class Holding:
    """Decides whether image files are decoded once and held in memory during a training, and decodes them.

    Only image files are held, after the transforms that training and evaluation share, if there is more than one epoch and the
    images fit into a share of the free memory. Nothing is held if features of a frozen body will replace the images.

    Args:
        train_transform: The transform of training images.
        eval_transform: The transform of validation and test images.
        channels: Channels C of the images.
        share: Share of the free memory, in [0, 1], of all processes of the training together.
        trainer: The trainer of the run; None if there is none.
    """

    train_transform: nn.Module | None
    eval_transform: nn.Module | None
    channels: int
    share: float
    trainer: Trainer | None

    @property
    def features_follow(self) -> bool:
        """Whether features of a frozen body will replace the images, so that each is read only once."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return bool(getattr(module, "can_train_on_features", False)) and same_transform(
            self.train_transform, self.eval_transform
        )

    def bytes_to_hold(self, parts: Mapping[SplitName, Images]) -> int:
        """Return the bytes that the decoded images would occupy; 0 if they are not to be held."""
        if self.trainer is None or self.trainer.state.fn != "fit" or self.trainer.max_epochs == 1:
            return 0
        if self.features_follow or not all(isinstance(images, ImageFiles) for images in parts.values()):
            return 0
        _, each = shared_steps(self.train_transform, self.eval_transform, self.channels)
        needed = each * sum(len(images.targets) for images in parts.values())
        return needed if needed <= self.share / self.trainer.num_devices * available_memory() else 0

    def decode(self, parts: Mapping[SplitName, Images]) -> dict[SplitName, ImagesInMemory]:
        """Decode the images to hold in memory; empty if none are."""
        if not self.bytes_to_hold(parts):
            return {}
        steps, _ = shared_steps(self.train_transform, self.eval_transform, self.channels)
        files = {name: images for name, images in parts.items() if isinstance(images, ImageFiles)}
        return {name: decode_all(images, self.eval_transform, steps, name) for name, images in files.items()}


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
