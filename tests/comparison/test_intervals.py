import math

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, RepeatedStratifiedKFold
from sklearn.svm import SVC

from scor_lightning.comparison.intervals import Crossed, clustered, f1_pseudo_values, redraws, resampled

RNG = np.random.default_rng(0)


def test_few_repeats_have_students_interval_and_many_the_bootstrap():
    values = RNG.normal(0.004, 0.01, 49)
    interval = redraws(values, 0.99)
    expected = stats.t.interval(0.99, 48, loc=values.mean(), scale=stats.sem(values))
    assert interval.kind == "t"
    assert (interval.low, interval.high) == pytest.approx(expected)
    skewed = RNG.exponential(0.01, 50)
    interval = redraws(skewed, 0.95)
    expected = stats.bootstrap((skewed,), np.mean, n_resamples=20_000, rng=np.random.default_rng(1)).confidence_interval
    assert interval.kind == "BCa"
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), rel=0.02)
    assert interval.high - skewed.mean() > skewed.mean() - interval.low  # which Student's would not see


@pytest.mark.parametrize("n", [2, 60])
@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_equal_differences_have_an_interval_of_no_width(n, shift):
    interval = redraws(np.full(n, shift), 0.95)
    assert (interval.low, interval.high) == pytest.approx((shift, shift))


def test_one_repeat_has_no_interval():
    one = np.array([0.5])
    assert redraws(one, 0.95) is resampled(one, 0.25, 0.95) is clustered(one, ["a"], 0.95) is None
    with pytest.raises(ValueError, match="two repeats"):
        Crossed(np.ones((1, 4)), np.array([0, 0, 1, 1]))


def test_repeats_that_reduce_the_same_class_are_one_observation():
    classes = [("3",)] * 50 + [("5",)] * 30 + [("7",)] * 20
    values = np.repeat([0.0, 0.1, 0.3], [50, 30, 20]) + RNG.normal(0, 0.01, 100)
    interval = clustered(values, classes, 0.95)
    means = np.array([values[:50].mean(), values[50:80].mean(), values[80:].mean()])
    assert interval.mean == pytest.approx(means.mean())
    expected = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert interval.repeats_to_decide(0) is None  # more repeats of three classes do not tell of other classes
    # Without a difference between classes more repeats do help.
    noise = np.tile([-0.05, 0.01, 0.1, -0.04, 0.06], 5)
    alike = clustered(noise, [i // 5 + (i % 7 == 0) for i in range(25)], 0.95)
    assert alike.decision(0) == "undecided"
    assert alike.repeats_to_decide(0) is not None


def test_the_corrected_t_is_that_of_scikit_learns_example():
    """Return the figures of "Statistical comparison of models using grid search" in its documentation."""
    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    grid = {"kernel": ["linear", "rbf"]}
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    search = GridSearchCV(SVC(random_state=0), grid, scoring="roc_auc", cv=folds).fit(x, y)
    scores = [
        np.array([search.cv_results_[f"split{i}_test_score"][kernel] for i in range(100)])
        for kernel in range(len(grid["kernel"]))
    ]
    difference = scores[1] - scores[0]  # rbf minus linear
    interval = resampled(difference, 10 / 90, 0.95)
    t = interval.mean / ((interval.high - interval.mean) / stats.t.ppf(0.975, 99))
    assert t == pytest.approx(0.750, abs=5e-4)
    assert stats.t.sf(t, 99) == pytest.approx(0.227, abs=5e-4)
    assert interval.repeats_to_decide(0) is None


def crossed_by_definition(d, target, weights, confidence):
    """Compute the crossed interval from its formula, class by class and image by image."""
    repeats, classes = len(d), np.unique(target)
    w = np.array([weights[c] / (target == c).sum() for c in target])
    v_repeat = np.var(d @ w, ddof=1) / repeats
    v_images, v_interaction, spread = 0.0, 0.0, v_repeat**2 / (repeats - 1)
    for c in classes:
        of = d[:, target == c]
        n = of.shape[1]
        part = weights[c] ** 2 * np.var(of.mean(0), ddof=1) / n
        rest = of - of.mean(1, keepdims=True) - of.mean(0) + of.mean()
        v_interaction += weights[c] ** 2 * (rest**2).sum() / ((repeats - 1) * (n - 1)) / (repeats * n)
        v_images += part
        spread += part**2 / (n - 1)
    v = max(v_repeat + v_images - v_interaction, v_repeat, v_images)
    half = stats.t.ppf((1 + confidence) / 2, v**2 / spread) * math.sqrt(v)
    return (d @ w).mean() - half, (d @ w).mean() + half


@pytest.mark.parametrize("weighting", ["accuracy", "balanced", "one class"])
def test_the_crossed_interval_is_its_formula(weighting):
    sizes = np.array([20, 17, 12])
    target = RNG.permutation(np.repeat([0, 2, 3], sizes))
    d = RNG.integers(-1, 2, (5, 49)) + 0.2 * RNG.normal(size=49)
    weights = {"accuracy": sizes / 49, "balanced": np.full(3, 1 / 3), "one class": np.array([0, 1.0, 0])}[weighting]
    crossed = Crossed(d, target)
    assert crossed.classes.tolist() == [0, 2, 3]
    interval = crossed.interval(weights, 0.9)
    expected = crossed_by_definition(d, target, dict(zip([0, 2, 3], weights, strict=True)), 0.9)
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-6)
    assert interval.half_width(5) == pytest.approx(interval.high - interval.mean)
    assert interval.half_width(6) < interval.half_width(5)
    limit = interval.half_width(10**9)
    assert 0 < limit < interval.half_width(1000)


def test_a_class_of_one_test_image_has_no_crossed_interval():
    with pytest.raises(ValueError, match="two images per class"):
        Crossed(np.ones((3, 3)), np.array([0, 0, 1]))


def test_more_repeats_decide_what_they_are_predicted_to_decide():
    generator = np.random.default_rng(3)
    values = generator.normal(0.01, 0.05, 20)
    needed = redraws(values, 0.95).repeats_to_decide(0)
    assert needed > 20
    for n in (needed, needed - 1):  # samples of that size with this mean and deviation
        grown = np.resize(values, n)
        grown = (grown - grown.mean()) / grown.std(ddof=1) * values.std(ddof=1) + values.mean()
        assert (stats.ttest_1samp(grown, 0).pvalue < 0.05) == (n == needed)


@pytest.mark.parametrize(
    ("mean", "half", "margin", "expected", "beyond"),
    [
        (0.01, 0.005, 0.002, "higher", True),
        (0.01, 0.0085, 0.002, "higher", False),
        (0.001, 0.0005, 0.002, "equal", False),
        (-0.001, 0.0012, 0.002, "undecided", False),
        (0.0, 0.0, 0.0, "undecided", False),
        (-0.01, 0.002, 0.0, "lower", True),
    ],
)
def test_the_interval_decides(mean, half, margin, expected, beyond):
    values = mean + half / stats.t.ppf(0.975, 1) * np.array([-1, 1])
    interval = redraws(values, 0.95)
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half))
    assert interval.decision(margin) == expected
    assert interval.beyond(margin) is beyond


def test_pseudo_values_are_those_of_the_jackknife():
    generator = np.random.default_rng(0)
    target = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 4])  # class 2 does not occur, class 4 once
    predicted = generator.integers(0, 6, (30, 10))
    predicted[0], predicted[1] = target, 0
    got = f1_pseudo_values(predicted, target, 6)
    for row, guess in zip(got, predicted, strict=True):
        whole = f1_score(target, guess, average="macro", zero_division=0)
        for i in range(10):
            kept = np.arange(10) != i
            without = f1_score(target[kept], guess[kept], average="macro", zero_division=0)
            assert row[i] == pytest.approx(10 * whole - 9 * without, abs=1e-5)
