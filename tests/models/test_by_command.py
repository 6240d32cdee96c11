"""Every network from one line of YAML, with the requirements of losses and callbacks."""

from pathlib import Path

import pytest
import torch

from scor_lightning import ImageClassifier

QUICK = (
    "--trainer.enable_progress_bar false --trainer.max_epochs 1 --trainer.limit_train_batches 2 "
    "--trainer.limit_val_batches 1 --trainer.limit_test_batches 1 --data.batch_size 8"
)


@pytest.mark.parametrize("loss", ["opl", "ldam"])
@pytest.mark.parametrize(
    "backbone",
    [
        "CifarResNet --model.backbone.depth 8",
        "PaperResNet",
        "TorchvisionBackbone --model.backbone.arch mobilenet_v3_small",
        "TimmBackbone --model.backbone.arch test_resnet",
        pytest.param("ConvNeXtClassifier", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_a_network_by_a_line(command, backbone, loss):
    name = backbone.split()[0]
    side = 8 if name == "PaperResNet" else 32
    line = f"scor-fit --config digits_scor.yaml --model.backbone {backbone} --config loss/{loss}.yaml {QUICK} --data.resolution {side}"
    status, out, error = command(line)
    assert status == 0, error
    assert "balanced accuracy" in out
    model = ImageClassifier.load_from_checkpoint(f"runs/digits_{loss}/version_0/checkpoints/last.ckpt")
    assert type(model.backbone).__name__ == name
    head = "CosineLinear" if loss == "ldam" else "MLPHead" if name == "ConvNeXtClassifier" else "Linear"
    assert type(model.backbone.head).__name__ == head
    assert model.eval()(torch.zeros(1, 1, side, side, dtype=torch.uint8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("TorchvisionBackbone --model.backbone.arch resnet5", "say resnet50, "),
        (
            "TorchvisionBackbone --data.resolution 32 --model.backbone.weights V9",
            "IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT or a file but there is no 'V9'",
        ),
        (
            "TorchvisionBackbone --model.backbone.arch vgg11",
            "Expected images of a size that vgg11 takes, such as by `--data.resolution`, but got (8, 8)",
        ),
        ("TimmBackbone --model.backbone.arch resnet5", "say resnet50"),
        ("CifarResNet --model.backbone.depth 33", "Expected `depth` to be 6 n + 2"),
    ],
)
def test_mistakes_get_a_line(command, options, message):
    status, _, error = command(f"scor-fit --config digits_scor.yaml --model.backbone {options}")
    assert status != 0
    assert "Traceback" not in error
    assert message in error
    assert len(error[error.index("error: ") :].splitlines()) == 1
    assert not Path("runs").exists()
