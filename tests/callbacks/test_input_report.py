import re
import time

import pytest
from torch import nn

import scor_lightning.callbacks.input_report
from scor_lightning import ImageClassifier
from scor_lightning.callbacks import InputReport
from scor_lightning.datamodules import DigitsDataModule
from tests.test_classifier import network, trainer


class Slow(DigitsDataModule):
    def train_dataloader(self):
        loader = super().train_dataloader()
        data = loader.dataset.data
        images = type("Slow", (), {"__getitem__": lambda _, index: (time.sleep(0.02), data[index])[1]})
        loader.dataset.data = images()
        return loader


class SlowClassifier(ImageClassifier):
    def training_step(self, *arguments):
        time.sleep(0.15)
        return super().training_step(*arguments)


@pytest.mark.parametrize(
    ("data", "model", "num_workers", "found"),
    [
        (Slow, ImageClassifier, 0, "The run waits for data: raise `--data.num_workers` (now 0, there are cores for 2)"),
        (Slow, ImageClassifier, 2, "The run waits for data, with a worker on every core"),
        (Slow, SlowClassifier, 2, "Training is compute-bound"),  # two load while the third trains
        (DigitsDataModule, SlowClassifier, 0, "Training is compute-bound"),
    ],
)
def test_one_line_reports_what_the_first_epoch_waited_for(
    tmp_path, capsys, monkeypatch, data, model, num_workers, found
):
    monkeypatch.setattr(scor_lightning.callbacks.input_report, "suggested_max_num_workers", lambda processes: 2)
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=10, callbacks=[InputReport()])
    fit.fit(model(network(), nn.CrossEntropyLoss()), data(num_workers=num_workers))
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("Input: ")]
    assert found in line
    (line,) = [line for line in lines if line.startswith("Speed: ")]
    speed, images, seconds = re.fullmatch(
        r"Speed: ([\d,.]+) images per second, peak memory \d[\d.]* GB; "
        r"an epoch of all ([\d,]+) training images would take 0:00:(\d\d)",
        line,
    ).groups()
    assert int(seconds) == pytest.approx(int(images.replace(",", "")) / float(speed.replace(",", "")), abs=1)


def test_another_loader_is_left_alone(tmp_path, capsys):
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=[InputReport()])
    data = DigitsDataModule()
    data.setup()
    fit.fit(ImageClassifier(network(), nn.CrossEntropyLoss()), data.test_dataloader())
    assert "Input: " not in capsys.readouterr().out
