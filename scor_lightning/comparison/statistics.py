"""The statistics of a comparison: means, paired differences with their intervals, and decisions."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from scor_lightning.comparison.held_out import GROUPS, Found, HeldOutImages
from scor_lightning.comparison.intervals import Interval, Values, clustered, redraws, resampled
from scor_lightning.comparison.results import Row
from scor_lightning.metrics import OF_PROBABILITIES, SHIFTS

ACCURACIES = ("balanced_accuracy", "accuracy", "f1_macro", "worst_class_recall", "accuracy_reduced")
LOWER_IS_BETTER = (*OF_PROBABILITIES, "aurc")
PREDICTION = (
    *(*ACCURACIES, *(f"accuracy_{group}" for group in GROUPS), "f1_reduced", "g_mean", "harmonic_mean"),
    *(f"accuracy_{direction}_{ratio}" for direction in ("forward", "backward") for ratio in SHIFTS),
    *LOWER_IS_BETTER,
)
LARGEST = {"cross_entropy": math.inf, "brier": 2.0}  # possible difference; 1 for the other measures of predictions
MARGIN = 0.002  # of accuracies, recalls and F1
LEVEL = 0.05
_Key = TypeVar("_Key", bound=Hashable)
MIN_REPEATS = 5  # by convention, fewer repeats decide nothing
_RESOLUTION = 9  # decimals to which differences are rounded, so that equal ones tie
_RESAMPLES = 10_000
_ENUMERATED = 13  # number of differences up to which all signs are enumerated
_NOT_COMPARED = ("test_loss", "train_seconds", "val_balanced_accuracy")  # not measures of test predictions
_ABOUT = (
    *("repeat", "method", "epoch", "engine", "threads", "reduced", "train_images", "test_images", "diverged", "seed"),
)


def final_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the records of the last epoch of each method."""
    last: dict[str, int] = {}
    for row in rows:
        last[row["method"]] = max(last.get(row["method"], 0), row["epoch"])
    return [row for row in rows if row["epoch"] == last[row["method"]]]


def measured_often(rows: Sequence[Row]) -> bool:
    """Return whether a method was measured at several epochs."""
    return len({(row["method"], row["epoch"]) for row in rows}) > len({row["method"] for row in rows})


def measures_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the numeric measures in records."""
    names = dict.fromkeys(name for row in rows for name in row)
    lists = {name for row in rows for name, value in row.items() if isinstance(value, list)}
    return [name for name in names if name not in _ABOUT and name not in lists]


def paired(rows: Sequence[Row], measure: str, methods: Sequence[str]) -> dict[str, Values]:
    """Return a measure's values by method, in the order of the repeats, NaN for missing ones."""
    repeats = {number: i for i, number in enumerate(sorted({row["repeat"] for row in rows}))}
    values = {method: np.full(len(repeats), np.nan) for method in methods}
    for row in rows:
        if row["method"] in values:
            values[row["method"]][repeats[row["repeat"]]] = row.get(measure, np.nan)
    return values


def diverged(rows: Sequence[Row]) -> dict[str, int]:
    """Return the number of diverged networks by method; methods without any are omitted."""
    tell = {True: "cross_entropy", False: "accuracy"}  # a loss without probabilities has no cross entropy
    rows = final_rows(rows)
    methods = [row["method"] for row in rows if not math.isfinite(row[tell["cross_entropy" in row]])]
    return {method: methods.count(method) for method in methods}


@dataclass(frozen=True)
class Mean:
    """A measure of one method over the repeats.

    Attributes:
        n: Number of repeats with a finite value.
        mean: Their mean; None if there are none.
        sd: Their standard deviation; None below two.
    """

    n: int
    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Values) -> "Mean":
        """Compute it from values; non-finite ones are ignored."""
        values = values[np.isfinite(values)]
        n = len(values)
        return cls(n, float(values.mean()) if n else None, float(values.std(ddof=1)) if n > 1 else None)


@dataclass(frozen=True)
class Difference:
    """A measure of one method minus that of another, over the repeats that both have.

    Attributes:
        measure: The measure.
        margin: Differences up to this count as none.
        n: Number of repeats.
        mean: The mean difference; None without any repeat.
        redraws: The interval over repeats, for another draw from this data set; None below two.
        new_images: The interval for new test images; None where it is not defined.
        better_in: P(A > B), the fraction of repeats with a better value, ties counted half, and its percentile bootstrap
            interval at 95 %: ``(fraction, low, high)``; for measures without a better direction, such as singular
            values, the fraction with a higher value. None without any repeat.
        p: Wilcoxon's signed-rank p-value of the differences in a headline measure, rounded to nine decimals; None for the others,
            and below two repeats.
        p_corrected: Corrected by Holm's method over the headline measures and methods; None for the other measures.
    """

    measure: str
    margin: float
    n: int
    mean: float | None
    redraws: Interval | None
    new_images: Interval | None
    better_in: tuple[float, float, float] | None
    p: float | None
    p_corrected: float | None = None

    @property
    def deciding(self) -> Interval | None:
        """The interval that decides: the one for new images where it is defined."""
        return self.new_images or self.redraws

    @property
    def verdict(self) -> Literal["better", "worse", "higher", "lower", "equal", "undecided"]:
        """The verdict of the deciding interval; undecided below five repeats."""
        decision = self.deciding.decision(self.margin) if self.deciding and self.n >= MIN_REPEATS else "undecided"
        if decision in ("equal", "undecided") or self.measure not in PREDICTION:
            return decision
        return "better" if (decision == "higher") != (self.measure in LOWER_IS_BETTER) else "worse"

    @property
    def beyond_margin(self) -> bool:
        """Whether the whole deciding interval lies outside the margin."""
        return self.deciding is not None and self.deciding.beyond(self.margin)

    @property
    def repeats_to_decide(self) -> int | None:
        """The smallest number of repeats that is predicted to decide; None if there is none, and below five repeats."""
        if self.deciding is None or self.n < MIN_REPEATS:
            return None
        return self.deciding.repeats_to_decide(self.margin)

    def to_dict(self) -> dict[str, Any]:
        """Return the difference for a JSON file."""
        verdict = self.verdict
        return {
            "n": self.n,
            "mean": self.mean,
            "verdict": verdict,
            "margin": self.margin,
            "beyond_margin": self.beyond_margin,
            **({"repeats_to_decide": self.repeats_to_decide} if verdict == "undecided" else {}),
            "redraws": _to_dict(self.redraws),
            "new_images": _to_dict(self.new_images),
            "better_in": self.better_in,
            "p": self.p,
            "p_corrected": self.p_corrected,
        }


class Statistics:
    """The statistics of a comparison.

    The interval for new images decides where it is defined, the one over redraws otherwise. New images are covered by
    crossing repeats and images if all repeats have the same test images, and by the corrected resampled t if each draws
    its own. Intervals are clipped to the largest possible difference, such as 1 for accuracies.

    Args:
        rows: Records as :func:`~scor_lightning.comparison.compare` returns them; the last epoch of each method counts.
        methods: Names of the methods, at least two.
        baseline: The method that the others are compared with.
        measure: The measure of predictions that determines the best method.
        margin: Differences up to this count as none; None is .002 for accuracies, recalls and F1, and 0 otherwise.
        predictions: The predictions of the networks, by repeat and method.
        ratio: n_test/n_train of the pool, before the imbalance, if every repeat draws its test images from it; None for a
            fixed test set.
        class_names: Names of the K classes; None without predictions.

    Attributes:
        rows: The records of the last epochs.
        repeats: The numbers of the repeats.
        confidence: Level of the intervals, 1 - .05 / (methods - 1).
        means: :class:`Mean` by measure and method.
        differences: :class:`Difference` to the baseline by measure and other method.
        images: The test images and their predictions.
        recorded: Number of repeats by method, whether they diverged or not.
        best: The method with the best mean of ``measure`` of those with the most repeats; None if no method has one.
        runner_up: The second best method, or None.
        lead: The difference of the best to the second best in ``measure``, or None.

    Raises:
        ValueError: If the records lack the measure, or the margin is negative.

    Example:
        >>> rows = [
        ...     {"repeat": r, "method": method, "epoch": 1, "reduced": [], "accuracy": 0.9 + 0.01 * r + gain}
        ...     for r in range(6)
        ...     for method, gain in (("ce", 0.0), ("scor", 0.02 + 0.001 * r))
        ... ]
        >>> difference = Statistics(rows, ["ce", "scor"], "ce", "accuracy").differences["accuracy"]["scor"]
        >>> round(difference.mean, 4), difference.better_in, difference.p, difference.verdict
        (0.0225, (1.0, 1.0, 1.0), 0.03125, 'better')
    """

    def __init__(
        self,
        rows: Sequence[Row],
        methods: Sequence[str],
        baseline: str,
        measure: str = "balanced_accuracy",
        margin: float | None = None,
        predictions: Found | None = None,
        ratio: float | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.rows = final_rows(rows)
        self.methods, self.baseline, self.measure, self.margin = list(methods), baseline, measure, margin
        self.confidence = 1 - LEVEL / (len(methods) - 1)
        self.images = HeldOutImages(predictions or {})
        self.recorded = Counter(row["method"] for row in self.rows)
        self._ratio = ratio
        self._reduced = {row["repeat"]: tuple(row["reduced"]) for row in self.rows}
        self.repeats = sorted(self._reduced)
        reduced = dict.fromkeys(name for names in self._reduced.values() for name in names)
        self._class_index = {name: i for i, name in enumerate(class_names or reduced)}
        names = measures_of(self.rows)
        if measure not in names or measure not in PREDICTION:
            known = ", ".join(name for name in PREDICTION if name in names)
            raise ValueError(f"Expected `--measure` to be one of {known} but got {measure!r}")
        if margin is not None and not margin >= 0:
            raise ValueError(f"Expected `--margin` >= 0 but got {margin}")
        self._values = {name: paired(self.rows, name, self.methods) for name in names}
        self.means = {name: {m: Mean.of(of[m]) for m in self.methods} for name, of in self._values.items()}
        self.differences = {
            name: {method: self.difference(name, method, baseline) for method in self.methods if method != baseline}
            for name in names
            if name not in _NOT_COMPARED
        }
        self._correct()
        self.best, self.runner_up, *_ = [*self._ranked(), None, None]
        self.lead = self.difference(measure, self.best, self.runner_up) if self.best and self.runner_up else None

    def headline(self) -> list[str]:
        """Return the headline measures: of predictions, and the smallest singular value of the classifier."""
        layers = [name for name in self.means if name.endswith("/sigma_min")]
        return [name for name in ACCURACIES if name in self.means] + layers[-1:]

    def values(self, measure: str, method: str) -> Values:
        """Return a measure of a method in the order of the repeats, NaN for missing ones."""
        return self._values[measure][method]

    def difference(self, measure: str, method: str, other: str) -> Difference:
        """Return the difference of a method to another in one measure."""
        both = self.values(measure, method) - self.values(measure, other)
        values = both[np.isfinite(both)]
        repeats = [repeat for repeat, value in zip(self.repeats, both, strict=True) if np.isfinite(value)]
        first, second = (clipped(found, measure) for found in self._intervals(measure, values, repeats, method, other))
        deciding = second or first
        rounded = values.round(_RESOLUTION)
        return Difference(
            measure=measure,
            margin=self._margin(measure),
            n=len(values),
            mean=deciding.mean if deciding else float(values.mean()) if len(values) else None,
            redraws=first,
            new_images=second,
            better_in=_superiority(-rounded if measure in LOWER_IS_BETTER else rounded),
            p=_wilcoxon(rounded) if measure in self.headline() else None,
        )

    def recall_difference(self, class_index: int, method: str) -> Interval | None:
        """Return the interval of the difference to the baseline in a class's recall on a fixed test set."""
        recalls, theirs = self.images.recalls(method), self.images.recalls(self.baseline)
        if recalls is None or theirs is None:
            return None
        both = self.values("accuracy", method) - self.values("accuracy", self.baseline)
        repeats = [repeat for repeat, value in zip(self.repeats, both, strict=True) if np.isfinite(value)]
        found = self.images.interval("recall", method, self.baseline, repeats, None, self.confidence, [class_index])
        return clipped(found, "accuracy")

    def _margin(self, measure: str) -> float:
        if self.margin is not None:
            return self.margin
        return MARGIN if measure in PREDICTION and measure not in LOWER_IS_BETTER else 0.0

    def _intervals(
        self, measure: str, values: Values, repeats: list[int], method: str, other: str
    ) -> tuple[Interval | None, Interval | None]:
        """Return the intervals over redraws and for new images."""
        if 0 < len(values) < MIN_REPEATS and np.ptp(values) < 10.0**-_RESOLUTION:
            return None, None
        classes = self._classes(measure, repeats)
        if classes and len(set(classes)) > 1:
            return clustered(values, classes, self.confidence), None
        first = redraws(values, self.confidence)
        if first is None or measure not in PREDICTION:
            return first, None
        if self._ratio is not None:
            return first, resampled(values, self._ratio, self.confidence)
        members = classes[0] if classes else None
        return first, self.images.interval(measure, method, other, repeats, first.mean, self.confidence, members)

    def _classes(self, measure: str, repeats: list[int]) -> list[tuple[int, ...]] | None:
        """Return the classes of a measure in each repeat; None if it covers all, or they are unknown."""
        if measure.endswith("_reduced"):
            return [tuple(self._class_index[name] for name in self._reduced[repeat]) for repeat in repeats]
        group = measure.removeprefix("accuracy_")
        return self.images.group(group, repeats) if group in GROUPS else None

    def _correct(self) -> None:
        """Correct the p-values of the headline measures by Holm's method."""
        tests = {
            (measure, method): one.p
            for measure in self.headline()
            for method, one in self.differences[measure].items()
            if one.p is not None
        }
        for (measure, method), p in holm(tests).items():
            self.differences[measure][method] = replace(self.differences[measure][method], p_corrected=p)

    def _ranked(self) -> list[str]:
        sign = -1 if self.measure in LOWER_IS_BETTER else 1
        most = max(self.recorded.values())
        means = {
            method: mean.mean
            for method, mean in self.means[self.measure].items()
            if mean.mean is not None and self.recorded[method] == most
        }
        return sorted(means, key=lambda method: -sign * means[method])


def clipped(interval: Interval | None, measure: str) -> Interval | None:
    """Clip the interval of a difference to the largest difference that a measure can have."""
    largest = LARGEST.get(measure, 1.0 if measure in PREDICTION else math.inf)
    return None if interval is None else interval.within(largest)


def holm(p_values: Mapping[_Key, float]) -> dict[_Key, float]:
    """Correct p-values by Holm's method, which controls the probability of any false positive among them.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected, least = {}, 0.0
    for i, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        least = max(least, min(1.0, p_values[key] * (len(p_values) - i)))
        corrected[key] = least
    return corrected


def _superiority(values: Values) -> tuple[float, float, float] | None:
    """Return the fraction of positive values, with ties counted half, and its percentile bootstrap interval at 95 %."""
    n = len(values)
    if not n:
        return None
    shares = np.array([(values > 0).mean(), (values == 0).mean(), (values < 0).mean()])
    drawn = np.random.default_rng(0).multinomial(n, shares, size=_RESAMPLES) @ np.array([1, 0.5, 0]) / n
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(shares @ [1, 0.5, 0]), float(low), float(high)


def _wilcoxon(values: Values) -> float | None:
    from scipy.stats import permutation_test, rankdata, wilcoxon

    if len(values) < 2:
        return None
    values = values[values != 0]
    if len(values) < 2:
        return 1.0
    if len(values) > _ENUMERATED:
        return float(wilcoxon(values).pvalue)
    # What wilcoxon does for few values with ties, in a tenth of a second each, by ranking them again for all signs.
    ranks = rankdata(np.abs(values))
    found = permutation_test(
        (values,),
        lambda signed, axis: ((signed > 0) * ranks).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**_ENUMERATED,
    )
    return float(found.pvalue)


def _to_dict(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {"kind": interval.kind, "low": interval.low, "high": interval.high}
