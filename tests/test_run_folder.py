"""The run folder: the same with every logger, from the command line and from Python; created late, and locked."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import ClassReport, WeightSpectrum
from scor_lightning.callbacks.run_folder import RunFolder
from scor_lightning.configuration import shipped_configs
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.loggers import RunLogger
from scor_lightning.models import MLP

DIGITS = "scor-fit --config digits_scor.yaml --trainer.max_epochs 1 --trainer.enable_progress_bar false"
LAYOUT = {".lock", "config.yaml", "loggers.json", "metrics.csv", "checkpoints", "spectra", "test"}
LOGGERS = sorted(name for name in shipped_configs() if name.startswith("logger/"))


def steps(file: Path, column: str) -> list[int]:
    with file.open(newline="") as lines:
        return [int(row["step"]) for row in csv.DictReader(lines) if row[column]]


def run(line: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scor_lightning", *line.removeprefix("scor-").split()],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "logger",
    [
        "logger/tensorboard.yaml",
        *(pytest.param(f"logger/{name}.yaml", marks=pytest.mark.exhaustive) for name in ("csv", "none")),
    ],
)
def test_two_runs_and_a_resumed_one_with_each_logger(command, logger):
    for _ in range(2):
        status, out, error = command(f"{DIGITS} --config {logger}")
        assert status == 0, error
    assert "Run folder: runs/digits_scor/version_1" in out
    status, _, error = command(f"{DIGITS.replace('max_epochs 1', 'max_epochs 2')} --config {logger} --ckpt_path last")
    assert status == 0, error
    assert sorted(os.listdir("runs")) == ["digits_scor"]
    assert sorted(os.listdir("runs/digits_scor")) == ["version_0", "version_1"]
    for version in ("version_0", "version_1"):
        found = set(os.listdir(f"runs/digits_scor/{version}"))
        assert {name for name in found if not name.startswith(("events.", "hparams"))} == LAYOUT
        assert any(name.startswith("events.") for name in found) == (logger == "logger/tensorboard.yaml")
    metrics = Path("runs/digits_scor/version_1/metrics.csv")
    assert steps(metrics, "val/accuracy") == [16, 33]
    assert steps(metrics, "spectrum/head/rank") == [17, 34]
    assert len(steps(metrics, "test/accuracy")) == 2


def test_several_loggers_at_once(command):
    status, _, error = command(f"{DIGITS} --config logger/csv.yaml --config logger/tensorboard.yaml")
    assert status == 0, error
    assert any(name.startswith("events.") for name in os.listdir("runs/digits_scor/version_0"))
    loggers = [{"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs"}}]
    loggers += [{"class_path": "CSVLogger", "init_args": {"save_dir": "elsewhere"}}]
    Path("both.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    status, _, error = command(f"{DIGITS} --config both.yaml")
    assert status == 0, error
    assert "test/accuracy" in Path("elsewhere/digits_scor/version_1/metrics.csv").read_text()
    status, _, error = command(f"{DIGITS} --trainer.max_epochs 2 --config both.yaml --ckpt_path last")
    assert status == 0, error
    assert sorted(os.listdir("runs/digits_scor")) == ["version_0", "version_1"]


def test_the_name_of_a_logger_of_files_is_that_of_the_experiment(command):
    command(f"{DIGITS} --trainer.logger TensorBoardLogger --trainer.logger.save_dir runs --trainer.logger.name mine")
    assert any(name.startswith("events.") for name in os.listdir("runs/mine/version_0"))
    status, _, error = command("scor-fit --config runs/mine/version_0/config.yaml --trainer.limit_train_batches 2")
    assert status == 0, error
    assert sorted(os.listdir("runs/mine")) == ["version_0", "version_1"]


def test_loggers_are_known_again_in_another_order_and_after_one_was_left_out(tmp_path):
    def opened(*names, identities):
        made = {
            name: lambda folder, known, name=name: identities.append((name, known)) or Named(name) for name in names
        }
        run = RunFolder(tmp_path / "runs/a", "", made, resumed=next((tmp_path / "runs/a").glob("*"), None))
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        run.setup(trainer, None, "fit")
        run.release()

    class Named(DummyLogger):
        def __init__(self, name):
            super().__init__()
            self.identity = f"id of {name}"

    first, second, third = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scor_lightning.callbacks.run_folder._identity", lambda logger: logger.identity)
        opened("Wandb", "MLFlow", identities=first)
        opened("MLFlow", identities=second)
        opened("MLFlow", "Wandb", identities=third)
    assert first == [("Wandb", None), ("MLFlow", None)]
    assert second == [("MLFlow", "id of MLFlow")]
    assert sorted(third) == [("MLFlow", "id of MLFlow"), ("Wandb", "id of Wandb")]


@pytest.mark.parametrize(
    "damage", ["epoch,step\n1", *(pytest.param(text, marks=pytest.mark.exhaustive) for text in ("", "5,1,2\n", "\n\n"))]
)
def test_damaged_metrics_do_not_keep_a_run_from_being_resumed(command, damage):
    command(f"{DIGITS} --config logger/none.yaml")
    file = Path("runs/digits_scor/version_0/metrics.csv")
    whole = file.read_text()
    file.write_text(whole + damage if damage.startswith("5") else damage)
    status, _, error = command(f"{DIGITS} --trainer.max_epochs 2 --config logger/none.yaml --ckpt_path last")
    assert status == 0, error
    assert steps(file, "val/accuracy") == ([16, 33] if damage.startswith("5") else [33])


def test_what_a_resumed_run_logs_again_is_there_once(tmp_path):
    logger = RunLogger(tmp_path / "a/version_0")
    logger.log_metrics({"lr-Adam": 0.1, "val/accuracy": 0.5}, 4)
    logger.log_metrics({"lr-Adam": 0.2}, 5)
    logger.log_metrics({"spectrum/head/rank": 3.0}, 5)
    logger.log_metrics({"mine": 3.0}, 6)
    logger.save()
    again = RunLogger(tmp_path / "a/version_0")
    again.drop_after(5)
    again.log_metrics({"lr-Adam": 0.2, "new": 1.0}, 5)
    again.save()
    with (tmp_path / "a/version_0/metrics.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["step"], row["lr-Adam"], row["spectrum/head/rank"], row["mine"]) for row in rows] == [
        ("4", "0.1", "", ""),
        ("5", "", "3.0", ""),
        ("5", "0.2", "", ""),
    ]


def test_the_options_of_a_logger_reach_it(command):
    options = "--trainer.logger TensorBoardLogger --trainer.logger.save_dir tb --trainer.logger.filename_suffix .mine"
    status, _, error = command(f"{DIGITS} {options}")
    assert status == 0, error
    assert any(name.endswith(".mine") for name in os.listdir("tb/digits_scor/version_0"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_weights_and_biases(tmp_path):
    for _ in range(2):
        run(f"{DIGITS} --config logger/wandb.yaml", tmp_path, WANDB_MODE="offline")
    run(f"{DIGITS} --trainer.max_epochs 2 --config logger/wandb.yaml --ckpt_path last", tmp_path, WANDB_MODE="offline")
    runs = tmp_path / "runs/digits_scor"
    assert sorted(os.listdir(tmp_path)) == ["runs"]
    assert sorted(os.listdir(runs)) == ["version_0", "version_1"]
    assert set(os.listdir(runs / "version_0")) == LAYOUT | {"wandb"}
    names = {json.loads((runs / v / "loggers.json").read_text())["WandbLogger"] for v in ("version_0", "version_1")}
    assert len(names) == 2
    for version, count in (("version_0", 1), ("version_1", 2)):
        name = json.loads((runs / version / "loggers.json").read_text())["WandbLogger"]
        offline = list((runs / version / "wandb").glob(f"offline-run-*-{name}"))
        assert len(offline) == count  # the resumed run keeps its name
        for part in offline:
            media = {path.name.partition("_")[0] for path in (part / "files/media/images").rglob("*.png")}
            assert {"recall", "confusion", "worst"} <= media
            assert (part / "files/test/metrics.json").exists()
    content = b"".join(path.read_bytes() for path in (runs / "version_1/wandb").rglob("*.wandb"))
    for tag in (
        b"val/balanced_accuracy",
        b"spectrum/head/sigma_min",
        b"spectrum/head/log10_sigma",
        b"run/loss in full",
    ):
        assert tag in content


@pytest.mark.slow
@pytest.mark.exhaustive
def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    for _ in range(2):
        run(f"{DIGITS} --config logger/mlflow.yaml", tmp_path)
    run(f"{DIGITS} --trainer.max_epochs 2 --config logger/mlflow.yaml --ckpt_path last", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["runs"]
    assert sorted(os.listdir(tmp_path / "runs")) == ["digits_scor", "mlruns"]
    assert set(os.listdir(tmp_path / "runs/digits_scor/version_0")) == LAYOUT
    client = MlflowClient(f"file:{tmp_path / 'runs/mlruns'}")
    experiment = client.get_experiment_by_name("digits_scor")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert found.keys() == {"version_0", "version_1"}
    last = found["version_1"]
    assert last.data.params["run/loss in full"] == "SCoRLoss(base=CrossEntropyLoss(), alpha=0.0001)"
    history = client.get_metric_history(last.info.run_id, "val/balanced_accuracy")
    assert [metric.step for metric in history] == [16, 33]
    files = {file.path for file in client.list_artifacts(last.info.run_id, "test")}
    assert {"test/metrics.json", "test/worst_images.png", "test/worst_images"} <= files


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_names_its_extra(command, monkeypatch, package):
    monkeypatch.setattr(
        "scor_lightning.cli.loggers.find_spec", lambda name: None if name == package else find_spec(name)
    )
    status, _, error = command(f"{DIGITS} --config logger/{package}.yaml")
    assert status == 1
    assert error.strip().endswith("`pip install 'scor-lightning[loggers]'`")
    assert not Path("runs").exists()


def test_a_run_that_fails_before_its_first_step_leaves_nothing(command):
    for options in (
        "--data.imbalance.classes [nobody]",
        "--trainer.callbacks.layers nolayer",
        "--data.batch_size 1000000 --trainer.accumulate_grad_batches 2 --model.lr_scheduler OneCycleLR",
    ):
        status, _, _ = command(f"{DIGITS} {options}")
        assert status != 0
        assert not Path("runs").exists(), options


class FailsWhileLogging(Callback):
    """Fails at the start of training, while the logger's thread still has values to write to a slow disk."""

    def on_fit_start(self, trainer, pl_module):
        writer = next(logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)).experiment
        records = writer._get_file_writer().event_writer._async_writer._writer
        write = records.write
        records.write = lambda data: (time.sleep(0.2), write(data))
        for step in range(5):
            for logger in trainer.loggers:
                logger.log_metrics({"value": 1.0}, step)
        raise ValueError("the reason")


def test_the_reason_of_an_early_failure_is_shown_although_values_are_not_yet_written(command):
    status, _, error = command(
        f"{DIGITS} --config logger/tensorboard.yaml --config logger/csv.yaml --trainer.callbacks+ tests.test_run_folder.FailsWhileLogging"
    )
    assert status == 1
    assert error.strip().endswith("error: the reason")
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
@pytest.mark.exhaustive
def test_a_run_that_fails_early_leaves_nothing_with_other_loggers_either(tmp_path, logger):
    line = f"{DIGITS} --config logger/{logger}.yaml --trainer.callbacks.layers nolayer"
    command = [sys.executable, "-m", "scor_lightning", *line.removeprefix("scor-").split()]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_that_fails_early_leaves_other_runs_of_a_store_alone(tmp_path):
    good = f"{DIGITS} --config logger/mlflow.yaml"
    run(good, tmp_path)
    run(good, tmp_path)
    store = tmp_path / "runs/mlruns"
    deleted = [path for path in store.rglob("meta.yaml") if "run_name: version_" in path.read_text()]
    assert len(deleted) == 2
    for path in deleted:  # as `mlflow gc` has not yet removed them, they can be restored
        path.write_text(path.read_text().replace("lifecycle_stage: active", "lifecycle_stage: deleted"))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    line = [
        sys.executable,
        "-m",
        "scor_lightning",
        *good.removeprefix("scor-").split(),
        "--trainer.callbacks.layers",
        "no",
    ]
    assert subprocess.run(line, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_run_that_starts_from_a_checkpoint_and_fails_early_leaves_nothing(command):
    command(DIGITS)
    start = "--ckpt_path runs/digits_scor/version_0/checkpoints/last.ckpt --trainer.max_epochs 2"
    status, _, _ = command(f"{DIGITS} {start} --trainer.callbacks.layers nolayer")
    assert status == 1
    assert os.listdir("runs/digits_scor") == ["version_0"]


def test_a_folder_that_cannot_be_written_is_reported_before_training(command):
    Path("runs").write_text("a file")
    status, out, error = command(DIGITS)
    assert status == 1
    assert "error: Expected to write the run folder 'runs/digits_scor' but got: " in error
    assert "Epoch" not in out
    assert Path("runs").read_text() == "a file"
    Path("runs").unlink()
    logger = "--trainer.logger TensorBoardLogger --trainer.logger.save_dir runs --trainer.logger.name"
    status, _, error = command(f"{DIGITS} {logger} a/b")
    assert status == 1
    assert "Expected a logger's `name` that can be a folder's but got 'a/b'" in error
    assert not Path("runs").exists()


def test_a_full_disk_is_reported_before_training_and_leaves_nothing(tmp_path):
    """A limit on file sizes stands for it, set after the imports, of which torch 2.7's write a temporary file."""
    limited = """import resource, torch.distributed.nn
from scor_lightning.cli.fit import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
main()"""
    line = [sys.executable, "-c", limited, *f"{DIGITS} --config logger/none.yaml".removeprefix("scor-fit ").split()]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(
        "scor-fit: error: Expected to write the run folder 'runs/digits_scor/version_0' but got: "
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["$PLACE/below", pytest.param("~/below", marks=pytest.mark.exhaustive)])
def test_paths_are_expanded(command, monkeypatch, tmp_path, place):
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    monkeypatch.setenv("HOME", str(tmp_path / "place"))
    status, out, error = command(f"{DIGITS} --trainer.default_root_dir={place} --data.split_file={place}.json")
    assert status == 0, error
    folder = tmp_path / "place/below/runs/digits_scor/version_0"
    assert f"Run folder: {folder}" in out
    assert (tmp_path / "place/below.json").is_file()
    checkpoint = str(folder / "checkpoints/best.ckpt").replace(str(tmp_path / "place"), place.partition("/")[0])
    status, out, error = command(f"scor-test --ckpt_path={checkpoint}")
    assert status == 0, error
    assert "Files: place/below/runs/digits_scor/version_0/checkpoints/best.test" in out


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_second_process_is_refused_and_a_killed_one_does_not_block(tmp_path):
    long = [sys.executable, "-m", "scor_lightning", *f"{DIGITS} --trainer.max_epochs 100000".split()]
    long[3] = "fit"
    first = subprocess.Popen(long, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "runs/digits_scor/version_0/checkpoints/last.ckpt"
    while not last.is_file():
        assert first.poll() is None
        time.sleep(0.1)
    resumed = [*long, "--ckpt_path", "last"]
    second = subprocess.run(resumed, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "is locked: end that process" in second.stderr.strip().splitlines()[-1]
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = subprocess.Popen(resumed, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    before = torch.load(last, weights_only=True)["epoch"]
    started = time.monotonic()
    while torch.load(last, weights_only=True)["epoch"] <= before:
        assert third.poll() is None, third.stdout.read()
        assert time.monotonic() - started < 60
        time.sleep(0.2)
    third.send_signal(signal.SIGINT)
    out, _ = third.communicate()
    assert "Resume with:" in out
    metrics = steps(last.parents[1] / "metrics.csv", "val/accuracy")
    assert metrics == sorted(set(metrics))  # each epoch once, also those that the killed process had logged


@pytest.mark.exhaustive
def test_a_test_of_other_data_is_kept_apart(command):
    command(DIGITS)
    checkpoint = Path("runs/digits_scor/version_0/checkpoints/best.ckpt")
    for options, place in (("", "best.test"), ("--data.seed 5", "best.test_2"), ("", "best.test")):
        status, out, _ = command(f"scor-test --ckpt_path {checkpoint} {options}")
        assert status == 0
        assert f"Files: {checkpoint.parent / place}" in out
    first, second = (
        json.loads((checkpoint.parent / name / "metrics.json").read_text()) for name in ("best.test", "best.test_2")
    )
    assert "seed 0" in first["data"]
    assert "seed 5" in second["data"]


def fit_and_test(trainer: Trainer) -> None:
    data = DigitsDataModule(batch_size=256)
    model = ImageClassifier(MLP(num_classes=10, image_size=(8, 8)), nn.CrossEntropyLoss())
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)


@pytest.mark.parametrize(
    "kind", [TensorBoardLogger, *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in (CSVLogger, None))]
)
def test_from_python_two_runs_of_one_logger_keep_their_files(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    logger = False if kind is None else kind("logs")
    trainers = [
        Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[ClassReport(), WeightSpectrum()],
        )
        for _ in range(2)
    ]
    for trainer in trainers:
        fit_and_test(trainer)
    reports = sorted(path.parent for path in tmp_path.rglob("metrics.json"))
    out = capsys.readouterr().out
    if kind is None:
        runs = tmp_path / "runs/python"
        assert reports == [runs / "version_0/test", runs / "version_1/test"]
        assert {path.parent for path in runs.rglob("*.npz")} == {runs / f"version_{i}/spectra" for i in range(2)}
    else:
        run = tmp_path / "logs/lightning_logs/version_0"
        assert reports == [run / "test", run / "test_2"]
        assert {path.parent for path in run.rglob("*.npz")} == {run / "spectra", run / "spectra_2"}
    for report in reports:
        assert f"Files: {report.relative_to(tmp_path)}" in out
