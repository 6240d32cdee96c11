from functools import partial

import pytest
import torch

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.losses import LDAMLoss, SCoRLoss
from scor_lightning.models import MLP, CosineLinear
from tests.comparison import compare_losses
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


@pytest.mark.parametrize("scale", [16.0, 30.0, 64.0])
def test_in_a_network_the_scale_is_that_of_the_head(scale):
    logits, target = torch.randn(8, 3), torch.randint(3, (8,))
    network = MLP(3, head=partial(CosineLinear, scale=scale))
    inside, alone = LDAMLoss(), LDAMLoss(scale=scale)
    ImageClassifier(network, inside)
    for loss in (inside, alone):
        loss.set_class_counts(torch.tensor([50, 20, 3]))
    assert inside(logits, target) == alone(logits, target)
    ImageClassifier(network, alone)
    with pytest.raises(ValueError, match=rf"`scale` of LDAMLoss to be the {scale} of the network's head but got 17.0"):
        ImageClassifier(network, LDAMLoss(scale=17.0))


@pytest.mark.parametrize("loss", [LDAMLoss(), SCoRLoss(LDAMLoss())])
def test_another_head_is_refused_before_training(loss):
    with pytest.raises(
        ValueError, match=r"but got Linear: use `--config loss/ldam\.yaml`, or give the backbone `head: "
    ):
        ImageClassifier(MLP(3), loss)
    data = DigitsDataModule()
    with pytest.raises(ValueError, match=r"head scor_lightning.models.CosineLinear .* \(the method 'ldam'\)"):
        compare_losses(data, MLP, {"ce": torch.nn.CrossEntropyLoss, "ldam": lambda: loss}, repeats=1, epochs=1)
