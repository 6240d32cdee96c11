"""Which loss is better, by how much, and how sure that is."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scor_lightning.comparison.results import Row

Values = NDArray[np.float64]
CONFIDENCE = 0.95
_RESAMPLES = 2000
_FEW = 10  # repeats below which a bootstrap interval is too narrow: at 95 % it holds the mean of 2 in half of all cases
_NOT_COMPARED = ("test_loss", "train_seconds")  # each loss has a scale of its own


def final_rows(rows: list[Row]) -> list[Row]:
    """Keep the records of the last epoch."""
    last: dict[str, int] = {}
    for row in rows:
        last[row["method"]] = max(last.get(row["method"], 0), row["epoch"])
    return [row for row in rows if row["epoch"] == last[row["method"]]]


def measures_of(rows: list[Row]) -> list[str]:
    """Name the measures that records hold, each a number."""
    about = (
        "repeat",
        "method",
        "epoch",
        "engine",
        "threads",
        "reduced",
        "train_images",
        "test_images",
        "diverged",
        "seed",
    )
    names = dict.fromkeys(name for row in rows for name in row)
    lists = {name for row in rows for name, value in row.items() if isinstance(value, list)}
    return [name for name in names if name not in about and name not in lists]


def paired(rows: list[Row], measure: str, losses: list[str]) -> dict[str, Values]:
    """Return a measure's values by loss, each in the order of the repeats, nan where one is missing."""
    repeats = {number: i for i, number in enumerate(sorted({row["repeat"] for row in rows}))}
    values = {loss: np.full(len(repeats), np.nan) for loss in losses}
    for row in rows:
        if row["method"] in values:
            values[row["method"]][repeats[row["repeat"]]] = row.get(measure, np.nan)
    return values


def diverged(rows: list[Row]) -> dict[str, int]:
    """Count by loss the networks that training left without a finite cross entropy; a loss without any is left out."""
    losses = [row["method"] for row in final_rows(rows) if not math.isfinite(row["cross_entropy"])]
    return {loss: losses.count(loss) for loss in losses}


def summarize(rows: list[Row], losses: list[str], baseline: str) -> dict[str, Any]:
    """Describe each loss, and its paired differences to a baseline.

    Args:
        rows: Records as :func:`scor_lightning.comparison.compare` gives them; the last epoch counts.
        losses: Names of the losses.
        baseline: One of them.

    Returns:
        By measure and loss: ``n``, ``mean``, ``sd`` and the t interval ``low`` to ``high`` of the mean at 95 %; and,
        for the losses other than the baseline, under ``difference`` over the repeats that both have: ``n``, ``mean``,
        the bootstrap interval (BCa; Student's below ten repeats) ``low`` to ``high`` of the mean difference,
        ``effect_size`` (mean over standard deviation of the differences, Cohen's d_z), ``higher_in`` (the share of
        repeats where the loss is above the baseline, ties counted half), the Wilcoxon ``p``, and ``p_corrected`` by
        Holm's method, apart for what is measured of the predictions and of the weights: of all tests of a family, the
        chance that any finds a difference where there is none stays below the level. A number that cannot be had, such
        as an interval of one repeat, is None. What is not finite is left out.

    Example:
        >>> rows = [
        ...     {"repeat": r, "method": loss, "epoch": 1, "accuracy": 0.9 + 0.01 * r + gain}
        ...     for r in range(6)
        ...     for loss, gain in (("ce", 0.0), ("scor", 0.02 + 0.001 * r))
        ... ]
        >>> difference = summarize(rows, ["ce", "scor"], "ce")["accuracy"]["scor"]["difference"]
        >>> round(difference["mean"], 4), difference["higher_in"], difference["p"]
        (0.0225, 1.0, 0.03125)
    """
    rows = final_rows(rows)
    summary: dict[str, Any] = {}
    families: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for measure in measures_of(rows):
        values = paired(rows, measure, losses)
        summary[measure] = {loss: _describe(values[loss]) for loss in losses}
        if measure in _NOT_COMPARED:
            continue
        for loss in losses:
            if loss != baseline:
                difference = _difference(values[loss] - values[baseline])
                summary[measure][loss]["difference"] = difference
                if difference["p"] is not None:
                    families[measure.startswith("spectrum/")].append(difference)
    for tests in families.values():
        least = 0.0
        for i, test in enumerate(sorted(tests, key=lambda test: test["p"])):
            least = max(least, min(1.0, test["p"] * (len(tests) - i)))
            test["p_corrected"] = least
    return summary


def _describe(values: Values) -> dict[str, Any]:
    from scipy.stats import t

    values = values[np.isfinite(values)]
    n = len(values)
    about: dict[str, Any] = {"n": n} | dict.fromkeys(("mean", "sd", "low", "high"))
    if n > 0:
        about["mean"] = mean = float(values.mean())
    if n > 1:
        about["sd"] = sd = float(values.std(ddof=1))
        half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / n**0.5
        about |= {"low": mean - half, "high": mean + half}
    return about


def _difference(values: Values) -> dict[str, Any]:
    from scipy.stats import bootstrap, wilcoxon

    values = values[np.isfinite(values)]
    about = _describe(values)
    n, mean, sd = about["n"], about["mean"], about.pop("sd")
    result: dict[str, Any] = about | dict.fromkeys(("effect_size", "higher_in", "p", "p_corrected"))
    if n > 0:
        result["higher_in"] = float((values > 0).mean() + (values == 0).mean() / 2)
    if n < 2:
        return result
    if sd <= 1e-12 * max(1.0, abs(mean)):  # all differences are one number, of which no resample differs
        result |= {"low": mean, "high": mean, "effect_size": 0.0 if abs(mean) < 1e-12 else None}
        result["p"] = 1.0 if abs(mean) < 1e-12 else float(wilcoxon(values).pvalue)
        return result
    result |= {"effect_size": mean / sd, "p": float(wilcoxon(values).pvalue)}
    if n >= _FEW:
        interval = bootstrap(
            (values,), np.mean, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE, rng=np.random.default_rng(0)
        ).confidence_interval
        result |= {"low": float(interval.low), "high": float(interval.high)}
    return result
