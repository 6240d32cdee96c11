"""SCoR's share of the loss."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class PenaltyShare(pl.Callback):
    """Log the share of the SCoR penalty in the loss of each epoch, and warn once if it exceeds one half.

    It reads the terms of the loss, ``{name: scalar}``, from the entry ``"terms"`` of the output of ``training_step``; without
    a term ``scor_penalty`` it does nothing. The sums stay on the device until the end of the epoch. The tag is
    ``train/scor_share``.

    Example:
        >>> trainer = pl.Trainer(logger=False, callbacks=[PenaltyShare()])
    """

    def __init__(self) -> None:
        self._penalty: Tensor | float = 0.0
        self._total: Tensor | float = 0.0
        self._batch_size = 0
        self._warned = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the penalty and the loss of a step."""
        terms = outputs.get("terms", {}) if isinstance(outputs, dict) else {}
        if "scor_penalty" in terms:
            self._penalty = self._penalty + terms["scor_penalty"].detach()
            self._total = self._total + sum(terms.values()).detach()
            self._batch_size = max(self._batch_size, len(batch[1]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the share, and warn if the penalty outweighs the base loss."""
        if isinstance(self._penalty, Tensor):
            share = self._penalty / self._total
            pl_module.log("train/scor_share", share, sync_dist=True)
            if not self._warned and float(share) > 0.5:
                self._warned = True
                loss: Any = pl_module.loss
                rank_zero_warn(
                    f"The SCoR penalty is {float(share):.1%} of the loss of epoch {trainer.current_epoch}, more than "
                    f"the base loss, at alpha = {loss.alpha} and {self._batch_size} samples per batch of "
                    "each process. The sum over the pairs of samples grows with the batch: lower alpha, or use "
                    '`reduction="mean"`.'
                )
        self._penalty = self._total = 0.0
