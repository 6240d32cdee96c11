import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scor.losses import FocalLoss as ReferenceFocalLoss

from scor_lightning.functional import class_balanced_weights, focal_loss, reduce_samples


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_is_the_authors_sum(gamma):
    logits = torch.randn(32, 10, requires_grad=True)
    target = torch.randint(10, (32,))
    ours = focal_loss(logits, target, gamma, reduction="sum")
    theirs = ReferenceFocalLoss(gamma)(logits, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def test_focal_loss_against_numpy():
    logits = torch.randn(16, 5, dtype=torch.float64)
    target = torch.randint(5, (16,))
    weight = torch.rand(5, dtype=torch.float64)
    z, y, w = logits.numpy(), target.numpy(), weight.numpy()[target.numpy()]
    p = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(16), y]
    expected = -w * (1 - p) ** 1.5 * np.log(p)
    got = focal_loss(logits, target, 1.5, weight, reduction="none")
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    assert focal_loss(logits, target, 1.5, weight).item() == pytest.approx(expected.sum() / w.sum())
    assert focal_loss(logits, target, 1.5, weight, "sum").item() == pytest.approx(expected.sum())


def test_focal_loss_at_gamma_zero_is_cross_entropy():
    logits, target, weight = torch.randn(8, 4), torch.randint(4, (8,)), torch.rand(4)
    torch.testing.assert_close(focal_loss(logits, target, 0.0, weight), F.cross_entropy(logits, target, weight))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_a_certain_sample_has_gradient_zero(gamma):
    logits = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0]), gamma)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_gradcheck(gamma):
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(4, (6,))
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target, gamma), logits)


def test_focal_loss_of_float16_is_float32():
    logits = torch.full((4, 3), 60000.0, dtype=torch.float16)
    loss = focal_loss(logits, torch.zeros(4, dtype=torch.long), gamma=1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 / 3 * np.log(3))


def test_focal_loss_refusals():
    with pytest.raises(ValueError, match=r"Expected `gamma` >= 0 but got -1.0"):
        focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), gamma=-1.0)
    with pytest.raises(ValueError, match="Expected `logits`"):
        focal_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="Expected `reduction`"):
        reduce_samples(torch.zeros(2), reduction="max")


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1.0])
def test_class_balanced_weights_against_numpy(beta):
    counts = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
    # the effective number of samples is the geometric series of beta, which also holds at 1
    effective = np.array([np.power(beta, np.arange(n)).sum() for n in counts])
    expected = 1 / effective / (1 / effective).sum() * 10
    np.testing.assert_allclose(class_balanced_weights(torch.tensor(counts), beta).numpy(), expected, rtol=1e-6)


def test_class_balanced_weights_refuse_beta():
    with pytest.raises(ValueError, match=r"Expected `beta` in \[0, 1\] but got 1.5"):
        class_balanced_weights(torch.tensor([1, 2]), beta=1.5)
