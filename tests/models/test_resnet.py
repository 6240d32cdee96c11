import pytest
import torch
import torch.nn.functional as F
from scor.models import ResNet
from torch import nn

from scor_lightning.models import CifarResNet, CosineLinear, PaperResNet
from scor_lightning.models.resnet import _CifarBlock


@pytest.fixture(scope="module")
def reference():
    """The network of the paper's package."""
    torch.manual_seed(0)
    return ResNet().eval()


def test_the_papers_network_loads_and_exports_the_reference_weights(reference):
    with torch.device("meta"):
        model = PaperResNet(num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters()) > 134e6
    weights = reference.state_dict()
    names = list(weights)
    model.load_state_dict(weights, assign=True)
    assert list(weights) == names
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert model.eval()(images).equal(reference(images))
    assert list(model.reference_state_dict()) == names
    with torch.device("meta"):
        other = ResNet()
    other.load_state_dict(model.reference_state_dict(), assign=True)
    with torch.no_grad():
        assert other.eval()(images).equal(reference(images))


def test_the_papers_network_inside_another_module_and_with_its_own_names():
    def wrapped(**options):
        return nn.ModuleDict({"backbone": PaperResNet(num_classes=3, image_size=(4, 4), **options)})

    first, second = wrapped(), wrapped()
    second.load_state_dict(first.state_dict())
    images = torch.rand(2, 3, 4, 4)
    assert second.eval()["backbone"](images).equal(first.eval()["backbone"](images))
    assert "sequence.16.weight" in wrapped(head=CosineLinear)["backbone"].reference_state_dict()


@pytest.mark.parametrize(
    ("depth", "millions"),  # table 6 of He et al.
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)],
)
def test_the_cifar_networks_have_the_papers_sizes(depth, millions):
    with torch.device("meta"):
        model = CifarResNet(num_classes=10, depth=depth)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_a_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros():
    block = _CifarBlock(16, 32)
    nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert block(x).equal(expected)


def test_weights_begin_as_by_he():
    torch.manual_seed(0)
    model = CifarResNet(num_classes=100)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
            assert abs(layer.weight.mean().item()) < 0.2 * layer.weight.std().item()


def test_the_features_are_the_mean_over_the_last_maps():
    model = CifarResNet(num_classes=10, depth=8).eval()
    images = torch.rand(2, 3, 32, 32)
    maps = model.body[:-2](images)
    assert maps.shape == (2, 64, 8, 8)
    torch.testing.assert_close(model.forward_features(images), F.relu(maps).mean((2, 3)))


def test_impossible_networks_are_refused():
    with pytest.raises(ValueError, match="6 n \\+ 2, such as 20, 32, 44, 56 or 110, but got 34"):
        CifarResNet(num_classes=10, depth=34)
    with pytest.raises(ValueError, match=r"at least 4 pixels, which are halved twice, but got \(3, 32\)"):
        CifarResNet(num_classes=10, image_size=(3, 32))
