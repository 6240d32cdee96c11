"""Training the head before the whole network."""

from typing import Any

import lightning.pytorch as pl
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from scor_lightning.callbacks.protocol import network_of
from scor_lightning.parts import split_body


class BackboneFinetuning(pl.Callback):
    """Train only the head in the first epochs and the whole network afterwards.

    A frozen body keeps its weights and the statistics of its batch norms. In contrast to
    ``lightning.pytorch.callbacks.BackboneFinetuning``, which adds the backbone to the optimizer later, all parameters are
    in the optimizer from the start, so that schedules, weight decay by groups (``decay_norms_and_biases``), the body's
    learning rate (``body_lr_factor``) and several processes work unchanged.

    Args:
        unfreeze_backbone_at_epoch: The first epoch, from 0, that trains the whole network.

    Raises:
        ValueError: If unfreeze_backbone_at_epoch is negative; in training, if the backbone has no ``head``.

    Example:
        >>> trainer = pl.Trainer(logger=False, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=5)])
    """

    def __init__(self, unfreeze_backbone_at_epoch: int = 10) -> None:
        if unfreeze_backbone_at_epoch < 0:
            raise ValueError(f"Expected `unfreeze_backbone_at_epoch` >= 0 but got {unfreeze_backbone_at_epoch}")
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self._frozen: bool | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there is a head."""
        self._frozen = None
        network = network_of(pl_module)
        if "head" not in dict(network.named_children()):
            raise ValueError(f"Expected a backbone with `head` to train first but got {type(network).__name__}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Freeze or unfreeze; Lightning skips the epoch start hook when a run resumes between two epochs."""
        frozen = trainer.current_epoch < self.unfreeze_backbone_at_epoch
        if frozen == self._frozen:
            return
        self._frozen = frozen
        if trainer.world_size == 1:  # DDP does not notice parameters that require gradients later
            for parameter in split_body(network_of(pl_module)):
                parameter.requires_grad_(not frozen)
        network = network_of(pl_module)
        head = set(network.get_submodule("head").modules())
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module not in head:
                module.train(not frozen)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the body unchanged, also if every process has to compute its gradients."""
        if self._frozen:
            for parameter in split_body(network_of(pl_module)):
                parameter.grad = None
