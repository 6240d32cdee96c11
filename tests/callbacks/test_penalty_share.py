import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from scor_lightning.callbacks import PenaltyShare
from scor_lightning.losses import FocalLoss, SCoRLoss, loss_terms


class Module(pl.LightningModule):
    def __init__(self, loss):
        super().__init__()
        self.net, self.loss, self.terms = nn.Linear(4, 3), loss, []

    def training_step(self, batch, batch_idx):
        terms = loss_terms(self.loss, self.net(batch[0]), batch[1])
        detached = {name: value.detach() for name, value in terms.items()}
        self.terms.append(detached)
        return {"loss": sum(terms.values()), "terms": detached}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(loss, max_epochs=1):
    module = Module(loss)
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PenaltyShare()],
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(40, 4), torch.randint(3, (40,))), batch_size=16))
    return trainer.callback_metrics, module.terms


def test_the_share_is_that_of_the_last_epoch():
    metrics, terms = fit(SCoRLoss(alpha=1e-3), max_epochs=2)
    last = terms[3:]
    penalty = sum(t["scor_penalty"] for t in last)
    torch.testing.assert_close(metrics["train/scor_share"], penalty / (penalty + sum(t["cross_entropy"] for t in last)))


def test_a_heavy_penalty_warns_once_with_a_remedy():
    message = r"more than the base loss, at alpha = 100.0 and 16 samples per batch .*`reduction=\"mean\"`"
    with pytest.warns(UserWarning, match=message) as record:
        fit(SCoRLoss(alpha=100.0), max_epochs=3)
    assert len([warning for warning in record if "alpha" in str(warning.message)]) == 1


@pytest.mark.parametrize("loss", [SCoRLoss(alpha=1e-6), FocalLoss(), nn.CrossEntropyLoss()], ids=str)
def test_a_light_penalty_and_no_penalty_do_not_warn(loss):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        metrics, _ = fit(loss)
    assert not [warning for warning in record if "alpha" in str(warning.message)]
    assert ("train/scor_share" in metrics) == isinstance(loss, SCoRLoss)
