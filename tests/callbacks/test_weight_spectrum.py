import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import WeightSpectrum
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.models import MLP, ConvNet
from scor_lightning.spectrum import MEASURES

LAYERS = {"body.0.0": (8, 9), "body.1.0": (8, 72), "head": (10, 8)}


def trainer(callback, folder, **options):
    options = {"max_epochs": 1, "logger": TensorBoardLogger(folder, name="tb"), **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", callbacks=callback, **quiet, **options)


def classifier(network=None):
    network = network or ConvNet(num_classes=10, image_size=(8, 8), widths=[8, 8])
    return ImageClassifier(network, nn.CrossEntropyLoss())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs with both loggers: the network, the run folder and the folder of the CSV logger."""
    folder = tmp_path_factory.mktemp("run")
    loggers = [TensorBoardLogger(folder, name="tb"), CSVLogger(folder, name="csv")]
    network = ConvNet(num_classes=10, image_size=(8, 8), widths=[8, 8])
    trainer(WeightSpectrum(), folder, max_epochs=2, logger=loggers).fit(classifier(network), DigitsDataModule())
    return network, loggers[0].log_dir, loggers[1].log_dir


def test_every_weight_matrix_reaches_every_logger(run):
    network, folder, csv_folder = run
    events = EventAccumulator(folder).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("spectrum/")}
    expected = {f"spectrum/{layer}/{measure}" for layer in LAYERS for measure in MEASURES}
    assert tags == expected | {"spectrum/seconds"} | {f"spectrum/head/row_norm/{c}" for c in range(10)}
    for layer in LAYERS:
        weight = network.get_submodule(layer).weight.detach().flatten(1)
        sigma = torch.linalg.svdvals(weight.double())
        points = events.Scalars(f"spectrum/{layer}/sigma_max")
        assert [point.step for point in points] == [21, 42]
        assert points[-1].value == pytest.approx(sigma[0].item(), rel=1e-6)
        assert events.Scalars(f"spectrum/{layer}/sigma_min")[-1].value == pytest.approx(sigma[-1].item(), rel=1e-5)
        assert events.Scalars(f"spectrum/{layer}/rank")[-1].value == torch.linalg.matrix_rank(weight)
    norm = events.Scalars("spectrum/head/row_norm/3")[-1].value
    assert norm == pytest.approx(float(network.head.weight.detach()[3].norm()), rel=1e-6)
    assert events.Scalars("spectrum/seconds")[-1].value > 0
    with open(f"{csv_folder}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["spectrum/head/rank"]]
    assert len(rows) == 2
    assert all(row[tag] for row in rows for tag in tags)


def test_histograms_and_whole_spectra_are_kept(run):
    network, folder, _ = run
    events = EventAccumulator(folder, size_guidance={"histograms": 0}).Reload()
    assert set(events.Tags()["histograms"]) == {f"spectrum/{layer}/log10_sigma" for layer in LAYERS}
    sigma = torch.linalg.svdvals(network.head.weight.detach().double())
    histogram = events.Histograms("spectrum/head/log10_sigma")[-1].histogram_value
    assert histogram.num == 8
    assert histogram.max == pytest.approx(float(sigma[0].log10()), rel=1e-6)
    files = sorted(Path(folder, "spectra").iterdir())
    assert [file.name for file in files] == ["step=00000021.npz", "step=00000042.npz"]
    spectra = np.load(files[-1])
    assert {name: len(spectra[name]) for name in spectra} == {name: min(shape) for name, shape in LAYERS.items()}
    assert np.allclose(spectra["head"], sigma.numpy(), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"every_n_epochs": 2}, [42, 63]),  # the end of training is always one
        ({"every_n_steps": 25}, [25, 50, 63]),
    ],
)
def test_every_so_many_epochs_or_steps(tmp_path, options, steps):
    fit = trainer(WeightSpectrum("classifier", **options), tmp_path, max_epochs=3)
    fit.fit(classifier(), DigitsDataModule())
    events = EventAccumulator(fit.log_dir).Reload()
    assert [point.step for point in events.Scalars("spectrum/head/rank")] == steps
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("spectrum/body")]


def test_accumulated_batches_count_once(tmp_path):
    fit = trainer(WeightSpectrum("classifier", every_n_steps=5), tmp_path, accumulate_grad_batches=3)
    fit.fit(classifier(), DigitsDataModule())
    events = EventAccumulator(fit.log_dir).Reload()
    assert [point.step for point in events.Scalars("spectrum/head/rank")] == [5, 7]


def test_what_is_read_is_said_once(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer(WeightSpectrum(), tmp_path, max_epochs=2).fit(classifier(), DigitsDataModule())
    said = [record.getMessage() for record in caplog.records if "WeightSpectrum" in record.getMessage()]
    assert len(said) == 1
    assert said[0].splitlines() == [
        "WeightSpectrum reads 3 weights: body.0.0, body.1.0, head",
        "skipped: body.0.1.weight, body.0.1.bias, body.1.1.weight and 2 more (vectors)",
        f"All singular values: {tmp_path / 'tb/version_0/spectra'}",
    ]


def test_the_circular_operator_and_the_papers_tolerance(tmp_path):
    network = ConvNet(num_classes=10, image_size=(8, 8), widths=[8, 8])
    callback = WeightSpectrum(convolution="circular", tolerance="absolute")
    fit = trainer(callback, tmp_path)
    fit.fit(classifier(network), DigitsDataModule())
    spectra = np.load(next((tmp_path / "tb/version_0/spectra").iterdir()))
    strides = {name: network.get_submodule(name).stride for name in ("body.0.0", "body.1.0")}
    assert set(spectra) == {"head", *(name for name, stride in strides.items() if stride == (1, 1))}
    assert "head" in spectra
    assert len(spectra) > 1
    assert len(spectra["body.0.0"]) == 64  # one input channel, 8 x 8 pixels


def test_the_circular_operator_without_a_forward_is_refused_before_training(tmp_path):
    class Mine(LightningModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))

        def training_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = WeightSpectrum(convolution="circular")
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[callback])
    with pytest.raises(ValueError, match="Expected a `forward` in Mine"):
        trainer.fit(Mine(), DigitsDataModule())


def test_a_dead_classifier_does_not_break_the_loggers(tmp_path):
    network = MLP(num_classes=10, image_size=(8, 8), hidden=[4])
    with torch.no_grad():
        network.head.weight.zero_()
    network.head.weight.requires_grad_(False)
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*[Hh]istogram.*")
        trainer(WeightSpectrum(), tmp_path, logger=loggers).fit(classifier(network), DigitsDataModule())
    events = EventAccumulator(loggers[0].log_dir).Reload()
    tags = events.Tags()
    assert "spectrum/head/condition_number" not in tags["scalars"]
    assert events.Scalars("spectrum/head/rank")[0].value == 0
    assert "spectrum/head/log10_sigma" not in tags["histograms"]


def test_without_a_logger_the_spectra_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(WeightSpectrum(), tmp_path, logger=False).fit(classifier(), DigitsDataModule())
    assert len(list((tmp_path / "runs/python/version_0/spectra").glob("*.npz"))) == 1


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_shard_are_refused(tmp_path, strategy):
    fit = trainer(WeightSpectrum(), tmp_path)
    fit._accelerator_connector.strategy = strategy()  # the Trainer itself takes them with accelerators alone
    with pytest.raises(MisconfigurationException, match=f"such as DDP, for WeightSpectrum but got {strategy.__name__}"):
        WeightSpectrum().setup(fit, classifier(), "fit")


def test_a_name_that_no_layer_has_is_refused_before_training(tmp_path):
    model = classifier()
    before = model.backbone.head.weight.detach().clone()
    with pytest.raises(ValueError, match=r"a pattern of body\.0\.0, body\.1\.0, head but got 'nose'"):
        trainer(WeightSpectrum("nose"), tmp_path).fit(model, DigitsDataModule())
    assert model.backbone.head.weight.equal(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 0}, "Expected `every_n_epochs` >= 1 but got 0"),
        ({"every_n_steps": -1}, "Expected `every_n_steps` >= 1 but got -1"),
        ({"convolution": "fft"}, '"kernel" or "circular" but got \'fft\''),
        ({"tolerance": 0.1}, '"relative" or "absolute" but got 0.1'),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WeightSpectrum(**options)
