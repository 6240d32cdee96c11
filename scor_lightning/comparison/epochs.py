"""The effect of the choice of the epoch: the last one, the best by validation, or the best on the test set."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scor_lightning.comparison.intervals import Interval, redraws
from scor_lightning.comparison.results import Row
from scor_lightning.comparison.statistics import LOWER_IS_BETTER, Mean, clipped


@dataclass(frozen=True)
class EpochChoice:
    """A measure of one method for each choice of the epoch.

    Attributes:
        last: At the last epoch.
        validation: At the epoch with the best balanced accuracy on the validation set; None without a validation set.
        test: At the epoch that is best on the test set itself, as most papers in the field report.
        gain: Gain of selection on the test set over the last epoch, positive for an improvement: mean and 95 % interval
            over redraws; None for fewer than two repeats.
    """

    last: Mean
    validation: Mean | None
    test: Mean
    gain: Interval | None


def epoch_choices(rows: Sequence[Row], methods: Sequence[str], measure: str) -> dict[str, EpochChoice]:
    """Return the results of each choice of the epoch by method.

    Args:
        rows: Records of all epochs.
        methods: Names of the methods.
        measure: A measure of predictions.

    Example:
        >>> scores = [(0.5, 0.6), (0.7, 0.9), (0.6, 0.8)]  # of three epochs, on the validation and the test set
        >>> rows = [
        ...     {"repeat": 0, "method": "ce", "epoch": e, "val_balanced_accuracy": val, "accuracy": test}
        ...     for e, (val, test) in enumerate(scores, 1)
        ... ]
        >>> choice = epoch_choices(rows, ["ce"], "accuracy")["ce"]
        >>> choice.last.mean, choice.validation.mean, choice.test.mean
        (0.8, 0.9, 0.9)
    """
    sign = -1 if measure in LOWER_IS_BETTER else 1
    choices = {}
    for method in methods:
        epochs: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            if row["method"] == method and np.isfinite(row[measure]):
                epochs[row["repeat"]].append(row)
        final = max((row["epoch"] for row in rows if row["method"] == method), default=0)
        whole = [each for each in epochs.values() if any(row["epoch"] == final for row in each)]
        last = np.array([next(row[measure] for row in each if row["epoch"] == final) for each in whole])
        test = np.array([max(each, key=lambda row: sign * row[measure])[measure] for each in whole])
        validation = None
        if all("val_balanced_accuracy" in row for each in whole for row in each):
            best = [max(each, key=lambda row: row["val_balanced_accuracy"]) for each in whole]
            validation = Mean.of(np.array([row[measure] for row in best]))
        choices[method] = EpochChoice(
            Mean.of(last), validation, Mean.of(test), clipped(redraws(sign * (test - last), 0.95), measure)
        )
    return choices
