import pytest
import torch

from scor_lightning.losses import LDAMLoss
from tests.losses.numpy_reference import COUNTS, batch, cross_entropy


def test_against_numpy():
    cosines, target = batch()
    margins = 0.4 * (COUNTS / COUNTS.min()) ** -0.25
    lowered = cosines.copy()
    for i, y in enumerate(target):
        lowered[i, y] -= margins[y]
    loss = LDAMLoss(max_margin=0.4, scale=20.0)
    loss.set_class_counts(torch.tensor(COUNTS))
    got = loss(torch.tensor(20 * cosines), torch.tensor(target))
    assert got.item() == pytest.approx(cross_entropy(20 * lowered, target), rel=1e-6)


@pytest.mark.parametrize(("option", "message"), [("max_margin", "`max_margin` >= 0"), ("scale", "`scale` > 0")])
def test_refusals(option, message):
    with pytest.raises(ValueError, match=f"Expected {message} but got -1.0"):
        LDAMLoss(**{option: -1.0})
