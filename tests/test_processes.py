"""The same experiment with one process and with several that communicate over gloo."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import LastCheckpoint
from scor_lightning.cli.errors import lost_process
from scor_lightning.datamodules import DigitsDataModule, ReduceClasses
from scor_lightning.losses import OPLLoss, SCoRLoss, WeightedCrossEntropyLoss
from tests.callbacks.test_last_checkpoint import Send, differences
from tests.processes import Processes, free_port
from tests.test_classifier import Regularized, network, trainer
from tests.test_cli import DIGITS

LOSSES = {
    "cross_entropy": nn.CrossEntropyLoss,
    "weighted_cross_entropy": WeightedCrossEntropyLoss,
    "scor": lambda: SCoRLoss(alpha=0.01),
    "opl": OPLLoss,
}


def together(folder, devices, **options):
    distributed = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    return trainer(folder, **distributed, **options)


def data():
    return DigitsDataModule(batch_size=64, imbalance=ReduceClasses(0.3, classes=[3]))


def several_steps(folder, devices):
    """Weights and validation of a short training under each loss, in float64."""
    found = {}
    for name, loss in LOSSES.items():
        fit = together(folder, devices, max_steps=8, limit_train_batches=8, enable_checkpointing=False)
        model = ImageClassifier(
            network(), loss(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)
        ).double()
        fit.fit(model, data())
        metrics = {key: value.item() for key, value in fit.callback_metrics.items() if key.startswith("val/")}
        weights = {key: value.tolist() for key, value in model.backbone.state_dict().items()}
        found[name] = weights, metrics
    return found


def test_two_processes_give_the_weights_and_metrics_of_one(tmp_path):
    one = several_steps(tmp_path / "one", 1)
    for found in Processes(2, several_steps, tmp_path / "two", 2).results():
        assert found.keys() == LOSSES.keys()
        for name, (weights, metrics) in found.items():
            for key, value in weights.items():
                expected = torch.tensor(one[name][0][key])
                torch.testing.assert_close(torch.tensor(value), expected, rtol=1e-9, atol=1e-12, msg=f"{name} {key}")
            if name in ("weighted_cross_entropy", "opl"):  # whose value depends on how the set is cut into batches
                metrics["val/loss"] = one[name][1]["val/loss"]
            assert metrics == pytest.approx(one[name][1], rel=1e-6)
            assert metrics["val/accuracy"] == one[name][1]["val/accuracy"] > 0.2  # each sample counted once


class SendFromOne(Send):
    """Send a signal only to the second process."""

    def __init__(self, n):
        super().__init__(signal.SIGTERM, "on_before_backward", n)

    def send(self, run, *arguments):
        if run.global_rank == 1:
            super().send()


def resumable(folder, *callbacks, ckpt_path=None):
    torch.manual_seed(0)
    last = LastCheckpoint()
    last.dirpath = str(folder)
    fit = together(folder, 2, max_epochs=2, callbacks=[*callbacks, last])
    fit.fit(ImageClassifier(Regularized(), SCoRLoss(alpha=0.01)), data(), ckpt_path=ckpt_path)


def stopped_and_resumed(folder, batch):
    resumable(folder / "whole")
    try:
        resumable(folder / "parts", SendFromOne(batch))
    except SystemExit as stop:
        status = stop.code
    steps = torch.load(folder / "parts/last.ckpt", weights_only=True)["global_step"]
    resumable(folder / "parts", ckpt_path=folder / "parts/last.ckpt")
    return status, steps


@pytest.mark.parametrize(("batch", "steps"), [(10, 12), (17, 18)])  # in mid-epoch one step later; at its end at once
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path, batch, steps):
    # Lightning ends the first process when one that it started gives another status than 0.
    assert Processes(2, stopped_and_resumed, tmp_path, batch).results() == [(143, steps), (0, steps)]
    assert differences(tmp_path / "whole/last.ckpt", tmp_path / "parts/last.ckpt") == []


class KillOne(Callback):
    def on_before_backward(self, run, *arguments):
        if run.global_rank == 1 and run.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def lose_one(folder):
    try:
        resumable(folder, KillOne())
    except RuntimeError as error:
        return lost_process(error)


def test_a_process_that_loses_another_reports_it_and_ends(tmp_path):
    began = time.monotonic()
    message, killed = Processes(2, lose_one, tmp_path).results()
    assert killed is None
    assert message.startswith("A process of the training was lost, or could not be reached.")
    assert time.monotonic() - began < 30


def meet(folder):
    try:
        together(folder, 2, max_steps=1).fit(ImageClassifier(network(), nn.CrossEntropyLoss()), data())
    except RuntimeError as error:
        return lost_process(error)


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        (message,) = Processes(1, meet, tmp_path, port=listener.getsockname()[1]).results()
    assert message == (
        "Expected a free port for the processes to meet at but it is in use: choose another one by MASTER_PORT"
    )


def agents(folder, *options):
    """Two machines' worth of `torchrun`, here on one."""
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    train = ["-m", "scor_lightning", *DIGITS.replace("scor-fit", "fit").split()]
    machines = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.accelerator", "cpu"]
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, *launch, "--master-port", port, "--node-rank", str(rank), *train, *machines, *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_machines_train_one_is_lost_and_the_run_resumes(tmp_path):
    last = tmp_path / "runs/digits_scor/version_0/checkpoints/last.ckpt"
    survivor, lost = agents(tmp_path, "--trainer.max_epochs", "100000")
    deadline = time.monotonic() + 100
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    lost.kill()
    lost.wait()
    out, _ = survivor.communicate(timeout=100)
    assert survivor.returncode == 1
    assert "SIGHUP: stopped after step" in out  # its process lives on for a step, and tells the others
    assert "Resume with:  torchrun ... -m scor_lightning fit --config digits_scor.yaml" in out
    before = torch.load(last, weights_only=True)["global_step"]
    options = ["--trainer.max_epochs", "100000", "--trainer.max_time", "00:00:00:02"]
    first, second = agents(tmp_path, *options, "--ckpt_path", "last")
    for process in (first, second):
        out, _ = process.communicate(timeout=100)
        assert process.returncode == 0, out
    assert torch.load(last, weights_only=True)["global_step"] > before
