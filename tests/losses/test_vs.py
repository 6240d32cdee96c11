import numpy as np
import pytest
import torch

from scor_lightning.losses import LogitAdjustmentLoss, VSLoss
from tests.losses.numpy_reference import COUNTS, batch, cross_entropy


def test_against_numpy():
    logits, target = batch(3.0)
    loss = VSLoss(gamma=0.2, tau=1.25)
    loss.set_class_counts(torch.tensor(COUNTS))
    expected = cross_entropy(logits * (COUNTS / COUNTS.max()) ** 0.2 + 1.25 * np.log(COUNTS / COUNTS.sum()), target)
    assert loss(torch.tensor(logits), torch.tensor(target)).item() == pytest.approx(expected, rel=1e-6)


def test_gamma_zero_is_logit_adjustment():
    logits, target = (torch.tensor(x) for x in batch())
    vs, adjustment = VSLoss(gamma=0.0), LogitAdjustmentLoss()
    for loss in (vs, adjustment):
        loss.set_class_counts(torch.tensor(COUNTS))
    assert vs(logits, target) == adjustment(logits, target)


def test_refuses_gamma():
    with pytest.raises(ValueError, match=r"Expected `gamma` >= 0 but got -1.0"):
        VSLoss(gamma=-1.0)
