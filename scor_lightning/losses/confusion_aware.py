"""Confusion-aware spectral regularization (CAR)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scor_lightning.functional.classification import check_parameter, upcast
from scor_lightning.losses.base import (
    loss_terms,
    needs_features,
)
from scor_lightning.losses.distributed import BatchGatherer
from scor_lightning.losses.over_base import LossOverBase


class ConfusionAwareLoss(LossOverBase):
    r"""Add the largest singular value of a running confusion matrix to a base loss.

    For a sample of class j and a class i other than j, its soft confusion is

    .. math:: c_i = \sigma(z_i - z_j) \, \mathrm{softmax}\big((z - z_j) / \tau\big)_i

    with no gradient through the sigmoid. Column j of C is the mean over the samples of class j in the batch, 0 if there are
    none, and the diagonal is 0. Its running average :math:`\bar C \leftarrow \beta \bar C + (1 - \beta) C`, without gradient
    through the previous value, gives

    .. math:: L = L_\text{base} + \lambda \, \sigma_{\max}\big(\bar C \, \mathrm{diag}(w)\big), \qquad
        w_j \propto \frac{1}{\sqrt{n_j / N + r_0}}

    with weights of mean 1. SCoR penalises the covariance of logits regardless of the classes; CAR penalises the confusion of classes.

    Source: "CAR: Confusion-Aware Spectral Regularizer for Long-Tailed Recognition", CVPR 2026, https://arxiv.org/abs/2603.16732,
    https://github.com/misswayguy/CAR.

    Args:
        base: Loss to add the term to; None is cross entropy.
        weight: Weight lambda of the term, >= 0.
        beta: Decay of the running average, in [0, 1).
        tau: Temperature of the softmax, > 0.
        r0: Offset of the class frequencies, > 0.
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Attributes:
        confusion: The running average, float32 ``[K, K]``; None before the first batch.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> loss = ConfusionAwareLoss(class_counts=[30, 10])
        >>> terms = loss.terms(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> [*terms], loss.confusion.shape
        (['cross_entropy', 'confusion'], torch.Size([2, 2]))
    """

    needs_class_counts = True
    pairs_samples = True
    keeps_state = True

    def __init__(
        self,
        base: nn.Module | None = None,
        weight: float = 0.3,
        beta: float = 0.9,
        tau: float = 1.0,
        r0: float = 0.2,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(base)
        check_parameter("weight", weight)
        if not 0 <= beta < 1:
            raise ValueError(f"Expected `beta` in [0, 1) but got {beta}")
        for name, value in (("tau", tau), ("r0", r0)):
            check_parameter(name, value, positive=True)
        self.weight = weight
        self.beta = beta
        self.tau = tau
        self.r0 = r0
        self.needs_features = needs_features(self.base)
        self.confusion: Tensor | None = None
        self._gather = BatchGatherer()
        self._take_counts(class_counts)

    def terms(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms of the base loss and, in training, ``confusion``, weighted."""
        terms = loss_terms(self.base, logits, target, features)
        if not self.training:
            return terms
        counts = self.counts_of(logits).float()
        logits, target = self._gather(upcast(logits), target)
        current = soft_confusion(logits, target, self.tau)
        average = current.detach()  # for the first batch
        if self.confusion is not None:
            average = self.beta * self.confusion.to(current) + (1 - self.beta) * current
        self.confusion = average.detach()
        weights = 1 / (counts / counts.sum() + self.r0).sqrt()
        weights = (weights / weights.mean()).clamp_min(1e-3)
        terms["confusion"] = self.weight * torch.linalg.matrix_norm(average * weights.to(average), ord=2)
        return terms

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state with the running average, for the checkpoint."""
        return {**super().get_extra_state(), "confusion": self.confusion}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the state from a checkpoint."""
        super().set_extra_state(state)
        self.confusion = state["confusion"]


def soft_confusion(logits: Tensor, target: Tensor, tau: float = 1.0) -> Tensor:
    """Return the soft confusion matrix of a batch: row i, column j is how much class j is confused with class i.

    Args:
        logits: Float ``[B, K]``.
        target: Class indices, int64 ``[B]``.
        tau: Temperature, > 0.

    Returns:
        ``[K, K]``, with a zero diagonal and zero columns for absent classes.
    """
    classes = logits.shape[1]
    margin = logits - logits.gather(1, target[:, None])
    confused = margin.detach().sigmoid() * (margin / tau).softmax(dim=1)
    onehot = nn.functional.one_hot(target, classes).to(confused)
    total = confused.T @ onehot / onehot.sum(dim=0).clamp_min(1)
    return total * (1 - torch.eye(classes, dtype=total.dtype, device=total.device))
