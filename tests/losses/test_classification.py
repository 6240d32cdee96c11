import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scor.losses import FocalLoss as ReferenceFocalLoss

from scor_lightning.losses import FocalLoss, WeightedCrossEntropyLoss


def test_focal_loss_by_name_is_the_authors_sum():
    logits, target = torch.randn(32, 10, requires_grad=True), torch.randint(10, (32,))
    ours, theirs = FocalLoss(reduction="sum")(logits, target), ReferenceFocalLoss()(logits, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))
    torch.testing.assert_close(FocalLoss()(logits, target), theirs / 32)


def test_focal_loss_refuses_gamma_and_reduction():
    with pytest.raises(ValueError, match=r"Expected `gamma` >= 0 but got -1.0"):
        FocalLoss(gamma=-1.0)
    with pytest.raises(ValueError, match=r"Expected `reduction` .* but got 'none'"):
        FocalLoss(reduction="none")


def test_weighted_cross_entropy_is_torchs_with_inverse_frequencies():
    logits, target = torch.randn(16, 3), torch.randint(3, (16,))
    counts = np.array([60, 30, 10])
    loss = WeightedCrossEntropyLoss()
    loss.set_class_counts(torch.tensor(counts))
    weights = torch.tensor(1 / counts / (1 / counts).sum() * 3, dtype=torch.float32)
    torch.testing.assert_close(loss.class_weights, weights)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target, weights))
