"""Properties of every network of the package."""

import copy

import pytest
import torch
from torch import nn

from scor_lightning.losses import OPLLoss
from scor_lightning.models import (
    MLP,
    CifarResNet,
    ConvNet,
    ConvNeXtClassifier,
    CosineLinear,
    PaperResNet,
    TimmBackbone,
    TorchvisionBackbone,
)

NETWORKS = {
    "MLP": MLP,
    "ConvNet": ConvNet,
    "PaperResNet": PaperResNet,
    "CifarResNet": lambda **options: CifarResNet(depth=8, **options),
    "ConvNeXtClassifier": ConvNeXtClassifier,
    "TorchvisionBackbone": lambda **options: TorchvisionBackbone(arch="shufflenet_v2_x0_5", **options),
    "TimmBackbone": lambda **options: TimmBackbone(arch="test_convnext", **options),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param](num_classes=7, in_channels=3, image_size=(32, 40))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_follow_the_convention(name):
    torch.manual_seed(0)
    model = NETWORKS[name](num_classes=7, in_channels=1, image_size=(32, 40))
    images = torch.rand(2, 1, 32, 40)
    assert model.training
    assert model.forward_features(images).shape == (2, model.num_features)
    assert model(images).shape == (2, 7)
    model.eval()
    assert model(images).equal(model.head(model.forward_features(images)))
    assert model.num_classes == 7


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_one_seed_differ_in_nothing_but_their_heads(name):
    def build(**options):
        torch.manual_seed(3)
        network = NETWORKS[name](num_classes=7, in_channels=3, image_size=(32, 40), **options)
        return network, torch.initial_seed(), torch.rand(1)

    (own, *random), (cosine, *others) = build(), build(head=CosineLinear)
    assert random == others  # what is drawn afterwards, such as the losses' permutations
    state, cosine_state = own.state_dict(), cosine.state_dict()
    body = [name for name in state if not name.startswith("head.")]
    assert body
    assert all(state[name].equal(cosine_state[name]) for name in body)


def test_the_head_can_be_replaced_and_the_features_trained(network):
    model = copy.deepcopy(network)
    model.head = CosineLinear(model.num_features, 7)
    features = model.forward_features(torch.rand(4, 3, 32, 40))
    OPLLoss()(model.head(features), torch.tensor([0, 0, 1, 1]), features).backward()
    reached = [p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()]
    assert all(reached)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_made_from_features_and_classes(name):
    head = NETWORKS[name](num_classes=3, in_channels=3, image_size=(32, 32), head=CosineLinear).head
    assert isinstance(head, CosineLinear)
    assert head.out_features == 3


def test_mlp_is_the_papers():
    assert sum(p.numel() for p in MLP(num_classes=10).parameters()) == 784 * 128 + 128 + 128 * 10 + 10


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least one positive width"):
        MLP(num_classes=2, hidden=[])
    with pytest.raises(ValueError, match=r"at least 8 pixels for 3 blocks but got \(7, 28\)"):
        ConvNet(num_classes=2, image_size=(7, 28))


def test_the_convnext_is_the_papers_with_its_norm():
    model = ConvNeXtClassifier(num_classes=102)
    assert [tuple(p.shape) for p in model.head.parameters()] == [(512, 768), (512,), (102, 512), (102,)]
    features = model.forward_features(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(features.mean(1), torch.zeros(2), atol=1e-5, rtol=0)  # after the layer norm
    assert isinstance(ConvNeXtClassifier(num_classes=3, image_size=(32, 32), head=nn.Linear).head, nn.Linear)
    with pytest.raises(ValueError, match="'tiny', 'small', 'base' or 'large' but got 'huge'"):
        ConvNeXtClassifier(num_classes=3, size="huge")


@pytest.mark.parametrize(("size", "features"), [("tiny", 768), ("small", 768), ("base", 1024), ("large", 1536)])
def test_the_convnexts_have_the_papers_sizes(size, features):
    with torch.device("meta"):
        assert ConvNeXtClassifier(num_classes=2, size=size).head[0].in_features == features
