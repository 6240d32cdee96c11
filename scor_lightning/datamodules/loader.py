"""The loaders of a data module."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scor_lightning.datamodules.images import Batch, Images, ImagesInMemory, TransformedImages, remaining_transform
from scor_lightning.datamodules.sampler import BatchSampler, ResumableDataLoader
from scor_lightning.datamodules.transforms import BatchTransform
from scor_lightning.signals import leave_signals_to_the_main_process

Sampling = Literal["instance", "square_root", "class_balanced"]
# An image of class c is drawn in proportion to n_c ** -power, so class c in proportion to n_c ** (1 - power).
SAMPLING_POWER: dict[Sampling, float] = {"instance": 0.0, "square_root": 0.5, "class_balanced": 1.0}


def sampling_weights(sampling: Sampling, class_counts: Tensor, targets: Tensor) -> Tensor:
    """Return the relative probability of drawing each training image, float64 ``[n]``.

    Args:
        sampling: How training images are drawn.
        class_counts: Training images of each class, int64 ``[K]``.
        targets: Class of each training image, int64 ``[n]``.
    """
    return class_counts[targets].double() ** -SAMPLING_POWER[sampling]


@dataclass(frozen=True)
class Loading:
    """Builds the loaders of a data module.

    Args:
        batch_size: Images per batch, the total over all processes.
        seed: Seed of order and augmentation.
        num_workers: Processes that load batches. None uses the free cores if images are decoded or
            augmented one by one, otherwise 0.
        trainer: The trainer whose processes share the batches and whose device they are for; None is one process on the CPU.
    """

    batch_size: int
    seed: int
    num_workers: int | None
    trainer: Trainer | None

    def training_loader(
        self,
        images: Images,
        index: Tensor,
        transform: nn.Module | None,
        weights: Tensor | None,
        weights_from: int = 0,
        partner_weights: Tensor | None = None,
    ) -> ResumableDataLoader:
        """Build the loader of shuffled and augmented batches, whose position a checkpoint stores.

        Args:
            images: All images of the data set.
            index: Indices of the images that belong to the set, int64 ``[n]``.
            transform: Augmentation.
            weights: Relative probability of drawing each image, float ``[n]``; None draws each once per epoch.
            weights_from: First epoch, from 0, in which the weights are used.
            partner_weights: Relative probability of drawing each image as the partner of another, float ``[n]``; None draws
                no partners.
        """
        transform = remaining_transform(transform, images)
        by_batch = isinstance(images, ImagesInMemory) and isinstance(transform, BatchTransform | None)
        images, options = self._place(images, by_batch)
        sampler = self._sampler(len(index), True, weights, weights_from, partner_weights)
        return ResumableDataLoader(TransformedImages(images, index, transform), sampler, **options)

    def evaluation_loader(self, images: Images, index: Tensor, transform: nn.Module | None) -> DataLoader[Batch]:
        """Build the loader of images in their order; arguments as for :meth:`training_loader`."""
        transform = remaining_transform(transform, images)
        images, options = self._place(images, by_batch=isinstance(images, ImagesInMemory))
        return DataLoader(
            TransformedImages(images, index, transform),
            batch_size=None,
            sampler=self._sampler(len(index), False),
            worker_init_fn=leave_signals_to_the_main_process,
            **options,
        )

    def first_epoch_after(self, share: float) -> int:
        """Return the first epoch, from 0, after a share of the epochs.

        Args:
            share: The share, in [0, 1).

        Raises:
            ValueError: If the number of epochs is unknown and the share is not 0.
        """
        if not share:
            return 0
        epochs = self.trainer.max_epochs if self.trainer else None
        if epochs is None or epochs < 0:
            raise ValueError(f"Expected `--trainer.max_epochs` for `sampling_start` but got {epochs}")
        return int(share * epochs + 1e-9)

    def _place(self, images: Images, by_batch: bool) -> tuple[Images, dict[str, Any]]:
        """Choose where batches are made: in worker processes, or for data in memory on the training device."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        workers = self.num_workers
        if workers is None:
            workers = 0 if by_batch else suggested_max_num_workers(self.trainer.num_devices if self.trainer else 1)
        if (
            isinstance(images, ImagesInMemory)
            and by_batch
            and workers == 0
            and device.type == "cuda"
            and images.images.nbytes <= torch.cuda.mem_get_info(device)[0] / 4
        ):
            return images.to(device), {"num_workers": 0}
        return images, {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": device.type == "cuda",
        }

    def _sampler(
        self,
        size: int,
        shuffle: bool,
        weights: Tensor | None = None,
        weights_from: int = 0,
        partner_weights: Tensor | None = None,
    ) -> BatchSampler:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return BatchSampler(
            size,
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            weights=weights,
            weights_from=weights_from,
            partner_weights=partner_weights,
            num_replicas=replicas,
            rank=rank,
        )
