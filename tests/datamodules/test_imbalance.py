from dataclasses import replace

import numpy as np
import pytest
import torch

from scor_lightning.datamodules import ClassCounts, DigitsDataModule, LongTail, ReduceClasses, Step
from scor_lightning.models import MLP
from tests.comparison import plan_of

# Images per class of CIFAR-10-LT, and the totals of CIFAR-10-LT and CIFAR-100-LT, from the literature.
CIFAR10_LT_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize(
    ("classes", "per_class", "ratio", "total", "tail"),
    [
        (10, 5000, 100, 12406, 50),
        (10, 5000, 50, 13996, 100),
        (10, 5000, 10, 20431, 500),
        (100, 500, 100, 10847, 5),
        (100, 500, 50, 12608, 10),
    ],
)
def test_long_tail_has_the_counts_of_the_literature(classes, per_class, ratio, total, tail):
    counts = LongTail(ratio).counts(torch.full((classes,), per_class), seed=0)
    assert counts.sum() == total
    assert counts[-1] == tail
    if (classes, ratio) == (10, 100):
        assert counts.tolist() == CIFAR10_LT_100


def official_draw(targets, sizes):
    """Keep the images that the official scripts of LDAM-DRW keep, by numpy's global generator."""
    np.random.seed(0)
    kept = []
    for c, size in zip(np.unique(targets), sizes, strict=True):
        members = np.flatnonzero(targets == c)
        np.random.shuffle(members)
        kept += members[:size].tolist()
    return sorted(kept)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("imbalance", "classes"), [(LongTail(100), 10), (LongTail(50), 100), (Step(ratio=10), 10)])
def test_the_subset_of_the_official_scripts(imbalance, classes, seed):
    targets = np.random.default_rng(1).permutation(np.arange(50_000) % classes)
    sizes = imbalance.counts(torch.full((classes,), 50_000 // classes), seed).tolist()
    kept = replace(imbalance, subset="ldam_drw").keep(torch.from_numpy(targets), classes, seed)
    assert kept.tolist() == official_draw(targets, sizes)
    assert kept.tolist() != imbalance.keep(torch.from_numpy(targets), classes, seed).tolist()


def test_an_unknown_subset_is_refused():
    with pytest.raises(ValueError, match="`subset` to be one of random, ldam_drw"):
        LongTail(10, subset="first")


def test_step_reduces_the_second_half():
    assert Step(ratio=100).counts(torch.full((10,), 5000), seed=0).tolist() == [5000] * 5 + [50] * 5
    assert Step(ratio=4, fraction=0.25).counts(torch.full((4,), 8), seed=0).tolist() == [8, 8, 8, 2]


def test_the_ratio_holds_where_the_data_are_not_balanced():
    mnist = torch.tensor([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    counts = LongTail(ratio=100).counts(mnist, seed=0)
    assert (counts[0], counts[-1]) == (5923, 59)
    assert (counts <= mnist).all()
    assert Step(ratio=10).counts(torch.tensor([50, 80, 4, 90]), seed=0).tolist() == [40, 40, 4, 4]


def test_reduce_classes_draws_one_class_from_the_seed():
    available = torch.full((10,), 100)
    drawn = [ReduceClasses(0.05).counts(available, seed).tolist() for seed in range(30)]
    assert all(sorted(counts) == [5] + [100] * 9 for counts in drawn)
    assert len({counts.index(5) for counts in drawn}) > 5
    assert drawn[3] == ReduceClasses(0.05).counts(available, 3).tolist()
    others = ReduceClasses(0.05, others=True).counts(available, 3).tolist()
    assert sorted(others) == [5] * 9 + [100]
    assert others.index(100) == drawn[3].index(5)


def test_kept_indices_have_the_counts_and_depend_on_the_seed_alone():
    target = torch.randint(4, (400,), generator=torch.Generator().manual_seed(0))
    kept = ClassCounts([10, 20, 30, 40]).keep(target, num_classes=4, seed=1)
    assert torch.bincount(target[kept]).tolist() == [10, 20, 30, 40]
    assert (kept.diff() > 0).all()
    torch.manual_seed(99)
    assert kept.equal(ClassCounts([10, 20, 30, 40]).keep(target, num_classes=4, seed=1))
    assert not kept.equal(ClassCounts([10, 20, 30, 40]).keep(target, num_classes=4, seed=2))
    # A smaller subset lies within a larger one of the same seed.
    assert set(ClassCounts([5, 5, 5, 5]).keep(target, 4, 1).tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("factor", [0, -0.1, 1.5, float("nan")])
def test_factor_outside_its_range_is_refused(factor):
    with pytest.raises(ValueError, match=r"Expected `factor` in \(0, 1\]"):
        ReduceClasses(factor)


@pytest.mark.parametrize(
    ("imbalance", "message"),
    [
        (ClassCounts([1, 9]), "at most the 4 images of class 1 but got 9"),
        (ClassCounts([0, 1]), "none of the 4 of class 0"),
        (ClassCounts([1]), "2 class counts but got 1"),
        (ReduceClasses(0.1), r"none of the \d+ of class \d: make it milder"),
        (ReduceClasses(0.5, classes=[2]), r"`classes` in 0..1 but got \[2\]"),
    ],
)
def test_what_the_data_cannot_give_is_refused(imbalance, message):
    with pytest.raises(ValueError, match=message):
        imbalance.keep(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), num_classes=2, seed=0)


@pytest.mark.parametrize("make", [lambda: LongTail(0.5), lambda: Step(0.5), lambda: Step(2, fraction=1.5)])
def test_ratios_outside_their_range_are_refused(make):
    with pytest.raises(ValueError, match="Expected `"):
        make()


BALANCED, MNIST = [100] * 10, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize("sizes", [BALANCED, MNIST])
@pytest.mark.parametrize(
    ("imbalance", "reduced"),
    [
        (ReduceClasses(0.05, [3, 7]), [3, 7]),
        (ReduceClasses(1.0, [3]), [3]),
        (ReduceClasses(0.05, [3], others=True), [0, 1, 2, 4, 5, 6, 7, 8, 9]),
        (Step(2), [5, 6, 7, 8, 9]),
        (Step(2, fraction=0.2), [8, 9]),
        (LongTail(50), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (LongTail(1), []),
        (ClassCounts([9, 9, 9, 9, 9, 9, 9, 9, 9, 1]), [9]),
    ],
)
def test_an_imbalance_reports_which_classes_it_reduces(sizes, imbalance, reduced):
    assert imbalance.reduced(torch.tensor(sizes), seed=0).nonzero().flatten().tolist() == reduced


@pytest.mark.parametrize("evaluation", ["official", "holdout"])
@pytest.mark.parametrize("imbalance", [Step(2), LongTail(5), ReduceClasses(0.5), ReduceClasses(0.5, others=True), None])
def test_data_run_and_comparison_agree_on_the_reduced_classes(tmp_path, evaluation, imbalance):
    def data(**kwargs):
        return DigitsDataModule(imbalance=imbalance, evaluation=evaluation, **kwargs)

    plan = plan_of(data(), MLP, {"a": torch.nn.CrossEntropyLoss, "b": torch.nn.CrossEntropyLoss})
    repeat = plan.repeat(1)
    for split_file in (None, str(tmp_path / "split.json"), str(tmp_path / "split.json")):  # none, written, read back
        alone = data(seed=repeat.seed, split_file=split_file)
        alone.setup()
        reduced = list(alone.description.reduced_classes)
        assert reduced == repeat.reduced
        expected = {"Step": [5, 6, 7, 8, 9], "LongTail": [1, 2, 3, 4, 5, 6, 7, 8, 9], "NoneType": []}
        assert reduced == expected.get(type(imbalance).__name__, reduced)
        # The reduced classes are those that lost images.
        if isinstance(imbalance, ReduceClasses):
            full = DigitsDataModule(evaluation="official", seed=repeat.seed)
            full.setup()
            smaller = alone.class_counts < 0.65 * full.class_counts
            assert reduced == smaller.nonzero().flatten().tolist()


def test_class_sizes_by_name():
    sizes = {"10": 3, "1": 1, "2": 2}
    names = ["1", "10", "2"]
    assert ClassCounts(sizes).resolve(names) == ClassCounts([1, 3, 2])
    for wrong, message in (
        ({"1": 1, "2": 2}, "got none of '10'"),
        ({**sizes, "3": 1}, "`sizes` to name a class such as"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassCounts(wrong).resolve(names)
    with pytest.raises(ValueError, match="resolve"):
        ClassCounts(sizes).counts(torch.tensor([9, 9, 9]), seed=0)
