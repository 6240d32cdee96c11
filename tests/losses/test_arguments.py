"""Parameters and batches that no loss is defined on are refused, by name."""

import inspect

import pytest
import torch
from torch import nn

from scor_lightning import ImageClassifier, losses
from scor_lightning.losses.base import loss_terms
from scor_lightning.models import MLP

KINDS = [
    kind
    for kind in vars(losses).values()
    if isinstance(kind, type) and issubclass(kind, losses.Loss) and not inspect.isabstract(kind)
]
NUMBERS = [
    (kind, parameter.name)
    for kind in KINDS
    for parameter in inspect.signature(kind).parameters.values()
    if isinstance(parameter.default, float)
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=[f"{kind.__name__}.{name}" for kind, name in NUMBERS])
def test_a_parameter_that_is_negative_or_not_finite_is_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        kind(**{name: value})


@pytest.mark.parametrize(("logits", "targets"), [((8, 3), 4), ((4, 3), 8), ((4,), 4), ((0, 3), 0), ((2, 4, 3), 2)])
@pytest.mark.parametrize("kind", [*KINDS, nn.CrossEntropyLoss], ids=lambda kind: kind.__name__)
def test_a_batch_whose_parts_do_not_fit_is_refused(kind, logits, targets):
    loss = kind()
    if isinstance(loss, losses.Loss):
        loss.set_class_counts(torch.tensor([10, 5, 2]))
    batch = (torch.randn(logits), torch.randint(3, (targets,)), torch.randn(logits[0], 6))
    with pytest.raises(ValueError, match=r"`(logits|target)`"):
        loss_terms(loss, *batch)
    if isinstance(loss, losses.Loss):
        with pytest.raises(ValueError, match=r"`(logits|target)`"):
            loss(*batch)


@pytest.mark.parametrize(
    ("backbone", "loss", "named"),
    [
        (MLP(10), None, "`loss`.*None"),
        (MLP(10), nn.CrossEntropyLoss, "`loss`.*the class CrossEntropyLoss"),
        (None, nn.CrossEntropyLoss(), "`backbone`.*None"),
        (MLP, nn.CrossEntropyLoss(), "`backbone`.*the class MLP"),
    ],
)
def test_parts_that_are_no_modules_are_refused(backbone, loss, named):
    with pytest.raises(ValueError, match=named):
        ImageClassifier(backbone, loss)


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="`num_classes` >= 1 but got 0"):
        ImageClassifier(nn.Flatten(), nn.CrossEntropyLoss(), num_classes=0)
