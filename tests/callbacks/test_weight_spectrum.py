import csv

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import WeightSpectrum
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.models import ConvNet


def test_every_weight_matrix_reaches_every_logger(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    trainer = Trainer(
        max_epochs=2, logger=loggers, callbacks=WeightSpectrum(), enable_progress_bar=False, accelerator="cpu"
    )
    network = ConvNet(num_classes=10, image_size=(8, 8), widths=[8, 8])
    trainer.fit(ImageClassifier(network, nn.CrossEntropyLoss()), DigitsDataModule())
    events = EventAccumulator(loggers[0].log_dir).Reload()
    layers = {"body.0.0": (8, 9), "body.1.0": (8, 72), "head": (10, 8)}
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("spectrum/")}
    assert tags == {f"spectrum/{layer}/{what}" for layer in layers for what in ("rank", "sigma_max", "sigma_min")}
    for layer in layers:
        sigma = torch.linalg.svdvals(network.get_submodule(layer).weight.detach().double().flatten(1))
        points = events.Scalars(f"spectrum/{layer}/sigma_max")
        assert [point.step for point in points] == [21, 42]
        assert points[-1].value == pytest.approx(sigma[0].item(), rel=1e-6)
        assert events.Scalars(f"spectrum/{layer}/sigma_min")[-1].value == pytest.approx(sigma[-1].item(), rel=1e-5)
        assert events.Scalars(f"spectrum/{layer}/rank")[-1].value == torch.linalg.matrix_rank(
            network.get_submodule(layer).weight.detach().flatten(1)
        )
    with open(f"{loggers[1].log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["spectrum/head/rank"]]
    assert len(rows) == 2


def test_a_missing_logger_is_refused():
    trainer = Trainer(logger=False, callbacks=WeightSpectrum(), max_epochs=1, accelerator="cpu")
    model = ImageClassifier(ConvNet(num_classes=10, image_size=(8, 8)), nn.CrossEntropyLoss())
    with pytest.raises(MisconfigurationException, match="Expected a logger for WeightSpectrum"):
        trainer.fit(model, DigitsDataModule())
