import re
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams

from scor_lightning.models import TorchvisionBackbone

EVERY = models.list_models(module=models)


def image_size(arch):
    """Return the image size of its weights, or a small one that it supports."""
    sized = arch.startswith(("swin", "maxvit", "vit"))
    return models.get_model_weights(arch).DEFAULT.meta["min_size"] if sized else (96, 96)


@pytest.fixture
def shapes_alone(monkeypatch):
    """Networks without memory or arithmetic, however large."""
    counted = BlockParams.from_init_params.__func__

    def on_cpu(*args, **options):  # RegNet computes its widths by tensors
        with torch.device("cpu"):
            return counted(*args, **options)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    return torch.device("meta")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_network_returns_features_and_logits(shapes_alone):
    assert len(EVERY) >= 80
    for i, arch in enumerate(EVERY):
        channels, size = 1 + 2 * (i % 2), image_size(arch)
        with shapes_alone:
            model = TorchvisionBackbone(num_classes=7, in_channels=channels, image_size=size, arch=arch)
            images = torch.empty(2, channels, *size)
            assert model.forward_features(images).shape == (2, model.num_features), arch
        assert model.head.in_features == model.num_features, arch
        assert not [name for name, p in model.named_parameters() if 1000 in p.shape], arch


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Torch's cache of weights, with random ones in torchvision's format on request."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)

    def fill(arch, name="DEFAULT", **options):
        torch.manual_seed(1)
        weights = models.get_model_weights(arch)[name]
        network = models.get_model(arch, **options)
        state = network.state_dict()
        if arch.startswith("densenet"):  # as the published file has it
            keys = [key for key in state if not key.endswith("num_batches_tracked")]
            state = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): state[key] for key in keys}
        torch.save(state, folder / Path(weights.url).name)
        return network

    return fill


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {}),
        ("densenet121", {}),
        ("googlenet", {"init_weights": False}),
        ("mnasnet0_5", {}),
        ("squeezenet1_1", {}),
    ],
)
def test_weights_are_loaded_as_torchvision_loads_them(cache, arch, options):
    cache(arch, **options)
    theirs = models.get_model(arch, weights="DEFAULT").eval()
    last = [name for name, m in theirs.named_modules() if isinstance(m, nn.Linear)] or ["classifier.1"]
    theirs.set_submodule(last[-1], nn.Identity())
    ours = TorchvisionBackbone(num_classes=3, arch=arch, weights="DEFAULT").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert ours.forward_features(images).equal(theirs(images))
        gray = images[:, :1]
        assert ours(gray).equal(ours(gray.repeat(1, 3, 1, 1)))


def test_the_last_layer_of_the_weights_is_kept_where_asked_for(cache):
    cache("resnet18")
    theirs = models.get_model("resnet18", weights="DEFAULT").eval()
    ours = TorchvisionBackbone(num_classes=1000, arch="resnet18", weights="DEFAULT", keep_head=True).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))
    with pytest.raises(ValueError, match=r"the last layer of resnet18 in .* for 7 classes but got 2 of another shape"):
        TorchvisionBackbone(num_classes=7, arch="resnet18", weights="DEFAULT", keep_head=True)
    assert TorchvisionBackbone(num_classes=7, arch="resnet18", keep_head=True).head.out_features == 7


def test_a_network_without_weights_is_the_one_with_them(cache):
    """A network is rebuilt from a checkpoint without a download."""
    cache("googlenet", init_weights=False)
    first = TorchvisionBackbone(num_classes=3, arch="googlenet", weights="DEFAULT").eval()
    second = TorchvisionBackbone(num_classes=3, arch="googlenet").eval()
    second.load_state_dict(first.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert first(images).equal(second(images))


def test_a_vision_transformer_is_fitted_to_the_images(cache):
    theirs = cache("vit_b_32")
    model = TorchvisionBackbone(num_classes=3, image_size=(64, 64), arch="vit_b_32", weights="DEFAULT")
    assert model.network.encoder.pos_embedding.shape == (1, 1 + 4, 768)
    assert model.network.conv_proj.weight.equal(theirs.conv_proj.weight)
    with pytest.raises(ValueError, match=r"square images for vit_b_32 but got \(64, 96\)"):
        TorchvisionBackbone(num_classes=3, image_size=(64, 96), arch="vit_b_32")


@pytest.mark.parametrize("wrap", ["plain", "lightning", "torchvision", "imagenet example"])
def test_a_file_of_weights(tmp_path, wrap):
    source = models.resnet18(num_classes=5)
    state = source.state_dict()
    if wrap == "lightning":
        state = {f"backbone.network.{k}": v for k, v in state.items() if not k.startswith("fc.")}
        state |= {"backbone.head.weight": torch.ones(5, 512), "loss._extra_state": {}}
    elif wrap == "imagenet example":
        state = {f"module.{k}": v for k, v in state.items()}
    key = {"torchvision": "model", "plain": None}.get(wrap, "state_dict")
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "weights.pth")
    model = TorchvisionBackbone(num_classes=3, arch="resnet18", weights=str(tmp_path / "weights.pth"))
    assert model.network.layer4[1].conv2.weight.equal(source.layer4[1].conv2.weight)


def test_mistakes_are_named(tmp_path, monkeypatch):
    def build(arch="resnet18", **options):
        return TorchvisionBackbone(num_classes=3, arch=arch, **options)

    with pytest.raises(ValueError, match=r"torchvision, say .*resnet50.* but got 'resnet5'"):
        build("resnet5")
    with pytest.raises(ValueError, match="1 or 3 channels for resnet18 but got 4"):
        build(in_channels=4)
    with pytest.raises(
        ValueError, match=r"one of IMAGENET1K_V1, DEFAULT or a file but there is no 'V9'|IMAGENET1K_V1 or"
    ):
        build(weights="V9")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"Expected weights in '.*text.pth' but could not read them"):
        build(weights=str(tmp_path / "text.pth"))
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="Expected a `state_dict` in"):
        build(weights=str(tmp_path / "none.pth"))
    torch.save(models.resnet34().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"weights of resnet18 in .*other.pth but got \d+ unknown: layer1.2"):
        build(weights=str(tmp_path / "other.pth"))
    torch.save(models.shufflenet_v2_x0_5().state_dict(), tmp_path / "other.pth")
    message = r"but got \d+ of another shape: conv5.0.weight, .* \.\.\."
    with pytest.raises(ValueError, match=message):
        build("shufflenet_v2_x1_0", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("arch", "size", "right"),
    [
        ("resnet18", (28, 28), True),
        ("resnet18", (16, 28), False),
        ("vgg11", (31, 31), False),
        ("vgg11", (32, 32), True),
        ("convnext_tiny", (28, 28), False),
        ("maxvit_t", (200, 200), False),
        ("inception_v3", (64, 64), False),
        ("vit_b_16", (40, 40), False),
    ],
)
def test_images_that_are_too_small_are_refused(arch, size, right):
    expected = pytest.raises(
        ValueError,
        match=rf"Expected images of a size that {arch} takes, such as by `--data.resolution`, but got \({size[0]}, ",
    )
    with torch.device("meta"), nullcontext() if right else expected:
        TorchvisionBackbone(num_classes=3, image_size=size, arch=arch)


def test_without_a_connection_the_message_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(urllib.request, "_opener", None)  # which keeps the proxies that there were when it was made
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ValueError, match="Could not download the weights DEFAULT of resnet18") as caught:
        TorchvisionBackbone(num_classes=3, arch="resnet18", weights="DEFAULT")
    path = tmp_path / "hub/checkpoints" / Path(weights.url).name
    assert f"put {weights.url} into {path}, or train a network from random weights" in str(caught.value)
