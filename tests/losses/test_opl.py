import pytest
import torch
import torch.nn.functional as F

from scor_lightning.losses import OPLLoss, loss_terms


def test_terms():
    logits, target = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
    loss = OPLLoss(weight=0.1, gamma=2.0)
    assert loss.needs_features
    terms = loss_terms(loss, logits, target, torch.ones(4, 3))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, target))
    assert terms["opl_penalty"].item() == pytest.approx(0.1 * 2.0)
    torch.testing.assert_close(loss(logits, target, torch.ones(4, 3)), sum(terms.values()))


def test_evaluation_is_the_cross_entropy_which_no_batch_changes():
    logits, target, features = torch.randn(8, 3), torch.randint(3, (8,)), torch.randn(8, 5)
    assert list(OPLLoss().eval().terms(logits, target, features)) == ["cross_entropy"]
    assert OPLLoss().eval()(logits, target, features) == F.cross_entropy(logits, target)


def test_needs_features():
    with pytest.raises(ValueError, match=r"Expected `features` of shape \[B, D\] but got None"):
        OPLLoss()(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("option", ["weight", "gamma"])
def test_refuses_negative_options(option):
    with pytest.raises(ValueError, match=f"Expected `{option}` >= 0 but got -1.0"):
        OPLLoss(**{option: -1.0})
