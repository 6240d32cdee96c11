import math

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from torch import nn

from scor_lightning.comparison import measures
from scor_lightning.comparison.measures import mean_loss, prediction_measures, spectrum_measures
from scor_lightning.comparison.predictions import adjusted, predict
from scor_lightning.losses import FocalLoss, LogitAdjustmentLoss


def measured(logits, target, loss, reduced):
    counts = torch.full((logits.shape[1],), 200)
    measures = prediction_measures(*predict(adjusted(logits, loss), target), target, counts, reduced)
    return measures | {"test_loss": mean_loss(logits, target, loss)}


def test_predictions_are_measured_as_by_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2500, 6, generator=generator)
    logits[:, 4] = -9  # never predicted
    target = torch.randint(5, (2500,), generator=generator)  # class 5 is predicted and never occurs
    got = measured(logits, target, nn.CrossEntropyLoss(label_smoothing=0.1), [1, 4])
    true, predicted = target.numpy(), logits.argmax(1).numpy()
    assert got["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert got["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true[true < 5], predicted[true < 5]))
    recalls = recall_score(true, predicted, labels=range(5), average=None)
    assert got["worst_class_recall"] == pytest.approx(recalls.min())
    assert got["f1_macro"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    rare = (true == 1) | (true == 4)
    assert got["accuracy_reduced"] == pytest.approx(accuracy_score(true[rare], predicted[rare]))
    assert got["f1_reduced"] == pytest.approx(
        f1_score(true, predicted, labels=[1, 4], average="macro", zero_division=0)
    )
    assert got["cross_entropy"] == pytest.approx(float(nn.functional.cross_entropy(logits, target)), rel=1e-6)
    smooth = nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
    assert got["test_loss"] == pytest.approx(float(smooth), rel=1e-6)


def test_a_loss_that_adjusts_logits_is_measured_by_the_adjusted_ones():
    loss = LogitAdjustmentLoss(post_hoc=True)
    loss.set_class_counts(torch.tensor([99, 1]))
    got = measured(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), loss.eval(), [1])
    assert got["accuracy"] == got["accuracy_reduced"] == 1


def test_reduced_classes_that_do_not_occur_have_no_measure():
    got = measured(torch.eye(3)[:2], torch.tensor([0, 1]), nn.CrossEntropyLoss(), [2])
    assert math.isnan(got["accuracy_reduced"])
    assert math.isnan(got["f1_reduced"])


def test_without_reduced_classes_nothing_is_said_of_them():
    got = measured(torch.eye(2), torch.tensor([0, 1]), nn.CrossEntropyLoss(), [])
    assert "accuracy_reduced" not in got


def test_spectra_are_those_of_svdvals():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(7, 5))
    conv, head = network[0], network[3]
    with torch.no_grad():
        head.weight[1] = head.weight[0]
    row = spectrum_measures(network, spectra=True)
    assert {name.split("/")[1] for name in row} == {"0", "3"}
    assert row["spectrum/3/values"] == pytest.approx(torch.linalg.svdvals(head.weight.double()).tolist(), abs=1e-6)
    expected = torch.linalg.svdvals(conv.weight.flatten(1).double()).tolist()
    assert row["spectrum/0/values"] == pytest.approx(expected)
    assert row["spectrum/3/rank"] == 4
    assert row["spectrum/0/sigma_max"] == pytest.approx(expected[0])
    with torch.no_grad():
        head.weight[0, 0] = torch.inf
    row = spectrum_measures(network, spectra=True)
    assert math.isnan(row["spectrum/3/sigma_max"])
    assert math.isnan(row["spectrum/3/rank"])
    assert row["spectrum/0/rank"] == 4
    assert spectrum_measures(nn.BatchNorm1d(3), spectra=False) == {}


def test_the_cross_entropy_is_that_of_the_distribution_used_for_prediction():
    loss = LogitAdjustmentLoss(post_hoc=True)
    loss.set_class_counts(torch.tensor([99, 1]))
    logits, target = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0])
    expected = nn.functional.cross_entropy(loss.adjust_logits(logits), target)
    assert measured(logits, target, loss.eval(), [])["cross_entropy"] == pytest.approx(expected.item())


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_the_loss_does_not_depend_on_how_the_set_is_cut(monkeypatch, batch):
    monkeypatch.setattr(measures, "BATCH", batch)
    logits, target = torch.randn(10, 3), torch.arange(10) % 3
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]))
    got = measured(logits, target, weighted, [])["test_loss"]
    assert got == pytest.approx(weighted(logits, target).item())
    summed = measured(logits, target, FocalLoss(reduction="sum").eval(), [])["test_loss"]
    assert summed == pytest.approx(FocalLoss()(logits, target).item())
