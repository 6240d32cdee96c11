"""Benchmarks at a small scale, so that they work on the day that they are needed."""

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.models import CifarResNet
from tests.benchmarks.cifar10_data import BATCHES, long_tailed, pack_official, unpack_cifar
from tests.benchmarks.cifar10_lt import EPOCHS, AccuracyCurve, curve, write_rows
from tests.benchmarks.cifar10_plain import plain_network
from tests.test_classifier import network, trainer


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path):
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--small", "--output", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())
    assert results["stacked"]["trainings"] == 16
    assert results["share"]["21841"]["scor_ms"] > 0
    assert results["resnet50"]["bf16-mixed"]["scor"] > 0
    assert results["cifar"]["eager"]["step_ms"][0] > 0


def test_the_network_of_the_plain_loop_computes_that_of_the_package():
    """Given the same weights, in the order of the layers."""
    plain, own = plain_network(20), CifarResNet(num_classes=10, depth=20)
    plain.load_state_dict(dict(zip(plain.state_dict(), own.state_dict().values(), strict=True)))
    images = torch.rand(8, 3, 32, 32)
    torch.testing.assert_close(plain(images), own(images))


def test_the_curve_of_a_training_ends_with_the_accuracy_of_its_test(tmp_path):
    fit = trainer(
        tmp_path, max_epochs=3, enable_checkpointing=False, callbacks=[AccuracyCurve(str(tmp_path / "curve.csv"))]
    )
    data, model = DigitsDataModule(val_fraction=0), ImageClassifier(network(), nn.CrossEntropyLoss())
    fit.fit(model, data)
    (tested,) = fit.test(model, data, verbose=False)
    epochs = curve(tmp_path)
    assert list(epochs) == [0, 1, 2]
    assert epochs[2] == pytest.approx(tested["test/accuracy"], abs=6e-5)


def test_rows_of_methods_with_other_measures_are_one_table(tmp_path):
    for method, place, metrics in (
        ("cross_entropy", "test", {"test/accuracy": 0.5}),
        ("crt", "stage_2/test", {"test/accuracy": 0.6, "test/brier": 0.1}),
        ("crt", "test", {"test/accuracy": 0.4}),  # that of the first stage
        ("focal", "test", {"test/accuracy": 0.7}),  # stopped before its last epoch
    ):
        report = tmp_path / method / "0/runs/cao2019/version_0" / place / "metrics.json"
        report.parent.mkdir(parents=True)
        report.write_text(json.dumps({"metrics": metrics}))
        epochs = range(EPOCHS - (method == "focal"))
        (tmp_path / method / "0/curve.csv").write_text("".join(f"{epoch},0.{epoch:03d}\n" for epoch in epochs))
    write_rows(tmp_path)
    assert (tmp_path / "rows.csv").read_text().split() == [
        "method,seed,best_test_epoch,test/accuracy,test/brier",
        "cross_entropy,0,0.199,0.5,",
        "crt,0,0.199,0.6,0.1",
    ]


def test_official_images_are_packed_and_unpacked_without_loss(tmp_path):
    """From PNG files like those of the package: an image per row."""
    draw = np.random.default_rng(0)
    images = {
        split: draw.integers(256, size=(200 * len(names), 32 * 32, 3), dtype=np.uint8)
        for split, names in BATCHES.items()
    }
    labels = {split: draw.permutation(np.arange(len(rows)) % 10) for split, rows in images.items()}
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        for split, names in BATCHES.items():
            (tmp_path / f"{split}_lables.json").write_text(json.dumps(labels[split].tolist()))
            tar.add(tmp_path / f"{split}_lables.json", f"package/{split}_lables.json")
            for name, rows in zip(names, np.split(images[split], len(names)), strict=True):
                Image.fromarray(rows).save(tmp_path / f"{name}.png")
                tar.add(tmp_path / f"{name}.png", f"package/{name}.png")
    mean = images["train"].mean(axis=(0, 1)) / 255
    with pytest.raises(ValueError, match="official training images"):
        pack_official(tmp_path / "package.tgz", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    pack_official(tmp_path / "package.tgz", tmp_path / "packed", mean)
    (tmp_path / "unpacked").mkdir()
    assert unpack_cifar(tmp_path / "packed", tmp_path / "unpacked") == "official pixels"
    data = long_tailed(tmp_path / "unpacked")
    data.setup()
    for split in ("train", "test"):
        found, index = data.split(split)
        order = np.argsort(labels[split], kind="stable")
        assert found.targets.tolist() == labels[split][order].tolist()
        expected = images[split][order][index].reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
        assert (found.images[index].numpy() == expected).all()
    assert len(images["train"]) == 1000
    assert len(data.split("train")[1]) < 1000
