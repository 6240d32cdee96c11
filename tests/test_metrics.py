import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score

from scor_lightning.metrics import classification_metrics


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
    expected = recall_score(target, predicted, average=None, labels=range(7), zero_division=0)
    assert values["recall"].tolist() == pytest.approx(expected.tolist())


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
