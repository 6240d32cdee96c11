"""A class is identified by its name, whatever the name is, in every command."""

import csv
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torchvision.datasets import CIFAR100

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import (
    CIFAR100DataModule,
    DTDDataModule,
    ImageFolderDataModule,
    OxfordPetsDataModule,
    ReduceClasses,
)
from scor_lightning.models import ConvNet
from tests.comparison import compare_losses
from tests.data.cifar import sums, write_cifar100
from tests.data.photographs import write_dtd, write_folders, write_oxford_pets

ODD_NAMES = [
    "1",
    "10",
    "2",
    "$5 or $6",
    "a b",
    "c++",
    "(x",
    "<b>",
    'it\'s "it"',
    "yes",
    "bee",
    "beetle",
    "кот",
    "[0-9]*",
]
REDUCED = ["1", "yes", "$5 or $6", "кот"]
IMAGES = "--data ImageFolderDataModule --data.root odd --data.resolution 16 --data.batch_size 16 --data.num_workers 0"
TRAINING = (
    "--model.backbone ConvNet --model.loss torch.nn.CrossEntropyLoss --trainer.max_epochs 1 "
    "--trainer.enable_progress_bar false --trainer.log_every_n_steps 1 "
    "--trainer.callbacks+ scor_lightning.callbacks.WeightSpectrum"
)
FOLDER = f"scor-fit {IMAGES} {TRAINING}".split()
COMPARISON = f"{IMAGES} {TRAINING} --data.val_fraction 0 --repeats 2 --processes 1".split()


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def imbalance(names, factor="0.5"):
    return ["--data.imbalance", "ReduceClasses", "--data.imbalance.factor", factor, "--data.imbalance.classes", names]


@pytest.fixture
def odd(tmp_path):
    write_folders(tmp_path / "odd", dict.fromkeys(ODD_NAMES, 12))
    return sorted(ODD_NAMES)


@pytest.mark.exhaustive
def test_every_command_takes_odd_class_names(command, odd):
    names = json.dumps(REDUCED, ensure_ascii=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as matplotlib's of a formula that it cannot read
        warnings.filterwarnings("ignore", module="lightning|torch|torchmetrics")
        status, out, error = command("scor-fit", *FOLDER[1:], *imbalance(names))
    assert status == 0, error
    assert f"({len(REDUCED)} of {len(odd)} classes)" in out
    run = next(Path("runs").glob("*/version_0"))
    rows = {row["class"]: row for row in read(run / "test/classes.csv")}
    assert list(rows) == odd
    assert {name for name, row in rows.items() if row["training_images"] != "9"} == set(REDUCED)
    assert [row["class"] for row in json.loads((run / "test/metrics.json").read_text())["classes"]] == odd
    best = str(run / "checkpoints/best.ckpt")
    for evaluate in ("scor-test", "scor-validate", "scor-predict"):
        status, out, error = command(evaluate, "--ckpt_path", best)
        assert status == 0, error
    predicted = read(run / "checkpoints/best.predictions.csv")
    assert {row["true_class"] for row in predicted} == set(odd)
    status, _, error = command("scor-predict", "--ckpt_path", best, "--images", "odd", "--output", "photos.csv")
    assert status == 0, error
    assert {row["predicted_class"] for row in read("photos.csv")} <= set(odd)
    losses = [
        "--methods",
        '{"$ce$ <b>": "loss/cross_entropy.yaml", "f (2)": "loss/focal.yaml"}',
        "--output",
        "out",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="lightning|torch|torchmetrics")
        status, _, error = command("scor-compare", *COMPARISON, *losses, *imbalance(names))
    assert status == 0, error
    reduced = {tuple(sorted(json.loads(row["reduced"]))) for row in read("out/results.csv")}
    assert reduced == {tuple(sorted(REDUCED))}
    status, out, error = command("scor-spectrum", best, str(run / "checkpoints/last.ckpt"))
    assert status == 0, error
    status, out, error = command("scor-report", "out", "--baseline", "f (2)")
    assert status == 0, error
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "$ce$ &lt;b&gt;" in page
    assert "<b>$ce$ <b>" not in page


def test_charts_show_the_tags_that_they_name_and_no_others(command, odd):
    # One chart for each of the six smallest classes, four of which have names that mean something else as a pattern.
    smallest = ["bee", "c++", "(x", "$5 or $6", "[0-9]*", "1"]
    status, _, error = command("scor-fit", *FOLDER[1:], *imbalance(json.dumps(smallest)))
    assert status == 0, error
    run = next(Path("runs").glob("*/version_0"))
    events = EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()
    found = Layout()
    found.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    tags = events.Tags()["scalars"]
    charts = next(category for category in found.category if category.title.startswith("The smallest classes")).chart
    shown = [[tag for tag in tags if re.match(chart.multiline.tag[0], tag)] for chart in charts]
    assert sorted(shown) == sorted([f"val/recall/{name}"] for name in smallest)
    single = [c for category in found.category for c in category.chart if ".*" not in c.multiline.tag[0]]
    for chart in single:
        assert len([tag for tag in tags if re.match(chart.multiline.tag[0], tag)]) <= 1, chart.title


def test_a_number_in_quotes_is_a_name_and_without_an_index(tmp_path):
    write_folders(tmp_path / "numbers", {"1": 4, "10": 4, "2": 4})

    def reduced(classes):
        data = ImageFolderDataModule(str(tmp_path / "numbers"), imbalance=ReduceClasses(0.5, classes), val_fraction=0)
        data.setup()
        return [data.class_names[i] for i in data.description.reduced_classes]

    assert reduced(["1"]) == ["1"]
    assert reduced(["10"]) == ["10"]
    assert reduced([1]) == ["10"]
    with pytest.raises(ValueError, match=r'index 10; a class of that name is "10", in quotes'):
        reduced([10])


@pytest.mark.parametrize(("given", "reduced"), [('["10"]', "10"), ("[1]", "(x"), ('["1"]', "1"), ('["yes"]', "yes")])
def test_quotes_survive_the_command_line_and_the_file(command, odd, given, reduced):
    status, _, error = command("scor-fit", *FOLDER[1:], *imbalance(given))
    assert status == 0, error
    run = next(Path("runs").glob("*/version_0"))
    # The run's own configuration is read back by the evaluation, and by the comparison in the file below.
    for result in (run / "test/classes.csv", Path("again")):
        if not result.suffix:
            status, _, error = command("scor-test", "--ckpt_path", str(run / "checkpoints/best.ckpt"))
            assert status == 0, error
            result = run / "checkpoints/best.test/classes.csv"
        rows = {row["class"]: row["training_images"] for row in read(result)}
        assert [name for name, images in rows.items() if images != "9"] == [reduced]


@pytest.mark.parametrize("unquoted", ["[yes]", "[no, cat]", "[on]", "[1e3]", "[2.5]"])
@pytest.mark.parametrize("script", ["scor-fit", "scor-compare"])
def test_names_that_yaml_reads_as_something_else_are_to_be_quoted(command, odd, unquoted, script):
    options = FOLDER[1:] if script == "scor-fit" else [*COMPARISON, "--methods", "loss/focal.yaml", "loss/scor.yaml"]
    status, _, error = command(script, *options, *imbalance(unquoted))
    assert status != 0
    message = error[error.index("error: ") :].strip()
    assert "`classes`" in message
    assert "quotes" in message
    assert len(message.splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("write", "make", "name"),
    [
        (write_cifar100, CIFAR100DataModule, "kind 7"),
        (write_dtd, DTDDataModule, "texture07"),
        (write_oxford_pets, OxfordPetsDataModule, "Breed 07"),
    ],
)
def test_names_that_are_known_only_after_reading(monkeypatch, tmp_path, write, make, name):
    write(tmp_path)
    if make is CIFAR100DataModule:
        for attribute, value in sums(CIFAR100, tmp_path).items():
            monkeypatch.setattr(CIFAR100, attribute, value)

    def data():
        return make(
            str(tmp_path),
            imbalance=ReduceClasses(0.5, [name]),
            val_fraction=0,
            resolution=32,
            num_workers=0,
            batch_size=64,
        )

    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = data()
    model = ImageClassifier(
        ConvNet(module.num_classes, in_channels=3, image_size=(32, 32)), torch.nn.CrossEntropyLoss()
    )
    trainer.fit(model, module)
    place = list(module.class_names).index(name)
    assert model.class_groups["reduced"].nonzero().flatten().tolist() == [place]
    rows = compare_losses(
        data(), ConvNet, {"a": torch.nn.CrossEntropyLoss, "b": torch.nn.CrossEntropyLoss}, repeats=2, epochs=1
    )
    assert all(row["reduced"] == [name] for row in rows)


def test_sizes_by_name(command, odd):
    sizes = dict.fromkeys(odd, 4) | {"10": 6, "$5 or $6": 3}
    imbalance = {"class_path": "scor_lightning.datamodules.ClassCounts", "init_args": {"sizes": sizes}}
    Path("sizes.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"imbalance": imbalance}}}))
    status, _, error = command("scor-fit", *FOLDER[1:], "--config", "sizes.yaml")
    assert status == 0, error
    rows = read(next(Path("runs").glob("*/version_0/test/classes.csv")))
    assert {row["class"]: int(row["training_images"]) for row in rows} == sizes
