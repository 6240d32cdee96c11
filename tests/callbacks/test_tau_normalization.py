"""Tau-normalization, against scikit-learn and numpy, by the command and in comparisons."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from scor_lightning import ImageClassifier, stages
from scor_lightning.callbacks import TauNormalization
from scor_lightning.datamodules import DigitsDataModule, LongTail
from scor_lightning.models import MLP, CosineLinear

FIT = "scor-fit --config digits_scor.yaml --config loss/cross_entropy.yaml --config method/tau_norm.yaml"
TAIL = "--data.imbalance LongTail --data.imbalance.ratio 50 --trainer.enable_progress_bar false --trainer.max_epochs 4"


def trained(callback, val_fraction=0.3, epochs=4):
    torch.manual_seed(0)
    data = DigitsDataModule(imbalance=LongTail(50), val_fraction=val_fraction)
    model = ImageClassifier(MLP(10, in_channels=1, image_size=(8, 8), hidden=[16]), nn.CrossEntropyLoss())
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=epochs, callbacks=[callback], **options)
    stages.fit(trainer, model, data)
    return trainer, model, data


@pytest.mark.parametrize("bias", [True, False])
def test_tau_is_the_one_with_the_best_balanced_accuracy_on_the_validation_set(bias):
    trainer, model, data = trained(TauNormalization(bias=bias))
    weight = model.backbone.head.weight.detach().numpy().astype(np.float64)
    offset = model.backbone.head.bias.detach().numpy() * bias
    images, index = data.split("val")
    pixels, target = images[index]
    features = model.backbone.forward_features(model.normalize(pixels)).detach().numpy()
    scores = []
    for tau in np.arange(21) / 10:
        logits = features @ (weight / np.linalg.norm(weight, axis=1, keepdims=True) ** tau).T + offset
        scores.append(balanced_accuracy_score(target, logits.argmax(1)))
    best = int(np.argmax(scores)) / 10
    assert stages.finish(trainer, model, data) == {"tau": pytest.approx(best)}
    assert model.fitted == {"tau": pytest.approx(best)}
    expected = weight / np.linalg.norm(weight, axis=1, keepdims=True) ** best
    np.testing.assert_allclose(model.backbone.head.weight.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(model.backbone.head.bias.detach().numpy(), offset)
    assert max(scores) > scores[0]  # it helps here


def test_without_a_validation_set_all_norms_become_equal():
    trainer, model, data = trained(TauNormalization(), val_fraction=0.0)
    assert stages.finish(trainer, model, data) == {"tau": 1.0}
    torch.testing.assert_close(model.backbone.head.weight.norm(dim=1), torch.ones(10))


def test_a_given_tau_is_used():
    trainer, model, data = trained(TauNormalization(tau=0.0), epochs=1)
    before = model.backbone.head.weight.clone()
    assert stages.finish(trainer, model, data) == {"tau": 0.0}
    assert torch.equal(model.backbone.head.weight, before)
    with pytest.raises(ValueError, match="`tau` >= 0 but got -1"):
        TauNormalization(tau=-1)


def test_a_head_that_is_not_linear_is_refused_before_training():
    model = ImageClassifier(MLP(10, in_channels=1, image_size=(8, 8), head=CosineLinear), nn.CrossEntropyLoss())
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[TauNormalization()])
    with pytest.raises(ValueError, match="a linear `head` for TauNormalization but got CosineLinear"):
        trainer.fit(model, DigitsDataModule())


@pytest.mark.parametrize("more", ["", "--config method/scor.yaml", "--config method/mixup.yaml"])
def test_the_command_tests_and_keeps_the_normalized_classifier(command, more):
    status, out, error = command(f"{FIT} {more} {TAIL}")
    assert status == 0, error
    tau = float(re.search(r"^tau +([\d.]+)$", out, re.MULTILINE)[1])
    (run,) = Path("runs").glob("*/version_0")
    final = run / "checkpoints" / "final.ckpt"
    model = ImageClassifier.load_from_checkpoint(final)
    assert model.fitted == {"tau": pytest.approx(tau)}
    best = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt").backbone.head.weight
    torch.testing.assert_close(model.backbone.head.weight, best / best.norm(dim=1, keepdim=True) ** tau)
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert Path(metrics["checkpoint"]).name == "final.ckpt"
    status, again, error = command(f"scor-test --ckpt_path {final}")
    assert status == 0, error
    assert f"{metrics['metrics']['test/balanced_accuracy']:.4f}" in again
    status, out, error = command(f"{FIT} {more} {TAIL} --ckpt_path last")
    assert status == 0, error
    assert float(re.search(r"^tau +([\d.]+)$", out, re.MULTILINE)[1]) == tau  # not normalized twice


def test_comparisons_measure_the_normalized_network(command):
    line = "scor-compare --config digits_scor.yaml --data.imbalance LongTail --data.imbalance.ratio 50 --repeats 2"
    methods = "ce=loss/cross_entropy.yaml tau=loss/cross_entropy.yaml+method/tau_norm.yaml"
    status, _, error = command(f"{line} --trainer.max_epochs 3 --processes 1 --output out --methods {methods}")
    assert status == 0, error
    with open("out/results.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"]: bool(row["tau"]) for row in rows} == {"ce": False, "tau": True}
    pairs = {(row["repeat"], row["method"]): float(row["val_balanced_accuracy"]) for row in rows}
    assert all(pairs[repeat, "tau"] >= pairs[repeat, "ce"] - 1e-3 for repeat in "01")  # on which it was selected
