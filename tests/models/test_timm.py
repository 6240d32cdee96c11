import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from scor_lightning.models import TimmBackbone


@pytest.mark.parametrize(
    ("arch", "channels", "size"),
    [
        ("test_resnet", 1, (32, 48)),
        ("test_vit", 3, (64, 64)),
        ("test_efficientnet", 4, (40, 40)),
        ("test_mambaout", 3, (160, 160)),
    ],
)
def test_networks_of_timm(arch, channels, size):
    model = TimmBackbone(num_classes=3, in_channels=channels, image_size=size, arch=arch)
    images = torch.rand(2, channels, *size)
    assert model.forward_features(images).shape == (2, model.num_features)
    assert model(images).shape == (2, 3)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_weights(tmp_path, suffix):
    theirs = timm.create_model("test_resnet", num_classes=9).eval()
    path = str(tmp_path / f"weights.{suffix}")
    save = save_file if suffix == "safetensors" else torch.save
    save(theirs.state_dict(), path)
    ours = TimmBackbone(num_classes=3, image_size=(64, 64), arch="test_resnet", weights=path).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert ours.forward_features(images).equal(expected)
    with pytest.raises(ValueError, match=r"Expected the weights of test_vit in .* but got \d+ missing: .*unknown"):
        TimmBackbone(num_classes=3, image_size=(64, 64), arch="test_vit", weights=path)


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"a network of timm, say .*resnet50.* but got 'resnet5'"):
        TimmBackbone(num_classes=3, arch="resnet5")
    with pytest.raises(
        ValueError, match=r"`weights` of resnet18 to be DEFAULT, a1_in1k, .* or a file but there is no 'V9'"
    ):
        TimmBackbone(num_classes=3, arch="resnet18", weights="V9")
    with pytest.raises(
        ValueError, match=r"a size that test_resnet takes, such as by `--data.resolution`, but got \(8, 32\)"
    ):
        TimmBackbone(num_classes=3, arch="test_resnet", image_size=(8, 32))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'scor-lightning\[timm\]'"):
        TimmBackbone(num_classes=3)


def test_without_a_connection_the_message_names_the_missing_file(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # its own switch, read once at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"huggingface.co/timm/resnet18.a2_in1k/resolve/main/model.safetensors anywhere"
    ):
        TimmBackbone(num_classes=3, arch="resnet18", weights="a2_in1k")
