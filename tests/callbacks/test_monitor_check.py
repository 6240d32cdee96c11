from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.models import MLP, ConvNet

DIGITS = "scor-fit --config digits_scor.yaml --trainer.max_epochs 3 --trainer.enable_progress_bar false"
PLATEAU = "--model.lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau --model.lr_scheduler.patience 0"
PLATEAU_OF = "--model.lr_scheduler lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler.monitor"
SECOND = "--trainer.callbacks+ lightning.pytorch.callbacks.ModelCheckpoint --trainer.callbacks.dirpath a --trainer.callbacks.monitor"
CYCLE = "--model.lr_scheduler OneCycleLR --model.lr_scheduler.max_lr 0.1 --model.lr_scheduler.total_steps"
STOP = "--trainer.callbacks+ EarlyStopping --trainer.callbacks.monitor"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (f"{PLATEAU} --data.val_fraction 0", "`--data.val_fraction`"),
        (f"{PLATEAU} --trainer.limit_val_batches 0", "`--trainer.limit_val_batches`"),
        (f"{PLATEAU} --model.lr_interval step", "`--model.lr_interval epoch`"),
        (f"{PLATEAU} --model.lr_warmup 2", "`lr_warmup`"),
        (f"{PLATEAU} --trainer.check_val_every_n_epoch null --trainer.val_check_interval 5", "check_val_every_n_epoch"),
        ("--checkpoint.monitor val/nope", "`--checkpoint.monitor` to name a metric that is logged"),
        ("--checkpoint.monitor accuracy", "`--checkpoint.monitor` to name a metric that is logged"),
        ("--checkpoint.monitor val/recall/11", "`--checkpoint.monitor` to name a metric that is logged"),
        ("--checkpoint.monitor test/accuracy", "`--checkpoint.monitor` to name a metric that is logged"),
        ("--checkpoint.monitor val/accuracy_medum", "`--checkpoint.monitor` to name a metric that is logged"),
        ("--checkpoint.monitor train/nope", "did you mean train/loss"),
        ("--checkpoint.monitor train/loss --trainer.log_every_n_steps 50", "`--trainer.log_every_n_steps`"),
        (f"{STOP} val/nope", "`monitor` of EarlyStopping to name a metric that is logged"),
        (
            f"{STOP} val/loss --data.val_fraction 0",
            "`monitor` of EarlyStopping is 'val/loss' but there is no validation set",
        ),
        (
            f"{STOP} val/loss --trainer.callbacks.check_on_train_epoch_end true --trainer.check_val_every_n_epoch 2",
            "`check_on",
        ),
        (f"{SECOND} val/loss {SECOND} val/nope", "`monitor` of ModelCheckpoint to name a metric that is logged"),
        (f"{SECOND} val/nope {SECOND} val/loss", "`monitor` of ModelCheckpoint to name a metric that is logged"),
        (f"{CYCLE} 2", "Expected a schedule for all 3 epochs but OneCycleLR fails"),
        (f"{CYCLE} 2 --model.lr_warmup 2", "Expected a schedule for all 3 epochs but"),
        ("--checkpoint.save_top_k 2 --data.val_fraction 0", "`--data.val_fraction`"),
        (f"{PLATEAU_OF} val/nope", "`monitor` of ReduceLROnPlateau to name a metric that is logged"),
        (f"{PLATEAU_OF} val/accuracy --data.val_fraction 0", "`val/accuracy` for ReduceLROnPlateau to follow"),
        (
            "--model.backbone TorchvisionBackbone --model.backbone.arch resnet18 --data.resolution 32 --data.batch_size 1",
            "`--data.batch_size` of at least 2",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_before_training(command, options, named):
    status, out, error = command(f"{DIGITS} {options}")
    assert status == 1
    message = error[error.index("error: ") :].strip()
    assert named in message
    assert len(message.splitlines()) == 1
    assert "Traceback" not in error
    assert not list(Path.cwd().rglob("*.ckpt"))
    assert "balanced accuracy" not in out


@pytest.mark.parametrize(
    "options",
    [
        PLATEAU,
        f"{PLATEAU} --trainer.check_val_every_n_epoch 2",
        f"{PLATEAU} --trainer.val_check_interval 0.5",
        f"{PLATEAU_OF} val/accuracy",
        "--checkpoint.monitor val/recall/3",
        "--checkpoint.monitor val/accuracy_reduced",
        "--checkpoint.monitor val/accuracy_few",
        "--checkpoint.monitor train/scor_penalty",
        f"{STOP} val/loss",
        "--trainer.check_val_every_n_epoch 5",
        "--checkpoint.monitor step",
        "--checkpoint.monitor train/loss --data.val_fraction 0",
        f"{CYCLE} 3",
        "--model.lr_scheduler CosineLR --model.lr_warmup 2",
    ],
)
def test_what_can_be_followed_is(command, options):
    status, out, error = command(f"{DIGITS} {options}")
    assert status == 0, error
    assert "balanced accuracy" in out


def fit(data, model, *callbacks, **options):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **{"max_epochs": 4, "log_every_n_steps": 5, **options},
    )  # fmt: skip
    trainer.fit(model, data)
    return trainer


def classifier(**options):
    return ImageClassifier(MLP(10, image_size=(8, 8), hidden=[8]), nn.CrossEntropyLoss(), **options)


def test_a_plateau_is_looked_for_after_each_validation():
    def never_enough(optimizer):
        return ReduceLROnPlateau(optimizer, patience=0, threshold=1e9, factor=0.5)

    for every, reductions in ((1, 4), (2, 2)):
        trainer = fit(DigitsDataModule(), classifier(lr_scheduler=never_enough), check_val_every_n_epoch=every)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**reductions)


def test_from_python_the_same_is_refused():
    data = DigitsDataModule(val_fraction=0)
    with pytest.raises(
        ValueError, match="Expected `val/loss` for ReduceLROnPlateau to follow but there is no validation"
    ):
        fit(data, classifier(lr_scheduler=ReduceLROnPlateau))
    with pytest.raises(ValueError, match="`monitor` of EarlyStopping to name a metric that is logged"):
        fit(DigitsDataModule(), classifier(), EarlyStopping("val_loss"))
    with pytest.raises(ValueError, match="`monitor` of ModelCheckpoint to name a metric that is logged"):
        fit(DigitsDataModule(), classifier(), ModelCheckpoint(monitor="val/acc"))


class Logs(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/own", 1.0)


def test_metrics_of_a_users_callback_can_be_monitored(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/own")
    fit(DigitsDataModule(), classifier(), Logs(), checkpoint)
    assert checkpoint.best_model_score == 1.0


def test_an_epoch_whose_last_batch_would_be_one_image_trains_batch_norm():
    data = DigitsDataModule(val_fraction=0)
    data.setup()
    images = int(data.class_counts.sum())
    batch_size = next(b for b in range(20, images) if images % b == 1)
    network = ConvNet(10, image_size=(8, 8))
    network.head = nn.Sequential(nn.Linear(network.num_features, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    trainer = fit(
        DigitsDataModule(val_fraction=0, batch_size=batch_size), ImageClassifier(network, nn.CrossEntropyLoss())
    )
    assert trainer.global_step == 4 * (images // batch_size)
    with pytest.raises(ValueError, match=r"`--data.batch_size` of at least 2 .* but got a batch of 1 image"):
        fit(DigitsDataModule(val_fraction=0, batch_size=1), ImageClassifier(network, nn.CrossEntropyLoss()))
    assert torch.isfinite(network.head[2].weight).all()
