import numpy as np
import pytest
import torch
from torch import nn

from scor_lightning.losses import ConfusionAwareLoss, FocalLoss
from scor_lightning.losses.confusion_aware import soft_confusion
from tests.processes import Processes

COUNTS = [80, 15, 5]


def by_definition(logits, target, tau):
    """Compute the soft confusion of a batch sample by sample."""
    classes = logits.shape[1]
    confusion = np.zeros((classes, classes))
    for j in range(classes):
        of_class = logits[target == j]
        for z in of_class:
            margin = z - z[j]
            share = np.exp(margin / tau) / np.exp(margin / tau).sum()
            for i in range(classes):
                if i != j:
                    confusion[i, j] += share[i] / (1 + np.exp(-margin[i])) / len(of_class)
    return confusion


def test_two_batches_against_the_definition():
    generator = np.random.default_rng(0)
    loss = ConfusionAwareLoss(weight=0.3, beta=0.7, tau=2.0, r0=0.5, class_counts=COUNTS)
    frequency = np.array(COUNTS) / 100
    weights = 1 / np.sqrt(frequency + 0.5)
    weights /= weights.mean()
    average = None
    for target in (np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])):  # class 2 is absent from the second
        logits = generator.normal(size=(4, 3))
        current = by_definition(logits, target, 2.0)
        average = current if average is None else 0.7 * average + 0.3 * current
        terms = loss.terms(torch.tensor(logits), torch.tensor(target))
        expected = 0.3 * np.linalg.svd(average * weights)[1][0]
        assert float(terms["confusion"]) == pytest.approx(expected)
        np.testing.assert_allclose(loss.confusion, average)


def test_the_gradient_leaves_out_the_sigmoid_and_what_was_before():
    torch.manual_seed(0)
    target = torch.tensor([0, 1, 2, 1])
    loss = ConfusionAwareLoss(class_counts=COUNTS)
    first = torch.randn(4, 3, requires_grad=True)
    assert not loss.terms(first, target)["confusion"].requires_grad  # of the first batch
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    before = loss.confusion.double()
    (gradient,) = torch.autograd.grad(loss.terms(logits, target)["confusion"], logits)
    margin = logits - logits.gather(1, target[:, None])
    soft = margin.detach().sigmoid() * margin.softmax(1) * (1 - nn.functional.one_hot(target, 3))
    current = torch.stack([soft[target == j].mean(0) for j in range(3)], dim=1)
    weights = 1 / (torch.tensor(COUNTS).double() / 100 + 0.2).sqrt()
    value = 0.3 * torch.linalg.svdvals((0.9 * before + 0.1 * current) * weights / weights.mean())[0]
    (expected,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, expected)


def test_the_average_is_kept_in_checkpoints():
    loss = ConfusionAwareLoss(FocalLoss(), class_counts=COUNTS)
    loss(torch.randn(8, 3), torch.randint(3, (8,)))
    other = ConfusionAwareLoss(FocalLoss())
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.confusion, loss.confusion)
    batch = torch.randn(8, 3), torch.randint(3, (8,))
    assert torch.equal(other(*batch), loss(*batch))
    fresh = ConfusionAwareLoss(FocalLoss())
    fresh.load_state_dict(ConfusionAwareLoss(FocalLoss()).state_dict())
    assert fresh.confusion is None


def test_evaluation_is_that_of_the_base_loss():
    loss = ConfusionAwareLoss(class_counts=COUNTS).eval()
    logits, target = torch.randn(8, 3), torch.randint(3, (8,))
    assert torch.equal(loss(logits, target), nn.functional.cross_entropy(logits, target))
    assert loss.confusion is None


def two(rank_batches):
    import os

    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    loss = ConfusionAwareLoss(class_counts=COUNTS)
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.weight.copy_(torch.arange(12.0).view(3, 4) / 10)
        network.bias.zero_()
    for images, target in rank_batches:
        half = slice(4 * rank, 4 * rank + 4)
        network.zero_grad()
        sum(loss.terms(network(images[half]), target[half]).values()).backward()
    gradient = network.weight.grad.clone()
    dist.all_reduce(gradient)
    return gradient / 2, loss.confusion


def test_two_processes_are_one_with_the_whole_batch():
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(2)]
    loss = ConfusionAwareLoss(class_counts=COUNTS)
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.weight.copy_(torch.arange(12.0).view(3, 4) / 10)
        network.bias.zero_()
    for images, target in batches:
        network.zero_grad()
        sum(loss.terms(network(images), target).values()).backward()
    for gradient, confusion in Processes(2, two, batches).results():
        torch.testing.assert_close(gradient, network.weight.grad)
        torch.testing.assert_close(confusion, loss.confusion)


def test_wrong_arguments_are_refused():
    for options in ({"weight": -1}, {"beta": 1.0}, {"tau": 0}, {"r0": 0}):
        (name,) = options
        with pytest.raises(ValueError, match=f"Expected `{name}`"):
            ConfusionAwareLoss(**options)
    assert soft_confusion(torch.zeros(1, 2), torch.tensor([0])).tolist() == [[0.0, 0.0], [0.25, 0.0]]
