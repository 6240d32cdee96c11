"""Confidence intervals of a mean difference over paired repeats, one for each kind of repetition.

A difference is that of one measure between two methods. :func:`redraws` covers another draw from the same data set,
:func:`clustered` the same for a measure that depends on a drawn class, :class:`Crossed` and :func:`resampled` also cover
new test images.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Kind = Literal["t", "BCa", "clusters", "crossed", "corrected resampled t"]
Decision = Literal["higher", "lower", "equal", "undecided"]

MANY = 50  # repeats from which on redraws are bootstrapped
MOST = 100_000  # maximum number of repeats to suggest
_RESAMPLES = 4999  # of the bootstrap: enough for a tail of .05 / 11, for twelve methods


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval of a mean difference.

    Attributes:
        kind: How the interval was computed.
        repeats: Number of repeats J.
        mean: The mean difference.
        low: Lower end.
        high: Upper end.
        half_width: Predicts half the width for another number of repeats, from the components of the variance.
    """

    kind: Kind
    repeats: int
    mean: float
    low: float
    high: float
    half_width: Callable[[int], float]

    def decision(self, margin: float) -> Decision:
        """Return the decision, with differences up to ``margin`` counting as none.

        ``"higher"`` and ``"lower"`` if it excludes 0, ``"equal"`` if it lies within plus and minus the margin.
        """
        return _decision(self.low, self.high, margin)

    def within(self, most: float) -> "Interval":
        """Return the part of the interval within plus and minus ``most``, the largest difference that is possible."""
        return replace(self, low=max(self.low, -most), high=min(self.high, most))

    def beyond(self, margin: float) -> bool:
        """Return whether the whole interval lies outside plus and minus the margin."""
        return self.low > margin or self.high < -margin

    def repeats_to_decide(self, margin: float) -> int | None:
        """Return the smallest number of repeats whose predicted interval decides; None if none up to 100,000 does."""

        def decides(repeats: int) -> bool:
            half = self.half_width(repeats)
            return _decision(self.mean - half, self.mean + half, margin) != "undecided"

        low, high = self.repeats, MOST
        if not decides(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if decides(middle) else (middle, high)
        return high


def _decision(low: float, high: float, margin: float) -> Decision:
    if -margin <= low and high <= margin and margin > 0:
        return "equal"
    if low > 0:
        return "higher"
    return "lower" if high < 0 else "undecided"


def redraws(values: Values, confidence: float) -> Interval | None:
    """Return the interval over repeats, for another draw of subset, split and weights from this data set.

    Student's t below 50 repeats, the bootstrap's BCa from 50 on.

    Args:
        values: Differences, one per repeat, finite ``[J]``.
        confidence: Level, such as .95.

    Returns:
        The interval; None for a single repeat.

    Example:
        >>> interval = redraws(np.array([0.02, 0.03, 0.01, 0.04]), 0.95)
        >>> interval.kind, round(interval.low, 4), round(interval.high, 4)
        ('t', 0.0045, 0.0455)
    """
    repeats = len(values)
    if repeats < 2:
        return None
    deviation = float(values.std(ddof=1))

    def half_width(number: int) -> float:
        return _t(confidence, number - 1) * deviation / math.sqrt(number)

    mean = float(values.mean())
    if repeats < MANY or deviation <= 1e-12 * max(1.0, abs(mean)):  # no resample of equal values differs
        half = half_width(repeats)
        return Interval("t", repeats, mean, mean - half, mean + half, half_width)
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, confidence_level=confidence, rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval("BCa", repeats, mean, float(found.low), float(found.high), half_width)


def clustered(values: Values, clusters: Sequence[Hashable], confidence: float) -> Interval | None:
    """Return the interval over repeats for a measure of drawn classes.

    Repeats that reduce the same classes form a cluster. The mean is that of the cluster means, with Student's t of one
    degree of freedom less than clusters: 200 repeats that draw from ten classes are ten observations.

    Args:
        values: Differences, finite ``[J]``.
        clusters: The drawn classes of each repeat.
        confidence: Level, such as .95.

    Returns:
        The interval; None for a single cluster.
    """
    names = list(dict.fromkeys(clusters))
    groups = [values[[each == name for each in clusters]] for name in names]
    if len(groups) < 2:
        return None
    means = np.array([group.mean() for group in groups])
    repeats, mean, variance = len(values), float(means.mean()), float(means.var(ddof=1))
    inverse_size = float(np.mean([1 / len(group) for group in groups]))
    rest = repeats - len(groups)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / rest if rest else 0.0
    between = max(0.0, variance - within * inverse_size)

    def half_width(number: int) -> float:
        if not rest:  # no cluster has several repeats
            return _t(confidence, number - 1) * math.sqrt(variance / number)
        predicted = between + within * inverse_size * repeats / number
        return _t(confidence, len(groups) - 1) * math.sqrt(predicted / len(groups))

    half = _t(confidence, len(groups) - 1) * math.sqrt(variance / len(groups))
    return Interval("clusters", repeats, mean, mean - half, mean + half, half_width)


def resampled(values: Values, ratio: float, confidence: float) -> Interval | None:
    """Return the corrected resampled t interval for repeats that draw their test images from one pool.

    The half width is t_{J-1} s sqrt(1/J + n_test/n_train). It assumes a correlation of n_test/(n_train + n_test) between
    repeats, and does not shrink below s sqrt(n_test/n_train), however many repeats there are.

    Source: Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003.

    Args:
        values: Differences, finite ``[J]``.
        ratio: n_test/n_train of the pool, before the imbalance.
        confidence: Level, such as .95.

    Returns:
        The interval; None for a single repeat.
    """
    repeats = len(values)
    if repeats < 2:
        return None
    mean, deviation = float(values.mean()), float(values.std(ddof=1))

    def half_width(number: int) -> float:
        return _t(confidence, number - 1) * deviation * math.sqrt(1 / number + ratio)

    half = half_width(repeats)
    return Interval("corrected resampled t", repeats, mean, mean - half, mean + half, half_width)


class Crossed:
    """Differences on the same test images in every repeat, for intervals over repeats and images.

    The mean difference is a mean over repeats and a weighted mean over images. Its variance has a part from the draw of the
    repeats, V_rep, and one from the draw of the test images, V_img; each contains the interaction V_int, which is
    subtracted once: V = max(V_rep + V_img - V_int, V_rep, V_img), with Satterthwaite's degrees of freedom.

    Args:
        differences: Difference d[r, i] of repeat r on image i, float ``[J, N]``, J >= 2.
        target: Classes of the images, int64 ``[N]``, each occurring at least twice.

    Attributes:
        classes: The classes that occur, int64 ``[C]``.
        sizes: Number of their images, int64 ``[C]``.

    Raises:
        ValueError: If there are fewer than two repeats, or a class has one image.

    Example:
        >>> differences = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
        >>> crossed = Crossed(differences, np.array([0, 0, 1, 1]))
        >>> interval = crossed.interval(np.array([0.5, 0.5]), 0.95)
        >>> round(interval.mean, 3), round(interval.low, 3), round(interval.high, 3)
        (0.375, -1.509, 2.259)
    """

    def __init__(self, differences: NDArray[Any], target: NDArray[Any]) -> None:
        self.classes, self.sizes = np.unique(target, return_counts=True)
        self.repeats = repeats = len(differences)
        if repeats < 2 or self.sizes.min() < 2:
            raise ValueError("Expected at least two repeats and two images per class")
        ordered = differences[:, np.argsort(target, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._rows: Values = np.add.reduceat(ordered, starts, axis=1, dtype=np.float64) / self.sizes  # [J, C]
        columns = ordered.mean(axis=0, dtype=np.float64)  # [N]
        means = self._rows.mean(axis=0)
        of_images = np.add.reduceat(columns**2, starts) - self.sizes * means**2
        squares = np.add.reduceat(np.einsum("ji,ji->i", ordered, ordered, dtype=np.float64), starts)
        rest = squares - self.sizes * (self._rows**2).sum(axis=0) - repeats * of_images
        degrees = self.sizes - 1
        self._image_variance: Values = np.maximum(of_images, 0) / degrees / self.sizes
        self._interaction: Values = np.maximum(rest, 0) / ((repeats - 1) * degrees) / (repeats * self.sizes)

    def interval(self, weights: Values, confidence: float, mean: float | None = None) -> Interval:
        """Return the interval of a weighted mean over the classes.

        Args:
            weights: Weight of each class that occurs, summing to 1, ``[C]``: N_c/N for accuracy, 1/C for balanced accuracy.
            confidence: Level, such as .95.
            mean: The mean difference, if ``differences`` are an approximation of it.
        """
        by_repeat = self._rows @ weights
        image = weights**2 * self._image_variance
        interaction = float((weights**2) @ self._interaction)
        repeat_variance = float(by_repeat.var(ddof=1))
        degrees = self.sizes - 1

        def half_width(number: int) -> float:
            v_repeat, v_interaction = repeat_variance / number, interaction * self.repeats / number
            v_image = float(image.sum())
            if number != self.repeats:
                v_image = max(0.0, v_image - interaction) + v_interaction
            whole = max(v_repeat + v_image - v_interaction, v_repeat, v_image)
            if whole == 0:
                return 0.0
            parts = image * (v_image / image.sum()) if image.any() else image
            spread = v_repeat**2 / (number - 1) + float((parts**2 / degrees).sum())
            return _t(confidence, whole**2 / spread) * math.sqrt(whole)

        mean = float(by_repeat.mean()) if mean is None else mean
        half = half_width(self.repeats)
        return Interval("crossed", self.repeats, mean, mean - half, mean + half, half_width)


def f1_pseudo_values(predicted: NDArray[Any], target: NDArray[Any], num_classes: int) -> NDArray[np.float32]:
    """Return the jackknife's pseudo-values of macro F1 over images: N F - (N - 1) F_{-i}.

    F_{-i} is macro F1 without image i, over the classes that occur or are predicted.

    Args:
        predicted: Predicted classes, ``[J, N]``.
        target: Classes of the images, int64 ``[N]``.
        num_classes: Number of classes K.

    Returns:
        Float32 ``[J, N]``.
    """
    images = len(target)
    support = np.bincount(target, minlength=num_classes)
    result = np.empty(predicted.shape, np.float32)
    for row, guess in zip(result, predicted.astype(np.int64), strict=True):
        guessed = np.bincount(guess, minlength=num_classes)
        right = np.bincount(target[guess == target], minlength=num_classes)
        both = support + guessed
        present = both > 0
        total, count = float((2 * right[present] / both[present]).sum()), int(present.sum())
        fewer = np.maximum(both - 1, 1)
        score = 2 * right / np.maximum(both, 1)
        # The loss of the sum over the classes without one wrong, and without one correct image of a class.
        lost = np.where(present, 2 * right / fewer - score, 0)
        lost_right = np.where(both > 1, 2 * (right - 1) / np.maximum(both - 2, 1), 0) - score
        absent = both == 1  # a class with a single image or a single wrong prediction
        wrong = guess != target
        without = total + np.where(wrong, lost[target] + lost[guess], lost_right[target])
        left = count - np.where(wrong, absent[target].astype(int) + absent[guess], both[target] == 2)
        row[:] = images * total / count - (images - 1) * without / np.maximum(left, 1)
    return result


def _t(confidence: float, degrees: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))
