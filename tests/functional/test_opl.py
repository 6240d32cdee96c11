import numpy as np
import pytest
import torch

from scor_lightning.functional import orthogonal_projection_penalty

TARGET = torch.tensor([0, 0, 1, 1, 2, 2])


def test_values_worked_out_by_hand():
    assert orthogonal_projection_penalty(torch.ones(6, 4), TARGET).item() == pytest.approx(0.5)
    orthogonal = torch.eye(3)[TARGET] * torch.arange(1.0, 7.0)[:, None]
    assert orthogonal_projection_penalty(orthogonal, TARGET).item() == pytest.approx(0.0, abs=1e-6)
    # opposite directions of different classes are as bad as equal ones: the absolute value
    opposite = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert orthogonal_projection_penalty(opposite, TARGET[:4], gamma=0.5).item() == pytest.approx(0.5)
    # within a class they are the worst: s = -1
    spread = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert orthogonal_projection_penalty(spread, TARGET[:4]).item() == pytest.approx(2.0)


def test_against_numpy_pair_by_pair():
    features, target = torch.randn(9, 5, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0, 2, 2, 3])
    f = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    same, other = [], []
    for i in range(9):
        for j in range(9):
            if i != j:
                (same if target[i] == target[j] else other).append(f[i] @ f[j])
    expected = 1 - np.mean(same) + 2.0 * np.mean(np.abs(other))
    assert orthogonal_projection_penalty(features, target, gamma=2.0).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck():
    features = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: orthogonal_projection_penalty(x, TARGET), features)


@pytest.mark.parametrize("target", [[0], [0, 0, 0], [0, 1, 2]])
def test_missing_kinds_of_pairs_are_finite(target):
    features = torch.randn(len(target), 4, requires_grad=True)
    penalty = orthogonal_projection_penalty(features, torch.tensor(target))
    penalty.backward()
    assert penalty.isfinite()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    features = (torch.randn(6, 64) * 100).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = orthogonal_projection_penalty(features, TARGET)
    torch.testing.assert_close(penalty, orthogonal_projection_penalty(features.double(), TARGET).float())


def test_refusals():
    with pytest.raises(ValueError, match=r"Expected `features` of shape \[6, D\] but got \[5, 4\]"):
        orthogonal_projection_penalty(torch.zeros(5, 4), TARGET)
    with pytest.raises(ValueError, match=r"Expected `gamma` >= 0 but got -0.5"):
        orthogonal_projection_penalty(torch.zeros(6, 4), TARGET, gamma=-0.5)
