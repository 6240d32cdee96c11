"""What a run follows, checked before it trains."""

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from scor_lightning.datamodules import ImageDataModule
from scor_lightning.losses.base import Loss, loss_terms
from scor_lightning.metrics import MAX_CLASS_TAGS, PER_CLASS, class_groups, classification_metrics


class MonitorCheck(Callback):
    """Checks, before training, that checkpoints, early stopping and the schedule follow a metric that will be logged.

    Lightning reports a missing metric after the first epoch. :class:`~scor_lightning.ImageClassifier` adds this callback.
    Names are checked if no callback or classifier of another package could log them.

    Raises:
        ValueError: If a metric will not be logged, or there is no validation to log it; the message names the option.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what is known when the data are set up."""
        if stage != "fit":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        ours = isinstance(data, ImageDataModule)
        validates = trainer.limit_val_batches != 0 and not (ours and not len(data.split("val")[1]))
        no_validation = "but there is no validation set: raise `--data.val_fraction` or `--trainer.limit_val_batches`"
        if (plateau := _plateau_monitor(pl_module)) is not None:
            if trainer.check_val_every_n_epoch is None:
                raise ValueError(
                    "Expected a validation after whole epochs for ReduceLROnPlateau but got "
                    "`--trainer.check_val_every_n_epoch null`: give a number, or use another schedule"
                )
            if not validates:
                raise ValueError(f"Expected `{plateau}` for ReduceLROnPlateau to follow {no_validation}")
        tags = _evaluation_tags(pl_module, data) if _logs_nothing_else(trainer, pl_module) else None
        monitors = _monitors(trainer) | ({} if plateau is None else {"`monitor` of ReduceLROnPlateau": plateau})
        for option, monitor in monitors.items():
            if monitor.startswith("val/") and not validates:
                raise ValueError(f"Expected a metric to follow for {option} {no_validation}")
            if tags is None or monitor.startswith("train/") or monitor in tags:
                continue
            if not ours and monitor.startswith(
                ("val/accuracy_", "val/recall/")
            ):  # which of them there are is not known
                continue
            general = ", ".join(tag for tag in tags if "/recall/" not in tag)
            raise ValueError(f"Expected {option} to name one of {general}, val/recall/<class> but got {monitor!r}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what is logged in training."""
        monitors = {option: name for option, name in _monitors(trainer).items() if name.startswith("train/")}
        if not monitors or not _logs_nothing_else(trainer, pl_module):
            return
        tags = {"train/loss", "train/scor_share"} | {f"train/{name}" for name in _terms(pl_module)}
        steps = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        for option, monitor in monitors.items():
            if monitor not in tags:
                raise ValueError(f"Expected {option} to name one of {', '.join(sorted(tags))} but got {monitor!r}")
            if steps < trainer.log_every_n_steps:  # type: ignore[attr-defined]
                raise ValueError(
                    f"Expected {option} {monitor!r} to be logged in every epoch of {steps} steps but it is logged every "
                    f"{trainer.log_every_n_steps}: lower `--trainer.log_every_n_steps`"  # type: ignore[attr-defined]
                )


def _monitors(trainer: Trainer) -> dict[str, str]:
    """Collect what checkpoints and early stopping follow, by the name of the option."""
    monitors = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint | EarlyStopping) and callback.monitor is not None:
            kind = type(callback).__name__
            option = "`--checkpoint.monitor`" if kind == "BestCheckpoint" else f"`monitor` of {kind}"
            monitors[option] = callback.monitor
    return monitors


def _plateau_monitor(pl_module: LightningModule) -> str | None:
    """Return what ReduceLROnPlateau follows; None under another schedule."""
    configured = pl_module.configure_optimizers()
    schedule = configured.get("lr_scheduler") if isinstance(configured, dict) else None
    if isinstance(schedule, dict) and isinstance(schedule["scheduler"], ReduceLROnPlateau):
        return str(schedule["monitor"])
    return None


def _logs_nothing_else(trainer: Trainer, pl_module: LightningModule) -> bool:
    known = ("scor_lightning.", "lightning.", "pytorch_lightning.")
    parts = [pl_module, *trainer.callbacks]  # type: ignore[attr-defined]
    return all(f"{type(part).__module__}.".startswith(known) for part in parts)


def _evaluation_tags(pl_module: LightningModule, data: object) -> list[str]:
    num_classes: int = pl_module.num_classes  # type: ignore[assignment]
    names = ["loss", *(name for name in classification_metrics(num_classes) if name not in PER_CLASS)]
    if isinstance(data, ImageDataModule):
        source, index = data.split("val")
        support = torch.bincount(source.targets[index], minlength=num_classes)
        groups = class_groups(data.class_counts, pl_module.shot_thresholds)  # type: ignore[arg-type]
        groups["reduced"] = data.reduced_classes
        names += [f"accuracy_{name}" for name, members in groups.items() if (members & (support > 0)).any()]
        if num_classes <= MAX_CLASS_TAGS:
            names += [f"recall/{data.class_names[c]}" for c in support.nonzero().flatten().tolist()]
    return [f"val/{name}" for name in names]


@torch.no_grad()
def _terms(pl_module: LightningModule) -> list[str]:
    model: Any = pl_module
    loss: nn.Module = copy.deepcopy(model.loss).train()  # a copy, as the generator of the loss must not advance
    logits = torch.zeros(2, model.num_classes, device=model.device)
    features: Tensor | None = None
    if isinstance(loss, Loss) and loss.needs_features:
        features = torch.zeros(2, model.backbone.num_features, device=model.device)
    return list(loss_terms(loss, logits, torch.zeros(2, dtype=torch.int64, device=model.device), features))
