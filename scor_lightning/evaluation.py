"""The loss and the metrics of a split."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from scor_lightning.losses.base import Evaluated
from scor_lightning.metrics import (
    MAX_CLASS_TAGS,
    OF_PROBABILITIES,
    PER_CLASS,
    classification_metrics,
    recall_measures,
)

COUNTED_TOGETHER = 2**20  # maximum number of buffered logits, 4 MiB


class Evaluation(nn.Module):
    """The loss and the metrics of a split.

    Args:
        split: Name of the split, the prefix of its tags.
        num_classes: Number of classes K.
    """

    def __init__(self, split: str, num_classes: int) -> None:
        super().__init__()
        self.split = split
        self.metrics = classification_metrics(num_classes).clone(f"{split}/")
        self.loss = MeanMetric()
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def reset(self) -> None:
        """Reset the state, also after an interrupted evaluation."""
        self._waiting = []
        self.metrics.reset()
        self.loss.reset()

    def update(self, loss: Evaluated, logits: Tensor, target: Tensor) -> None:
        """Update the metrics with a batch.

        Args:
            loss: Its loss.
            logits: Logits for prediction, float ``[B, K]``.
            target: Class indices, int64 ``[B]``.
        """
        self.loss.update(loss.total / loss.weight.where(loss.weight > 0, 1), weight=loss.weight)
        self._waiting.append((logits, target))
        if len(self._waiting) * logits.numel() >= COUNTED_TOGETHER:
            self._count()

    def _count(self) -> None:
        # Several batches per update: for a small network an update costs more than a batch.
        if self._waiting:
            logits, target = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self.metrics.update(logits, target)
            self._waiting = []

    def compute(
        self, class_names: Sequence[str], groups: Mapping[str, Tensor], counts: Tensor | None, probabilities: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute what is logged, and the results of each class.

        Args:
            class_names: Names of the K classes.
            groups: Members of groups of classes, bool ``[K]``.
            counts: Training images of each class, int64 ``[K]``, if they are known.
            probabilities: Whether the predictions are probabilities; otherwise the metrics of probabilities are omitted.

        Returns:
            Scalars by tag; and ``recall``, ``precision``, ``f1`` and ``support``, ``[K]``.
        """
        self._count()
        values = {f"{self.split}/loss": self.loss.compute(), **self.metrics.compute()}
        if not probabilities:
            values = {tag: value for tag, value in values.items() if tag.partition("/")[2] not in OF_PROBABILITIES}
        results = {name: values.pop(f"{self.split}/{name}") for name in PER_CLASS}
        accuracies = recall_measures(results["recall"], results["support"], groups, counts)
        values.update({f"{self.split}/{name}": value for name, value in accuracies.items()})
        if len(class_names) <= MAX_CLASS_TAGS:
            columns = (class_names, results["recall"], results["support"].tolist())
            values.update({f"{self.split}/recall/{name}": value for name, value, n in zip(*columns, strict=True) if n})
        return values, results
