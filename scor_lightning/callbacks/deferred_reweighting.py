"""Deferred re-weighting (DRW)."""

from typing import Any

import lightning.pytorch as pl

from scor_lightning.callbacks.protocol import stage_of
from scor_lightning.functional.classification import effective_number_weights
from scor_lightning.losses.base import Loss


class DeferredReweighting(pl.Callback):
    """Weight all classes equally, and use class-balanced weights in the last epochs.

    The weights, those of :class:`scor_lightning.losses.ClassBalancedLoss`, replace any weights of ``pl_module.loss``. They
    depend only on the epoch, so a resumed training is unchanged.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019,
    https://arxiv.org/abs/1906.07413, https://github.com/kaidic/LDAM-DRW: from epoch 160 of 200 on.

    Args:
        start: Fraction of the epochs before re-weighting starts, in [0, 1].
        beta: As in the class-balanced loss, in [0, 1].

    Raises:
        ValueError: If start or beta is outside [0, 1]; in training, if the loss does not support weights, has no class
            counts, or if the trainer has no last epoch.

    Example:
        >>> trainer = pl.Trainer(max_epochs=200, logger=False, callbacks=[DeferredReweighting(start=0.8)])
    """

    depends_on_training_length = True

    def __init__(self, start: float = 0.8, beta: float = 0.9999) -> None:
        if not 0 <= start <= 1:
            raise ValueError(f"Expected `start` in [0, 1] but got {start}")
        if not 0 <= beta <= 1:
            raise ValueError(f"Expected `beta` in [0, 1] but got {beta}")
        self.start = start
        self.beta = beta
        self._late: bool | None = None

    def first_epoch(self, epochs: int) -> int:
        """Return the first epoch, from 0, with class-balanced weights."""
        return int(self.start * epochs + 1e-9)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the loss can be weighted."""
        self._late = None
        loss = pl_module.loss
        if not isinstance(loss, Loss) or loss.class_counts is None:
            raise ValueError(f"Expected a loss with class counts, such as WeightedCrossEntropyLoss, but got {loss}")
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            raise ValueError(f"Expected a number of epochs to re-weight the last of but got {trainer.max_epochs}")
        loss.set_class_weights(None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the weights; Lightning skips the epoch start hook when a run resumes between two epochs."""
        if stage_of(pl_module) == 2:
            return  # all classes are weighted equally
        late = trainer.current_epoch >= self.first_epoch(trainer.max_epochs or 0)
        if late != self._late:
            loss: Any = pl_module.loss
            loss.set_class_weights(effective_number_weights(loss.class_counts, self.beta) if late else None)
            self._late = late
