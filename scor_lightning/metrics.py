"""The metrics that every run reports."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassStatScores,
)

from scor_lightning.functional.classification import upcast

PER_CLASS = ("recall", "precision", "f1", "support")  # metrics with a value for each class
MAX_CLASS_TAGS = 100  # of more classes the loggers get no tag for each; the files of ClassReport have them all


class _ClassStatistic(MulticlassStatScores):
    """Something that follows from the hits, false alarms and misses of each class, int64 ``[K]``.

    Args:
        num_classes: Number of classes K.
    """

    higher_is_better = True

    tp: Tensor
    fp: Tensor
    fn: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None, validate_args=False)


class BalancedAccuracy(_ClassStatistic):
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

    def compute(self) -> Tensor:
        """Compute the mean recall, a scalar in [0, 1]."""
        return _recalls(self).mean()


class GeometricMean(_ClassStatistic):
    """Geometric mean of the recalls of the classes that occur among the targets (G-mean): 0 where one class is 0.

    Args:
        num_classes: Number of classes K.

    Example:
        >>> import torch
        >>> GeometricMean(num_classes=3)(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]))
        tensor(0.7071)
    """

    def compute(self) -> Tensor:
        """Compute the geometric mean, a scalar in [0, 1]."""
        return _recalls(self).log().mean().exp()


class HarmonicMean(_ClassStatistic):
    """Harmonic mean of the recalls of the classes that occur among the targets: 0 where one class is 0.

    Args:
        num_classes: Number of classes K.

    Example:
        >>> import torch
        >>> HarmonicMean(num_classes=3)(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]))
        tensor(0.6667)
    """

    def compute(self) -> Tensor:
        """Compute the harmonic mean, a scalar in [0, 1]."""
        return 1 / (1 / _recalls(self)).mean()


class WorstClassRecall(_ClassStatistic):
    """Lowest recall of the classes that occur among the targets.

    Args:
        num_classes: Number of classes K.

    Example:
        >>> import torch
        >>> WorstClassRecall(num_classes=3)(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]))
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Return the lowest recall, a scalar in [0, 1]."""
        return _recalls(self).min()


class MatthewsCorrelation(_ClassStatistic):
    r"""Correlation of predictions and targets over K classes (MCC, R_K), as scikit-learn's ``matthews_corrcoef``.

    .. math:: \frac{c s - \sum_k p_k t_k}{\sqrt{(s^2 - \sum_k p_k^2)(s^2 - \sum_k t_k^2)}}

    for s samples, c of them right, and p_k predictions and t_k targets of class k; 0 where the root is. It needs K sums;
    :class:`~torchmetrics.classification.MulticlassMatthewsCorrCoef` keeps a confusion matrix of K x K.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", Computational
    Biology and Chemistry 28, 2004.

    Args:
        num_classes: Number of classes K.

    Example:
        >>> import torch
        >>> MatthewsCorrelation(num_classes=3)(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]))
        tensor(0.6124)
    """

    def compute(self) -> Tensor:
        """Compute the correlation, a scalar in [-1, 1]."""
        # On the CPU, because not every device has float64.
        predicted, target = (self.tp + self.fp).cpu().double(), (self.tp + self.fn).cpu().double()
        size = target.sum()
        numerator = self.tp.cpu().sum() * size - predicted @ target
        root = ((size**2 - predicted @ predicted) * (size**2 - target @ target)).sqrt()
        return torch.where(root > 0, numerator / root, 0).to(self.tp.device, torch.float32)


class Support(_ClassStatistic):
    """Samples of each class.

    Args:
        num_classes: Number of classes K.
    """

    higher_is_better = None  # type: ignore[assignment]

    def compute(self) -> Tensor:
        """Return the number of targets of each class, int64 ``[K]``."""
        return self.tp + self.fn


class CalibrationError(Metric):
    """Expected calibration error: how far the probability of the predicted class is from how often it is right.

    The mean over samples of ``|accuracy - confidence|`` of their bin, of 15 bins of the confidence of equal width (Guo
    et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599). It keeps the sums
    of the bins, where :class:`~torchmetrics.classification.MulticlassCalibrationError` keeps every sample.

    Args:
        num_bins: Number of bins.

    Example:
        >>> import torch
        >>> metric = CalibrationError()
        >>> metric.update(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))  # sure by 0.88, right by 0.5
        >>> metric.compute()
        tensor(0.3808)
    """

    higher_is_better = False
    full_state_update = False

    bins: Tensor

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.add_state("bins", torch.zeros(3, num_bins), dist_reduce_fx="sum")  # confidence, right, samples

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch of logits ``[B, K]`` and targets ``[B]``."""
        confidence, predicted = logits.softmax(-1, dtype=torch.float32).max(-1)
        # The bins are open below and closed above.
        bin_of = (confidence * self.num_bins).ceil().long().clamp(1, self.num_bins) - 1
        terms = torch.stack([confidence, predicted == target, torch.ones_like(confidence)]).to(self.bins.dtype)
        # Summed by batch first: from 2**24 samples on, adding 1 to a float32 changes nothing.
        self.bins += torch.zeros_like(self.bins).index_add_(1, bin_of, terms)

    def compute(self) -> Tensor:
        """Compute the error, a scalar in [0, 1]."""
        confidence, right, samples = self.bins
        error: Tensor = (confidence - right).abs().sum() / samples.sum()
        return error


class CrossEntropy(Metric):
    """Cross entropy of the distribution used for prediction, the mean over the samples; it compares losses.

    Example:
        >>> import torch
        >>> CrossEntropy()(torch.zeros(1, 2), torch.tensor([1]))  # log 2
        tensor(0.6931)
    """

    higher_is_better = False
    full_state_update = False

    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch of logits ``[B, K]`` and targets ``[B]``."""
        self.total += F.cross_entropy(upcast(logits), target, reduction="sum")
        self.samples += len(target)

    def compute(self) -> Tensor:
        """Return the mean, a scalar >= 0."""
        return self.total / self.samples


class BrierScore(CrossEntropy):
    r"""Mean squared distance of the probabilities from the one-hot targets, :math:`\sum_k (p_k - [y = k])^2`, in [0, 2].

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 78, 1950.

    Example:
        >>> import torch
        >>> BrierScore()(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.5000)
    """

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch of logits ``[B, K]`` and targets ``[B]``."""
        probability = logits.softmax(-1, dtype=torch.float32)
        right = probability.gather(1, target[:, None]).squeeze(1)
        self.total += (probability.square().sum(1) - 2 * right + 1).sum()
        self.samples += len(target)


def _recalls(statistic: _ClassStatistic) -> Tensor:
    support = statistic.tp + statistic.fn
    return statistic.tp[support > 0] / support[support > 0]


def class_groups(counts: Tensor, thresholds: tuple[int, int] = (20, 100)) -> dict[str, Tensor]:
    """Sort classes by their training images into few-, medium- and many-shot, as long-tailed recognition does.

    Source: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019,
    https://arxiv.org/abs/1904.05160.

    Args:
        counts: Training images of each class, int64 ``[K]``.
        thresholds: (few, many): few-shot are the classes of fewer images than the first, many-shot those of more than
            the second.

    Returns:
        Members of ``"many"``, ``"medium"`` and ``"few"``, bool ``[K]``.

    Example:
        >>> class_groups(torch.tensor([500, 100, 20, 19]))["medium"].tolist()
        [False, True, True, False]
    """
    few, many = thresholds
    return {"many": counts > many, "medium": (counts >= few) & (counts <= many), "few": counts < few}


def group_accuracies(recall: Tensor, support: Tensor, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the accuracy over groups of classes.

    Args:
        recall: Recall of each class, float ``[K]``.
        support: Samples of each class, int64 ``[K]``.
        groups: Members of each group, bool ``[K]``. Of ``"reduced"`` it is the share of its samples that are right, as
            in the SCoR paper; of the others the mean recall of their classes, as in long-tailed recognition.

    Returns:
        ``accuracy_<group>``, a scalar in [0, 1]; a group without samples is left out.
    """
    accuracies = {}
    for name, members in groups.items():
        members = members.to(support.device) & (support > 0)
        if members.any():
            weights = support[members] if name == "reduced" else torch.ones_like(support[members])
            accuracies[f"accuracy_{name}"] = (recall[members] * weights).sum() / weights.sum()
    return accuracies


def classification_metrics(num_classes: int) -> MetricCollection:
    """Build the metrics of one split; clone it with a prefix for another.

    ``accuracy`` (top-1), ``balanced_accuracy``, ``f1_macro``, ``worst_class_recall``, ``g_mean`` and ``harmonic_mean`` of the
    recalls, ``mcc``, ``calibration_error``, ``brier``, ``cross_entropy``, above five classes ``accuracy_top5``, and of each
    class, ``[K]``, ``recall``, ``precision``, ``f1`` and ``support``. Each takes ``(logits [B, K], target [B])`` and counts
    every sample once over processes.

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
        "worst_class_recall": WorstClassRecall(num_classes),
        "g_mean": GeometricMean(num_classes),
        "harmonic_mean": HarmonicMean(num_classes),
        "mcc": MatthewsCorrelation(num_classes),
        "recall": MulticlassRecall(num_classes, average="none", validate_args=False),
        "precision": MulticlassPrecision(num_classes, average="none", validate_args=False),
        "f1": MulticlassF1Score(num_classes, average="none", validate_args=False),
        "support": Support(num_classes),
        "calibration_error": CalibrationError(),
        "brier": BrierScore(),
        "cross_entropy": CrossEntropy(),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
    # Named, because MetricCollection would guess them from the states after one batch, and after a perfect first batch
    # top-1 looks like top-5.
    alone = {"accuracy", "accuracy_top5", "calibration_error", "brier", "cross_entropy"} & set(metrics)
    groups = [[name for name in metrics if name not in alone], *([name] for name in sorted(alone))]
    return MetricCollection(metrics, compute_groups=groups)  # type: ignore[arg-type]


def lower_is_better(tag: str) -> bool:
    """Check whether a lower value of a logged metric is better: for losses, and for metrics that say so.

    Example:
        >>> lower_is_better("val/loss"), lower_is_better("val/recall/loss"), lower_is_better("train/scor_penalty")
        (True, False, True)
    """
    split, _, name = tag.partition("/")
    if split == "train" or name == "loss":
        return True
    metrics = classification_metrics(num_classes=2)
    return name in metrics and metrics[name].higher_is_better is False
