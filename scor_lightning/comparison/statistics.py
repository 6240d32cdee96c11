"""Which loss is better, by how much, and how sure that is."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
Values = NDArray[np.float64]
CONFIDENCE = 0.95
_RESAMPLES = 2000
_NOT_COMPARED = ("test_loss",)  # each loss has a scale of its own


def final_rows(rows: list[Row]) -> list[Row]:
    """Keep the records of the last epoch."""
    last = max(row["epoch"] for row in rows)
    return [row for row in rows if row["epoch"] == last]


def measures_of(rows: list[Row]) -> list[str]:
    """Name the measures that records hold, each a number."""
    about = ("repeat", "loss", "epoch", "reduced", "train_images")
    names = dict.fromkeys(name for row in rows for name in row)
    lists = {name for row in rows for name, value in row.items() if isinstance(value, list)}
    return [name for name in names if name not in about and name not in lists]


def paired(rows: list[Row], measure: str, losses: list[str]) -> dict[str, Values]:
    """Give a measure's values by loss, each in the order of the repeats, nan where one is missing."""
    repeats = {number: i for i, number in enumerate(sorted({row["repeat"] for row in rows}))}
    values = {loss: np.full(len(repeats), np.nan) for loss in losses}
    for row in rows:
        value = row.get(measure)
        if row["loss"] in values:
            values[row["loss"]][repeats[row["repeat"]]] = np.nan if value is None else value
    return values


def summarize(rows: list[Row], losses: list[str], baseline: str) -> dict[str, Any]:
    """Describe each loss, and its paired differences to a baseline.

    Args:
        rows: Records as :func:`scor_lightning.comparison.compare` gives them; the last epoch counts.
        losses: Names of the losses.
        baseline: One of them.

    Returns:
        By measure and loss: ``n``, ``mean``, ``sd`` and the t interval ``low`` to ``high`` of the mean at 95 %; and,
        for the losses other than the baseline, under ``difference`` over the repeats that both have: ``n``, ``mean``,
        the bootstrap interval (BCa) ``low`` to ``high`` of the mean difference, ``effect_size`` (mean over standard
        deviation of the differences, Cohen's d_z), ``higher_in`` (the share of repeats where the loss is above the
        baseline, ties counted half), the Wilcoxon ``p``, and ``p_corrected`` for all tests of the summary together
        (Benjamini and Hochberg). A number that cannot be had, such as an interval of one repeat, is None.

    Example:
        >>> rows = [
        ...     {"repeat": r, "loss": loss, "epoch": 1, "accuracy": 0.9 + 0.01 * r + gain}
        ...     for r in range(6)
        ...     for loss, gain in (("ce", 0.0), ("scor", 0.02 + 0.001 * r))
        ... ]
        >>> difference = summarize(rows, ["ce", "scor"], "ce")["accuracy"]["scor"]["difference"]
        >>> round(difference["mean"], 4), difference["higher_in"], difference["p"]
        (0.0225, 1.0, 0.03125)
    """
    from scipy.stats import false_discovery_control

    rows = final_rows(rows)
    summary: dict[str, Any] = {}
    tests: list[dict[str, Any]] = []
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
                    tests.append(difference)
    if tests:
        for test, corrected in zip(tests, false_discovery_control([test["p"] for test in tests]), strict=True):
            test["p_corrected"] = float(corrected)
    return summary


def _describe(values: Values) -> dict[str, Any]:
    from scipy.stats import t

    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return dict.fromkeys(("mean", "sd", "low", "high")) | {"n": 0}
    mean = float(values.mean())
    if n == 1:
        return {"n": 1, "mean": mean, "sd": None, "low": None, "high": None}
    sd = float(values.std(ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / n**0.5
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def _difference(values: Values) -> dict[str, Any]:
    from scipy.stats import bootstrap, wilcoxon

    values = values[np.isfinite(values)]
    n = len(values)
    result: dict[str, Any] = dict.fromkeys(("mean", "low", "high", "effect_size", "higher_in", "p", "p_corrected"))
    result["n"] = n
    if n == 0:
        return result
    mean = float(values.mean())
    result |= {"mean": mean, "higher_in": float((values > 0).mean() + (values == 0).mean() / 2)}
    if n == 1:
        return result
    sd = float(values.std(ddof=1))
    if sd <= 1e-12 * max(1.0, abs(mean)):  # all differences are one number, of which no resample differs
        result |= {"low": mean, "high": mean, "effect_size": 0.0 if abs(mean) < 1e-12 else None}
        result["p"] = 1.0 if abs(mean) < 1e-12 else float(wilcoxon(values).pvalue)
        return result
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few repeats, or many ties: the interval is then the plain percentiles
        interval = bootstrap(
            (values,), np.mean, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE, rng=np.random.default_rng(0)
        ).confidence_interval
        if not np.isfinite([interval.low, interval.high]).all():
            interval = bootstrap(
                (values,),
                np.mean,
                n_resamples=_RESAMPLES,
                confidence_level=CONFIDENCE,
                method="percentile",
                rng=np.random.default_rng(0),
            ).confidence_interval
        p = float(wilcoxon(values).pvalue)
    return result | {"low": float(interval.low), "high": float(interval.high), "effect_size": mean / sd, "p": p}
