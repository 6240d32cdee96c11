import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scor_lightning import ImageClassifier
from scor_lightning.cli.fit import usage
from scor_lightning.configuration import CONFIGS, shipped_configs
from scor_lightning.models import MLP
from scor_lightning.parser import training_parser
from tests.data.mnist import write_mnist

DIGITS = "scor-fit --config digits_scor.yaml --trainer.max_epochs 2 --trainer.enable_progress_bar false"


def scalars(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()


def refused(result) -> str:
    """The message of a command that was refused: short, without traceback, and without a trace on disk."""
    status, _, error = result
    assert status != 0
    assert "Traceback" not in error
    message = error[error.index("error: ") :]
    assert len(message.splitlines()) <= 5
    assert not Path("runs").exists()
    return message


def test_a_run_leaves_a_table_a_dashboard_and_checkpoints(command):
    status, out, error = command(DIGITS)
    assert status == 0
    assert "override" not in out + error
    run = Path("runs/digits_scor/version_0")
    assert (run / "config.yaml").is_file()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "last.previous.ckpt"}
    assert "SCoRLoss" in out
    assert re.search(r"balanced accuracy +0\.\d{4}", out)
    assert len(re.findall(r"^\d +\d+ +\d+  [01]\.\d{4}  \[[01]\.\d{3}, [01]\.\d{3}\]$", out, re.MULTILINE)) == 10
    assert re.search(
        r"^Test set: \d+ images; runs/digits_scor/version_0/checkpoints/best.ckpt, epoch \d+$", out, re.MULTILINE
    )
    assert "tensorboard --logdir runs" in out
    events = scalars(run)
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/cross_entropy", "train/scor_penalty", "val/balanced_accuracy", "val/recall/3"} <= tags
    assert {"spectrum/body.1/rank", "spectrum/head/sigma_min", "test/f1_macro", "test/accuracy_top5"} <= tags
    assert {"val/accuracy_reduced", "val/accuracy_few", "test/mcc", "test/calibration_error"} <= tags
    assert {"test/recall_by_class", "test/confusion_matrix", "test/worst_images"} <= set(events.Tags()["images"])
    assert {path.suffix for path in (run / "test").iterdir()} == {".json", ".csv", ".png"}
    assert json.loads((run / "test/metrics.json").read_text())["loss"].startswith("SCoRLoss")
    assert len(list((run / "spectra").iterdir())) == 2
    shown = float(re.search(r"^accuracy +(\d\.\d+)", out, re.MULTILINE)[1])
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(shown, abs=5e-5)


def test_a_run_with_another_logger_alone(command):
    status, out, _ = command(
        DIGITS + " --trainer.logger lightning.pytorch.loggers.CSVLogger --trainer.logger.save_dir out"
    )
    assert status == 0
    assert "Run folder: runs/digits_scor/version_0" in out
    assert "tensorboard" not in out
    run = Path("runs/digits_scor/version_0")
    for metrics in (run / "metrics.csv", Path("out/digits_scor/version_0/metrics.csv")):
        columns = set(metrics.read_text().splitlines()[0].split(","))
        assert {"test/accuracy", "spectrum/head/rank", "val/recall/3"} <= columns
    assert json.loads((run / "test/metrics.json").read_text())["checkpoint"] == str(run / "checkpoints/best.ckpt")
    assert not list(Path.cwd().rglob("events.*"))


def test_the_same_seed_gives_the_same_weights(command):
    command(DIGITS)
    command(DIGITS)
    first, second = (
        torch.load(f"runs/digits_scor/version_{i}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for i in range(2)
    )
    assert all(first[name].equal(second[name]) for name in first if isinstance(first[name], torch.Tensor))


# A loss with a head and a callback, one with a second stage, and one over another; every one of them trains in test_all_methods.
ALONE = ("loss/ldam_drw.yaml", "loss/gcl.yaml", "loss/scor_label_smoothing.yaml")


@pytest.mark.parametrize(
    "overlay",
    [
        name if name in ALONE else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in sorted(shipped_configs())
        if name.startswith("loss/")
    ],
)
def test_every_overlay_trains(command, overlay):
    status, _, error = command(f"{DIGITS} --config {overlay} --trainer.limit_train_batches 3")
    assert status == 0, error
    assert Path(f"runs/digits_{Path(overlay).stem}/version_0/checkpoints/best.ckpt").is_file()
    tags = scalars(Path(f"runs/digits_{Path(overlay).stem}/version_0")).Tags()["scalars"]
    assert "test/balanced_accuracy" in tags


def test_mnist_config_runs_on_idx_files(command, tmp_path):
    write_mnist(tmp_path / "data")
    status, out, _ = command(
        "scor-fit --config mnist_scor.yaml --trainer.max_epochs 1 --data.batch_size 16 --data.imbalance.factor 0.5"
    )
    assert status == 0
    assert "runs/mnist_scor/version_0" in out
    assert sorted(re.findall(r"^\d +(\d+) +\d+ +[01]\.\d{4}", out, re.MULTILINE)) == ["18"] + ["36"] * 9


def test_holdout_without_validation_tests_the_last_checkpoint(command):
    status, out, error = command(
        f"{DIGITS} --data.evaluation holdout --data.val_fraction 0 --data.imbalance.factor 0.5"
    )
    assert status == 0, error
    best = torch.load("runs/digits_scor/version_0/checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == 1
    assert "balanced accuracy" in out
    status, _, error = command("scor-validate --ckpt_path runs/digits_scor/version_0/checkpoints/best.ckpt")
    assert status != 0
    assert "Expected a validation set" in error


def test_a_checkpoint_is_evaluated_with_the_runs_own_configuration(command):
    _, fit_out, _ = command(f"{DIGITS} --data.seed 3 --model.backbone.hidden [16]")
    run = "runs/digits_scor/version_0"
    checkpoint = f"{run}/checkpoints/best.ckpt"
    before = sorted(path for path in Path().rglob("*"))
    status, out, _ = command(f"scor-test --ckpt_path {checkpoint}")
    assert status == 0
    table = out[out.index("loss ") : out.rindex("\n9 ")]
    assert table in fit_out
    _, other, _ = command(f"scor-test --ckpt_path {checkpoint} --data.seed 4")
    training_images = re.compile(r"^\d +(\d+) +[01]\.\d{4}$", re.MULTILINE)
    assert training_images.findall(other) == training_images.findall(fit_out)  # those the network was trained on
    status, out, _ = command(f"scor-validate --ckpt_path={checkpoint}")
    assert status == 0
    assert "balanced accuracy" in out
    written = {path for path in Path().rglob("*")} - set(before)
    assert {path.name for path in written if path.is_file()} == {path.name for path in Path(run, "test").iterdir()}
    assert {path.parts[4] for path in written} == {"best.test", "best.test_2"}  # of the run's data, and of seed 4
    status, out, _ = command(f"scor-predict --ckpt_path {checkpoint}")
    assert status == 0
    with open("runs/digits_scor/version_0/checkpoints/best.predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359
    right = sum(row["true_class"] == row["predicted_class"] for row in rows) / len(rows)
    assert f"accuracy           {right:.4f}" in fit_out


def test_a_checkpoint_of_a_run_is_loaded_by_python_from_the_file_alone(command):
    command(DIGITS)
    model = ImageClassifier.load_from_checkpoint("runs/digits_scor/version_0/checkpoints/best.ckpt", weights_only=True)
    assert model.backbone.body[1].in_features == 64
    assert type(model.loss).__name__ == "SCoRLoss"
    assert model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.exhaustive
def test_last_resumes_the_newest_run_in_its_own_folder(command):
    command(DIGITS)
    command(DIGITS)
    config = Path("runs/digits_scor/version_1/config.yaml").read_text()
    status, _, _ = command(DIGITS.replace("max_epochs 2", "max_epochs 4"), "--ckpt_path", "last")
    assert status == 0
    assert sorted(path.name for path in Path("runs/digits_scor").iterdir()) == ["version_0", "version_1"]
    resumed = torch.load("runs/digits_scor/version_1/checkpoints/last.ckpt", weights_only=True)
    assert resumed["epoch"] == 3
    assert Path("runs/digits_scor/version_1/config.yaml").read_text() == config
    command(DIGITS.replace("max_epochs 2", "max_epochs 4"))
    whole = torch.load("runs/digits_scor/version_2/checkpoints/last.ckpt", weights_only=True)
    names = [name for name, value in whole["state_dict"].items() if isinstance(value, torch.Tensor)]
    assert all(whole["state_dict"][name].equal(resumed["state_dict"][name]) for name in names)


def test_last_is_the_last_epoch_and_best_the_best(command):
    # The learning rate leaps after the first epoch, which so stays the best.
    leap = "--model.lr_scheduler StepLR --model.lr_scheduler.step_size 1 --model.lr_scheduler.gamma 100"
    command(f"{DIGITS} {leap} --trainer.max_epochs 3")
    folder = Path("runs/digits_scor/version_0/checkpoints")
    epochs = {name: torch.load(folder / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")}
    assert epochs == {"best": 0, "last": 2}
    Path("runs/digits_scor/version_old/checkpoints").mkdir(parents=True)
    Path("runs/digits_scor/version_old/checkpoints/last.ckpt").touch()
    status, _, error = command(f"{DIGITS} {leap} --trainer.max_epochs 4 --ckpt_path last")
    assert status == 0, error
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 3


def test_a_checkpoint_provides_weights_and_the_configuration_everything_else(command):
    command(DIGITS)
    status, out, _ = command(
        DIGITS.replace("max_epochs 2", "max_epochs 3"),
        "--config",
        "loss/focal.yaml",
        "--ckpt_path",
        "runs/digits_scor/version_0/checkpoints/last.ckpt",
    )
    assert status == 0
    assert "FocalLoss" in out
    assert torch.load("runs/digits_focal/version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    assert Path("runs/digits_focal/version_0/config.yaml").is_file()


def test_a_run_shorter_than_an_epoch_is_tested_as_it_is(command):
    status, out, _ = command(f"{DIGITS} --trainer.max_steps 3")
    assert status == 0
    assert "balanced accuracy" in out


def test_a_config_in_the_working_directory_comes_first(command):
    text = CONFIGS.joinpath("digits_scor.yaml").read_text()
    Path("digits_scor.yaml").write_text(text.replace("max_epochs: 25", "max_epochs: 25\n  gradient_clip_val: 7.0"))
    command(DIGITS)
    assert "gradient_clip_val: 7.0" in Path("runs/digits_scor/version_0/config.yaml").read_text()


def test_print_config_shows_the_whole_configuration(command):
    status, out, _ = command("scor-fit --config digits_scor.yaml --model.loss.alpha 0.5 --print_config")
    assert status == 0
    assert "alpha: 0.5" in out
    assert "num_classes" not in out.split("\nmodel:")[1].split("loss:")[0]


@pytest.mark.parametrize("line", ["scor-fit", "scor-fit --help", "scor-fit -h"])
def test_help_lists_the_configs_and_how_to_copy_one(command, line):
    status, out, _ = command(line)
    assert status == 0
    assert out == usage() + "\n"
    assert all((name in out) != name.startswith("compare/") for name in shipped_configs())
    assert f"cp {CONFIGS}/digits_scor.yaml" in out
    assert max(map(len, out.splitlines())) < 140


def test_the_full_help_names_every_option(command):
    status, out, _ = command("scor-fit --config digits_scor.yaml --help")
    assert status == 0
    assert "--trainer.max_epochs" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--foo 1", "--foo"),
        ("--data.bach_size 3", "no option --data.bach_size; did you mean --data.batch_size?"),
        ("--model.loss NoSuchLoss", "NoSuchLoss"),
        ("--model.backbone my.Net", "No module named 'my'"),
        ("--model.backbone torch.nn.Flatten", "Expected torch.nn.Flatten to take num_classes, in_channels, image_size"),
        ("--config nope.yaml", "the command without options lists them"),
        ("--model.loss.alpha -1", "Expected `alpha` >= 0 but got -1"),
        ("--data.batch_size 0", "Expected `batch_size` >= 1 but got 0"),
        ("--data.imbalance.factor 1.5", r"Expected `factor` in (0, 1] but got 1.5"),
        ("--data.evaluation both", "--data.evaluation: expected one of official, holdout but got 'both'"),
        ("--trainer.max_epochs many", "--trainer.max_epochs: expected an int but got 'many'"),
        ("--ckpt_path nope.ckpt", "no file 'nope.ckpt'"),
        ("--ckpt_path last", "Expected a run to resume in 'runs/digits_scor'"),
        ("--trainer.accelerator abacus", "abacus"),
        ("--trainer.overfit_batches 2", "--trainer.limit_train_batches"),
        ("--model.loss.reduction average", "expected one of sum, mean but got 'average'"),
        ("--config mnist_scor.yaml", "download it with `--data.download true`"),
        (f"--config mnist_scor.yaml --data.root {'far/' * 60}", "or name another folder with `--data.root`"),
    ],
)
def test_mistakes_get_a_short_message_and_change_nothing(command, options, message):
    assert message in refused(command(f"scor-fit --config digits_scor.yaml {options}"))


def test_a_module_in_this_folder_gets_the_way_to_import_it(command, monkeypatch):
    Path("mine.py").write_text("")
    status, _, error = command("scor-fit --config digits_scor.yaml --model.backbone mine.Net")
    assert status == 1
    assert "No module named 'mine'; begin the command with `PYTHONPATH=.` to import from this folder" in error
    Path("mine.py").write_text("import not_installed")
    monkeypatch.syspath_prepend(Path.cwd())
    status, _, error = command("scor-fit --config digits_scor.yaml --model.backbone mine.Net")
    assert status == 1
    assert "No module named 'not_installed'" in error
    assert "PYTHONPATH" not in error


@pytest.mark.parametrize(("options", "warned"), [("--config method/linear_probe.yaml", True), ("", False)])
def test_a_frozen_body_with_random_weights_is_warned_of(command, recwarn, options, warned):
    status, _, error = command(f"{ONE_EPOCH} {options}")
    assert status == 0, error
    assert any("frozen body has random weights" in str(warning.message) for warning in recwarn) == warned


def test_an_overlay_comes_on_top_of_a_configuration(command):
    message = "Expected an overlay on top of a configuration: `--config NAME.yaml --config loss/focal.yaml`"
    assert message in refused(command("scor-fit --config loss/focal.yaml --config digits_scor.yaml"))
    assert message in refused(command("scor-fit --config loss/focal.yaml"))
    assert "Write `--config digits_scor.yaml`" in refused(command("scor-fit digits_scor.yaml"))


def test_a_run_on_other_data_is_named_after_them(command):
    Path("other.yaml").write_text("data: {class_path: DigitsDataModule}")
    Path("short.yaml").write_text("data: DigitsDataModule")
    Path("within.yaml").write_text("config: [other.yaml]")
    Path("options.yaml").write_text("data: {init_args: {seed: 1}}")
    short = "--trainer.max_epochs 1 --trainer.limit_train_batches 1"
    for i, options in enumerate(
        (
            *("--data DigitsDataModule", "--data=scor_lightning.datamodules.DigitsDataModule"),
            *("--config other.yaml", "--config short.yaml", "--config within.yaml"),
        )
    ):
        status, out, error = command(f"scor-fit --config mnist_scor.yaml {options} --config method/sam.yaml {short}")
        assert status == 0, error
        assert f"Run folder: runs/mnist_scor_sam-digits/version_{i}" in out
    saved = "runs/mnist_scor_sam-digits/version_0/config.yaml"
    for options, name in (
        ("--data DigitsDataModule --config loss/focal.yaml", "mnist_scor_sam-digits_focal"),
        ("--trainer.max_epochs 2 --ckpt_path last", "mnist_scor_sam-digits"),
    ):
        status, out, error = command(f"scor-fit --config {saved} {options}")
        assert status == 0, error
        assert f"Run folder: runs/{name}/version_" in out
    status, out, error = command(f"{ONE_EPOCH} --config options.yaml")
    assert status == 0, error
    assert "Run folder: runs/digits_scor/version_0" in out


CALLBACKS = "--trainer.callbacks"
ONE_EPOCH = f"{DIGITS} --trainer.max_epochs 1"


@pytest.mark.exhaustive
def test_last_refuses_another_experiment(command):
    command(ONE_EPOCH)
    before = sorted(Path("runs").rglob("*"))
    for option, name, value, other in (
        ("--data.imbalance.factor 0.1", "data.imbalance.factor", "0.05", "0.1"),
        ("--seed_everything 1", "seed_everything", "0", "1"),
        ("--model.optimizer.lr 0.1", "model.optimizer.lr", "0.003", "0.1"),  # the checkpoint's would rule
        ("--trainer.precision 64-true", "trainer.precision", "None", "64-true"),
        ("--trainer.accumulate_grad_batches 2", "trainer.accumulate_grad_batches", "1", "2"),
        ("--trainer.gradient_clip_val 1", "trainer.gradient_clip_val", "None", "1"),
        ("--trainer.limit_train_batches 3", "trainer.limit_train_batches", "None", "3"),
        ("--trainer.val_check_interval 0.5", "trainer.val_check_interval", "None", "0.5"),
        ("--trainer.max_steps 3", "trainer.max_steps", "-1", "3"),
        (f"{CALLBACKS}+ EMAWeightAveraging", "trainer.callbacks", "[WeightSpectrum(", "EMAWeightAveraging("),
        (
            f"{CALLBACKS} [scor_lightning.callbacks.DeferredReweighting]",
            "trainer.callbacks",
            "[",
            "DeferredReweighting(",
        ),
        ("--checkpoint.monitor val/loss", "checkpoint.monitor", "val/balanced_accuracy", "val/loss"),
        ("--checkpoint.save_top_k 3", "checkpoint.save_top_k", "1", "3"),
        ("--model.loss torch.nn.CrossEntropyLoss", "model.loss", "", ""),
    ):
        status, _, error = command(f"{ONE_EPOCH} --ckpt_path last {option}")
        assert status != 0
        assert len(error[error.index("error: ") :].strip().splitlines()) == 1
        assert f"`--{name}" in error
        assert f"was {value}" in error
        assert " in the run to resume, 'runs/digits_scor/version_0', but is now " in error
        assert other in error.partition("but is now ")[2]
    assert sorted(Path("runs").rglob("*")) == before
    free = "--model.channels_last true --data.num_workers 1 --trainer.log_every_n_steps 3 --trainer.devices 1"
    status, _, error = command(f"{DIGITS} --ckpt_path last {free} --last_checkpoint.minutes 1")
    assert status == 0, error
    status, _, error = command(f"{ONE_EPOCH} --trainer.max_epochs 0 --ckpt_path last")
    assert status != 0
    assert "--trainer.max_epochs: expected more than 0" in error
    command(f"{DIGITS} --trainer.max_epochs 2")
    status, _, error = command(f"{ONE_EPOCH} --ckpt_path last")
    assert status != 0
    assert "`--trainer.max_epochs` was 2 in the run to resume" in error
    Path("runs/digits_scor/version_1/config.yaml").unlink()
    status, _, error = command(f"{DIGITS} --ckpt_path last")
    assert status == 1
    assert "Expected the newest run's configuration in" in error


def test_options_without_a_configuration_are_refused(command):
    assert "Expected `--config NAME.yaml`" in refused(command("scor-fit --data.batch_size 3"))


def test_a_broken_or_foreign_checkpoint_is_refused(command):
    Path("broken.ckpt").write_bytes(b"not a checkpoint")
    assert "'broken.ckpt' is damaged, cut off, or another kind of file" in refused(
        command("scor-fit --config digits_scor.yaml --ckpt_path broken.ckpt")
    )
    torch.save({"state_dict": {"weight": torch.ones(2)}, "pytorch-lightning_version": "2.6.0"}, "foreign.ckpt")
    status, _, error = command("scor-test --config digits_scor.yaml --ckpt_path foreign.ckpt")
    assert status != 0
    assert "another program's" in error
    command(DIGITS)
    status, _, error = command(
        f"{DIGITS} --model.backbone.hidden [7] --ckpt_path runs/digits_scor/version_0/checkpoints/best.ckpt"
    )
    assert status != 0
    assert "error: Expected backbone.body.1.weight of shape (7, 64) in the checkpoint but got (128, 64)" in error


def test_evaluation_needs_a_checkpoint(command):
    assert "Expected `--ckpt_path FILE`" in refused(command("scor-test --data.seed 3"))
    assert "Expected `--ckpt_path FILE`" in refused(command("scor-test --config digits_scor.yaml"))
    assert "no file 'x.ckpt'" in refused(command("scor-predict --ckpt_path x.ckpt"))
    Path("x.ckpt").touch()
    assert "another kind of file" in refused(command("scor-test --ckpt_path x.ckpt"))
    command(ONE_EPOCH)
    shutil.copy("runs/digits_scor/version_0/checkpoints/best.ckpt", "x.ckpt")
    shutil.rmtree("runs")
    assert "name another with `--config FILE`" in refused(command("scor-test --ckpt_path x.ckpt"))


def test_a_loss_that_becomes_nan_names_the_step_and_keeps_the_checkpoint(command):
    growing = "--model.lr_scheduler torch.optim.lr_scheduler.StepLR --model.lr_scheduler.step_size 1"
    status, out, error = command(f"{DIGITS} {growing} --model.lr_scheduler.gamma 1e30 --trainer.max_epochs 9")
    assert status != 0
    assert "balanced accuracy" not in out
    step = int(re.search(r"scor-fit: error: .* became nan or inf at step (\d+)\. The checkpoints", error)[1])
    assert 17 <= step <= 17 * 3
    last = torch.load("runs/digits_scor/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] <= step


def test_a_wrong_label_is_found_before_training(command, tmp_path):
    write_mnist(tmp_path / "data", label=12)
    status, out, error = command("scor-fit --config mnist_scor.yaml")
    assert status != 0
    assert "scor-fit: error: Expected targets in 0..9 but got 12 in the train data" in error
    assert "Epoch" not in out + error


@pytest.mark.parametrize(
    "given",
    [
        ["--config", "digits_scor.yaml"],
        ["--config=digits_scor.yaml"],
        ["-c", "digits_scor.yaml"],
        ["-c=digits_scor.yaml"],
        ["-cdigits_scor.yaml"],
        ["--config", str(CONFIGS / "digits_scor.yaml")],
    ],
)
def test_every_spelling_of_an_option_reads_a_shipped_configuration(given):
    config = training_parser().parse_args([*given, "--config", "loss/focal.yaml"])
    assert [str(path) for path in config.config] == [
        str(CONFIGS / "digits_scor.yaml"),
        str(CONFIGS / "loss/focal.yaml"),
    ]
    assert config.model.loss.class_path == "scor_lightning.losses.FocalLoss"
    assert config.trainer.max_epochs == 25


def test_a_configuration_of_version_0_1_0_trains(command):
    """As its `scor-fit --config digits_scor.yaml --config loss/ldam_drw.yaml --trainer.max_epochs 2` left it."""
    file = Path(__file__).parent / "data/config_0.1.0.yaml"
    status, out, error = command(f"scor-fit --config {file} --trainer.max_epochs 1 --trainer.limit_train_batches 2")
    assert status == 0, error
    assert "LDAMLoss" in out
    assert Path("runs/digits_ldam_drw/version_0/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(
    "line", ["scor-fit {} --trainer.max_epoch 1", "scor-compare --config compare/digits.yaml --repeat 1"]
)
def test_options_are_not_abbreviated(command, line):
    assert f"no option {line.split()[-2]}; did you mean {line.split()[-2]}s?" in refused(
        command(line.format("--config digits_scor.yaml"))
    )


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import scor_lightning.losses", ["matplotlib", "scipy", "sklearn", "lightning", "torchmetrics"]),
        (
            "import sys; sys.argv = ['scor-fit', '--help']; from scor_lightning.cli.fit import main; main()",
            ["matplotlib", "scipy", "sklearn", "torch", "lightning"],
        ),
    ],
)
def test_imports_stay_light(code, absent):
    script = f"{code}\nimport sys\nloaded = set({absent}) & set(sys.modules)\nsys.exit(str(loaded) if loaded else 0)"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def script(*line: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "scor_lightning", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    # Whole batches alone, so that one process sees what two see.
    options = [*DIGITS.split()[1:], "--trainer.accelerator", "cpu", "--trainer.limit_train_batches", "15"]
    states = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        process = script("fit", *options, "--trainer.devices", str(devices), cwd=folder)
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
        assert out.count("balanced accuracy") == 1
        states.append(torch.load(folder / "runs/digits_scor/version_0/checkpoints/last.ckpt", weights_only=True))
    one, two = (state["state_dict"] for state in states)
    assert states[0]["global_step"] == states[1]["global_step"] == 30
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, two[name], atol=1e-5), name


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_stopped_by_ctrl_c_can_be_resumed(tmp_path):
    process = script("fit", "--config", "digits_scor.yaml", "--trainer.max_epochs", "10000", cwd=tmp_path)
    last = tmp_path / "runs/digits_scor/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 60
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(4):  # Python drops an interrupt that comes within a destructor; a user presses the keys again
        os.kill(process.pid, signal.SIGINT)
        try:
            out, _ = process.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    else:
        process.kill()
        pytest.fail("Ctrl-C did not end the run")
    assert "Traceback" not in out
    assert "--trainer.max_epochs 10000 --ckpt_path last" in out
    assert process.returncode == 130
    before = torch.load(last, weights_only=True)["global_step"]
    options = "fit --config digits_scor.yaml --trainer.max_epochs 10000 --ckpt_path last --trainer.max_time 00:00:00:02"
    process = script(*options.split(), cwd=tmp_path)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert torch.load(last, weights_only=True)["global_step"] > before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--model.lr_scheduler CosineLR", "CosineLR"),
        ("--config loss/drw.yaml", "DeferredReweighting"),
        pytest.param(
            "--trainer.callbacks+ StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.01",
            "StochasticWeightAveraging",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_run_whose_schedule_depends_on_its_length_is_not_made_longer(command, options, named):
    line = f"{DIGITS} {options}"
    assert command(line)[0] == 0
    status, _, error = command(f"{line} --trainer.max_epochs 6 --ckpt_path last")
    assert status != 0
    assert "`--trainer.max_epochs` was 2 in the run to resume" in error
    assert f"but is now 6, and {named} depends on the length of the training" in error
    status, _, error = command(f"{line} --ckpt_path last")
    assert status == 0, error


class Custom(torch.nn.Module):
    """A loss whose options have the names of others' and different defaults."""

    def __init__(self, alpha: float = 0.25, reduction: str = "own", gamma: float = 7.0) -> None:
        super().__init__()
        self.alpha, self.reduction, self.gamma = alpha, reduction, gamma

    def forward(self, logits, target):
        return self.alpha * torch.nn.functional.cross_entropy(logits, target)


class CustomNetwork(MLP):
    """A network whose width has another default."""

    def __init__(
        self, num_classes: int, in_channels: int = 1, image_size: tuple[int, int] = (8, 8), hidden: Sequence[int] = (5,)
    ):
        super().__init__(num_classes, in_channels, image_size, hidden)


def resolved(command, line):
    status, out, error = command(f"{line} --print_config")
    assert status == 0, error
    return yaml.safe_load(out)


OWN = "tests.test_cli.Custom"
DEFAULTS = {"alpha": 0.25, "reduction": "own", "gamma": 7.0}


@pytest.mark.parametrize("base", ["digits_scor.yaml", "base.yaml"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (f"--model.loss {OWN}", DEFAULTS),
        (f"--model.loss.class_path {OWN}", DEFAULTS),
        (f"--model.loss.alpha 3 --model.loss {OWN}", DEFAULTS),
        (f"--model.loss {OWN} --model.loss.alpha 3", DEFAULTS | {"alpha": 3.0}),
        ("--config name.yaml", DEFAULTS),
        ("--config path.yaml", DEFAULTS),
        ("--config options.yaml", DEFAULTS | {"reduction": "x"}),
        ("--config options.yaml --config path.yaml", DEFAULTS | {"reduction": "x"}),  # the same class: merged
        ("--config options.yaml --model.loss.gamma 1", DEFAULTS | {"reduction": "x", "gamma": 1.0}),
        ("--config options.yaml --model.loss SCoRLoss --config path.yaml", DEFAULTS),
    ],
)
def test_a_class_that_replaces_another_starts_from_its_own_defaults(command, base, change, expected):
    Path("base.yaml").write_text(
        (CONFIGS / "digits_scor.yaml")
        .read_text()
        .replace("SCoRLoss", "SCoRLoss\n    init_args: {alpha: 0.7, reduction: mean}")
    )
    Path("name.yaml").write_text(f"model:\n  loss: {OWN}\n")
    Path("path.yaml").write_text(f"model:\n  loss:\n    class_path: {OWN}\n")
    Path("options.yaml").write_text(f"model:\n  loss:\n    class_path: {OWN}\n    init_args: {{reduction: x}}\n")
    loss = resolved(command, f"scor-fit --config {base} {change}")["model"]["loss"]
    assert loss == {"class_path": OWN, "init_args": expected}


def test_every_kind_of_class_starts_from_its_own_defaults(command):
    base = "scor-fit --config digits_scor.yaml --data.val_fraction 0.3 --model.backbone.hidden [3]"
    config = resolved(command, f"{base} --data MNISTDataModule --data.imbalance Step --data.imbalance.ratio 3")["data"]
    assert config["init_args"]["val_fraction"] == 0.1
    assert config["init_args"]["imbalance"]["init_args"] == {"ratio": 3.0, "fraction": 0.5, "subset": "random"}
    config = resolved(command, f"{base} --model.backbone tests.test_cli.CustomNetwork --model.optimizer AdamW")["model"]
    assert config["backbone"]["init_args"]["hidden"] == [5]
    assert config["optimizer"]["init_args"]["lr"] == 1e-3
    config = resolved(
        command,
        f"{base} --model.loss SCoRLoss --model.loss.base scor_lightning.losses.FocalLoss --model.loss.base.gamma 3",
    )
    assert config["model"]["loss"]["init_args"]["base"]["init_args"]["gamma"] == 3
    config = resolved(
        command,
        f"{base} --model.loss.base scor_lightning.losses.FocalLoss --model.loss.base.gamma 3 --model.loss.base {OWN}",
    )
    assert config["model"]["loss"]["init_args"]["base"]["init_args"] == DEFAULTS
    # Another path of the same class is no replacement.
    line = f"{base} --model.loss.alpha 0.7 --model.loss scor_lightning.losses.scor.SCoRLoss"
    assert resolved(command, line)["model"]["loss"]["init_args"]["alpha"] == 0.7


def test_in_a_comparison_a_class_starts_from_its_own_defaults_too(command):
    base = "scor-compare --config compare/digits.yaml --model.loss.alpha 0.7 --model.optimizer.lr 0.3 --methods"
    Path("own.yaml").write_text(f"model:\n  loss:\n    class_path: {OWN}\n  optimizer: torch.optim.AdamW\n")
    model = resolved(command, f"{base} own.yaml loss/focal.yaml")["methods"]["own"]["model"]
    assert model["loss"] == {"class_path": OWN, "init_args": DEFAULTS}
    assert model["optimizer"]["init_args"]["lr"] == 1e-3


@pytest.mark.parametrize("options", ["--data.val_fraction 0", "--trainer.limit_val_batches 0"])
@pytest.mark.exhaustive
def test_a_run_without_validation_is_resumed(command, options):
    assert command(f"{DIGITS} {options}")[0] == 0
    status, _, error = command(f"{DIGITS.replace('max_epochs 2', 'max_epochs 3')} {options} --ckpt_path last")
    assert status == 0, error
    assert torch.load("runs/digits_scor/version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


class WithMore(torch.nn.CrossEntropyLoss):
    """A loss with options that are not in its signature."""

    def __init__(self, scale: float = 1.0, **more) -> None:
        super().__init__()
        self.more = more


class WithOthers(WithMore):
    """Another one."""


def test_options_without_a_signature_are_dropped_with_their_class(command):
    more = "model: {loss: {class_path: tests.test_cli.WithMore, init_args: {scale: 3}, dict_kwargs: {foo: 1}}}"
    Path("base.yaml").write_text(f"{more}\ndata: {{class_path: DigitsDataModule}}\n")
    Path("two.yaml").write_text("model: {loss: {class_path: tests.test_cli.WithOthers}}")
    base = "scor-fit --config base.yaml --model.backbone scor_lightning.models.MLP"
    assert "foo" in str(resolved(command, base))
    for change in ("--config two.yaml", "--model.loss tests.test_cli.WithOthers"):
        assert resolved(command, f"{base} {change}")["model"]["loss"] == {
            "class_path": "tests.test_cli.WithOthers",
            "init_args": {"scale": 1.0},
        }


@pytest.mark.exhaustive
def test_scor_goes_over_whatever_loss_is_set_in_any_order(command):
    descriptions = set()
    for order in (
        "--config loss/ldam.yaml --config method/scor.yaml",
        "--config method/scor.yaml --config loss/ldam.yaml",
    ):
        status, out, error = command(f"{DIGITS} {order}")
        assert status == 0, error
        assert "Run folder: runs/digits_ldam_scor/version_" in out
        descriptions.add(re.search(r"^loss +(.*)$", out, re.MULTILINE)[1])
    assert descriptions == {"SCoRLoss(base=LDAMLoss(max_margin=0.5), alpha=0.0001)"}
    best = "runs/digits_ldam_scor/version_0/checkpoints/best.ckpt"
    model = ImageClassifier.load_from_checkpoint(best)
    assert [type(loss).__name__ for loss in (model.loss, model.loss.base)] == ["SCoRLoss", "LDAMLoss"]
    assert command(f"scor-test --ckpt_path {best}")[0] == 0
    status, out, error = command(
        f"{DIGITS} --config method/scor.yaml --config loss/focal.yaml --model.regularizer.alpha 0.5"
    )
    assert status == 0, error
    assert "SCoRLoss(base=FocalLoss(gamma=2.0), alpha=0.5)" in out


def test_scor_over_scor_replaces_it(command, caplog):
    own = "--model.loss.base scor_lightning.losses.FocalLoss --model.loss.alpha 0.3"
    status, out, error = command(f"{DIGITS} {own} --config method/scor.yaml")
    assert status == 0, error
    assert "SCoRLoss(base=FocalLoss(gamma=2.0), alpha=0.0001)" in out
    assert "The regularizer replaces the SCoRLoss that `loss` names, and keeps its base." in caplog.text
    assert Path("runs/digits_scor/version_0").is_dir()


def test_two_overlays_that_set_the_loss_are_refused(command):
    message = refused(command(f"{DIGITS} --config loss/ldam.yaml --config loss/scor.yaml"))
    assert "loss/ldam.yaml and " in message
    assert "SCoR over a loss is `--config method/scor.yaml`" in message
    assert "--config method/scor.yaml`" in refused(command("scor-fit --config method/scor.yaml"))


@pytest.mark.parametrize(
    "option", ["limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval"]
)
def test_one_batch_is_not_all_of_them(option):
    parse = training_parser().parse_args
    for text, value in (("1", 1), ("1.0", 1.0), ("0.5", 0.5)):
        read = parse(["--config", "digits_scor.yaml", f"--trainer.{option}", text]).trainer[option]
        assert (read, type(read)) == (value, type(value))
