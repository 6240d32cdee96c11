import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import BestCheckpoint
from scor_lightning.callbacks.best_checkpoint import name_without_folders

DIGITS = "scor-fit --config digits_scor.yaml --trainer.max_epochs 6 --trainer.enable_progress_bar false"
# Large steps, so that the scores go up and down.
ROUGH = f"{DIGITS} --model.optimizer.lr 0.15 --trainer.callbacks+ tests.callbacks.test_best_checkpoint.Scores"


class Scores(Callback):
    """Keeps the scores of every epoch, and the weights, beside the run."""

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
            with Path("scores.jsonl").open("a") as file:
                file.write(json.dumps({"epoch": trainer.current_epoch, **scores}) + "\n")


def best_epochs(metric, most=1, lower=False):
    rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    ranked = sorted(rows, key=lambda row: row[metric], reverse=not lower)
    assert ranked[0][metric] != ranked[-1][metric]
    return [row["epoch"] for row in ranked[:most]]


def epoch_of_the_test(run):
    checkpoint = json.loads((run / "test/metrics.json").read_text())["checkpoint"]
    return torch.load(checkpoint, weights_only=True)["epoch"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("", 1),
        ("--checkpoint.save_top_k 2", 2),
        ("--checkpoint.save_top_k -1", 6),
        ("--checkpoint.save_top_k 3 --checkpoint.filename mine", 3),
        ("--checkpoint.filename {epoch}-{val/balanced_accuracy:.3f}", 1),
        ("--checkpoint.save_top_k 2 --checkpoint.filename {epoch}-{val/balanced_accuracy:.3f}", 2),
        ("--checkpoint.enable_version_counter true", 1),
        ("--checkpoint.save_top_k 3 --checkpoint.filename b-{val/balanced_accuracy:.1f}", 3),  # rounded to one name
    ],
)
def test_the_best_epoch_is_tested_and_is_best_ckpt(command, options, kept):
    status, _, error = command(f"{ROUGH} {options}")
    assert status == 0, error
    run = Path("runs/digits_scor/version_0")
    (best,) = best_epochs("val/balanced_accuracy")
    assert epoch_of_the_test(run) == best
    assert torch.load(run / "checkpoints/best.ckpt", weights_only=True)["epoch"] == best
    assert all(path.is_file() for path in (run / "checkpoints").iterdir())  # no folder of a metric's name
    files = {path for path in (run / "checkpoints").glob("*.ckpt") if not path.name.startswith("last")}
    numbered = files - {run / "checkpoints/best.ckpt"} or files
    assert len(numbered) == kept
    epochs = {torch.load(path, weights_only=True)["epoch"] for path in numbered}
    assert epochs == set(best_epochs("val/balanced_accuracy", kept))
    assert json.loads((run / "test/metrics.json").read_text())["metrics"]["test/accuracy"] > 0


@pytest.mark.parametrize(
    ("monitor", "lower"), [("val/loss", True), ("val/cross_entropy", True), ("val/f1_macro", False), ("val/mcc", False)]
)
def test_the_monitor_decides_whether_higher_is_better(command, monitor, lower):
    status, _, error = command(f"{ROUGH} --checkpoint.monitor {monitor}")
    assert status == 0, error
    assert epoch_of_the_test(Path("runs/digits_scor/version_0")) == best_epochs(monitor, lower=lower)[0]
    assert BestCheckpoint(monitor=monitor).mode == ("min" if lower else "max")
    assert BestCheckpoint(monitor=monitor, mode="max").mode == "max"


def test_a_second_checkpoint_does_not_decide_what_is_tested(command):
    # Of the worst epoch, with a metric's name in its own.
    status, _, error = command(
        f"{ROUGH} --trainer.callbacks+ lightning.pytorch.callbacks.ModelCheckpoint --trainer.callbacks.dirpath other "
        "--trainer.callbacks.monitor val/balanced_accuracy --trainer.callbacks.mode min "
        "--trainer.callbacks.filename {epoch}-{val/accuracy:.2f}"
    )
    assert status == 0, error
    assert epoch_of_the_test(Path("runs/digits_scor/version_0")) == best_epochs("val/balanced_accuracy")[0]
    (worst,) = Path("other").rglob("*.ckpt")
    assert worst.parent == Path("other")
    assert worst.name.startswith("epoch=")
    assert "-val_accuracy=0." in worst.name


def test_without_validation_the_last_epoch_is_tested(command):
    status, _, error = command(f"{DIGITS} --data.val_fraction 0")
    assert status == 0, error
    assert epoch_of_the_test(Path("runs/digits_scor/version_0")) == 5


def test_a_stochastic_average_of_the_weights_is_tested_and_saved(command):
    status, _, error = command(
        f"{DIGITS} --trainer.callbacks+ lightning.pytorch.callbacks.StochasticWeightAveraging "
        "--trainer.callbacks.swa_lrs 0.01 --trainer.callbacks.swa_epoch_start 3 "
        "--trainer.callbacks+ tests.callbacks.test_best_checkpoint.Weights"
    )
    assert status == 0, error
    run = Path("runs/digits_scor/version_0")
    report = json.loads((run / "test/metrics.json").read_text())
    assert report["checkpoint"] == str(run / "checkpoints/average.ckpt")
    # Lightning averages the weights that the epochs from the start on begin with, counted from 1.
    epochs = [torch.load(f"epoch={epoch}.pt", weights_only=True) for epoch in (1, 2, 3, 4)]
    saved = torch.load(report["checkpoint"], weights_only=True)["state_dict"]
    for name, value in epochs[0].items():
        torch.testing.assert_close(saved[f"backbone.{name}"], sum(epoch[name] for epoch in epochs) / 4)
        assert not saved[f"backbone.{name}"].allclose(value)
    status, _, error = command("scor-test", "--ckpt_path", report["checkpoint"], "--trust_code", "true")
    assert status == 0, error
    again = json.loads((run / "checkpoints/average.test/metrics.json").read_text())
    assert again["metrics"]["test/accuracy"] == report["metrics"]["test/accuracy"]
    model = ImageClassifier.load_from_checkpoint(report["checkpoint"])
    assert model.backbone.head.weight.equal(saved["backbone.head.weight"])


class Weights(Callback):
    """Keeps the weights of every epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        torch.save(dict(pl_module.backbone.state_dict()), f"epoch={trainer.current_epoch}.pt")


@pytest.mark.parametrize("most", [1, 2])
def test_a_run_that_was_moved_remembers_its_best_score(command, most):
    # The first epochs are good and the later ones bad, so that a run that forgets takes a bad one for the best.
    assert command(f"{DIGITS} --checkpoint.save_top_k {most}")[0] == 0
    shutil.move("runs", "moved_runs")
    Path("elsewhere").mkdir()
    shutil.move("moved_runs", "elsewhere/runs")
    best = torch.load("elsewhere/runs/digits_scor/version_0/checkpoints/best.ckpt", weights_only=True)
    line = f"{DIGITS.replace('max_epochs 6', 'max_epochs 8')} --checkpoint.save_top_k {most} --ckpt_path last"
    status, _, error = command(f"{line} --trainer.default_root_dir elsewhere")
    assert status == 0, error
    after = torch.load("elsewhere/runs/digits_scor/version_0/checkpoints/best.ckpt", weights_only=True)
    assert after["epoch"] in (best["epoch"], 6, 7)
    state = next(value for name, value in after["callbacks"].items() if name.startswith("BestCheckpoint"))
    known = next(value for name, value in best["callbacks"].items() if name.startswith("BestCheckpoint"))
    assert state["best_model_score"] >= known["best_model_score"]


def test_the_last_checkpoint_is_not_asked_for_twice(command):
    status, _, error = command(f"{DIGITS} --checkpoint.save_last true")
    assert status != 0
    assert "`--checkpoint.save_last`: the last checkpoint is always kept" in error


def test_names_are_lightnings_but_for_the_folders(tmp_path):
    for filename in ("{epoch}-{step}", "x-{val/acc:.2f}-{val/acc_top5}", "{a/b/c}", "plain", None):
        ours, theirs = (ModelCheckpoint(tmp_path, filename) for _ in range(2))
        name_without_folders(ours)
        metrics = {"epoch": 3, "step": 9, "val/acc": 0.123, "val/acc_top5": 0.5, "a/b/c": 1.0}
        name = theirs.format_checkpoint_name(metrics).removeprefix(f"{tmp_path}/")
        assert ours.format_checkpoint_name(metrics) == str(tmp_path / name.replace("/", "_"))


def test_it_works_in_a_users_own_project(tmp_path):
    checkpoint = BestCheckpoint(monitor=None, dirpath=tmp_path, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, limit_train_batches=2, limit_val_batches=0, callbacks=[checkpoint],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.ckpt", "best-epoch=0-step=2.ckpt", "best-epoch=1-step=4.ckpt", "best-epoch=2-step=6.ckpt"
    }  # fmt: skip
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(
    "kind", ["scor_lightning.callbacks.BestCheckpoint", "lightning.pytorch.callbacks.ModelCheckpoint"]
)
def test_another_checkpoint_does_not_overwrite_the_runs_own(command, kind):
    second = f"--trainer.callbacks+ {kind} --trainer.callbacks.monitor val/loss --trainer.callbacks.filename best"
    status, _, error = command(f"{DIGITS} {second}")
    assert status == 1
    assert f"for the {kind.rpartition('.')[2]} among `--trainer.callbacks`: the run writes best.ckpt" in error
    assert not Path("runs").exists()
    status, _, error = command(f"{DIGITS} {second} --trainer.callbacks.dirpath other --trainer.callbacks.mode min")
    assert status == 0, error


def test_a_finished_average_is_not_replaced_when_its_run_is_resumed(command):
    line = (
        f"{DIGITS} --trainer.callbacks+ lightning.pytorch.callbacks.StochasticWeightAveraging "
        "--trainer.callbacks.swa_lrs 0.01 --trainer.callbacks.swa_epoch_start 3"
    )
    assert command(line)[0] == 0
    run = Path("runs/digits_scor/version_0")
    average, report = ((run / name).read_bytes() for name in ("checkpoints/average.ckpt", "test/metrics.json"))
    status, _, error = command(f"{line} --ckpt_path last")
    assert status == 0, error
    assert (run / "checkpoints/average.ckpt").read_bytes() == average
    assert (run / "test/metrics.json").read_bytes() == report
