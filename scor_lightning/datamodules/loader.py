"""The loader of one set of a data module."""

from typing import Any, Literal

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import Trainer
from torch import Tensor, nn

from scor_lightning.datamodules.images import Images, ImagesInMemory, TransformedImages
from scor_lightning.datamodules.sampler import BatchSampler, ResumableDataLoader
from scor_lightning.datamodules.transforms import BatchTransform

Sampling = Literal["instance", "square_root", "class_balanced"]
# An image of class c is drawn in proportion to n_c ** -power, so class c in proportion to n_c ** (1 - power).
SAMPLING_POWER: dict[Sampling, float] = {"instance": 0.0, "square_root": 0.5, "class_balanced": 1.0}


def sampling_weights(sampling: Sampling, class_counts: Tensor, targets: Tensor) -> Tensor | None:
    """Return the relative probability of drawing each training image.

    Args:
        sampling: How training images are drawn.
        class_counts: Training images of each class, int64 ``[K]``.
        targets: Class of each training image, int64 ``[n]``.

    Returns:
        float64 ``[n]``; None if every image is drawn once per epoch.
    """
    power = SAMPLING_POWER[sampling]
    return class_counts[targets].double() ** -power if power else None


def image_loader(
    images: Images,
    index: Tensor,
    transform: nn.Module | None,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    weights: Tensor | None = None,
    num_workers: int | None = None,
    trainer: Trainer | None = None,
) -> ResumableDataLoader:
    """Build the loader of some images.

    Args:
        images: All images of the data set.
        index: Which of them belong to the set, int64 ``[n]``.
        transform: Preprocessing or augmentation.
        batch_size: Images per batch, the total over all processes.
        seed: Seed of order and augmentation.
        shuffle: Shuffle and augment, for training; otherwise the images come in their order.
        weights: Relative probability of drawing each image, float ``[n]``; None draws each once per epoch.
        num_workers: Processes that load batches. None chooses: as many as there are free cores where images are decoded
            or augmented one by one, otherwise none.
        trainer: The trainer whose processes share the batches and whose device they go to; None is one process on CPU.
    """
    replicas, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    device = trainer.strategy.root_device if trainer else torch.device("cpu")
    sampler = BatchSampler(
        len(index), batch_size, shuffle=shuffle, seed=seed, weights=weights, num_replicas=replicas, rank=rank
    )
    in_memory = isinstance(images, ImagesInMemory)
    by_batch = in_memory and (not shuffle or isinstance(transform, BatchTransform | None))
    if num_workers is None:
        num_workers = 0 if by_batch else suggested_max_num_workers(trainer.num_devices if trainer else 1)
    options: dict[str, Any] = {"num_workers": num_workers}
    if isinstance(images, ImagesInMemory) and by_batch and device.type == "cuda" and num_workers == 0:
        images = images.to(device)
    else:
        options |= {"persistent_workers": num_workers > 0, "pin_memory": device.type == "cuda"}
    samples = TransformedImages(images, index, transform)
    return ResumableDataLoader(samples, sampler, **options)
