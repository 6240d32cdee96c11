import csv
import json
import os
import re
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import ClassReport, Dashboard, WeightSpectrum
from scor_lightning.datamodules import DigitsDataModule, ImageDataModule, ImagesInMemory, LongTail, ReduceClasses
from scor_lightning.models import MLP, ConvNet

PICTURES = {"recall_by_class", "confusion_matrix", "worst_images"}


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options.setdefault("logger", TensorBoardLogger(folder, name="tb", default_hp_metric=False))
    options.setdefault("callbacks", ClassReport())
    return Trainer(accelerator="cpu", **quiet, **options)


class Stripes(ImageDataModule):
    """Class c has its one bright pixel at c."""

    num_classes = 12
    class_names = tuple(f"stripe {c}" for c in range(12))
    in_channels = 1
    native_size = (1, 12)
    mean = (0.0,)
    std = (1.0,)

    def load(self, split):
        if split == "val":
            return None
        targets = torch.arange(12).repeat(50)
        return ImagesInMemory(nn.functional.one_hot(targets, 12).to(torch.uint8).mul(255).view(-1, 1, 1, 12), targets)


def test_of_many_classes_the_ten_worst_are_shown(capsys):
    model = ImageClassifier(MLP(num_classes=12, image_size=(1, 12)), nn.CrossEntropyLoss())
    with torch.no_grad():  # knows every class but the classes 3 and 7, which it takes for 0
        model.backbone.body[1].weight.zero_()[:12].fill_diagonal_(1)
        model.backbone.body[1].bias.zero_()
        model.backbone.head.weight.zero_()[:, :12].fill_diagonal_(1)
        model.backbone.head.bias.zero_()
        for missed in (3, 7):
            model.backbone.head.weight[missed, missed] = -1
            model.backbone.head.weight[0, missed] = 1
    fit = Trainer(logger=False, callbacks=ClassReport(), enable_progress_bar=False, accelerator="cpu")
    fit.test(model, Stripes(imbalance=LongTail(5)), verbose=False)
    out = capsys.readouterr().out
    assert "class (the 10 lowest recalls of 12)  training images  test images  recall  95 % interval" in out
    rows = re.findall(r"^(stripe \d+) +(\d+) +50  ([01]\.\d{4})  \[0\.\d{3}, [01]\.\d{3}\]$", out, re.MULTILINE)
    assert len(rows) == 10
    assert [row[::2] for row in rows[:2]] == [("stripe 3", "0.0000"), ("stripe 7", "0.0000")]
    assert all(recall == "1.0000" for *_, recall in rows[2:])
    assert rows[0][1] == str(int(45 * 5 ** (-3 / 11)))
    assert "accuracy           0.8333" in out
    # 45 to 9 training images: no class of more than 100; stripes 7 and more have fewer than 20.
    assert "medium-shot        0.8333  (6 of 12 classes; 20 to 100 training images)" in out
    assert "few-shot           0.8333  (6 of 12 classes; fewer than 20 training images)" in out
    assert "many-shot          -       (no class of more than 100 training images)" in out
    assert re.search(r"largest third      \d\.\d{4}  \(4 of 12 classes\)", out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tested run with both loggers: its folder, the trainer, and target and logits of all test images."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    data = DigitsDataModule(imbalance=ReduceClasses(0.05, classes=[3, 8]))
    model = ImageClassifier(MLP(num_classes=10, image_size=(8, 8), hidden=[16]), nn.CrossEntropyLoss())
    loggers = [TensorBoardLogger(folder, name="tb", default_hp_metric=False), CSVLogger(folder, name="csv")]
    fit = trainer(folder, max_epochs=3, logger=loggers)
    fit.fit(model, data)
    fit.test(model, data, verbose=False)
    images, target = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        return Path(fit.log_dir), fit, target, model.eval()(images), data


def test_the_files_hold_what_scikit_learn_finds(run):
    folder, _, target, logits, data = run
    predicted = logits.argmax(1)
    with open(folder / "test/classes.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [str(c) for c in range(10)]
    assert [int(row["training_images"]) for row in rows] == data.class_counts.tolist()
    expected = precision_recall_fscore_support(target, predicted, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "test_images"), expected, strict=True):
        assert [float(row[name]) for row in rows] == pytest.approx(values.tolist(), abs=1e-6)
    with open(folder / "test/confusion_matrix.csv") as file:
        header, *matrix = csv.reader(file)
    assert header == ["true class", *(str(c) for c in range(10))]
    assert [list(map(int, row[1:])) for row in matrix] == confusion_matrix(target, predicted).tolist()
    report = json.loads((folder / "test/metrics.json").read_text())
    assert report["loss"] == "CrossEntropyLoss()"
    assert report["checkpoint"] is None  # the weights in memory
    assert [row["class"] for row in report["classes"]] == [str(c) for c in range(10)]
    metrics = report["metrics"]
    assert metrics["test/accuracy"] == pytest.approx(float((predicted == target).float().mean()))
    reduced = (target == 3) | (target == 8)
    assert metrics["test/accuracy_reduced"] == pytest.approx(float((predicted == target)[reduced].float().mean()))
    assert {"test/loss", "test/g_mean", "test/mcc", "test/calibration_error", "test/accuracy_few"} <= set(metrics)
    assert metrics["test/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, target)), rel=1e-5)
    assert not list(folder.rglob("*.part"))


def test_the_pictures_are_in_the_folder_and_in_tensorboard(run):
    folder = run[0]
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"train/class_sizes", *(f"test/{name}" for name in PICTURES)}
    for name in PICTURES:
        size = Image.open(folder / "test" / f"{name}.png").size
        shown = events.Images(f"test/{name}")[0]
        assert (shown.width, shown.height) == size
        assert min(size) > 300


def test_the_worst_images_are_those_of_the_lowest_probability(tmp_path, monkeypatch):
    from scor_lightning import figures

    torch.manual_seed(0)
    data = DigitsDataModule()
    model = ImageClassifier(MLP(num_classes=10, image_size=(8, 8)), nn.CrossEntropyLoss())
    seen = []
    draw = figures.worst_images_figure
    monkeypatch.setattr(figures, "worst_images_figure", lambda *args: seen.append(args) or draw(*args))
    trainer(tmp_path).test(model, data, verbose=False)
    images, target = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        probability = model.eval()(images).softmax(1).gather(1, target[:, None])[:, 0]
    worst = probability.argsort()[:24]
    shown, true, _, probabilities, _ = seen[0]
    assert probabilities == pytest.approx(probability[worst].tolist(), rel=1e-4)
    assert true == [str(c) for c in target[worst].tolist()]
    assert shown[0].equal(images[worst[0]])


def test_every_scalar_reaches_the_csv_logger(run):
    fit, data = run[1], run[4]
    with open(f"{fit.loggers[1].log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    events = EventAccumulator(fit.loggers[0].log_dir).Reload()
    assert set(events.Tags()["scalars"]) <= logged
    assert {f"test/recall/{c}" for c in data.class_names} <= logged


def test_files_go_to_a_folder_of_python_runs_or_to_one_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ImageClassifier(MLP(num_classes=10, image_size=(8, 8)), nn.CrossEntropyLoss())
    trainer(tmp_path, logger=False).test(model, DigitsDataModule(), verbose=False)
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "runs/python/version_0/test"]
    trainer(tmp_path, logger=False, callbacks=ClassReport("here/it")).test(model, DigitsDataModule(), verbose=False)
    names = {path.name for path in Path("here/it").iterdir()}
    assert names == {"metrics.json", "classes.csv", "confusion_matrix.csv", *(f"{name}.png" for name in PICTURES)}


def test_validation_writes_no_file(tmp_path, capsys):
    model = ImageClassifier(MLP(num_classes=10, image_size=(8, 8)), nn.CrossEntropyLoss())
    trainer(tmp_path).validate(model, DigitsDataModule(), verbose=False)
    assert "balanced accuracy" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))


def test_images_of_several_sizes_and_a_users_own_module(tmp_path):
    class Mean(nn.Module):
        num_classes = 2

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images):
            return self.head(images.mean((2, 3)))

    batches = [(torch.rand(2, 3, side, side), torch.tensor([0, 1])) for side in (4, 7)]
    loader = DataLoader(batches, batch_size=None)
    trainer(tmp_path).test(ImageClassifier(Mean(), nn.CrossEntropyLoss()), loader, verbose=False)
    test = tmp_path / "tb/version_0/test"
    assert {path.name for path in test.iterdir() if path.suffix == ".png"} == {
        "confusion_matrix.png",
        "worst_images.png",
    }
    assert (test / "classes.csv").read_text().splitlines()[1].startswith("0,,2,")  # training images are not known
    with pytest.warns(UserWarning, match="ClassReport requires an ImageClassifier and does not report BoringModel"):
        trainer(tmp_path / "own").test(BoringModel(), verbose=False)
    assert not list((tmp_path / "own").rglob("*.json"))
    with pytest.warns(UserWarning, match="ClassReport requires an ImageClassifier and does not report BoringModel"):
        trainer(tmp_path / "own", max_steps=1).fit(BoringModel())


class WithoutClass3(ImageDataModule):
    """Four classes, of the last of which there is no test image."""

    num_classes = 4
    class_names = ("a", "b", "c", "d")
    in_channels = 1
    native_size = (2, 2)
    mean = (0.0,)
    std = (1.0,)

    def load(self, split):
        if split == "val":
            return None
        size = {"train": 48, "test": 12}[split]
        images = torch.randint(256, (size, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return ImagesInMemory(images, torch.arange(size) % {"train": 4, "test": 3}[split])


def test_a_class_without_test_images_has_no_recall(tmp_path, capsys):
    model = ImageClassifier(MLP(num_classes=4, image_size=(2, 2)), nn.CrossEntropyLoss())
    fit = trainer(tmp_path)
    fit.test(model, WithoutClass3(), verbose=False)
    assert "test/recall/c" in fit.callback_metrics
    assert "test/recall/d" not in fit.callback_metrics
    assert re.search(r"^c +\d+ +\d+ +[01]\.", out := capsys.readouterr().out, re.MULTILINE)
    assert not re.search(r"^d +\d+", out, re.MULTILINE)
    folder = tmp_path / "tb/version_0/test"

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    report = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    assert [row["recall"] is None for row in report["classes"]] == [False, False, False, True]
    assert report["checkpoint"] is None
    assert (folder / "classes.csv").read_text().splitlines()[-1].startswith("d,11,0,,")


class Uneven(ImageDataModule):
    """9 validation images and 33 test images: of the last batch of 8, the second process has none."""

    num_classes = 3
    class_names = ("a", "b", "c")
    in_channels = 1
    native_size = (8, 8)
    mean = (0.0,)
    std = (1.0,)

    def load(self, split):
        if split == "val":
            return None
        size = {"train": 45, "test": 33}[split]
        images = torch.randint(256, (size, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return ImagesInMemory(images, torch.arange(size) % 3)


def on_rank(rank, folder, port):
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ImageClassifier(ConvNet(num_classes=3, image_size=(8, 8), widths=[8]), nn.CrossEntropyLoss())
    loggers = [TensorBoardLogger(folder, name="tb"), CSVLogger(folder, name="csv")]
    callbacks = [WeightSpectrum(), ClassReport(), Dashboard()]
    fit = trainer(folder, max_epochs=2, logger=loggers, callbacks=callbacks, devices=2, strategy="ddp")
    data = Uneven(batch_size=8, val_fraction=0.2)
    fit.fit(model, data)
    val = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("val/")}
    fit.test(model, data, verbose=False)
    torch.save((model.backbone.state_dict(), val), f"{folder}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_count_every_sample_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(on_rank, (str(tmp_path), port), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert states[0][1] == states[1][1]
    model = ImageClassifier(ConvNet(num_classes=3, image_size=(8, 8), widths=[8]), nn.CrossEntropyLoss())
    model.backbone.load_state_dict(states[0][0])
    alone = trainer(tmp_path / "alone", logger=False, callbacks=ClassReport(tmp_path / "alone"))
    alone.test(model, data := Uneven(batch_size=8, val_fraction=0.2), verbose=False)
    folder = tmp_path / "tb/version_0"
    for name in ("classes.csv", "confusion_matrix.csv", "worst_images.png"):
        assert (folder / "test" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    one, two = (
        json.loads((path / "metrics.json").read_text())["metrics"] for path in (tmp_path / "alone", folder / "test")
    )
    assert {name: two[name] for name in one} == pytest.approx(one, rel=1e-5)
    assert json.loads((folder / "test/metrics.json").read_text())["classes"][0]["test_images"] == 11
    alone.validate(model, data, verbose=False)
    validated = {name: float(value) for name, value in alone.callback_metrics.items()}
    assert {name: states[0][1][name] for name in validated} == pytest.approx(validated, rel=1e-5)
    # Only rank zero reads the weights and writes.
    assert len(list((folder / "spectra").iterdir())) == 2
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["version_0"]
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Scalars("spectrum/head/sigma_min")) == 2
