"""Runs that are stopped, damaged, sped up and refused, through the command line."""

import multiprocessing
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.configuration import CONFIGS, shipped_configs
from tests.callbacks.test_last_checkpoint import Send, differences, wait_for
from tests.data.photographs import write_folders
from tests.test_cli import DIGITS, refused

RUN = Path("runs/digits_scor/version_0")
CHECKPOINTS = RUN / "checkpoints"
SEND = "--trainer.callbacks+ tests.callbacks.test_last_checkpoint.Send --trainer.callbacks.hook on_before_backward"


def weights(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def go_on(out):
    return re.search(r"^Resume with:  (scor-fit .*)$", out, re.MULTILINE)[1]


def test_the_printed_command_resumes_until_the_run_is_complete(command, tmp_path, monkeypatch, caplog):
    line = f"{DIGITS} {SEND} --trainer.callbacks.number {signal.SIGUSR1.value} --trainer.callbacks.n 13"
    status, out, error = command(line)
    assert status == 138
    assert "SIGUSR1: stopping after this step" in error
    assert "SIGUSR1: stopped after step 14, in epoch 0; saved in " in caplog.text
    assert torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)["global_step"] == 14
    assert go_on(out) == f"{line} --ckpt_path last"
    status, out, _ = command(go_on(out))
    assert status == 138
    assert go_on(out) == f"{line} --ckpt_path last"
    status, out, _ = command(go_on(out))
    assert status == 0
    assert "balanced accuracy" in out
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    command(DIGITS)
    for name in ("best", "last"):
        assert differences(CHECKPOINTS / f"{name}.ckpt", tmp_path / CHECKPOINTS / f"{name}.ckpt") == []


EVERYTHING = """
trainer:
  max_epochs: 3
  val_check_interval: 0.5
  enable_progress_bar: false
  callbacks:
    - {class_path: EMAWeightAveraging, init_args: {decay: 0.9}}
model:
  backbone: {class_path: tests.test_scale.Convolutions}
  loss: {class_path: SCoRLoss, init_args: {alpha: 1.0e-3}}
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}
  lr_scheduler: scor_lightning.optim.CosineLR
  lr_interval: step
  lr_warmup: 6
data:
  class_path: ImageFolderDataModule
  init_args:
    root: %s
    resolution: 16
    batch_size: 8
    num_workers: 2
    train_transforms:
      - {class_path: torchvision.transforms.v2.RandomResizedCrop, init_args: {size: [16, 16]}}
      - {class_path: torchvision.transforms.v2.ColorJitter, init_args: {brightness: 0.4}}
"""


class Convolutions(nn.Sequential):
    """A small network with batch norm and dropout."""

    def __init__(self, num_classes: int, in_channels: int = 3, image_size: tuple[int, int] = (16, 16)):
        layers = nn.Conv2d(in_channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        super().__init__(*layers, nn.Dropout(0.3), nn.Linear(32, num_classes))
        self.num_classes = num_classes


def in_a_child(command, line):
    """Start a command in a new process group, forked so that nothing is imported again."""

    def work():
        os.setpgrp()
        torch.set_num_threads(1)
        os._exit(command(line)[0])

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A configuration with all that is random or changes on the way, in every place where it can."""
    folder = tmp_path_factory.mktemp("everything")
    write_folders(folder / "images", {"a": 60, "b": 40, "c": 30})
    (folder / "everything.yaml").write_text(EVERYTHING % (folder / "images"))
    return f"scor-fit --config {folder / 'everything.yaml'}"


@pytest.fixture(scope="module")
def undisturbed():
    return {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.exhaustive
def test_a_run_stopped_from_outside_at_random_ends_with_the_same_bits(
    command, everything, undisturbed, number, monkeypatch, tmp_path, draw
):
    checkpoints = Path("runs/everything/version_0/checkpoints")
    if not undisturbed:
        assert command(everything)[0] == 0
        undisturbed["folder"] = checkpoints.absolute()
        (tmp_path / "stopped").mkdir()
        monkeypatch.chdir(tmp_path / "stopped")
    slow = "--trainer.callbacks+ tests.callbacks.test_last_checkpoint.Slow --trainer.callbacks.seconds 0.06"
    child = in_a_child(command, f"{everything} {slow} --last_checkpoint.minutes 0")
    step = draw.randrange(1, 30)
    last = checkpoints / "last.ckpt"
    wait_for(lambda: last.exists() and torch.load(last, weights_only=True)["global_step"] >= step)
    os.killpg(child.pid, number)  # the workers too, as a terminal and a cluster do
    child.join(30)
    assert child.exitcode == (-9 if number == signal.SIGKILL else 128 + number)
    steps = torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"]
    assert 1 <= steps < 36
    status, _, error = command(f"{everything} {slow} --ckpt_path last")
    assert status == 0, error
    for name in ("last", "best"):
        assert differences(undisturbed["folder"] / f"{name}.ckpt", checkpoints / f"{name}.ckpt") == [], steps


def test_sigterm_during_the_test_is_no_success(command, monkeypatch):
    send = f"{SEND.replace('on_before_backward', 'on_test_batch_end')} --trainer.callbacks.number 15"
    status, out, _ = command(f"{DIGITS} {send} --trainer.callbacks.n 0")
    assert status == 143
    assert "Stopped." in out
    assert "accuracy" not in out
    monkeypatch.setattr(Send, "send", lambda *_: None)
    status, out, _ = command(f"{DIGITS} {send} --trainer.callbacks.n 0 --ckpt_path last")
    assert status == 0
    assert "balanced accuracy" in out


def test_slurms_signal_during_the_test_leaves_nothing_that_later_runs_would_load(command, monkeypatch):
    job = {"JOB_ID": "41234", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    send = SEND.replace("on_before_backward", "on_test_batch_end")
    child = in_a_child(
        command, f"{DIGITS} {send} --trainer.callbacks.number {signal.SIGUSR1.value} --trainer.callbacks.n 0"
    )
    child.join(30)
    assert child.exitcode == -signal.SIGUSR1  # 138 to the shell
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_a_damaged_checkpoint_is_recognised_and_the_one_before_it_used(command, caplog):
    command(f"{DIGITS} --trainer.max_epochs 3")
    last = CHECKPOINTS / "last.ckpt"
    whole = weights(last)
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="last.ckpt' is missing or damaged"):
        status, _, _ = command(f"{DIGITS} --trainer.max_epochs 3 --ckpt_path last")
    assert status == 0
    assert "last.previous.ckpt" in caplog.text
    assert all(value.equal(whole[name]) for name, value in weights(last).items())
    for path in CHECKPOINTS.glob("last*"):
        path.write_bytes(path.read_bytes()[:-1000])
    status, _, error = command(f"{DIGITS} --trainer.max_epochs 3 --ckpt_path last")
    assert status == 1
    assert "Expected a whole checkpoint to resume from in" in error
    status, _, error = command(f"scor-test --ckpt_path {last}")
    assert status == 1
    assert "--ckpt_path: expected a whole checkpoint" in error


def on_a_full_disk(command, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # less than a checkpoint, more than the events
    queue.put(command(f"{DIGITS} --trainer.max_epochs 4 --ckpt_path last"))


def test_a_full_disk_ends_a_run_clearly_and_leaves_the_last_good_checkpoint(command):
    command(DIGITS)
    before = (CHECKPOINTS / "last.ckpt").read_bytes()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=on_a_full_disk, args=(command, queue))
    child.start()
    status, _, error = queue.get()
    child.join()
    assert status == 1
    assert re.search(r"error: Expected to write the checkpoint '.*/best.ckpt' but got: .*File too large", error)
    assert "Traceback" not in error
    assert (CHECKPOINTS / "last.ckpt").read_bytes() == before


class Program:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_checkpoint_that_holds_a_program_is_refused(command):
    command(DIGITS)
    content = torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)
    torch.save({**content, "harmless": Program()}, "program.ckpt")
    for line in (f"{DIGITS} --ckpt_path program.ckpt", "scor-test --config digits_scor.yaml --ckpt_path program.ckpt"):
        status, _, error = command(line)
        assert status == 1
        assert "holds more than data" in error
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("option", "dtype"),
    [
        ("--trainer.precision bf16-mixed", torch.float32),
        ("--trainer.precision 16-mixed", torch.float32),  # on the CPU Lightning takes bfloat16 in its place
        ("--trainer.precision bf16-true", torch.bfloat16),
        ("--trainer.gradient_clip_val 1", torch.float32),
        ("--trainer.deterministic true", torch.float32),
        ("--trainer.sync_batchnorm true", torch.float32),
    ],
)
def test_each_takes_one_option(command, option, dtype):
    status, out, error = command(f"{DIGITS} --trainer.max_epochs 4 {option}")
    assert status == 0, error
    assert float(re.search(r"^accuracy +(\d\.\d+)", out, re.MULTILINE)[1]) > 0.7
    assert weights(CHECKPOINTS / "last.ckpt")["backbone.head.weight"].dtype == dtype


def test_accumulated_gradients_are_warned_of_where_the_loss_pairs_samples(command, recwarn):
    for loss, warned in (("scor", True), ("opl", True), ("focal", False)):
        recwarn.clear()
        status, _, _ = command(f"{DIGITS} --config loss/{loss}.yaml --trainer.accumulate_grad_batches 3")
        assert status == 0
        messages = [str(warning.message) for warning in recwarn if "compares the samples" in str(warning.message)]
        assert len(messages) == warned
    last = torch.load("runs/digits_focal/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * 6


def test_the_profiler_writes_its_report(command, caplog):
    status, _, _ = command(f"{DIGITS} --trainer.max_epochs 1 --trainer.profiler simple")
    assert status == 0
    assert "run_training_batch" in caplog.text


def test_averaged_weights_are_what_is_tested(command):
    average = "--trainer.callbacks+ EMAWeightAveraging --trainer.callbacks.decay 0.9"
    _, out, _ = command(f"{DIGITS} --trainer.max_epochs 4 {average}")
    accuracy = re.search(r"^accuracy .*", out, re.MULTILINE)[0]
    _, again, _ = command(f"scor-test --ckpt_path {CHECKPOINTS / 'best.ckpt'}")
    assert accuracy in again
    kept = torch.load(CHECKPOINTS / "best.ckpt", weights_only=True)
    assert not kept["state_dict"]["backbone.head.weight"].equal(kept["current_model_state"]["backbone.head.weight"])
    model = ImageClassifier.load_from_checkpoint(CHECKPOINTS / "best.ckpt")
    assert model.backbone.head.weight.equal(kept["state_dict"]["backbone.head.weight"])
    assert model.loss.class_counts.sum() > 0


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "FSDPStrategy", "deepspeed_stage_3"])
def test_strategies_that_cut_the_network_up_are_refused(command, strategy):
    message = refused(command(f"{DIGITS} --trainer.strategy {strategy}"))
    assert "Expected a strategy that leaves every process the whole network, such as `ddp`, but got" in message


def test_a_batch_that_does_not_divide_by_the_processes_is_refused_before_they_start(command):
    cpus = "--trainer.accelerator cpu --trainer.devices"
    assert "a multiple of their number 3 but got 64" in refused(command(f"{DIGITS} {cpus} 3"))
    assert "a multiple of their number 4 but got 6" in refused(command(f"{DIGITS} {cpus} 4 --data.batch_size 6"))


def has(config, name):
    for key in name.split("."):
        config = config.get("init_args", config)
        if key not in config:
            return False
        config = config[key]
    return True


def test_every_option_of_the_reference_has_its_counterpart(command):
    page = (CONFIGS.parent / "docs" / "from_imagenet.md").read_text()
    table = page[page.index("| imagenet.py | here |") :].split("\n\n")[0]
    counterparts = " ".join(row.split("|")[2] for row in table.splitlines()[2:])
    options = set(re.findall(r"--([a-z]\w+(?:\.\w+)+|seed_everything|ckpt_path)", counterparts))
    assert len(options) == 20
    given = (
        "--model.backbone.weights DEFAULT --model.backbone.keep_head true --trainer.devices [1] --data.fake true "
        "--trainer.strategy DDPStrategy --trainer.strategy.process_group_backend gloo --trainer.strategy.timeout 00:05:00"
    )
    status, out, error = command(f"scor-fit --config imagenet_scor.yaml {given} --print_config")
    assert status == 0, error
    config = yaml.safe_load(out)
    assert [name for name in options if not has(config, name)] == []
    assert config["trainer"]["devices"] == [1]
    overlays = re.findall(r"(\w+)(?:\.yaml)?`", table[table.index("| `--loss ce`") :].split("|")[2])
    assert {f"loss/{name}.yaml" for name in overlays} < set(shipped_configs())
    assert len(overlays) == 6


def test_the_paths_of_one_run_are_where_the_guide_says(command):
    _, out, _ = command(f"{DIGITS} --trainer.default_root_dir elsewhere --last_checkpoint.minutes 5")
    assert "Run folder: elsewhere/runs/digits_scor/version_0" in out
    kept = Path("elsewhere") / CHECKPOINTS
    assert {path.name for path in kept.iterdir()} == {"best.ckpt", "last.ckpt", "last.previous.ckpt"}
