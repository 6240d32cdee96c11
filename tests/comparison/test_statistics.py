import numpy as np
import pytest
from scipy import stats

from scor_lightning.comparison.statistics import diverged, paired, summarize


def records(values: dict[str, np.ndarray], measure: str = "accuracy") -> list[dict]:
    return [
        {"repeat": r, "method": loss, "epoch": 5, "reduced": [], "train_images": 9, measure: float(v)}
        for loss, column in values.items()
        for r, v in enumerate(column)
    ]


def test_the_numbers_are_scipys():
    generator = np.random.default_rng(0)
    base = generator.normal(0.9, 0.02, 40)
    values = {
        "ce": base,
        "scor": base + generator.normal(0.004, 0.01, 40),
        "focal": base + generator.normal(0, 0.01, 40),
    }
    summary = summarize(records(values), ["ce", "scor", "focal"], "ce")["accuracy"]
    scor = summary["scor"]
    low, high = stats.t.interval(0.95, 39, loc=values["scor"].mean(), scale=stats.sem(values["scor"]))
    assert (scor["low"], scor["high"]) == pytest.approx((low, high))
    assert scor["sd"] == pytest.approx(values["scor"].std(ddof=1))
    difference = values["scor"] - base
    got = scor["difference"]
    assert got["mean"] == pytest.approx(difference.mean())
    assert got["p"] == pytest.approx(stats.wilcoxon(values["scor"], base).pvalue)
    assert got["effect_size"] == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert got["higher_in"] == pytest.approx((difference > 0).mean())
    # the bootstrap interval of a mean of 40 is close to Student's
    close = stats.t.interval(0.95, 39, loc=difference.mean(), scale=stats.sem(difference))
    assert (got["low"], got["high"]) == pytest.approx(close, abs=6e-4)
    assert "difference" not in summary["ce"]


def test_p_is_corrected_by_holm_apart_for_predictions_and_weights():
    generator = np.random.default_rng(0)
    base = generator.normal(size=20)
    rows = [
        {"repeat": r, "method": loss, "epoch": 5, "reduced": [], "train_images": 9}
        | {f"m{i}": base[r] + (loss == "b") * (generator.normal() + 0.4 * i) for i in range(4)}
        | {f"spectrum/head/{i}": base[r] + (loss == "b") * (generator.normal() + 9) for i in range(9)}
        for r in range(20)
        for loss in "ab"
    ]
    summary = summarize(rows, ["a", "b"], "a")
    tests = [summary[f"m{i}"]["b"]["difference"] for i in range(4)]
    ordered = sorted(tests, key=lambda test: test["p"])
    # Of m tests the smallest p counts m times, the next one m - 1 times, and none less than the one before.
    expected = np.minimum(1, np.maximum.accumulate([test["p"] * (4 - i) for i, test in enumerate(ordered)]))
    assert [test["p_corrected"] for test in ordered] == pytest.approx(list(expected))
    assert len({test["p_corrected"] for test in tests}) > 2
    assert summary["spectrum/head/0"]["b"]["difference"]["p_corrected"] == pytest.approx(9 * 2 / 2**20)


def test_where_nothing_is_different_nothing_is_found():
    generator = np.random.default_rng(1)
    found, trials = 0, 600
    for _ in range(trials):
        base = generator.normal(size=30)
        values = {"a": base, "b": base + generator.normal(size=30)}
        d = summarize(records(values), ["a", "b"], "a")["accuracy"]["b"]["difference"]
        found += not d["low"] <= 0 <= d["high"]
    assert 0.02 * trials <= found <= 0.09 * trials  # of 95 % intervals one in twenty, by BCa of 30 repeats some more


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_equal_differences_have_an_interval_of_no_width(shift):
    base = np.arange(8) / 8
    d = summarize(records({"a": base, "b": base + shift}), ["a", "b"], "a")["accuracy"]["b"]["difference"]
    assert (d["mean"], d["low"], d["high"]) == pytest.approx((shift, shift, shift))
    assert d["higher_in"] == (1.0 if shift else 0.5)
    assert d["p"] == (1.0 if shift == 0 else pytest.approx(2 / 2**8))


def test_one_repeat_has_means_and_no_intervals():
    summary = summarize(records({"a": np.array([0.5]), "b": np.array([0.75])}), ["a", "b"], "a")["accuracy"]
    assert summary["b"]["mean"] == 0.75
    assert summary["b"]["low"] is summary["b"]["difference"]["low"] is summary["b"]["difference"]["p"] is None


def test_repeats_that_one_loss_lacks_are_left_out_of_its_differences():
    rows = records({"a": np.array([0.5, 0.6, 0.7, 0.8]), "b": np.array([0.6, 0.7, 0.9, np.nan])})
    rows = [row for row in rows if (row["repeat"], row["method"]) != (1, "a")]
    summary = summarize(rows, ["a", "b"], "a")["accuracy"]
    assert summary["b"]["difference"]["n"] == 2
    assert summary["b"]["n"] == 3
    assert paired(rows, "accuracy", ["a"])["a"][[0, 2]].tolist() == [0.5, 0.7]


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_intervals_of_few_repeats_are_not_too_narrow(n):
    generator = np.random.default_rng(0)
    held, trials = 0, 2000
    for _ in range(trials):
        values = {"a": np.zeros(n), "b": generator.normal(size=n)}
        d = summarize(records(values), ["a", "b"], "a")["accuracy"]["b"]["difference"]
        held += d["low"] <= 0 <= d["high"]
    # Four standard deviations about 95 %; a bootstrap of two repeats gives 50 %.
    assert abs(held / trials - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5


def test_trainings_that_diverged_are_counted():
    rows = records({"a": np.array([0.5, 0.6]), "b": np.array([0.5, np.nan])}, "cross_entropy")
    assert diverged(rows) == {"b": 1}


def test_the_loss_itself_is_not_compared():
    rows = records({"a": np.arange(5.0), "b": np.arange(5.0)}, "test_loss")
    assert "difference" not in summarize(rows, ["a", "b"], "a")["test_loss"]["b"]
