"""The metrics of every run."""

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
from torchmetrics.utilities.data import dim_zero_cat

from scor_lightning.description import DataDescription
from scor_lightning.functional.classification import upcast

PER_CLASS = ("recall", "precision", "f1", "support")  # metrics with one value per class
# Metrics that are defined for probabilities only, not for other scores.
OF_PROBABILITIES = (
    *("calibration_error", "adaptive_calibration_error", "classwise_calibration_error", "brier", "cross_entropy"),
)
SHIFTS = (2, 5, 10, 25, 50)  # imbalance ratios of shifted test sets
MAX_CLASS_TAGS = 100  # above, classes are not logged individually; the files of ClassReport contain all


class _ClassStatistic(MulticlassStatScores):
    """A statistic of the true positives, false positives and false negatives of each class, int64 ``[K]``.

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
    absent from the targets as a recall of 0, which penalises a held-out set without the rarest class.

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
    """Geometric mean of the recalls of the classes that occur among the targets (G-mean): 0 if one recall is 0.

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
    """Harmonic mean of the recalls of the classes that occur among the targets: 0 if one recall is 0.

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

    for s samples, c of them correct, and p_k predictions and t_k targets of class k; 0 if the root is 0. It requires K sums;
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
        # On the CPU, because not every device supports float64.
        predicted, target = (self.tp + self.fp).cpu().double(), (self.tp + self.fn).cpu().double()
        size = target.sum()
        numerator = self.tp.cpu().sum() * size - predicted @ target
        root = ((size**2 - predicted @ predicted) * (size**2 - target @ target)).sqrt()
        return torch.where(root > 0, numerator / root, 0).to(self.tp.device, torch.float32)


class Support(_ClassStatistic):
    """Number of samples of each class.

    Args:
        num_classes: Number of classes K.
    """

    higher_is_better = None  # type: ignore[assignment]

    def compute(self) -> Tensor:
        """Return the number of targets of each class, int64 ``[K]``."""
        return self.tp + self.fn


class CalibrationError(Metric):
    """Expected calibration error (ECE): distance between the confidence of predictions and their accuracy.

    The mean over samples of ``|accuracy - confidence|`` of their bin, with 15 confidence bins of equal width (Guo
    et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599). It stores sums
    per bin; :class:`~torchmetrics.classification.MulticlassCalibrationError` stores every sample.

    Args:
        num_bins: Number of bins.

    Example:
        >>> import torch
        >>> metric = CalibrationError()
        >>> metric.update(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))  # confidence 0.88, accuracy 0.5
        >>> metric.compute()
        tensor(0.3808)
    """

    higher_is_better = False
    full_state_update = False

    bins: Tensor

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.add_state("bins", torch.zeros(3, num_bins), dist_reduce_fx="sum")  # confidence, correct, samples

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Update the state with a batch of logits ``[B, K]`` and targets ``[B]``."""
        confidence, predicted = logits.softmax(-1, dtype=torch.float32).max(-1)
        # The bins are open below and closed above.
        bin_of = (confidence * self.num_bins).ceil().long().clamp(1, self.num_bins) - 1
        terms = torch.stack([confidence, predicted == target, torch.ones_like(confidence)]).to(self.bins.dtype)
        # Summed per batch first: adding 1 to a float32 of 2**24 or more changes nothing.
        self.bins += torch.zeros_like(self.bins).index_add_(1, bin_of, terms)

    def compute(self) -> Tensor:
        """Compute the error, a scalar in [0, 1]."""
        confidence, right, samples = self.bins
        error: Tensor = (confidence - right).abs().sum() / samples.sum()
        return error


class ClasswiseCalibrationError(Metric):
    """Mean over the classes of the calibration error of each class's probability.

    For each class :class:`CalibrationError` is computed one-vs-rest (Kull et al., "Beyond Temperature Scaling",
    NeurIPS 2019, https://arxiv.org/abs/1910.12656). It stores one sum per class and bin.

    Args:
        num_classes: Number of classes K.
        num_bins: Number of bins of equal width.

    Example:
        >>> import torch
        >>> metric = ClasswiseCalibrationError(num_classes=2)
        >>> metric.update(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.3808)
    """

    higher_is_better = False
    full_state_update = False

    gaps: Tensor
    samples: Tensor

    def __init__(self, num_classes: int, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.add_state("gaps", torch.zeros(num_classes, num_bins), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Update the state with a batch of logits ``[B, K]`` and targets ``[B]``."""
        probability = logits.softmax(-1, dtype=torch.float32)
        # Bins as of CalibrationError: open below and closed above.
        bin_of = (probability * self.num_bins).ceil().long().clamp(1, self.num_bins) - 1
        bin_of += self.num_bins * torch.arange(probability.shape[1], device=logits.device)
        probability.scatter_add_(1, target[:, None], probability.new_full((len(target), 1), -1.0))
        terms = probability.flatten().to(self.gaps.dtype)
        gaps = torch.zeros_like(self.gaps).flatten().index_add_(0, bin_of.flatten(), terms)
        self.gaps += gaps.view_as(self.gaps)
        self.samples += len(target)

    def compute(self) -> Tensor:
        """Compute the error, a scalar in [0, 1]."""
        error: Tensor = self.gaps.abs().sum() / self.samples / len(self.gaps)
        return error


class _Ranked(Metric):
    """Stores the confidence of every prediction and whether it is correct: 5 bytes per sample."""

    higher_is_better = False
    full_state_update = False

    confidence: list[Tensor]
    right: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Update the state with a batch of logits ``[B, K]`` and targets ``[B]``."""
        confidence, predicted = logits.softmax(-1, dtype=torch.float32).max(-1)
        self.confidence.append(confidence)
        self.right.append(predicted == target)

    def _ranked(self) -> tuple[Tensor, Tensor]:
        """Return the confidences, highest first, and whether each prediction is correct."""
        confidence, order = dim_zero_cat(self.confidence).sort(descending=True, stable=True)
        return confidence, dim_zero_cat(self.right)[order].float()


class AdaptiveCalibrationError(_Ranked):
    """Calibration error over bins with equally many samples; otherwise as :class:`CalibrationError`.

    Most predictions of a trained network are confident, so that few bins of equal width contain most samples (Nguyen and O'Connor,
    "Posterior Calibration and Exploratory Analysis for Natural Language Processing Models", EMNLP 2015,
    https://arxiv.org/abs/1508.05154).

    Args:
        num_bins: Number of bins.

    Example:
        >>> import torch
        >>> metric = AdaptiveCalibrationError(num_bins=2)
        >>> metric.update(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins

    def compute(self) -> Tensor:
        """Compute the error, a scalar in [0, 1]."""
        confidence, right = self._ranked()
        gaps = (confidence - right).flip(0).tensor_split(self.num_bins)
        return torch.stack([gap.sum().abs() for gap in gaps]).sum() / len(confidence)


class RiskCoverage(_Ranked):
    """Area under the risk-coverage curve (AURC): the error rate of the most confident predictions, averaged over the coverage.

    It measures by their order alone how well confidences separate correct from wrong predictions; 0 is best. Source: Geifman and
    El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017, https://arxiv.org/abs/1705.08500. The area
    between coverages 1/N and 1 by the trapezoidal rule, over its width, as in torch-uncertainty.

    Example:
        >>> import torch
        >>> metric = RiskCoverage()
        >>> metric.update(torch.tensor([[0.8, 0.0], [0.4, 0.0], [1.4, 0.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.0833)
    """

    def compute(self) -> Tensor:
        """Compute the area, a scalar in [0, 1]; NaN below two samples."""
        _, right = self._ranked()
        risk = (1 - right).cumsum(0) / torch.arange(1, len(right) + 1, device=right.device)
        return torch.trapezoid(risk) / (len(right) - 1) if len(right) > 1 else risk.new_tensor(torch.nan)


class CrossEntropy(Metric):
    """Mean cross entropy of the distribution used for prediction; use it to compare losses.

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
        """Update the state with a batch of logits ``[B, K]`` and targets ``[B]``."""
        self.total += F.cross_entropy(upcast(logits), target, reduction="sum")
        self.samples += len(target)

    def compute(self) -> Tensor:
        """Return the mean, a scalar >= 0."""
        return self.total / self.samples


class BrierScore(CrossEntropy):
    r"""Mean squared distance between the probabilities and the one-hot targets, :math:`\sum_k (p_k - [y = k])^2`, in [0, 2].

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 78, 1950.

    Example:
        >>> import torch
        >>> BrierScore()(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.5000)
    """

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Update the state with a batch of logits ``[B, K]`` and targets ``[B]``."""
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
        thresholds: (few, many): classes with fewer images than the first are few-shot, those with more than the second
            are many-shot.

    Returns:
        Members of ``"many"``, ``"medium"`` and ``"few"``, bool ``[K]``.

    Raises:
        ValueError: If the thresholds are not 1 <= few <= many.

    Example:
        >>> class_groups(torch.tensor([500, 100, 20, 19]))["medium"].tolist()
        [False, True, True, False]
    """
    few, many = thresholds
    if not 1 <= few <= many:
        raise ValueError(f"Expected `thresholds` 1 <= few <= many but got {tuple(thresholds)}")
    return {"many": counts > many, "medium": (counts >= few) & (counts <= many), "few": counts < few}


def known_groups(data: DataDescription, thresholds: tuple[int, int]) -> dict[str, Tensor]:
    """Return the known groups of classes of a data set, bool ``[K]``.

    Args:
        data: The description of the training data.
        thresholds: As of :func:`class_groups`.

    Returns:
        The groups of :func:`class_groups`, and ``"reduced"``, the classes that the imbalance reduces; empty without class counts.
    """
    if data.counts is None:
        return {}
    reduced = {} if data.reduced is None else {"reduced": data.reduced}
    return class_groups(data.counts, thresholds) | reduced


def class_thirds(counts: Tensor) -> dict[str, Tensor]:
    """Split classes by their training images into thirds, the largest classes first.

    Args:
        counts: Training images of each class, int64 ``[K]``.

    Returns:
        Members of ``"head_third"``, ``"middle_third"`` and ``"tail_third"``, bool ``[K]``; empty if the classes have fewer
        than three different sizes.

    Example:
        >>> {name: members.tolist() for name, members in class_thirds(torch.tensor([5, 90, 20])).items()}
        {'head_third': [False, True, False], 'middle_third': [False, False, True], 'tail_third': [True, False, False]}
    """
    if len(set(counts.tolist())) < 3:
        return {}
    parts = counts.argsort(descending=True, stable=True).tensor_split(3)
    return {
        name: torch.zeros_like(counts, dtype=torch.bool).index_fill_(0, part, True)
        for name, part in zip(("head_third", "middle_third", "tail_third"), parts, strict=True)
    }


def shifted_accuracies(recall: Tensor, support: Tensor, counts: Tensor) -> dict[str, Tensor]:
    r"""Compute the accuracy on test sets that are imbalanced themselves.

    A test set whose class sizes fall exponentially, in the order of the training set or in reverse, has the accuracy
    :math:`\sum_c p_c r_c` with :math:`p_c \propto \rho^{-\mathrm{rank}(c) / (K - 1)}`. Source: Hong et al., "Disentangling Label
    Distribution for Long-Tailed Visual Recognition", CVPR 2021, https://arxiv.org/abs/2012.00321.

    Args:
        recall: Recall of each class, float ``[K]``.
        support: Test images of each class, int64 ``[K]``; classes without any are left out.
        counts: Training images of each class, int64 ``[K]``.

    Returns:
        ``accuracy_forward_<ratio>``, for test sets that are imbalanced like the training set, and ``accuracy_backward_<ratio>``,
        for the reverse, scalars in [0, 1], for the ratios 2, 5, 10, 25 and 50; empty if all classes have the same size.

    Example:
        >>> found = shifted_accuracies(torch.tensor([1.0, 0.0]), torch.tensor([1, 1]), torch.tensor([9, 1]))
        >>> round(float(found["accuracy_forward_2"]), 4), round(float(found["accuracy_backward_2"]), 4)
        (0.6667, 0.3333)
    """
    counts, recall = counts.to(support.device)[support > 0], recall[support > 0]
    if len(set(counts.tolist())) < 2:
        return {}
    order = counts.argsort(descending=True, stable=True)
    rank = torch.linspace(0, 1, len(order), device=recall.device)
    accuracies = {}
    for name, recalls in (("forward", recall[order]), ("backward", recall[order].flip(0))):
        for ratio in SHIFTS:
            prior = ratio**-rank
            accuracies[f"accuracy_{name}_{ratio}"] = (prior * recalls).sum() / prior.sum()
    return accuracies


def group_accuracies(recall: Tensor, support: Tensor, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the accuracy over groups of classes.

    Args:
        recall: Recall of each class, float ``[K]``.
        support: Samples of each class, int64 ``[K]``.
        groups: Members of each group, bool ``[K]``. For ``"reduced"`` the accuracy is over its samples, as in the SCoR
            paper; for the others it is the mean recall of their classes, as in long-tailed recognition.

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


def recall_measures(
    recall: Tensor, support: Tensor, groups: Mapping[str, Tensor], counts: Tensor | None
) -> dict[str, Tensor]:
    """Compute the measures of recalls and class sizes: :func:`group_accuracies`, also of thirds, and :func:`shifted_accuracies`.

    Args:
        recall: Recall of each class, float ``[K]``.
        support: Test images of each class, int64 ``[K]``.
        groups: Members of groups of classes, bool ``[K]``.
        counts: Training images of each class, int64 ``[K]``; None omits the measures that require them.
    """
    if counts is None:
        return group_accuracies(recall, support, groups)
    accuracies = group_accuracies(recall, support, {**groups, **class_thirds(counts)})
    return accuracies | shifted_accuracies(recall, support, counts)


def probability_metrics(num_classes: int) -> dict[str, Metric]:
    """Build the metrics of probabilities: those of :data:`OF_PROBABILITIES`, and ``aurc``, which uses their order."""
    return {
        "calibration_error": CalibrationError(),
        "adaptive_calibration_error": AdaptiveCalibrationError(),
        "classwise_calibration_error": ClasswiseCalibrationError(num_classes),
        "brier": BrierScore(),
        "cross_entropy": CrossEntropy(),
        "aurc": RiskCoverage(),
    }


def classification_metrics(num_classes: int) -> MetricCollection:
    """Build the metrics of a split; clone the collection with a prefix for another one.

    ``accuracy`` (top-1), ``balanced_accuracy``, ``f1_macro``, ``worst_class_recall``, ``g_mean`` and ``harmonic_mean`` of the
    recalls, ``mcc``, ``aurc``, those of :data:`OF_PROBABILITIES`, above five classes ``accuracy_top5``, and of each class,
    ``[K]``, ``recall``, ``precision``, ``f1`` and ``support``. Each takes ``(logits [B, K], target [B])`` and counts every
    sample once over processes.

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
        **probability_metrics(num_classes),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
    # Named, because MetricCollection would guess them from the states after one batch, and after a perfect first batch
    # top-1 looks like top-5.
    ranked = ["adaptive_calibration_error", "aurc"]
    alone = sorted({"accuracy", "accuracy_top5", *OF_PROBABILITIES}.intersection(metrics).difference(ranked))
    groups = [[name for name in metrics if name not in (*alone, *ranked)], ranked, *([name] for name in alone)]
    return MetricCollection(metrics, compute_groups=groups)  # type: ignore[arg-type]


def lower_is_better(tag: str) -> bool:
    """Return whether a lower value of a logged metric is better: for losses, and for metrics that declare it.

    Example:
        >>> lower_is_better("val/loss"), lower_is_better("val/recall/loss"), lower_is_better("train/scor_penalty")
        (True, False, True)
    """
    split, _, name = tag.partition("/")
    if split == "train" or name == "loss":
        return True
    metrics = classification_metrics(num_classes=2)
    return name in metrics and metrics[name].higher_is_better is False
