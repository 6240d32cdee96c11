import numpy as np
import pytest
import torch
from scipy.stats import gmean, hmean
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from scor_lightning.metrics import (
    CalibrationError,
    CrossEntropy,
    class_groups,
    class_thirds,
    classification_metrics,
    group_accuracies,
    lower_is_better,
    probability_metrics,
    recall_measures,
    shifted_accuracies,
)


@pytest.mark.parametrize("absent", [False, True])
def test_metrics_are_those_of_scikit_learn(absent):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    target = torch.randint(6 if absent else 7, (200,), generator=generator)
    metrics = classification_metrics(7)
    for part in (slice(0, 64), slice(64, 65), slice(65, 200)):
        metrics.update(logits[part], target[part])
    values = metrics.compute()
    logits, target = logits.numpy(), target.numpy()
    predicted = logits.argmax(1)
    assert values["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true") if absent else _nothing():
        assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, predicted))
    assert values["f1_macro"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert values["accuracy_top5"] == pytest.approx(top_k_accuracy_score(target, logits, k=5, labels=range(7)))
    for name, score in {"recall": recall_score, "precision": precision_score, "f1": f1_score}.items():
        expected = score(target, predicted, average=None, labels=range(7), zero_division=0)
        assert values[name].tolist() == pytest.approx(expected.tolist())
    assert values["mcc"] == pytest.approx(matthews_corrcoef(target, predicted))
    occur = values["support"] > 0
    assert occur.sum() == 6 + (not absent)
    assert values["support"].sum() == 200
    assert values["harmonic_mean"] == pytest.approx(hmean(values["recall"][occur].numpy()), rel=1e-5)
    assert values["worst_class_recall"] == values["recall"][occur].min()
    probability = torch.tensor(logits).softmax(1).numpy()
    squares = ((probability - np.eye(7)[target]) ** 2).sum(1)
    assert values["brier"] == pytest.approx(squares.mean(), rel=1e-5)
    assert values["g_mean"] == pytest.approx(gmean(values["recall"][occur].numpy()), rel=1e-5)
    assert values["calibration_error"] == pytest.approx(
        float(multiclass_calibration_error(torch.tensor(logits).softmax(1), torch.tensor(target), 7)), abs=1e-6
    )


def test_g_mean_and_mcc_of_what_is_never_or_always_right():
    metrics = classification_metrics(3)
    metrics.update(torch.eye(3)[[0, 0, 0]], torch.tensor([0, 1, 2]))
    values = metrics.compute()
    assert values["g_mean"] == values["mcc"] == values["harmonic_mean"] == values["worst_class_recall"] == 0
    metrics.reset()
    metrics.update(torch.eye(3), torch.arange(3))
    values = metrics.compute()
    assert values["g_mean"] == values["mcc"] == values["harmonic_mean"] == values["worst_class_recall"] == 1


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_that_of_torchmetrics(bins):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1000, 4, generator=generator) * 3
    logits[:10] = torch.tensor([1e9, 0, 0, 0])  # probabilities of 0 and 1 fall into a bin too
    target = torch.randint(4, (1000,), generator=generator)
    metric = CalibrationError(bins)
    for part in torch.arange(1000).split(300):
        metric.update(logits[part], target[part])
    expected = multiclass_calibration_error(logits.softmax(1), target, 4, n_bins=bins)
    assert metric.compute() == pytest.approx(float(expected), abs=1e-6)


def test_groups_of_classes():
    groups = class_groups(torch.tensor([900, 101, 100, 20, 19, 1]))
    assert {name: members.nonzero().flatten().tolist() for name, members in groups.items()} == {
        "many": [0, 1],
        "medium": [2, 3],
        "few": [4, 5],
    }
    assert class_groups(torch.tensor([5, 3, 2]), (3, 4))["medium"].tolist() == [False, True, False]
    groups["reduced"] = torch.tensor([False, False, False, False, True, True])
    recall, support = torch.tensor([1.0, 0.5, 0.0, 0.8, 0.5, 0.2]), torch.tensor([10, 10, 0, 10, 30, 10])
    accuracies = group_accuracies(recall, support, groups)
    assert {name: float(value) for name, value in accuracies.items()} == pytest.approx(
        {
            "accuracy_many": 0.75,
            "accuracy_medium": 0.8,  # class 2 does not occur
            "accuracy_few": 0.35,
            "accuracy_reduced": (0.5 * 30 + 0.2 * 10) / 40,  # by samples, as in the paper
        }
    )
    assert "accuracy_few" not in group_accuracies(recall, torch.tensor([1, 1, 1, 1, 0, 0]), groups)


def test_a_perfect_first_batch_does_not_tie_top1_to_top5():
    # MetricCollection finds metrics that share a state by comparing the states after the first batch.
    metrics = classification_metrics(7)
    metrics.update(torch.eye(7), torch.arange(7))
    metrics.update(torch.eye(7), torch.arange(7).roll(1))
    values = metrics.compute()
    assert values["accuracy"] == values["balanced_accuracy"] == 0.5
    assert values["recall"].tolist() == [0.5] * 7
    assert values["accuracy_top5"] > 0.5


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_top5_needs_more_than_five_classes():
    assert "accuracy_top5" not in classification_metrics(5)
    with pytest.raises(ValueError, match="at least 2 classes but got 1"):
        classification_metrics(1)


def test_the_cross_entropy_is_the_mean_however_the_set_is_cut():
    logits, target = 5 * torch.randn(50, 4), torch.randint(4, (50,))
    for sizes in ([50], [49, 1], [1] * 50):
        metric = CrossEntropy()
        for z, y in zip(logits.split(sizes), target.split(sizes), strict=True):
            metric.update(z, y)
        torch.testing.assert_close(metric.compute(), torch.nn.functional.cross_entropy(logits, target))


def test_the_calibration_error_counts_on_beyond_the_integers_of_float32():
    metric = CalibrationError()
    metric.bins[:, -1] = 2.0**24  # as many samples, all right and sure
    for _ in range(10):
        metric.update(torch.tensor([[99.0, 0.0]] * 4), torch.zeros(4, dtype=torch.int64))
    assert metric.bins[2, -1] == 2**24 + 40


@pytest.mark.parametrize(
    ("tag", "lower"),
    [("val/loss", True), ("test/cross_entropy", True), ("val/calibration_error", True), ("train/opl_penalty", True),
     ("val/accuracy", False), ("val/recall/loss", False), ("val/accuracy_few", False), ("val/mcc", False)],
)  # fmt: skip
def test_which_metrics_are_better_when_lower(tag, lower):
    assert lower_is_better(tag) == lower


def test_measures_of_probabilities_are_those_of_torch_uncertainty():
    """Values of torch-uncertainty 0.13.0 (AURC, MulticlassAdaptiveCalibrationError, ClasswiseCalibrationError; 15 bins)."""
    draw = torch.Generator().manual_seed(0)
    logits, target = 3 * torch.randn(500, 7, generator=draw), torch.randint(7, (500,), generator=draw)
    target = torch.where(torch.rand(500, generator=draw) < 0.6, logits.argmax(1), target)
    expected = {"aurc": 0.371510, "adaptive_calibration_error": 0.213554, "classwise_calibration_error": 0.079494}
    metrics = probability_metrics(7)
    for name, value in expected.items():
        for start in range(0, 500, 130):
            metrics[name].update(logits[start : start + 130], target[start : start + 130])
        assert float(metrics[name].compute()) == pytest.approx(value, abs=2e-6)


def test_thirds_hold_equally_many_classes_and_need_three_sizes():
    counts = torch.tensor([5, 700, 60, 60, 1, 80, 300])
    thirds = {name: members.nonzero().flatten().tolist() for name, members in class_thirds(counts).items()}
    assert thirds == {"head_third": [1, 5, 6], "middle_third": [2, 3], "tail_third": [0, 4]}
    assert class_thirds(torch.tensor([9, 9, 9, 4])) == {}


def test_the_accuracy_on_shifted_test_sets_is_that_of_drawing_them():
    """Against the accuracy on test sets that are resampled to the shifted class sizes."""
    counts, recall = torch.tensor([40, 10, 900, 200]), torch.tensor([0.2, 0.1, 0.9, 0.6])
    found = shifted_accuracies(recall, torch.full((4,), 50), counts)
    assert len(found) == 10
    for ratio in (2, 5, 10, 25, 50):
        sizes = {c: ratio ** -(k / 3) for k, c in enumerate([2, 3, 0, 1])}
        backward = {c: ratio ** -(k / 3) for k, c in enumerate([1, 0, 3, 2])}
        for name, weights in (("forward", sizes), ("backward", backward)):
            expected = np.average([float(recall[c]) for c in weights], weights=list(weights.values()))
            assert float(found[f"accuracy_{name}_{ratio}"]) == pytest.approx(expected, rel=1e-5)
    assert shifted_accuracies(recall, torch.full((4,), 50), torch.full((4,), 7)) == {}


def test_classes_without_test_images_are_left_out_of_what_follows_from_recalls():
    counts, support = torch.tensor([90, 30, 5]), torch.tensor([10, 10, 0])
    found = recall_measures(torch.tensor([0.5, 1.0, 0.0]), support, {}, counts)
    assert "accuracy_tail_third" not in found
    assert float(found["accuracy_backward_2"]) == pytest.approx((0.5 / 2 + 1.0) / 1.5)
    assert recall_measures(torch.zeros(3), support, {}, None) == {}
