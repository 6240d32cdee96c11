import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score

from scor_lightning.comparison.intervals import Crossed, clustered, resampled
from scor_lightning.comparison.predictions import HeldOut, pack
from scor_lightning.comparison.statistics import Statistics, _wilcoxon, diverged, paired
from scor_lightning.comparison.wording import phrase


def records(values: dict[str, np.ndarray], measure: str = "accuracy", reduced=lambda r: []) -> list[dict]:
    return [
        {"repeat": r, "method": method, "epoch": 5, "reduced": reduced(r), "train_images": 9, measure: float(v)}
        for method, column in values.items()
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
    statistics = Statistics(records(values), ["ce", "scor", "focal"], "ce", "accuracy")
    mean = statistics.means["accuracy"]["scor"]
    assert (mean.n, mean.mean, mean.sd) == pytest.approx((40, values["scor"].mean(), values["scor"].std(ddof=1)))
    difference = values["scor"] - base
    got = statistics.differences["accuracy"]["scor"]
    assert got.mean == pytest.approx(difference.mean())
    assert got.p == pytest.approx(stats.wilcoxon(values["scor"], base).pvalue)
    assert got.better_in[0] == pytest.approx((difference > 0).mean())
    shares = [(generator.choice(difference, 40) > 0).mean() for _ in range(20_000)]
    assert got.better_in[1:] == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.026)
    assert statistics.confidence == 0.975  # .05 shared by two comparisons
    expected = stats.t.interval(0.975, 39, loc=difference.mean(), scale=stats.sem(difference))
    assert (got.redraws.low, got.redraws.high) == pytest.approx(expected)
    assert got.new_images is None
    assert "ce" not in statistics.differences["accuracy"]


def test_no_interval_exceeds_the_largest_possible_difference():
    values = {"a": np.array([0.0, 0.9]), "b": np.array([0.9, 0.1])}
    for measure, largest in (("accuracy", 1), ("calibration_error", 1), ("brier", 2), ("cross_entropy", np.inf)):
        rows = [row | {measure: row["accuracy"]} for row in records(values)]
        (found,) = Statistics(rows, ["a", "b"], "a", measure, ratio=0.25).differences[measure].values()
        for interval in (found.redraws, found.new_images):
            half = interval.half_width(2)
            assert half > 2
            assert (interval.low, interval.high) == pytest.approx(
                (max(found.mean - half, -largest), min(found.mean + half, largest))
            )


def test_equal_differences_tie_whatever_their_last_digits():
    base = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    shifts = np.array([0.1, 0.1, -0.1, 0.2, 0.0, 0.1])
    got = Statistics(records({"a": base, "b": base + shifts}), ["a", "b"], "a", "accuracy").differences["accuracy"]["b"]
    assert len(set(base + shifts - base)) > len(set(shifts))  # by rounding errors alone
    assert got.p == pytest.approx(stats.wilcoxon(shifts).pvalue)
    assert got.better_in[0] == pytest.approx(4.5 / 6)


@pytest.mark.parametrize(("repeats", "verdict"), [(2, "undecided"), (4, "undecided"), (5, "worse")])
def test_equal_differences_of_few_repeats_decide_nothing(repeats, verdict):
    values = {"a": np.linspace(0.5, 0.6, repeats), "b": np.linspace(0.3, 0.4, repeats)}
    statistics = Statistics(records(values), ["a", "b"], "a", "accuracy")
    difference = statistics.differences["accuracy"]["b"]
    assert difference.verdict == verdict
    assert difference.mean == pytest.approx(-0.2)
    if verdict == "undecided":
        assert difference.deciding is None
        assert phrase(difference) == "undecided, -0.2000; a verdict requires at least 5 repeats"


@pytest.mark.parametrize(("repeats", "verdict"), [(1, "undecided"), (4, "undecided"), (5, "better")])
def test_few_repeats_decide_nothing_and_predict_nothing(repeats, verdict):
    base = np.linspace(0.5, 0.6, repeats)
    values = {"a": base, "b": base + np.linspace(0.1, 0.11, repeats)}
    difference = Statistics(records(values), ["a", "b"], "a", "accuracy").differences["accuracy"]["b"]
    assert difference.verdict == verdict
    if verdict == "undecided":
        assert difference.repeats_to_decide is None
        assert phrase(difference).startswith("undecided, +0.1")
        assert phrase(difference).endswith("; a verdict requires at least 5 repeats")


def test_a_method_with_fewer_repeats_is_not_ranked():
    values = {"a": np.linspace(0.5, 0.6, 8), "b": np.linspace(0.6, 0.7, 8), "c": np.array([0.9, 0.9])}
    statistics = Statistics(records(values), ["a", "b", "c"], "a", "accuracy")
    assert (statistics.best, statistics.runner_up) == ("b", "a")
    assert statistics.recorded == {"a": 8, "b": 8, "c": 2}


def test_p_is_corrected_by_holm_over_the_headline_measures_alone():
    generator = np.random.default_rng(0)
    base = generator.normal(size=20)
    headline = ("accuracy", "balanced_accuracy", "f1_macro", "spectrum/head/sigma_min")
    rows = [
        {"repeat": r, "method": method, "epoch": 5, "reduced": []}
        | {name: base[r] + (method == "b") * (generator.normal() + 0.4 * i) for i, name in enumerate(headline)}
        | {"cross_entropy": base[r] * 2.0, "spectrum/head/sigma_max": base[r] + generator.normal()}
        for r in range(20)
        for method in "ab"
    ]
    differences = Statistics(rows, ["a", "b"], "a").differences
    tests = [differences[name]["b"] for name in headline]
    ordered = sorted(tests, key=lambda test: test.p)
    # Of m tests the smallest p counts m times, the next one m - 1 times, and none less than the one before.
    expected = np.minimum(1, np.maximum.accumulate([test.p * (4 - i) for i, test in enumerate(ordered)]))
    assert [test.p_corrected for test in ordered] == pytest.approx(list(expected))
    assert differences["cross_entropy"]["b"].p_corrected is None
    assert differences["spectrum/head/sigma_max"]["b"].p_corrected is None


def test_measures_of_reduced_classes_are_clustered_by_class():
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 4, 60)
    base = generator.normal(size=60)
    shift = np.array([0.3, -0.1, 0.2, 0.1])[classes] + generator.normal(0, 0.01, 60)
    rows = records({"a": base, "b": base + shift}, "accuracy_reduced", lambda r: [f"class {classes[r]}"])
    rows = [row | {"accuracy": row["accuracy_reduced"]} for row in rows]
    differences = Statistics(rows, ["a", "b"], "a", ratio=0.25, measure="accuracy").differences
    expected = clustered(shift, classes.tolist(), 0.95)
    got = differences["accuracy_reduced"]["b"]
    assert (got.redraws.low, got.redraws.high) == pytest.approx((expected.low, expected.high))
    assert got.mean == pytest.approx(expected.mean)
    assert got.new_images is None
    assert got.verdict == "undecided"
    # That of all classes is corrected for the overlap of the repeats.
    expected = resampled(shift, 0.25, 0.95)
    assert differences["accuracy"]["b"].new_images.high == pytest.approx(expected.high)


def predicted(repeats=6, images=60, classes=3, gain=0.15):
    """Rows and predictions of two methods on one test set, of which the second is right more often."""
    generator = np.random.default_rng(0)
    target = generator.permutation(np.arange(images) % classes)
    counts = np.array([200, 50, 5])
    shared = HeldOut(target, None, counts)

    rows, found = [], {}
    for r in range(repeats):
        for method, right in (("a", 0.6), ("b", 0.6 + gain)):
            guess = np.where(generator.random(images) < right, target, generator.integers(0, classes, images))
            probability = torch.from_numpy(np.log(generator.uniform(0.1, 1, images)))
            found[r, method] = pack(torch.from_numpy(guess), probability, classes, shared)
            hits = guess == target
            recalls = [hits[target == c].mean() for c in range(classes)]
            rows.append(
                {"repeat": r, "method": method, "epoch": 1, "reduced": ["2"], "accuracy": hits.mean()}
                | {"balanced_accuracy": np.mean(recalls), "worst_class_recall": min(recalls)}
                | {"accuracy_reduced": recalls[2], "accuracy_few": recalls[2], "accuracy_many": recalls[0]}
                | {"f1_macro": f1_score(target, guess, average="macro")}
                | {"cross_entropy": -float(found[r, method].log_probability.astype(float).mean())}
            )
    return rows, found, target


def test_new_images_are_covered_where_the_test_set_is_fixed():
    rows, found, target = predicted()
    statistics = Statistics(rows, ["a", "b"], "a", predictions=found, class_names=["0", "1", "2"])
    right = {m: np.stack([found[r, m].predicted == target for r in range(6)]).astype(float) for m in "ab"}
    crossed = Crossed(right["b"] - right["a"], target)
    weights = {
        "accuracy": [1 / 3, 1 / 3, 1 / 3],
        "balanced_accuracy": [1 / 3, 1 / 3, 1 / 3],
        "accuracy_reduced": [0, 0, 1],
        "accuracy_few": [0, 0, 1],
        "accuracy_many": [1, 0, 0],
    }
    for measure, of in weights.items():
        got = statistics.differences[measure]["b"]
        expected = crossed.interval(np.array(of, float), 0.95)
        assert got.mean == pytest.approx(expected.mean)
        assert (got.new_images.low, got.new_images.high) == pytest.approx((expected.low, expected.high))
        assert got.deciding is got.new_images
    nll = {m: -np.stack([found[r, m].log_probability for r in range(6)]).astype(float) for m in "ab"}
    expected = Crossed(nll["b"] - nll["a"], target).interval(np.full(3, 1 / 3), 0.95)
    assert statistics.differences["cross_entropy"]["b"].new_images.low == pytest.approx(expected.low, rel=1e-4)
    assert statistics.differences["f1_macro"]["b"].new_images.kind == "crossed"
    assert statistics.differences["worst_class_recall"]["b"].new_images is None
    for c in range(3):
        expected = crossed.interval(np.eye(3)[c], 0.95)
        assert statistics.recall_difference(c, "b").high == pytest.approx(expected.high)
        assert statistics.images.recalls("b")[c] == pytest.approx(right["b"][:, target == c].mean())


def test_without_predictions_of_all_repeats_redraws_decide():
    rows, found, _ = predicted()
    del found[3, "b"]
    got = Statistics(rows, ["a", "b"], "a", predictions=found, class_names=["0", "1", "2"])
    assert got.differences["accuracy"]["b"].new_images is None
    assert got.differences["accuracy"]["b"].deciding.kind == "t"


def test_a_group_whose_classes_differ_between_repeats_is_clustered():
    rows, found, target = predicted()
    other = HeldOut(target, None, np.array([5, 50, 200]))
    for r in (1, 3):
        for method in "ab":
            found[r, method] = type(found[r, method])(
                found[r, method].predicted, found[r, method].log_probability, other
            )
    got = Statistics(rows, ["a", "b"], "a", predictions=found, class_names=["0", "1", "2"]).differences
    assert got["accuracy_few"]["b"].redraws.kind == "clusters"
    assert got["accuracy_few"]["b"].new_images is None
    assert got["accuracy"]["b"].new_images is not None


@pytest.mark.parametrize(
    ("shift", "margin", "expected", "beyond"),
    [
        (0.05, None, "better", True),
        (0.003, None, "better", False),
        (-0.05, None, "worse", True),
        (0.0, None, "equal", False),
        (0.0, 0.0, "undecided", False),
        (0.03, 0.04, "equal", False),
    ],
)
def test_the_verdict_follows_the_interval_and_the_margin(shift, margin, expected, beyond):
    base = np.linspace(0.5, 0.6, 8)
    noise = 0.002 * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    noise = noise / (1.0 if shift else 4.0)
    statistics = Statistics(records({"a": base, "b": base + shift + noise}), ["a", "b"], "a", "accuracy", margin)
    got = statistics.differences["accuracy"]["b"]
    assert (got.verdict, got.beyond_margin) == (expected, beyond)


def test_of_losses_less_is_better_and_of_singular_values_neither():
    base = np.linspace(0.5, 0.6, 8)
    shifted = base - 0.1 + 0.001 * np.arange(8)
    rows = records({"a": base, "b": shifted}, "cross_entropy")
    rows = [row | {"spectrum/head/sigma_min": row["cross_entropy"]} for row in rows]
    statistics = Statistics(rows, ["a", "b"], "a", "cross_entropy")
    assert statistics.differences["cross_entropy"]["b"].verdict == "better"
    assert statistics.differences["cross_entropy"]["b"].better_in[0] == 1.0
    assert statistics.differences["spectrum/head/sigma_min"]["b"].verdict == "lower"
    assert statistics.differences["spectrum/head/sigma_min"]["b"].better_in[0] == 0.0
    assert (statistics.best, statistics.runner_up) == ("b", "a")


def test_one_repeat_has_means_and_no_intervals():
    statistics = Statistics(records({"a": np.array([0.5]), "b": np.array([0.75])}), ["a", "b"], "a", "accuracy")
    assert statistics.means["accuracy"]["b"].mean == 0.75
    got = statistics.differences["accuracy"]["b"]
    assert got.mean == 0.25
    assert got.redraws is got.new_images is got.p is got.repeats_to_decide is None
    assert got.verdict == "undecided"


def test_repeats_that_one_method_lacks_are_left_out_of_its_differences():
    rows = records({"a": np.array([0.5, 0.6, 0.7, 0.8]), "b": np.array([0.6, 0.7, 0.9, np.nan])})
    rows = [row for row in rows if (row["repeat"], row["method"]) != (1, "a")]
    statistics = Statistics(rows, ["a", "b"], "a", "accuracy")
    assert statistics.differences["accuracy"]["b"].n == 2
    assert statistics.means["accuracy"]["b"].n == 3
    assert paired(rows, "accuracy", ["a"])["a"][[0, 2]].tolist() == [0.5, 0.7]


def test_a_method_that_always_diverged_is_never_the_best():
    values = {"a": np.full(4, np.nan), "b": np.array([0.5, 0.6, 0.5, 0.6]), "c": np.array([0.4, 0.5, 0.4, 0.6])}
    statistics = Statistics(records(values), ["a", "b", "c"], "a", "accuracy")
    assert (statistics.best, statistics.runner_up) == ("b", "c")
    assert statistics.differences["accuracy"]["b"].mean is None
    assert (
        Statistics(records({"a": np.full(2, np.nan), "b": np.full(2, np.nan)}), ["a", "b"], "a", "accuracy").best
        is None
    )


def test_trainings_that_diverged_are_counted():
    rows = records({"a": np.array([0.5, 0.6]), "b": np.array([0.5, np.nan])}, "cross_entropy")
    assert diverged(rows) == {"b": 1}


def test_the_loss_itself_is_not_compared():
    rows = [row | {"test_loss": 1.0} for row in records({"a": np.arange(5.0), "b": np.arange(5.0)})]
    assert "test_loss" not in Statistics(rows, ["a", "b"], "a", "accuracy").differences


def test_an_unknown_measure_and_a_negative_margin_are_refused():
    rows = records({"a": np.arange(5.0), "b": np.arange(5.0)})
    with pytest.raises(ValueError, match="`--measure` to be one of accuracy but got 'f1'"):
        Statistics(rows, ["a", "b"], "a", "f1")
    with pytest.raises(ValueError, match="`--margin` >= 0 but got -1"):
        Statistics(rows, ["a", "b"], "a", "accuracy", -1)


@pytest.mark.parametrize("n", [2, 3, 8, 13, 20, 60])
@pytest.mark.parametrize("ties", [False, True])
def test_p_values_are_those_of_scipy_with_ties_and_without(n, ties):
    draw = np.random.default_rng(n)
    values = draw.normal(0.3, 1, n) if not ties else draw.choice([-0.2, -0.1, 0.1, 0.2, 0.3], n)
    assert _wilcoxon(values) == pytest.approx(stats.wilcoxon(values).pvalue, rel=1e-9)
    assert _wilcoxon(np.append(np.zeros(3), values)) == pytest.approx(_wilcoxon(values), rel=1e-9)


def test_differences_that_are_all_zero_or_all_but_one_have_a_p_value_of_one():
    assert _wilcoxon(np.zeros(5)) == 1.0
    assert _wilcoxon(np.array([0.0, 0.0, 0.4])) == 1.0
