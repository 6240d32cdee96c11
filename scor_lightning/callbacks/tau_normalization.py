"""Tau-normalization: the rows of the classifier divided by a power of their norms, after training."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scor_lightning.callbacks.protocol import AfterTraining
from scor_lightning.parts import head_of

TAUS = tuple(round(0.1 * i, 1) for i in range(21))


class TauNormalization(AfterTraining):
    r"""Divide the weights of each class by a power of their norm, after training.

    .. math:: \tilde w_k = \frac{w_k}{\lVert w_k \rVert^\tau}

    Training on imbalanced data gives large classes weights with larger norms; tau 0 changes nothing, tau 1 makes all norms
    equal. Tau is selected from 0, .1, ..., 2 by balanced accuracy on the validation set, the smallest of equal ones. It is
    never selected on the test set; without a validation set it is 1.

    Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
    https://arxiv.org/abs/1910.09217, https://github.com/facebookresearch/classifier-balancing.

    Args:
        tau: The power, >= 0; None selects it.
        bias: Whether the head keeps its bias. Bag of Tricks (AAAI 2021) keeps it, with tau 1; Kang et al. drop it.

    Raises:
        ValueError: If tau < 0; before training, if the head is not linear.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[TauNormalization()])
    """

    def __init__(self, tau: float | None = None, bias: bool = True) -> None:
        if tau is not None and not tau >= 0:
            raise ValueError(f"Expected `tau` >= 0 but got {tau}")
        self.tau = tau
        self.bias = bias

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the head."""
        _head(pl_module)

    @torch.no_grad()
    def finish(self, trainer: pl.Trainer, pl_module: Any, datamodule: Any) -> dict[str, float]:
        """Select tau and normalize the head in place; return ``{"tau": tau}``."""
        head = _head(pl_module)
        bias = head.bias if self.bias else None
        tau = self.tau
        if tau is None:
            tau = self._select(trainer, pl_module, datamodule, head.weight, bias)
        head.weight.copy_(_normalized(head.weight, tau))
        if not self.bias and head.bias is not None:
            head.bias.zero_()
        return {"tau": tau}

    def _select(self, trainer: pl.Trainer, module: Any, datamodule: Any, weight: Tensor, bias: Tensor | None) -> float:
        loader = datamodule.val_dataloader()
        if not loader:
            return 1.0
        training = module.training
        module.eval()
        classes = len(weight)
        right = torch.zeros(len(TAUS), classes, dtype=torch.float64, device=weight.device)
        support = torch.zeros(classes, dtype=torch.float64, device=weight.device)
        for images, target in loader:
            target = module.own_targets(target.to(weight.device))
            features = images.to(weight.device)
            if images.ndim != 2:  # not features of a frozen body
                features = module.backbone.forward_features(module.normalize(features))
            support += torch.bincount(target, minlength=classes)
            for i, tau in enumerate(TAUS):
                logits = module.adjusted(F.linear(features, _normalized(weight, tau), bias))
                right[i] += torch.bincount(target[logits.argmax(dim=1) == target], minlength=classes)
        module.train(training)
        right, support = (trainer.strategy.reduce(each, reduce_op="sum") for each in (right, support))
        recalls = (right / support)[:, support > 0]
        return TAUS[int(recalls.mean(dim=1).argmax())]


def _head(module: Any) -> nn.Linear:
    head = head_of(module.backbone)
    if not isinstance(head, nn.Linear) or hasattr(head, "logit_scale"):
        got = type(module.backbone if head is None else head).__name__
        raise ValueError(f"Expected a network with a linear `head` for TauNormalization but got {got}")
    return head


def _normalized(weight: Tensor, tau: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return weight / norm.masked_fill(norm == 0, 1) ** tau
