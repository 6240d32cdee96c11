import numpy as np
import pytest
import torch

from scor_lightning.losses import LogitAdjustmentLoss
from tests.losses.numpy_reference import COUNTS, batch, cross_entropy

LOG_PRIOR = np.log(COUNTS / COUNTS.sum())


@pytest.mark.parametrize("post_hoc", [False, True])
def test_against_numpy(post_hoc):
    logits, target = batch(3.0)
    loss = LogitAdjustmentLoss(tau=1.5, post_hoc=post_hoc)
    loss.set_class_counts(torch.tensor(COUNTS))
    in_training = logits + (0 if post_hoc else 1.5) * LOG_PRIOR
    in_evaluation = logits - (1.5 if post_hoc else 0) * LOG_PRIOR
    got = loss(torch.tensor(logits), torch.tensor(target))
    assert got.item() == pytest.approx(cross_entropy(in_training, target), rel=1e-6)
    np.testing.assert_allclose(loss.adjust_logits(torch.tensor(logits)).numpy(), in_evaluation, rtol=1e-6)
