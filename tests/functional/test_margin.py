import numpy as np
import torch

from scor_lightning.functional import ldam_margins, log_prior, subtract_margin, vs_scale

COUNTS = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])


def test_ldam_margins():
    expected = COUNTS**-0.25 * (0.4 / (COUNTS**-0.25).max())
    np.testing.assert_allclose(ldam_margins(torch.tensor(COUNTS), 0.4).numpy(), expected, rtol=1e-6)


def test_log_prior():
    np.testing.assert_allclose(log_prior(torch.tensor(COUNTS)).numpy(), np.log(COUNTS / COUNTS.sum()), rtol=1e-6)


def test_vs_scale():
    np.testing.assert_allclose(vs_scale(torch.tensor(COUNTS), 0.3).numpy(), (5000 / COUNTS) ** 0.3, rtol=1e-6)


def test_subtract_margin_touches_the_true_class_alone():
    logits, target, margins = torch.randn(4, 3), torch.tensor([2, 0, 1, 2]), torch.tensor([1.0, 2.0, 3.0])
    expected = logits.clone()
    for i, y in enumerate(target):
        expected[i, y] -= margins[y]
    torch.testing.assert_close(subtract_margin(logits, target, margins), expected)


def test_priors_are_float32_whatever_the_default_is():
    torch.set_default_dtype(torch.bfloat16)  # as Lightning's precision="bf16-true" does
    try:
        assert log_prior(torch.tensor([3, 1])).dtype == torch.float32
        assert vs_scale(torch.tensor([3, 1])).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
