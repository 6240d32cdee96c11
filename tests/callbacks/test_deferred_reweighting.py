import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from scor_lightning.callbacks import DeferredReweighting
from scor_lightning.functional import class_balanced_weights
from scor_lightning.losses import FocalLoss, LDAMLoss, OPLLoss, SCoRLoss, WeightedCrossEntropyLoss

COUNTS = torch.tensor([24, 6, 2])


class Module(pl.LightningModule):
    def __init__(self, loss, counts=COUNTS):
        super().__init__()
        self.net, self.loss, self.counts = nn.Linear(4, 3), loss, counts
        self.seen = []

    def setup(self, stage):
        if self.counts is not None:
            self.loss.set_class_counts(self.counts)

    def training_step(self, batch, batch_idx):
        weights = getattr(self.loss, "base", self.loss).class_weights
        self.seen.append(None if weights is None else weights.clone())
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader():
    return DataLoader(TensorDataset(torch.randn(32, 4), torch.arange(3).repeat_interleave(COUNTS)), batch_size=16)


def fit(module, max_epochs=5, ckpt_path=None, folder=None):
    callbacks = [DeferredReweighting(start=0.6, beta=0.9)]
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1))
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, loader(), ckpt_path=ckpt_path)


@pytest.mark.parametrize("loss", [WeightedCrossEntropyLoss(), LDAMLoss(), FocalLoss(), SCoRLoss(LDAMLoss())], ids=str)
def test_weights_come_in_the_last_epochs(loss):
    module = Module(loss)
    fit(module)
    assert all(weights is None for weights in module.seen[:6])
    assert len(module.seen) == 10
    for weights in module.seen[6:]:
        torch.testing.assert_close(weights, class_balanced_weights(COUNTS, 0.9))


def test_a_run_resumed_in_mid_epoch_is_unchanged(tmp_path):
    whole = Module(WeightedCrossEntropyLoss())
    fit(whole, folder=tmp_path)
    for steps in (3, 7):  # in mid-epoch, before and after the weights come
        resumed = Module(WeightedCrossEntropyLoss())
        fit(resumed, ckpt_path=tmp_path / f"step={steps}.ckpt")
        assert len(resumed.seen) >= 10 - steps
        for got, expected in zip(reversed(resumed.seen), reversed(whole.seen), strict=False):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("loss", "counts", "max_epochs", "message"),
    [
        (nn.CrossEntropyLoss(), None, 2, "Expected a loss with class counts, such as WeightedCrossEntropyLoss"),
        (FocalLoss(), None, 2, "Expected a loss with class counts"),
        (OPLLoss(), COUNTS, 2, "Expected a loss that takes class weights"),
        (FocalLoss(), COUNTS, -1, "Expected a number of epochs to re-weight the last of but got -1"),
    ],
)
def test_refusals(loss, counts, max_epochs, message):
    with pytest.raises(ValueError, match=message):
        fit(Module(loss, counts), max_epochs)


@pytest.mark.parametrize("option", ["start", "beta"])
def test_refuses_options(option):
    with pytest.raises(ValueError, match=rf"Expected `{option}` in \[0, 1\] but got 160"):
        DeferredReweighting(**{option: 160})
