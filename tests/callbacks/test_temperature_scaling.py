"""Temperature scaling, against scipy on the logits, in prediction, ONNX and comparisons."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy.optimize import minimize_scalar

from scor_lightning import ImageClassifier, stages
from scor_lightning.callbacks import TemperatureScaling
from scor_lightning.datamodules import DigitsDataModule, LongTail
from scor_lightning.losses import LogitAdjustmentLoss
from scor_lightning.models import MLP

TAIL = "--data.imbalance LongTail --data.imbalance.ratio 50 --trainer.enable_progress_bar false --trainer.max_epochs 4"


@pytest.mark.parametrize("evaluation", ["official", "holdout"])
def test_the_temperature_minimises_the_weighted_loss_on_the_validation_set(evaluation):
    torch.manual_seed(0)
    data = DigitsDataModule(imbalance=LongTail(10), val_fraction=0.3, evaluation=evaluation)
    loss = LogitAdjustmentLoss(post_hoc=True)
    model = ImageClassifier(MLP(10, in_channels=1, image_size=(8, 8), hidden=[16]), loss)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=8, callbacks=[TemperatureScaling()], **options)
    stages.fit(trainer, model, data)
    images, index = data.split("val")
    pixels, target = images[index]
    model.eval()
    logits = model(pixels).detach().double().numpy()
    sizes = [np.bincount(data.split(name)[0].targets[data.split(name)[1]], minlength=10) for name in ("val", "test")]
    weight = (sizes[1] / sizes[0])[target]

    def risk(log_temperature):
        z = logits / np.exp(log_temperature)
        log_p = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
        return -(weight * log_p[np.arange(len(target)), target]).sum()

    best = np.exp(minimize_scalar(risk, bounds=(-3, 3), method="bounded", options={"xatol": 1e-6}).x)
    assert stages.finish(trainer, model, data) == {"temperature": pytest.approx(best, rel=1e-3)}
    np.testing.assert_allclose(model(pixels).detach().numpy(), logits / best, rtol=2e-3, atol=1e-4)
    assert stages.finish(trainer, model, data) == {
        "temperature": pytest.approx(best, rel=1e-3)
    }  # not of the scaled logits


def test_a_validation_set_is_required_before_training(command):
    line = f"scor-fit --config digits_scor.yaml --config method/temperature.yaml {TAIL} --data.val_fraction 0"
    status, _, error = command(line)
    assert status != 0
    assert "Expected a validation set to fit a temperature on" in error
    assert not list(Path().rglob("*.ckpt"))


def test_the_command_keeps_it_for_prediction_and_onnx(command):
    line = (
        f"scor-fit --config digits_scor.yaml --config loss/cross_entropy.yaml --config method/temperature.yaml {TAIL}"
    )
    status, out, error = command(line)
    assert status == 0, error
    (final,) = Path("runs").glob("*/version_0/checkpoints/final.ckpt")
    model = ImageClassifier.load_from_checkpoint(final).eval()
    temperature = model.fitted["temperature"]
    assert f"temperature        {temperature:g}" in out
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    plain = ImageClassifier.load_from_checkpoint(final.with_name("best.ckpt")).eval()
    torch.testing.assert_close(model(images), plain(images) / temperature)
    model.to_onnx("a.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession("a.onnx")
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(probabilities, model(images).softmax(1).detach().numpy(), atol=1e-5)


def test_comparisons_measure_the_scaled_probabilities(command):
    methods = "ce=loss/cross_entropy.yaml t=loss/cross_entropy.yaml+method/temperature.yaml"
    line = "scor-compare --config digits_scor.yaml --trainer.max_epochs 4 --repeats 2 --processes 1 --engine sequential"
    status, _, error = command(f"{line} --output out --methods {methods}")
    assert status == 0, error
    with open("out/results.csv") as file:
        rows = {(row["repeat"], row["method"]): row for row in csv.DictReader(file)}
    for repeat in "01":
        assert rows[repeat, "t"]["accuracy"] == rows[repeat, "ce"]["accuracy"]
        assert float(rows[repeat, "t"]["temperature"]) != 1
        assert float(rows[repeat, "t"]["cross_entropy"]) < float(rows[repeat, "ce"]["cross_entropy"])
