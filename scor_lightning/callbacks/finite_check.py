"""Stop a training that diverges and keep its good checkpoints."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scor_lightning.callbacks.protocol import state_of

REMEDY = "The checkpoints written before are kept; try a lower learning rate or `--trainer.gradient_clip_val 1`"


class FiniteCheck(Callback):
    """Stops a training whose loss or weights are no longer finite, and keeps them out of checkpoints.

    The losses stay on the device and are read every ``log_every_n_steps`` steps, because reading each one would synchronise
    the device with the host. :class:`~scor_lightning.ImageClassifier` adds this callback.

    Raises:
        FloatingPointError: If the training loss, or a weight that is about to be saved, is not finite.
    """

    def __init__(self) -> None:
        self._unchecked: list[tuple[int, Tensor]] = []
        self._step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record the number of the step."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; at logged steps, check the losses since the last check."""
        self._unchecked.append((self._step, outputs["loss"].detach()))
        every = max(state_of(trainer).log_every_n_steps, 1)
        if trainer.global_step % every == 0 or trainer.is_last_batch:
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last losses."""
        self._check(trainer, pl_module)

    def check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check losses and weights before they replace good ones."""
        self._check(trainer, pl_module)
        if not torch.stack([parameter.detach().isfinite().all() for parameter in pl_module.parameters()]).all():
            raise FloatingPointError(f"Some weights became nan or inf before step {trainer.global_step}. {REMEDY}")

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        finite = torch.stack([loss for _, loss in unchecked]).isfinite()
        if trainer.world_size > 1:  # all processes stop, regardless of which has the non-finite loss
            finite = pl_module.all_gather(finite).all(dim=0)  # type: ignore[union-attr]
        if not finite.all():
            step = unchecked[finite.tolist().index(False)][0]
            raise FloatingPointError(f"The training loss became nan or inf at step {step}. {REMEDY}")


def check_before_saving(trainer: Trainer, pl_module: LightningModule) -> None:
    """Run a trainer's :class:`FiniteCheck` on what is about to be saved.

    The classifier calls it, since Lightning does not call the callbacks for a checkpoint of the weights alone.
    """
    for callback in state_of(trainer).callbacks:
        if isinstance(callback, FiniteCheck):
            callback.check_weights(trainer, pl_module)
