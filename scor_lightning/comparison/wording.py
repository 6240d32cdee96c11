"""The verdict of a comparison as text, the same on the page, in the terminal and in tables."""

from scor_lightning.comparison.statistics import MIN_REPEATS, Difference, Statistics
from scor_lightning.metrics import SHIFTS

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "worst_class_recall": "worst-class recall",
    "accuracy_reduced": "accuracy of the reduced classes",
    "accuracy_many": "accuracy of many-shot classes",
    "accuracy_medium": "accuracy of medium-shot classes",
    "accuracy_few": "accuracy of few-shot classes",
    "accuracy_head_third": "accuracy of the largest third of the classes",
    "accuracy_middle_third": "accuracy of the middle third of the classes",
    "accuracy_tail_third": "accuracy of the smallest third of the classes",
    **{
        f"accuracy_forward_{ratio}": f"accuracy on a test set imbalanced like the training set, {ratio}:1"
        for ratio in SHIFTS
    },
    **{f"accuracy_backward_{ratio}": f"accuracy on a test set imbalanced the other way, {ratio}:1" for ratio in SHIFTS},
    "f1_reduced": "F1 of the reduced classes",
    "g_mean": "geometric mean of the recalls",
    "harmonic_mean": "harmonic mean of the recalls",
    "calibration_error": "calibration error (ECE, 15 bins)",
    "adaptive_calibration_error": "adaptive calibration error (15 bins)",
    "classwise_calibration_error": "class-wise calibration error (15 bins)",
    "brier": "Brier score",
    "aurc": "area under the risk-coverage curve (AURC)",
    "cross_entropy": "negative log-likelihood",
    "test_loss": "training loss on the test set",
    "val_balanced_accuracy": "balanced accuracy on the validation set",
    "train_seconds": "seconds per training",
    "rank": "numerical rank",
    "sigma_max": "largest singular value",
    "sigma_min": "smallest singular value",
}


def title_of(measure: str) -> str:
    """Return the title of a measure.

    Example:
        >>> title_of("spectrum/head/sigma_min")
        'smallest singular value of head'
    """
    if measure.startswith("spectrum/"):
        _, layer, kind = measure.split("/")
        return f"{TITLES[kind]} of {layer}"
    return TITLES.get(measure, measure)


def number(value: float | None, sign: bool = False) -> str:
    """Format a number; ``-`` for None."""
    if value is None:
        return "-"
    digits = 4 if abs(value) < 10 else (2 if abs(value) < 1000 else 0)
    value = round(value, digits) + 0.0  # no minus zero
    return f"{value:{'+' if sign else ''}.{digits}f}"


def bounds(difference: Difference, which: str = "deciding") -> str:
    """Format an interval of a difference; ``-`` if there is none."""
    interval = getattr(difference, which)
    return "-" if interval is None else f"[{number(interval.low, True)}, {number(interval.high, True)}]"


def short_verdict(difference: Difference) -> str:
    """Return the verdict in a few words, for a table."""
    verdict = difference.verdict
    if verdict in ("equal", "undecided"):
        return {"equal": "equal in practice"}.get(verdict, verdict)
    return verdict if difference.beyond_margin else f"{verdict}, perhaps by less than {difference.margin:g}"


def phrase(difference: Difference) -> str:
    """Return the verdict with the interval and, if it is undecided, the remedy."""
    interval = difference.deciding
    found = f"{short_verdict(difference)}, {number(difference.mean, True)}"
    found = found if interval is None else f"{found} {bounds(difference)}"
    if difference.verdict != "undecided":
        return found
    if interval is None or difference.n < MIN_REPEATS:
        return f"{found}; a verdict requires at least {MIN_REPEATS} repeats"
    if (needed := difference.repeats_to_decide) is not None:
        return f"{found}; about {needed:,} repeats would decide"
    where = " on this test set" if interval.kind == "crossed" else ""
    return f"{found}; by the present estimate, no number of repeats{where} would decide"


def verdict(statistics: Statistics) -> list[str]:
    """Return the verdict: the best method first, then one sentence per method."""
    measure, baseline, best = statistics.measure, statistics.baseline, statistics.best
    if best is None:
        return [f"No method has a {title_of(measure)}: all trainings diverged."]
    differences = statistics.differences[measure]
    first = [f"Best {title_of(measure)}: {best} with {number(statistics.means[measure][best].mean)}."]
    if best != baseline:
        first.append(f"Against the baseline {baseline}: {phrase(differences[best])}.")
    if statistics.lead is not None and (best == baseline or statistics.runner_up != baseline):
        first.append(f"Against the runner-up {statistics.runner_up}: {phrase(statistics.lead)}.")
    others = [f"{method} against {baseline}: {phrase(each)}." for method, each in differences.items()]
    return [" ".join(first), *(others if len(others) > 1 else [])]


def coverage(statistics: Statistics) -> str:
    """Return a description of what the verdict covers."""
    kinds = {one.deciding.kind for one in statistics.differences[statistics.measure].values() if one.deciding}
    if "crossed" in kinds:
        return (
            "The intervals cover new test images of the same kind, and another draw of subset, split and initial weights, but "
            "not another pool of training images."
        )
    if "corrected resampled t" in kinds:
        return (
            "The intervals cover another draw of subset, initial weights and test images from this pool, but not another pool "
            "of images."
        )
    return (
        "The intervals cover another draw of subset, split and initial weights from this data set, but neither new test "
        "images nor another pool of training images."
    )
