import os
import re

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import ClassReport, Dashboard, WeightSpectrum
from scor_lightning.datamodules import DigitsDataModule, LongTail
from scor_lightning.losses import SCoRLoss
from scor_lightning.models import MLP


def run(folder, loss, max_epochs=2, spectrum=True):
    torch.manual_seed(0)
    loggers = [TensorBoardLogger(folder, name="tb"), CSVLogger(folder, name="csv")]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=loggers,
        callbacks=[ClassReport(), Dashboard(), *([WeightSpectrum()] if spectrum else [])],
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = ImageClassifier(
        MLP(num_classes=10, image_size=(8, 8), hidden=[16]), loss, shot_thresholds=(30, 60), optimizer=torch.optim.AdamW
    )
    data = DigitsDataModule(imbalance=LongTail(20), batch_size=32)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return EventAccumulator(loggers[0].log_dir, size_guidance={"tensors": 0}).Reload()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [run(folder, loss) for loss in (nn.CrossEntropyLoss(), SCoRLoss(alpha=1e-3))]


def layout(events):
    found = Layout()
    found.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in found.category
    }


def test_every_chart_has_curves_and_runs_share_charts(runs):
    cross_entropy, scor = runs
    assert layout(cross_entropy) == layout(scor)  # else TensorBoard shows the charts of each run apart
    charts = layout(scor)
    suffering, smallest = "Which classes suffer: validation accuracy", "The smallest classes: validation recall"
    assert list(charts) == [suffering, smallest, "Loss", "Weights"]
    scalars = scor.Tags()["scalars"]
    for category in charts.values():
        for title, tags in category.items():
            assert any(re.match(tag, scalar) for tag in tags for scalar in scalars), title
    assert charts[suffering] == {
        "all classes (balanced accuracy)": ["val/balanced_accuracy$"],
        "many-shot: more than 60 training images": ["val/accuracy_many$"],
        "medium-shot: 30 to 60 training images": ["val/accuracy_medium$"],
        "few-shot: fewer than 30 training images": ["val/accuracy_few$"],
    }
    assert next(iter(charts[smallest].values())) == ["val/recall/9$"]
    assert len(charts[smallest]) == 6
    terms = {tag for tag in scalars if re.match(charts["Loss"]["terms of the training loss"][0], tag)}
    assert terms == {"train/cross_entropy", "train/scor_penalty"}


def hparams(events, tag):
    metadata = events.SummaryMetadata(tag)
    return HParamsPluginData.FromString(metadata.plugin_data.content)


def test_the_hyperparameters_tab_compares_the_losses(runs):
    columns = []
    for events, loss, alpha in zip(runs, ("cross_entropy", "scor"), (0, 1e-3), strict=True):
        values = hparams(events, "_hparams_/session_start_info").session_start_info.hparams
        assert values["loss"].string_value == loss
        assert values["alpha"].number_value == alpha
        assert values["imbalance"].string_value == "LongTail(ratio=20)"
        assert values["optimizer"].string_value == "AdamW"
        assert values["weight decay"].number_value == 0.01
        assert values["batch size"].string_value == "32"
        experiment = hparams(events, "_hparams_/experiment").experiment
        shown = [info.name for info in experiment.hparam_infos if info.differs]
        assert sorted(shown) == ["epochs", "imbalance", "loss", "lr", "seed"]
        metrics = {info.name.tag: info.display_name for info in experiment.metric_infos}
        assert metrics["test/balanced_accuracy"] == "balanced accuracy"
        # The cells are scalars of the run; LongTail has classes of all kinds, so that none is empty.
        assert set(metrics) <= set(events.Tags()["scalars"])
        assert hparams(events, "_hparams_/session_end_info").session_end_info.status
        columns.append((sorted(values), sorted(metrics)))
    assert columns[0] == columns[1]  # TensorBoard takes its columns from one of the runs


def test_the_final_metrics_are_not_logged_twice(runs):
    for events in runs:
        assert len(events.Scalars("test/accuracy")) == 1


def test_without_spectra_there_are_no_charts_of_them(tmp_path):
    events = run(tmp_path, nn.CrossEntropyLoss(), max_epochs=1, spectrum=False)
    assert "Weights" not in layout(events)
    experiment = hparams(events, "_hparams_/experiment").experiment
    assert not [info for info in experiment.metric_infos if "spectrum" in info.name.tag]


def test_the_seed_is_shown_where_one_was_set(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "PL_GLOBAL_SEED", "7")
    events = run(tmp_path, nn.CrossEntropyLoss(), max_epochs=1)
    assert hparams(events, "_hparams_/session_start_info").session_start_info.hparams["seed"].string_value == "7"


def test_other_loggers_and_modules_are_unaffected(tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    for logger in (CSVLogger(tmp_path), TensorBoardLogger(tmp_path), False):
        trainer = Trainer(
            accelerator="cpu",
            max_steps=2,
            logger=logger,
            callbacks=[Dashboard()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(BoringModel())
        assert trainer.global_step == 2
