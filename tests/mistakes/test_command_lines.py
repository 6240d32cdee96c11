"""Every mistake on a command line ends it with one line that names the option, and with nothing changed."""

from pathlib import Path

import pytest

from scor_lightning.cli import fit, predict, report, spectrum, test, validate
from scor_lightning.cli.compare import run as compare
from tests.data.photographs import write_folders
from tests.mistakes import told

FIT = "--config digits_scor.yaml"
# The command, its options, and what the line has to name.
MISTAKES = [
    (fit.run, f"{FIT} --data.batch_size ten", ["--data.batch_size", "an int", "'ten'"]),
    (fit.run, f"{FIT} --data.batch_size 1.5", ["--data.batch_size", "an int"]),
    (fit.run, f"{FIT} --data.batch_size 0", ["batch_size"]),
    (fit.run, f"{FIT} --data.batch_siz 10", ["--data.batch_siz", "did you mean --data.batch_size"]),
    (fit.run, f"{FIT} --data.val_fraction 1", ["val_fraction"]),
    (fit.run, f"{FIT} --data.val_fraction x", ["--data.val_fraction", "a float"]),
    (fit.run, f"{FIT} --data.seed -1", ["seed"]),
    (fit.run, f"{FIT} --data.evaluation maybe", ["--data.evaluation"]),
    (fit.run, f"{FIT} --data.sampling often", ["--data.sampling"]),
    (fit.run, f"{FIT} --data.num_workers -1", ["num_workers"]),
    (fit.run, f"{FIT} --data.imbalance.factor 3", ["factor"]),
    (fit.run, f"{FIT} --data.imbalance.factr .1", ["factr"]),
    (fit.run, f"{FIT} --data.imbalance LongTial", ["LongTial", "did you mean LongTail"]),
    (fit.run, f"{FIT} --data.mean [0.5]", ["mean", "std"]),
    (fit.run, f"{FIT} --data DigitsData", ["--data", "DigitsData", "did you mean DigitsDataModule"]),
    (fit.run, f"{FIT} --trainer.max_epoch 1", ["--trainer.max_epoch", "did you mean --trainer.max_epochs"]),
    (fit.run, f"{FIT} --trainer.max_epochs many", ["--trainer.max_epochs", "'many'"]),
    (fit.run, f"{FIT} --trainer.max_epochs 0", ["--trainer.max_epochs"]),
    (fit.run, f"{FIT} --trainer.limit_train_batches 0", ["--trainer.limit_train_batches"]),
    (fit.run, f"{FIT} --trainer.gradient_clip_val -1", ["--trainer.gradient_clip_val"]),
    (fit.run, f"{FIT} --trainer.accelerator abc", ["accelerator"]),
    (fit.run, f"{FIT} --trainer.callbacks+=LearningRateFinder", ["--trainer.callbacks", "LearningRateFinder"]),
    (fit.run, f"{FIT} --trainer.callbacks+=EarlyStoping", ["EarlyStoping", "did you mean EarlyStopping"]),
    (fit.run, f"{FIT} --trainr.max_epochs 1", ["--trainr.max_epochs", "did you mean"]),
    (fit.run, f"{FIT} --model.loss FocalLos", ["--model.loss", "did you mean FocalLoss"]),
    (fit.run, f"{FIT} --model.loss.alpha x", ["--model.loss.alpha", "a float"]),
    (fit.run, f"{FIT} --model.loss.alpha -1", ["alpha"]),
    (fit.run, f"{FIT} --model.loss.alhpa 1", ["--model.loss.alhpa", "did you mean --model.loss.alpha"]),
    (fit.run, f"{FIT} --model.backbone Nope", ["--model.backbone", "Nope"]),
    (fit.run, f"{FIT} --model.backbone MLP --model.backbone.hiden [3]", ["--model.backbone.hiden", "hidden"]),
    (fit.run, f"{FIT} --model.backbone.num_classes 3", ["--model.backbone.num_classes"]),
    (fit.run, f"{FIT} --model.optimizer Adm", ["--model.optimizer", "did you mean Adam"]),
    (fit.run, f"{FIT} --seed_everything abc", ["--seed_everything", "an int"]),
    (fit.run, f"{FIT} --ckpt_path nope.ckpt", ["--ckpt_path", "nope.ckpt"]),
    (fit.run, "--config digits_sco.yaml", ["--config", "did you mean digits_scor.yaml"]),
    (fit.run, "--config nothing/like/it.yaml", ["--config", "nothing/like/it.yaml"]),
    (fit.run, "digits_scor.yaml", ["--config digits_scor.yaml"]),
    (fit.run, f"{FIT} digits", ["digits", "--"]),
    (test.run, "--ckpt_path photographs", ["--ckpt_path", "photographs"]),
    (test.run, "--ckpt_path nope.ckpt", ["--ckpt_path", "nope.ckpt"]),
    (validate.run, "--ckpt_path nope.ckpt", ["--ckpt_path", "nope.ckpt"]),
    (validate.run, f"{FIT}", ["--ckpt_path"]),
    (compare, "--config compare/digits.yaml --repeats x", ["--repeats", "an int", "'x'"]),
    (compare, "--config compare/digits.yaml --repeats 0", ["--repeats"]),
    (compare, "--config compare/digits.yaml --repeat 2", ["--repeat", "did you mean --repeats"]),
    (compare, "--config compare/digits.yaml --baseline nobody", ["--baseline", "nobody"]),
    (compare, "--config compare/digits.yaml --measure luck", ["--measure", "luck"]),
    (compare, "--config compare/digits.yaml --margin -1", ["--margin"]),
    (compare, "--config compare/digits.yaml --engine fast", ["--engine"]),
    (compare, "--config compare/digits.yaml --processes 0", ["--processes"]),
    (compare, "--config compare/digits.yaml --model.loss.alpha x", ["alpha", "a float"]),
    (compare, "--config compare/digit.yaml", ["--config", "did you mean compare/digits.yaml"]),
    (
        compare,
        "--config digits_scor.yaml --methods loss/fokal.yaml loss/scor.yaml",
        ["loss/fokal.yaml", "loss/focal.yaml"],
    ),
    (compare, "--config digits_scor.yaml --methods loss/focal.yaml", ["--methods"]),
    (predict.run, "--ckpt_path nope.ckpt --images photographs", ["--ckpt_path", "nope.ckpt"]),
    (predict.run, "--ckpt_path nope.ckpt --images photographs --batch_size x", ["--batch_size"]),
    (predict.run, "--ckpt_path nope.ckpt --images photographs --outptu a.csv", ["--outptu", "did you mean --output"]),
    (predict.run, "--ckpt_path nope.ckpt --images photographs --overwrite maybe", ["--overwrite"]),
    (predict.run, "--images photographs", ["--ckpt_path"]),
    (spectrum.run, "photographs", ["CHECKPOINT", "photographs"]),
    (spectrum.run, "nope.ckpt", ["CHECKPOINT", "nope.ckpt"]),
    (spectrum.run, "nope.ckpt --tolerance none", ["--tolerance"]),
    (spectrum.run, "nope.ckpt --pictur a.png", ["--pictur", "did you mean --picture"]),
    (spectrum.run, "nope.ckpt --picture no/where/a.png", ["--picture", "no/where/a.png"]),
    (report.run, "photographs", ["photographs", "manifest.json"]),
    (report.run, "photographs --margin x", ["--margin", "a float"]),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(Path("photographs"), {"ant": 2, "bee": 1})
    return tmp_path


@pytest.mark.parametrize(
    ("run", "line", "named"), MISTAKES, ids=[f"{run.__module__.rpartition('.')[2]} {line}" for run, line, _ in MISTAKES]
)
def test_a_mistake_is_told_in_one_line(place, run, line, named):
    before = sorted(map(str, Path().rglob("*")))
    told(run, line, named)
    assert sorted(map(str, Path().rglob("*"))) == before
