import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scor_lightning.losses import ClassBalancedLoss

COUNTS = np.array([5000, 500, 50])


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_against_numpy(gamma):
    logits, target = torch.randn(16, 3, dtype=torch.float64), torch.randint(3, (16,))
    loss = ClassBalancedLoss(beta=0.999, gamma=gamma)
    loss.set_class_counts(torch.tensor(COUNTS))
    z, y = logits.numpy(), target.numpy()
    w = ((1 - 0.999) / (1 - 0.999**COUNTS))[y]
    p = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(16), y]
    expected = (-w * (1 - p) ** gamma * np.log(p)).sum() / w.sum()
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-6)  # weights in float32


def test_beta_zero_weighs_alike():
    logits, target = torch.randn(16, 3), torch.randint(3, (16,))
    loss = ClassBalancedLoss(beta=0.0)
    loss.set_class_counts(torch.tensor(COUNTS))
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target))


@pytest.mark.parametrize(
    ("options", "message"), [({"beta": 1.1}, "Expected `beta`"), ({"gamma": -1.0}, "`gamma` >= 0")]
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ClassBalancedLoss(**options)
