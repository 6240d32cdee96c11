"""Comparisons of losses alone, as most tests need them."""

import torch

from scor_lightning.comparison import Training, compare
from scor_lightning.comparison.plan import Plan

_PARTS = ("optimizer", "lr_scheduler", "seed", "classifier", "callbacks")


def training(data, backbone, loss, epochs=5, precision="32-true", accelerator="cpu", **parts) -> Training:
    trainer = {"accelerator": accelerator} | ({} if precision == "32-true" else {"precision": precision})
    return Training(data, backbone, loss, epochs, trainer=trainer, **parts)


def plan_of(data, backbone, losses, epochs=5, every_epoch=False, spectra=False, **parts) -> Plan:
    """A plan of losses, prepared to train."""
    first, *_ = losses.values()
    shared = training(data, backbone, first, epochs, **parts)
    methods = {name: Training(**{**vars(shared), "loss": loss}) for name, loss in losses.items()}
    plan = Plan(methods, every_epoch, spectra)
    plan.prepare()
    return plan


def compare_losses(data, backbone, losses, repeats=100, epochs=5, **options):
    parts = {name: options.pop(name) for name in (*_PARTS, "precision", "accelerator") if name in options}
    shared = training(data, backbone, torch.nn.CrossEntropyLoss, epochs, **parts)
    return compare(shared, {name: {"loss": loss} for name, loss in losses.items()}, repeats, **options)


def without_times(rows):
    """Return comparable rows, without NaN and durations."""
    return [str({name: value for name, value in row.items() if name != "train_seconds"}) for row in rows]
