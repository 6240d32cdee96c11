"""Check of monitored metrics and schedules before training."""

import copy
from collections.abc import Sequence
from math import ceil

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from scor_lightning.callbacks.protocol import Classifier, as_classifier, state_of
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.description import count_features, describe_data
from scor_lightning.losses.base import Loss, gives_probabilities, loss_terms
from scor_lightning.messages import nearest
from scor_lightning.metrics import (
    MAX_CLASS_TAGS,
    OF_PROBABILITIES,
    PER_CLASS,
    classification_metrics,
    known_groups,
    recall_measures,
)
from scor_lightning.optim import CosineLR, Warmup, check_schedule


class MonitorCheck(Callback):
    """Checks before training that checkpoints, early stopping and the schedule monitor a metric that will be logged.

    Lightning reports a missing metric after the first epoch. :class:`~scor_lightning.ImageClassifier` adds this callback.
    Names are checked if no callback or classifier of another package could log them.

    Raises:
        ValueError: If a metric will not be logged, or there is no validation to log it; the message names the option.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what is known once the data are set up."""
        if stage != "fit":
            return
        data = state_of(trainer).datamodule
        ours = data if isinstance(data, ImageDataModule) else None
        validates = trainer.limit_val_batches != 0 and (ours is None or len(ours.split("val")[1]) > 0)
        no_validation = "but there is no validation set: raise `--data.val_fraction` or `--trainer.limit_val_batches`"
        schedule, interval, plateau = _schedule(pl_module)
        if plateau is None and schedule is not None and interval == "epoch" and (trainer.max_epochs or -1) > 0:
            inner = schedule.schedule if isinstance(schedule, Warmup) else schedule
            if isinstance(inner, CosineLR):
                inner.set_length(int(trainer.max_epochs or 0))
            check_schedule(schedule, int(trainer.max_epochs or 0))
        if plateau is not None:
            if trainer.check_val_every_n_epoch is None:
                raise ValueError(
                    "Expected a validation after whole epochs for ReduceLROnPlateau but got "
                    "`--trainer.check_val_every_n_epoch null`: give a number, or use another schedule"
                )
            if not validates:
                raise ValueError(f"Expected `{plateau}` for ReduceLROnPlateau to follow {no_validation}")
        model = as_classifier(pl_module)
        tags = _evaluation_tags(model, data) if model and _logs_nothing_else(trainer, pl_module) else None
        monitors = _monitors(trainer) + ([] if plateau is None else [("`monitor` of ReduceLROnPlateau", plateau)])
        for option, monitor in monitors:
            if monitor.startswith("val/") and not validates:
                raise ValueError(f"{option} is {monitor!r} {no_validation}")
            if tags is None or monitor.startswith("train/") or monitor in tags:
                continue
            if not ours and monitor.startswith(("val/accuracy_", "val/recall/")):  # unknown which of them exist
                continue
            _expect_tag(option, monitor, tags)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metrics of the training steps."""
        monitors = [(option, name) for option, name in _monitors(trainer) if name.startswith("train/")]
        model = as_classifier(pl_module)
        if not monitors or model is None or not _logs_nothing_else(trainer, pl_module):
            return
        terms = _terms(model, pl_module.device)
        tags = {"train/loss", "train/scor_share"} | {f"train/{name}" for name in terms}
        steps = ceil(min(trainer.num_training_batches, 2**31) / trainer.accumulate_grad_batches)
        for option, monitor in monitors:
            if terms and monitor not in tags:
                _expect_tag(option, monitor, sorted(tags))
            if steps < state_of(trainer).log_every_n_steps:
                raise ValueError(
                    f"Expected {option} {monitor!r} to be logged in every epoch of {steps} steps but it is logged every "
                    f"{state_of(trainer).log_every_n_steps}: lower `--trainer.log_every_n_steps`"
                )


def check_monitor(option: str, monitor: str, model: Classifier, data: ImageDataModule) -> None:
    """Check that a validation metric will be logged; training metrics are not known before training.

    Raises:
        ValueError: If it will not.
    """
    if monitor.startswith("val/") and not len(data.split("val")[1]):
        raise ValueError(f"{option} is {monitor!r} but there is no validation set: raise `--data.val_fraction`")
    if not monitor.startswith("train/"):
        _expect_tag(option, monitor, _evaluation_tags(model, data))


def _expect_tag(option: str, monitor: str, tags: Sequence[str]) -> None:
    if monitor not in tags:
        known = nearest(monitor, tags) or f", which is not one of {', '.join(tags[:4])}, ..."
        raise ValueError(f"Expected {option} to name a metric that is logged but got {monitor!r}{known}")


def _monitors(trainer: Trainer) -> list[tuple[str, str]]:
    """List the options that name a monitored metric, with that metric."""
    monitors = []
    for callback in state_of(trainer).callbacks:
        if not isinstance(callback, ModelCheckpoint | EarlyStopping) or callback.monitor is None:
            continue
        if isinstance(callback, ModelCheckpoint) and callback.monitor in ("epoch", "step"):  # Lightning adds these
            continue
        kind = type(callback).__name__
        option = "`--checkpoint.monitor`" if kind == "BestCheckpoint" else f"`monitor` of {kind}"
        if (
            isinstance(callback, EarlyStopping)
            and callback._check_on_train_epoch_end
            and trainer.check_val_every_n_epoch != 1
            and callback.monitor.startswith("val/")
        ):
            raise ValueError(
                f"Expected no `check_on_train_epoch_end` of {kind}, which follows {callback.monitor!r}, with "
                f"`--trainer.check_val_every_n_epoch {trainer.check_val_every_n_epoch}`"
            )
        monitors.append((option, callback.monitor))
    return monitors


def _schedule(pl_module: LightningModule) -> tuple[LRScheduler | None, str | None, str | None]:
    """Build the schedule for inspection; return it with its interval, and its metric if it is ReduceLROnPlateau."""
    configured = pl_module.configure_optimizers()
    found = configured.get("lr_scheduler") if isinstance(configured, dict) else None
    if not isinstance(found, dict):
        return None, None, None
    plateau = str(found["monitor"]) if isinstance(found["scheduler"], ReduceLROnPlateau) else None
    return found["scheduler"], str(found["interval"]), plateau


def _logs_nothing_else(trainer: Trainer, pl_module: LightningModule) -> bool:
    known = ("scor_lightning.", "lightning.", "pytorch_lightning.")
    parts = [pl_module, *state_of(trainer).callbacks]
    return all(f"{type(part).__module__}.".startswith(known) for part in parts)


def _evaluation_tags(model: Classifier, data: object) -> list[str]:
    num_classes = model.num_classes
    absent = PER_CLASS if gives_probabilities(model.loss) else (*PER_CLASS, *OF_PROBABILITIES)
    names = ["loss", *(name for name in classification_metrics(num_classes) if name not in absent)]
    if (
        isinstance(data, ImageDataModule) and data.num_classes == num_classes
    ):  # otherwise the classifier refuses the data
        source, index = data.split("val")
        support = torch.bincount(source.targets[index], minlength=num_classes)
        groups = known_groups(describe_data(data), model.shot_thresholds)
        names += list(recall_measures(torch.zeros(num_classes), support, groups, data.class_counts))
        if num_classes <= MAX_CLASS_TAGS:
            names += [f"recall/{data.class_names[c]}" for c in support.nonzero().flatten().tolist()]
    return [f"val/{name}" for name in names]


@torch.no_grad()
def _terms(model: Classifier, device: torch.device) -> list[str]:
    loss = copy.deepcopy(model.loss).train()  # a copy, as the generator of the loss must not advance
    logits, target = torch.zeros(2, model.num_classes, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    features: Tensor | None = None
    if isinstance(loss, Loss) and loss.needs_features:
        if (size := count_features(model.backbone)) is None:
            return []  # unknown
        features = torch.zeros(2, size, device=device)
    return list(loss_terms(loss, logits, target, features))
