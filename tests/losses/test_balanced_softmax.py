import numpy as np
import pytest
import torch

from scor_lightning.losses import BalancedSoftmaxLoss
from tests.losses.numpy_reference import COUNTS, batch, cross_entropy


def test_against_numpy():
    logits, target = batch(3.0)
    loss = BalancedSoftmaxLoss()
    loss.set_class_counts(torch.tensor(COUNTS))
    got = loss(torch.tensor(logits), torch.tensor(target))
    assert got.item() == pytest.approx(cross_entropy(logits + np.log(COUNTS), target), rel=1e-6)
    assert torch.equal(loss.adjust_logits(torch.tensor(logits)), torch.tensor(logits))
