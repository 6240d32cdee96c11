import numpy as np
import pytest
import torch

from scor_lightning.models import CosineLinear


def test_against_numpy():
    head = CosineLinear(6, 4, scale=20.0)
    features = torch.randn(5, 6)
    f, w = features.numpy(), head.weight.detach().numpy()
    expected = 20 * (f @ w.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=1)
    np.testing.assert_allclose(head(features).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_lengths_do_not_count():
    head, features = CosineLinear(6, 4), torch.randn(5, 6)
    expected = head(features)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.1], [1.0], [2.0], [30.0]]))
    torch.testing.assert_close(head(7 * features), expected)


def test_it_has_unit_directions_and_no_bias_at_first():
    head = CosineLinear(6, 4)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(4))
    assert str(head) == "CosineLinear(in_features=6, out_features=4, scale=30.0)"


def test_features_of_zero_give_logits_of_zero():
    features = torch.zeros(2, 6, requires_grad=True)
    logits = CosineLinear(6, 4)(features)
    logits.sum().backward()
    assert (logits == 0).all()
    assert features.grad.isfinite().all()


def test_refuses_scale():
    with pytest.raises(ValueError, match=r"Expected `scale` > 0 but got 0.0"):
        CosineLinear(6, 4, scale=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-4, 1.0, 500.0])
def test_features_of_every_length_in_every_precision(dtype, length):
    torch.manual_seed(0)
    head = CosineLinear(64, 4).to(dtype)
    features = (length * torch.randn(3, 64)).to(dtype).requires_grad_()
    logits = head(features)
    assert logits.dtype == dtype
    logits.float().sum().backward()
    assert logits.isfinite().all()
    assert features.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()
    exact = torch.nn.functional.normalize(features.detach().double(), dim=1, eps=1e-30)
    expected = 30 * exact @ torch.nn.functional.normalize(head.weight.detach().double(), dim=1).T
    tolerance = {torch.float16: 3e-2, torch.bfloat16: 3e-1, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(logits.detach().double(), expected, rtol=0, atol=tolerance)
