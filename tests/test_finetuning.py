"""Fine-tuning as people do it, from Python and by lines of YAML through `scor-fit`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning as LightningsBackboneFinetuning
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import BackboneFinetuning
from scor_lightning.configuration import CONFIGS
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.losses import SCoRLoss
from scor_lightning.models import MLP, ConvNet
from scor_lightning.optim import CosineLR

DIGITS = (
    "scor-fit --config digits_scor.yaml --trainer.enable_progress_bar false --trainer.limit_val_batches 0 "
    "--trainer.log_every_n_steps 1"
)


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(default_root_dir=folder, accelerator="cpu", **{**quiet, **options})


def network():
    torch.manual_seed(0)
    return ConvNet(num_classes=10, image_size=(8, 8), widths=(4, 8))


class Recorder(Callback):
    """Keeps the learning rates and the weights before every step."""

    def __init__(self):
        self.rates, self.weights = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.weights.append({k: v.clone() for k, v in pl_module.backbone.state_dict().items()})


def test_the_head_is_trained_first_and_then_the_whole_network(tmp_path):
    seen = Recorder()
    fit = trainer(tmp_path, max_epochs=3, limit_train_batches=2, callbacks=[BackboneFinetuning(2), seen])
    model = ImageClassifier(network(), nn.CrossEntropyLoss())
    fit.fit(model, DigitsDataModule())
    body = [name for name in seen.weights[0] if not name.startswith("head.")]
    assert any("running_mean" in name for name in body)
    assert all(seen.weights[0][name].equal(seen.weights[4][name]) for name in body)
    assert not seen.weights[0]["head.weight"].equal(seen.weights[1]["head.weight"])
    assert all(not seen.weights[4][name].equal(seen.weights[5][name]) for name in body)


def test_a_frozen_run_resumes_where_it_stopped(tmp_path):
    def run(folder, path=None, **options):
        every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(folder, limit_train_batches=2, max_epochs=4, callbacks=[BackboneFinetuning(2), every], **options)
        model = ImageClassifier(
            network(), SCoRLoss(), lr_scheduler=CosineLR, lr_interval="step", lr_warmup=3, body_lr_factor=0.1
        )
        fit.fit(model, DigitsDataModule(), ckpt_path=path)
        return model.backbone.state_dict()

    expected = run(tmp_path)
    for step in (2, 3, 4, 6):
        again = run(tmp_path / str(step), tmp_path / f"step={step}.ckpt")
        assert all(value.equal(expected[name]) for name, value in again.items()), step


def test_lightnings_own_callback_freezes_the_head_too_and_is_refused(tmp_path):
    fit = trainer(tmp_path, max_epochs=1, callbacks=[LightningsBackboneFinetuning()])
    with pytest.raises(ValueError, match=r"all are frozen; scor_lightning\.callbacks\.BackboneFinetuning"):
        fit.fit(ImageClassifier(MLP(10, image_size=(8, 8)), nn.CrossEntropyLoss()), DigitsDataModule())


def test_parameters_are_grouped():
    model = ImageClassifier(network(), nn.CrossEntropyLoss(), body_lr_factor=0.1, decay_norms_and_biases=False)
    model.recipe.optimizer = lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5)
    optimizer = model.configure_optimizers()
    groups = {group["name"]: group for group in optimizer.param_groups}
    shapes = {name: sorted(tuple(p.shape) for p in group["params"]) for name, group in groups.items()}
    assert shapes == {
        "body": [(4, 1, 3, 3), (8, 4, 3, 3)],
        "body, not decayed": [(4,), (4,), (8,), (8,)],
        "head": [(10, 8)],
        "head, not decayed": [(10,)],
    }
    assert {name: group["weight_decay"] for name, group in groups.items() if group["weight_decay"]} == {
        "body": 0.5,
        "head": 0.5,
    }
    assert [groups[name]["lr"] for name in ("body", "body, not decayed")] == pytest.approx([0.001, 0.001])
    assert [groups[name]["lr"] for name in ("head", "head, not decayed")] == [0.01, 0.01]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # warm-up of two epochs, then a tenth from epoch 3 on
        (
            "--model.lr_warmup 2 --model.lr_scheduler MultiStepLR --model.lr_scheduler.milestones [3]",
            [0.5, 0.5, 1, 1, 1, 1, 0.1, 0.1],
        ),
        ("--model.lr_scheduler CosineLR", [1, 1, 0.853553, 0.853553, 0.5, 0.5, 0.146447, 0.146447]),
        (
            "--model.lr_scheduler CosineLR --model.lr_interval step --model.lr_warmup 2",
            [0.5, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060],
        ),
        ("--model.lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau --trainer.limit_val_batches 1", [1] * 8),
    ],
)
def test_schedules_by_lines_of_yaml(command, options, expected):
    status, _, error = command(
        f"{DIGITS} {options} --trainer.max_epochs 4 --trainer.limit_train_batches 2 "
        "--trainer.callbacks+ lightning.pytorch.callbacks.LearningRateMonitor --trainer.callbacks.logging_interval step"
    )
    assert status == 0, error
    events = EventAccumulator("runs/digits_scor/version_0", size_guidance={"scalars": 0}).Reload()
    rates = {event.step: event.value / 3e-3 for event in events.Scalars("lr-Adam")}
    assert [rates[step] for step in range(8)] == pytest.approx(expected, abs=1e-5)


def test_fine_tuning_by_lines_of_yaml(command):
    Path("tuning.yaml").write_text(
        """
model:
  backbone: {class_path: scor_lightning.models.ConvNet, init_args: {widths: [4, 8]}}
  body_lr_factor: 0.1
  decay_norms_and_biases: false
  channels_last: true
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01, weight_decay: 0.05}}
trainer:
  callbacks+:
    - class_path: scor_lightning.callbacks.BackboneFinetuning
      init_args: {unfreeze_backbone_at_epoch: 1}
"""
    )
    status, out, error = command(f"{DIGITS} --config tuning.yaml --trainer.max_epochs 2")
    assert status == 0, error
    assert "balanced accuracy" in out
    path = "runs/digits_scor/version_0/checkpoints/last.ckpt"
    groups = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [(g["name"], round(g["lr"], 6), g["weight_decay"]) for g in groups] == [
        ("body", 0.001, 0.05),
        ("body, not decayed", 0.001, 0),
        ("head", 0.01, 0.05),
        ("head, not decayed", 0.01, 0),
    ]
    model = ImageClassifier.load_from_checkpoint(path)
    assert model.backbone.body[1][0].weight.is_contiguous(memory_format=torch.channels_last)


NETWORKS = (CONFIGS.parent / "docs" / "networks.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^\| `(--[^` ]+ [^`]+)`.* \|", NETWORKS, re.MULTILINE))
def test_the_lines_of_the_guide_run(command, line):
    if "resnet50" in line:  # on random weights, of a smaller network, in place of a download
        line = line.replace("resnet50", "squeezenet1_1").replace("DEFAULT", "null") + " --data.resolution 32"
    status, out, error = command(
        f"{DIGITS} {line} --trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_test_batches 1"
    )
    assert status == 0, error
    assert "balanced accuracy" in out


def test_channels_last_changes_the_memory_alone():
    plain = ImageClassifier(network(), nn.CrossEntropyLoss()).eval()
    last = ImageClassifier(network(), nn.CrossEntropyLoss(), channels_last=True).eval()
    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(last(images), plain(images))
    seen = []
    last.backbone.body[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    last(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_compiled_network_trains_and_its_checkpoint_is_a_plain_one(command):
    options = (
        "--model.compile true --trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_test_batches 1"
    )
    status, _, error = command(f"{DIGITS} {options}")
    assert status == 0, error
    status, _, error = command(f"{DIGITS} {options.replace('true', 'false')}")
    assert status == 0, error
    compiled, plain = (
        torch.load(f"runs/digits_scor/version_{i}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for i in range(2)
    )
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(compiled[name], value)


def test_an_evaluation_keeps_outputs_that_the_next_call_overwrites(monkeypatch):
    """Outputs like those of a CUDA graph; here, a compiler returns the same tensor at every call."""
    outputs = {}

    def compile(run):
        def call(images):
            logits, features = run(images)
            kept = outputs.setdefault((logits.shape, torch.is_grad_enabled()), logits)
            return (kept.copy_(logits) if not torch.is_grad_enabled() else logits), features

        return call

    data = DigitsDataModule(batch_size=32)
    model = ImageClassifier(MLP(num_classes=10, image_size=(8, 8)), nn.CrossEntropyLoss())
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    plain = trainer.test(model, data, verbose=False)
    monkeypatch.setattr(torch, "compile", compile)
    compiled = ImageClassifier(model.backbone, nn.CrossEntropyLoss(), compile=True)
    assert trainer.test(compiled, data, verbose=False) == plain
    probabilities = trainer.predict(compiled, data)
    assert not torch.equal(probabilities[0], probabilities[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_interval": "batch"}, "`lr_interval` to be 'epoch' or 'step' but got 'batch'"),
        ({"lr_warmup": -1}, "`lr_warmup` >= 0 but got -1"),
        ({"body_lr_factor": 0.0}, "`body_lr_factor` > 0 but got 0.0"),
        ({"backbone": nn.Linear(3, 2), "num_classes": 2, "body_lr_factor": 0.1}, "with `head` for `body_lr_factor`"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**{"backbone": network(), "loss": nn.CrossEntropyLoss(), **options})


def test_mistakes_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="`unfreeze_backbone_at_epoch` >= 0 but got -1"):
        BackboneFinetuning(-1)
    model = ImageClassifier(nn.Linear(64, 10), nn.CrossEntropyLoss(), num_classes=10)
    with pytest.raises(ValueError, match="`head` to train first but got Linear"):
        trainer(tmp_path, max_epochs=1, callbacks=[BackboneFinetuning(1)]).fit(model, DigitsDataModule())
    model = ImageClassifier(network(), nn.CrossEntropyLoss(), lr_scheduler=CosineLR)
    with pytest.raises(ValueError, match="Expected `max_epochs` of the trainer for a schedule"):
        trainer(tmp_path, max_steps=4).fit(model, DigitsDataModule())
    model = ImageClassifier(
        network(), nn.CrossEntropyLoss(), lr_warmup=2, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau
    )
    with pytest.raises(ValueError, match="but got ReduceLROnPlateau"):
        trainer(tmp_path, max_steps=4).fit(model, DigitsDataModule())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_thaw_like_one(tmp_path):
    options = (
        "fit --config digits_scor.yaml --trainer.max_epochs 2 --trainer.enable_progress_bar false --trainer.accelerator cpu "
        "--trainer.limit_train_batches 6 --model.body_lr_factor 0.5 --trainer.callbacks+ "
        "scor_lightning.callbacks.BackboneFinetuning --trainer.callbacks.unfreeze_backbone_at_epoch 1"
    )
    states = []
    for devices in ("1", "2"):
        folder = tmp_path / devices
        folder.mkdir()
        line = [sys.executable, "-m", "scor_lightning", *options.split(), "--trainer.devices", devices]
        subprocess.run(line, cwd=folder, check=True, timeout=250, stdout=subprocess.DEVNULL)
        path = folder / "runs/digits_scor/version_0/checkpoints/last.ckpt"
        states.append(torch.load(path, weights_only=True)["state_dict"])
    one, two = states
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-4)
