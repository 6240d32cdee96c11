"""GCL and dot regression against independent calculations, and their heads."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.losses import DotRegressionLoss, GCLLoss, SCoRLoss
from scor_lightning.losses.base import gives_probabilities
from scor_lightning.models import MLP, CosineLinear, ETFHead
from scor_lightning.second_stage import SecondStage

COUNTS = [500, 60, 8]


def expected(logits, target, noise, amplitude, margin, gamma, scale):
    """Compute the loss of each sample from its formula, in float64."""
    logs = np.log(COUNTS)
    clouds = (logs.max() - logs) / (logs.max() - logs.min())
    cosine = logits / scale - amplitude * np.abs(noise) * clouds
    cosine[np.arange(len(target)), target] -= margin
    values = -log_softmax(scale * cosine, axis=1)[np.arange(len(target)), target]
    return values * (1 - np.exp(-values)) ** gamma


@pytest.mark.parametrize(
    "options", [{}, {"margin": 0.1, "gamma": 1.0, "scale": 20.0}, {"amplitude": 0.2, "gamma": 0.5}]
)
def test_gcl_is_its_formula(options):
    logits, target = 9 * torch.randn(64, 3, dtype=torch.float64), torch.randint(3, (64,))
    loss = GCLLoss(**options, class_counts=COUNTS)
    torch.manual_seed(5)
    got = loss.sample_losses(logits, target)
    torch.manual_seed(5)
    noise = (torch.randn(64, 3, dtype=torch.float64) / 3).clamp(-1, 1).numpy()
    values = {"amplitude": 0.5, "margin": 0.0, "gamma": 0.0, "scale": 30.0} | options
    np.testing.assert_allclose(
        got.numpy(), expected(logits.numpy(), target.numpy(), noise, **values), rtol=1e-12, atol=1e-15
    )
    silent = loss.eval().sample_losses(logits, target).numpy()
    np.testing.assert_allclose(
        silent, expected(logits.numpy(), target.numpy(), 0 * noise, **values), rtol=1e-12, atol=1e-15
    )


def test_without_imbalance_there_is_no_noise():
    logits, target = torch.randn(8, 3), torch.randint(3, (8,))
    loss = GCLLoss(class_counts=[7, 7, 7])
    torch.testing.assert_close(loss(logits, target), nn.functional.cross_entropy(logits, target))


def test_the_second_stage_of_gcl_has_the_scale_of_its_head():
    stage = SecondStage(max_epochs=1, head="kept", head_scale=20.0, loss=GCLLoss(margin=0.1, gamma=1.0))
    model = ImageClassifier(MLP(3, head=CosineLinear), GCLLoss(), second_stage=stage, class_counts=COUNTS)
    assert model.loss._head_scale == 30
    model.begin_second_stage(5)
    assert (model.loss.margin, model.loss._head_scale, model.backbone.head.scale) == (0.1, 20, 20)


@pytest.mark.parametrize("options", [{"amplitude": -1.0}, {"margin": math.nan}, {"gamma": -0.1}, {"scale": 0.0}])
def test_wrong_arguments_of_gcl_are_refused(options):
    with pytest.raises(ValueError, match=f"Expected `{next(iter(options))}` >=? 0"):
        GCLLoss(**options)


def test_the_directions_are_a_simplex_and_stay():
    head = ETFHead(12, 5)
    gram = head.directions @ head.directions.T
    torch.testing.assert_close(gram, torch.where(torch.eye(5) > 0, 1.0, -0.25), atol=1e-6, rtol=0)
    assert {name for name, _ in head.named_parameters()} == {"norm.weight", "norm.bias"}
    features = torch.randn(40, 12)
    cosines = head(features)
    normed = nn.functional.batch_norm(features, None, None, training=True)
    torch.testing.assert_close(cosines, nn.functional.normalize(normed) @ head.directions.T, atol=1e-5, rtol=1e-4)
    assert (head(torch.zeros(3, 12)) == 0).all()


def test_dot_regression_is_its_formula():
    head = ETFHead(12, 5).double()
    features, target = torch.randn(40, 12, dtype=torch.float64), torch.randint(5, (40,))
    own = head.directions[target]
    h = nn.functional.normalize(head.norm(features))
    lengths = own.norm(dim=1)
    formula = ((own * h).sum(1) - lengths * h.norm(dim=1)).square() / h.norm(dim=1) / 2
    torch.testing.assert_close(DotRegressionLoss()(head(features), target), formula.mean(), rtol=1e-6, atol=1e-9)


def test_losses_refuse_other_heads_and_too_few_features():
    with pytest.raises(ValueError, match=r"head scor_lightning\.models\.ETFHead .*loss/etf\.yaml"):
        ImageClassifier(MLP(3), DotRegressionLoss())
    with pytest.raises(ValueError, match=r"head scor_lightning\.models\.CosineLinear for GCLLoss .*loss/gcl\.yaml"):
        ImageClassifier(MLP(3), GCLLoss())
    with pytest.raises(ValueError, match="as many features as the 20 classes for ETFHead but got 10"):
        MLP(20, hidden=[10], head=ETFHead)


def test_probabilities_are_distinguished_from_scores():
    assert not gives_probabilities(DotRegressionLoss())
    assert not gives_probabilities(SCoRLoss(DotRegressionLoss()))
    assert gives_probabilities(SCoRLoss(GCLLoss()))
    assert gives_probabilities(nn.MSELoss())


def test_scores_that_are_no_probabilities_are_shown_as_a_dash(command):
    line = "scor-fit --config digits_scor.yaml --config loss/etf.yaml --trainer.max_epochs 2"
    status, out, error = command(line)
    assert status == 0, error
    assert "calibration error  -\n" in out
    assert "cross entropy      -\n" in out
    run = Path("runs/digits_etf/version_0")
    metrics = json.loads((run / "test/metrics.json").read_text())["metrics"]
    assert not {"test/cross_entropy", "test/brier", "test/calibration_error"} & metrics.keys()
    assert {"test/aurc", "test/accuracy"} <= metrics.keys()
    status, out, error = command(f"scor-predict --ckpt_path {run}/checkpoints/best.ckpt")
    assert status == 0, error
    rows = next(run.rglob("*predictions.csv")).read_text().splitlines()
    assert rows[1].split(",")[3] == ""
    for extra, message in (
        ("--checkpoint.monitor val/cross_entropy", "val/cross_entropy"),
        ("--config method/temperature.yaml", "trains probabilities"),
    ):
        status, _, error = command(f"{line} {extra}")
        assert status != 0
        assert message in error
