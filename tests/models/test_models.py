import pytest
import torch
from torch import nn

from scor_lightning.models import MLP, ConvNet


@pytest.mark.parametrize("network", [MLP, ConvNet])
def test_networks_follow_the_convention(network):
    model = network(num_classes=7, in_channels=3, image_size=(16, 20))
    images = torch.rand(4, 3, 16, 20)
    features = model.forward_features(images)
    assert features.shape == (4, model.num_features)
    assert model.num_classes == 7
    assert model.eval()(images).shape == (4, 7)
    assert model(images).equal(model.head(model.forward_features(images)))


@pytest.mark.parametrize("network", [MLP, ConvNet])
def test_the_head_can_be_replaced(network):
    def head(features, classes):
        return nn.Linear(features, classes, bias=False)

    assert network(num_classes=3, head=head).head.bias is None


def test_mlp_is_the_papers():
    assert sum(p.numel() for p in MLP(num_classes=10).parameters()) == 784 * 128 + 128 + 128 * 10 + 10


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least one positive width"):
        MLP(num_classes=2, hidden=[])
    with pytest.raises(ValueError, match=r"at least 8 pixels for 3 blocks but got \(7, 28\)"):
        ConvNet(num_classes=2, image_size=(7, 28))
