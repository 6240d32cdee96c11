import time

import pytest
from torch import nn

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
        time.sleep(0.02)
        return super().training_step(*arguments)


@pytest.mark.parametrize(
    ("data", "model", "found"),
    [
        (Slow, ImageClassifier, "The run waits for data: raise `--data.num_workers` (now 0; this machine has"),
        (DigitsDataModule, SlowClassifier, "The run waits for the device"),
    ],
)
def test_one_line_tells_what_the_first_epoch_waited_for(tmp_path, caplog, data, model, found):
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=10, callbacks=[InputReport()])
    with caplog.at_level("INFO"):
        fit.fit(model(network(), nn.CrossEntropyLoss()), data())
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Input: ")]
    assert found in line


def test_another_loader_is_left_alone(tmp_path, caplog):
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=[InputReport()])
    data = DigitsDataModule()
    data.setup()
    with caplog.at_level("INFO"):
        fit.fit(ImageClassifier(network(), nn.CrossEntropyLoss()), data.test_dataloader())
    assert "Input: " not in caplog.text
