"""Equal tuning: every method tries the same number of settings, and each repeat selects one on its validation set."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scor_lightning.comparison.intervals import Interval, redraws
from scor_lightning.comparison.methods import Overlay
from scor_lightning.comparison.predictions import Predictions
from scor_lightning.comparison.results import Row
from scor_lightning.comparison.statistics import LOWER_IS_BETTER, clipped, final_rows

Trials = dict[str, dict[str, str]]  # the setting as text, by method and trial


def trials(
    methods: Mapping[str, Sequence[Overlay]], grids: Mapping[str, Mapping[str, Sequence[Any]]]
) -> tuple[dict[str, list[Overlay]], Trials]:
    """Return one method per setting of a grid.

    Args:
        methods: Overlays by name.
        grids: Values to try by method and option, such as ``{"scor": {"model.loss.alpha": [1e-5, 1e-4]}}``;
            several options give all combinations.

    Returns:
        The overlays of all trials by name, and the names and settings of the trials of each method.

    Raises:
        ValueError: If a grid names an unknown method or is empty, or the methods differ in the number of trials.

    Example:
        >>> overlays, tried = trials({"ce": ["loss/cross_entropy.yaml"]}, {"ce": {"model.optimizer.lr": [0.1, 1]}})
        >>> overlays["ce [lr=0.1]"]
        ['loss/cross_entropy.yaml', {'model': {'optimizer': {'lr': 0.1}}}]
        >>> tried
        {'ce': {'ce [lr=0.1]': 'lr=0.1', 'ce [lr=1]': 'lr=1'}}
    """
    for name, grid in grids.items():
        if name not in methods:
            raise ValueError(f"Expected `--tune` to name one of {', '.join(methods)} but got {name!r}")
        if not isinstance(grid, Mapping) or not grid:
            raise ValueError(f"Expected options and their values in `--tune` for {name!r} but got {grid!r}")
        for option, values in grid.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise ValueError(f"Expected a list of values for {option} of {name!r} in `--tune` but got {values!r}")
    overlays: dict[str, list[Overlay]] = {}
    tried: Trials = {}
    for name, given in methods.items():
        grid = grids.get(name, {})
        tried[name] = {}
        for values in product(*grid.values()):
            setting = ", ".join(f"{option.split('.')[-1]}={value}" for option, value in zip(grid, values, strict=True))
            trial = f"{name} [{setting}]" if setting else name
            tried[name][trial] = setting
            overlays[trial] = [*given, *(_nested(option, value) for option, value in zip(grid, values, strict=True))]
    numbers = {name: len(each) for name, each in tried.items()}
    most = max(numbers, key=lambda name: numbers[name])
    for name, number in numbers.items():
        if number != numbers[most]:
            raise ValueError(
                f"Expected equally many trials per method but got {numbers[most]} for {most!r} and {number} for {name!r}; "
                f"give {name!r} {numbers[most]} settings in `--tune`"
            )
    return overlays, tried


def _nested(option: str, value: Any) -> dict[str, Any]:
    for part in reversed(option.split(".")):
        value = {part: value}
    return dict(value)


@dataclass(frozen=True)
class Tuning:
    """The result of tuning one method.

    Attributes:
        selected: Number of repeats that selected each setting.
        gain: Improvement of the selected setting on the test set over the mean of all settings, with the 95 % interval
            over redraws; None for fewer than two repeats.
    """

    selected: dict[str, int]
    gain: Interval | None


def select(
    rows: Iterable[Row], predictions: Mapping[tuple[int, str], Predictions], tried: Trials, measure: str
) -> tuple[list[Row], dict[tuple[int, str], Predictions], dict[str, Tuning]]:
    """Select, in each repeat, the trial of each method that is best on the validation set.

    Repeats with unfinished trials are ignored. Of equal trials the first is selected; a diverged one is never better than
    another.

    Args:
        rows: Records of the trials.
        predictions: Predictions by repeat and trial.
        tried: The trials of each method.
        measure: The measure whose gain is reported.

    Returns:
        The records and predictions of the selected trials, under the names of the methods, and the result of tuning each.
    """
    rows = list(rows)
    finals = {(row["repeat"], row["method"]): row for row in final_rows(rows)}
    of_trial: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        of_trial.setdefault((row["repeat"], row["method"]), []).append(row)
    sign = -1 if measure in LOWER_IS_BETTER else 1
    chosen_rows: list[Row] = []
    chosen_predictions = {}
    tunings = {}
    for method, settings in tried.items():
        selected, gains = Counter(dict.fromkeys(settings.values(), 0)), []
        for repeat in sorted({row["repeat"] for row in rows}):
            finished = {trial: finals[repeat, trial] for trial in settings if (repeat, trial) in finals}
            if len(finished) < len(settings):
                continue
            best = max(finished, key=lambda trial: _score(finished[trial]))
            selected[settings[best]] += 1
            gains.append(sign * (finished[best][measure] - np.nanmean([row[measure] for row in finished.values()])))
            chosen_rows += [row | {"method": method} for row in of_trial[repeat, best]]
            if (repeat, best) in predictions:
                chosen_predictions[repeat, method] = predictions[repeat, best]
        values = np.array(gains, np.float64)
        tunings[method] = Tuning(dict(selected), clipped(redraws(values[np.isfinite(values)], 0.95), measure))
    return sorted(chosen_rows, key=lambda row: row["repeat"]), chosen_predictions, tunings


def _score(row: Row) -> float:
    score = float(row["val_balanced_accuracy"])
    return -math.inf if math.isnan(score) else score
