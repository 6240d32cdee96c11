"""The metrics that every run reports."""

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassRecall,
    MulticlassStatScores,
)


class BalancedAccuracy(MulticlassStatScores):
    """Mean recall over the classes that occur among the targets, as scikit-learn's ``balanced_accuracy_score``.

    :class:`~torchmetrics.classification.MulticlassAccuracy` with macro averaging counts a class that is predicted but
    never occurs as a recall of 0, which a held-out set without the rarest class would be punished for.

    Args:
        num_classes: Number of classes K.

    Example:
        >>> import torch
        >>> BalancedAccuracy(num_classes=3)(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]))
        tensor(0.7500)
    """

    higher_is_better = True

    tp: Tensor
    fn: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None, validate_args=False)

    def compute(self) -> Tensor:
        """Give the mean recall, a scalar in [0, 1]."""
        support = self.tp + self.fn
        return (self.tp[support > 0] / support[support > 0]).mean()


def classification_metrics(num_classes: int) -> MetricCollection:
    """Build the metrics of one split; clone it with a prefix for another.

    ``accuracy`` (top-1), ``balanced_accuracy``, ``f1_macro``, ``recall`` (of each class, ``[K]``) and, above five
    classes, ``accuracy_top5``. Each takes ``(logits [B, K], target [B])`` and counts every sample once over processes.

    Args:
        num_classes: Number of classes K, at least 2.

    Raises:
        ValueError: If there are fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"Expected at least 2 classes but got {num_classes}")
    metrics = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "balanced_accuracy": BalancedAccuracy(num_classes),
        "f1_macro": MulticlassF1Score(num_classes, average="macro", validate_args=False),
        "recall": MulticlassRecall(num_classes, average="none", validate_args=False),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
    # Named, because MetricCollection would guess them from the states after one batch, and after a perfect first batch
    # top-1 looks like top-5.
    groups = [["balanced_accuracy", "f1_macro", "recall"], *([name] for name in metrics if name.startswith("accuracy"))]
    return MetricCollection(metrics, compute_groups=groups)  # type: ignore[arg-type]
