import math

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import nn

from scor_lightning.comparison.measures import prediction_measures, spectrum_measures
from scor_lightning.losses import LogitAdjustmentLoss


def test_predictions_are_measured_as_by_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2500, 6, generator=generator)
    logits[:, 4] = -9  # never predicted
    target = torch.randint(5, (2500,), generator=generator)  # class 5 is predicted and never occurs
    got = prediction_measures(logits, target, nn.CrossEntropyLoss(label_smoothing=0.1), [1, 4])
    predicted = logits.argmax(1)
    assert got["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    assert got["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target[target < 5], predicted[target < 5]))
    assert got["f1_macro"] == pytest.approx(f1_score(target, predicted, average="macro", zero_division=0))
    rare = (target == 1) | (target == 4)
    assert got["accuracy_reduced"] == pytest.approx(accuracy_score(target[rare], predicted[rare]))
    assert got["f1_reduced"] == pytest.approx(
        f1_score(target, predicted, labels=[1, 4], average="macro", zero_division=0)
    )
    assert got["cross_entropy"] == pytest.approx(float(nn.functional.cross_entropy(logits, target)), rel=1e-6)
    smooth = nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
    assert got["test_loss"] == pytest.approx(float(smooth), rel=1e-6)


def test_a_loss_that_adjusts_logits_is_measured_by_the_adjusted_ones():
    loss = LogitAdjustmentLoss(post_hoc=True)
    loss.set_class_counts(torch.tensor([99, 1]))
    got = prediction_measures(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), loss.eval(), [1])
    assert got["accuracy"] == got["accuracy_reduced"] == 1


def test_reduced_classes_that_do_not_occur_have_no_measure():
    got = prediction_measures(torch.eye(3)[:2], torch.tensor([0, 1]), nn.CrossEntropyLoss(), [2])
    assert math.isnan(got["accuracy_reduced"])
    assert math.isnan(got["f1_reduced"])


def test_without_reduced_classes_nothing_is_said_of_them():
    got = prediction_measures(torch.eye(2), torch.tensor([0, 1]), nn.CrossEntropyLoss(), [])
    assert "accuracy_reduced" not in got


def test_spectra_are_those_of_svdvals():
    generator = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": torch.randn(3, 4, 2, 3, 3, generator=generator),
        "conv.bias": torch.randn(3, 4, generator=generator),
        "norm.weight": torch.randn(3, 4, generator=generator),
        "head.weight": torch.randn(3, 5, 7, generator=generator),
    }
    weights["head.weight"][1, 1] = weights["head.weight"][1, 0]
    weights["head.weight"][2, 0, 0] = torch.inf
    rows = spectrum_measures(weights, spectra=True)
    assert {name.split("/")[1] for name in rows[0]} == {"conv", "head"}
    for i, row in enumerate(rows[:2]):
        values = torch.linalg.svdvals(weights["head.weight"][i].double())
        assert row["spectrum/head/values"] == pytest.approx(values.tolist(), abs=1e-6)
        assert row["spectrum/conv/values"] == pytest.approx(
            torch.linalg.svdvals(weights["conv.weight"][i].flatten(1).double()).tolist()
        )
    assert [row["spectrum/head/rank"] for row in rows[:2]] == [5, 4]
    assert rows[2]["spectrum/head/sigma_max"] != rows[2]["spectrum/head/sigma_max"]
    assert rows[2]["spectrum/conv/rank"] == 4
