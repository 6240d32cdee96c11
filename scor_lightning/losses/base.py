"""The contract of a loss."""

import re
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Loss(nn.Module, ABC):
    """A classification loss that is the sum of named terms.

    A subclass implements :meth:`terms`. Plain ``torch.nn`` losses, which know nothing of terms, features or class
    counts, are used through :func:`loss_terms` with the same result, so nothing needs to be wrapped.

    Attributes:
        needs_features: Whether the loss reads the features in front of the classifier's head.
        class_counts: Training images a class, int64 ``[K]``, or None before :meth:`set_class_counts`.
    """

    needs_features: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.class_counts: Tensor | None = None

    @abstractmethod
    def terms(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """Give the named parts whose sum is the loss.

        Args:
            logits: Unnormalised scores, float ``[B, K]``.
            target: Class indices, int64 ``[B]``, in ``0..K-1``.
            features: What the classifier's head reads, float ``[B, D]``.

        Returns:
            Scalars by name, each weighted as it enters the sum.
        """

    def forward(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> Tensor:
        """Add up :meth:`terms`, a scalar."""
        return torch.stack(list(self.terms(logits, target, features).values())).sum()

    def set_class_counts(self, counts: Tensor) -> None:
        """Receive the number of training images a class, int64 ``[K]``; called before training starts."""
        self.class_counts = counts

    def adjust_logits(self, logits: Tensor) -> Tensor:
        """Give the logits ``[B, K]`` that evaluation predicts from: the logits themselves unless a loss says else."""
        return logits

    def get_extra_state(self) -> dict[str, Any]:
        """Put the class counts into the checkpoint; a buffer that is None at first would break strict loading."""
        return {"class_counts": self.class_counts}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the class counts out of a checkpoint."""
        self.class_counts = state["class_counts"]


def loss_name(loss: nn.Module) -> str:
    """Name a loss after its class, as the tags and the runs show it.

    Example:
        >>> loss_name(nn.CrossEntropyLoss())
        'cross_entropy'
    """
    return re.sub("(?<=[a-z])(?=[A-Z][a-z])", "_", type(loss).__name__.removesuffix("Loss")).lower()


def loss_terms(
    loss: nn.Module, logits: Tensor, target: Tensor, features: Tensor | None = None
) -> dict[str, Tensor]:
    """Give the named terms of any loss: of a :class:`Loss` its own, of a plain ``torch.nn`` loss its value."""
    if isinstance(loss, Loss):
        return loss.terms(logits, target, features)
    return {loss_name(loss): loss(logits, target)}
