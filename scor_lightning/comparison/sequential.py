"""The sequential engine: one network after another, with Lightning's Trainer."""

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from scor_lightning import stages
from scor_lightning.callbacks import BackboneFinetuning, DeferredReweighting, LastCheckpoint
from scor_lightning.callbacks.protocol import AfterTraining
from scor_lightning.checkpoint import newest_whole
from scor_lightning.classifier import ImageClassifier
from scor_lightning.comparison.measures import mark_diverged, spectrum_measures
from scor_lightning.comparison.plan import Plan, Repeat
from scor_lightning.comparison.predictions import KEY
from scor_lightning.comparison.results import Row
from scor_lightning.description import channel_statistics
from scor_lightning.seeding import seeded


class _Measure(Callback):
    """Measures the network after its epochs, and reports the progress."""

    def __init__(self, plan: Plan, repeat: Repeat, name: str, advance: Callable[[float], None]) -> None:
        self.plan = plan
        self.repeat = repeat
        self.name = name
        self.advance = advance
        self.epochs = plan.trainings[name].total_epochs
        self.told = 0.0
        self.rows: list[Row] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        steps = self.epochs * max(1, int(trainer.num_training_batches)) // trainer.accumulate_grad_batches
        share = min(1.0, trainer.global_step / max(1, steps))
        self.advance(share - self.told)
        self.told = share

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.current_epoch + 1 == self.epochs
        if self.plan.every_epoch and not last:
            assert isinstance(pl_module, ImageClassifier)
            self.measure(pl_module, trainer.current_epoch + 1)

    @torch.no_grad()
    def measure(self, model: ImageClassifier, epoch: int) -> None:
        training = model.training
        model.eval()
        data = self.repeat.data
        logits, target, features = _evaluate(model, data.test_dataloader())
        measures, predictions = self.repeat.measure(
            logits, target, model.loss, features, model.fitted.get("temperature", 1.0)
        )
        if self.repeat.has_validation_set:
            logits, target, _ = _evaluate(model, data.val_dataloader())
            measures |= self.repeat.validate(logits, target, model.loss)
        row = self.repeat.record(self.name, epoch) | measures | spectrum_measures(model.backbone, self.plan.spectra)
        self.rows.append(mark_diverged(row, model.backbone))
        if self.plan.predictions and epoch == self.epochs:
            self.rows[-1][KEY] = predictions
        model.train(training)


def _evaluate(model: ImageClassifier, loader: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the logits ``[N, K]``, the targets ``[N]`` and, for a loss that reads them, the features ``[N, D]``."""
    parts = [(*model._logits_and_features(images.to(model.device)), target) for images, target in loader]
    features = [f for _, f, _ in parts if f is not None]
    target = torch.cat([target for _, _, target in parts]).to(model.device)
    return torch.cat([z for z, _, _ in parts]), target, torch.cat(features) if features else None


class _Unfinished(LastCheckpoint):
    """Keeps the checkpoint of a long training, from which a killed comparison resumes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(minutes=5)
        self.dirpath = str(folder)

    def _listen(self) -> None:
        """Leave signals to the comparison."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due():
            self._save(trainer)


def train(
    plan: Plan,
    number: int,
    name: str,
    device: torch.device,
    advance: Callable[[float], None],
    unfinished: Path | None = None,
) -> list[Row]:
    """Train one method on one repeat, as ``scor-fit`` does, and measure the network.

    Args:
        plan: The plan.
        number: Number of the repeat.
        name: The method.
        device: Device to train on.
        advance: Called with the share of a training that was done since the last call.
        unfinished: Folder for a checkpoint of the unfinished training; None keeps none.

    Returns:
        One record, or with ``every_epoch`` one per epoch.
    """
    repeat = plan.repeat(number)
    with seeded(repeat.seed):  # also for dropout
        return _train(plan, repeat, name, device, advance, unfinished)


def _train(
    plan: Plan,
    repeat: Repeat,
    name: str,
    device: torch.device,
    advance: Callable[[float], None],
    unfinished: Path | None,
) -> list[Row]:
    training = plan.trainings[name]
    loss = repeat.loss(name)
    arguments = training.classifier_arguments()
    model = ImageClassifier(repeat.backbone(), loss, training.optimizer, training.lr_scheduler, **arguments)
    measure = _Measure(plan, repeat, name, advance)
    callbacks = [make() for make in training.callbacks]
    follows = isinstance(plan.schedule, ReduceLROnPlateau) or any(
        not isinstance(callback, DeferredReweighting | BackboneFinetuning) for callback in callbacks
    )
    resumed = None
    if unfinished is not None and not plan.every_epoch:
        callbacks.append(_Unfinished(unfinished))
        resumed = newest_whole(unfinished)
    options = {"limit_val_batches": 1.0 if follows else 0, **training.trainer}
    options |= {
        "accelerator": "gpu" if device.type == "cuda" else device.type,
        "devices": [device.index or 0] if device.type == "cuda" else 1,
        "max_epochs": plan.epochs,
        "plugins": [LightningEnvironment()],  # a comparison is not a job of SLURM or torchrun
        "callbacks": [*callbacks, measure],
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": unfinished is not None and not plan.every_epoch,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with _quiet():
        trainer = Trainer(**options)
        with suppress(FloatingPointError):  # a training that diverged is a result
            stages.fit(trainer, model, repeat.data, ckpt_path=None if resumed is None else str(resumed))
    fitted = stages.finish(trainer, model.to(device), repeat.data)
    measure.measure(model, training.total_epochs)
    measure.rows[-1] |= fitted
    advance(1 - measure.told)
    if unfinished is not None:
        shutil.rmtree(unfinished, ignore_errors=True)
    return measure.rows


def finish(plan: Plan, repeat: Repeat, name: str, network: nn.Module, loss: nn.Module, device: torch.device) -> Row:
    """Apply the callbacks after training to a network that the other engine trained, in place, and measure it."""
    training = plan.trainings[name]
    model = ImageClassifier(network, loss, training.optimizer, **training.classifier_arguments())
    statistics = channel_statistics(plan.data, network)
    model.normalize.set(statistics.mean, statistics.std)
    callbacks: list[Callback] = [each for make in training.callbacks if isinstance(each := make(), AfterTraining)]
    with _quiet():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            plugins=[LightningEnvironment()],
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    fitted = stages.finish(trainer, model.to(device), repeat.data)
    measure = _Measure(plan, repeat, name, lambda _: None)
    measure.measure(model, plan.epochs)
    return measure.rows[-1] | fitted


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of Lightning at every start."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", module=r"(scor_)?lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
