"""The callbacks that a training has without being asked for, all of them."""

import pydoc
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from scor_lightning.callbacks.class_report import ClassReport
from scor_lightning.callbacks.dashboard import Dashboard
from scor_lightning.callbacks.finite_check import FiniteCheck
from scor_lightning.callbacks.input_report import InputReport
from scor_lightning.callbacks.monitor_check import MonitorCheck
from scor_lightning.callbacks.penalty_share import PenaltyShare


def callbacks_of_a_classifier(present: Iterable[Callback]) -> list[Callback]:
    """Return what every training of an :class:`~scor_lightning.ImageClassifier` has, less what is present."""
    kinds: tuple[type[Callback], ...] = (MonitorCheck, FiniteCheck, PenaltyShare)
    return [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in present)]


def callbacks_of_a_run(trainer: Any) -> list[Callback]:
    """Return what ``scor-fit`` and the commands of its checkpoints have besides, less what is configured.

    :class:`~scor_lightning.callbacks.BestCheckpoint` and :class:`~scor_lightning.callbacks.LastCheckpoint` are theirs too,
    as options of their own, and :class:`~scor_lightning.callbacks.run_folder.RunFolder` is that of ``scor-fit``.

    Args:
        trainer: The options of the trainer.
    """
    configured = [pydoc.locate(callback.class_path) for callback in trainer.callbacks or ()]

    def has(kind: type[Callback]) -> bool:
        return any(isinstance(each, type) and issubclass(each, kind) for each in configured)

    kinds: tuple[type[Callback], ...] = (ClassReport, Dashboard, InputReport)
    callbacks = [kind() for kind in kinds if not has(kind)]
    if trainer.enable_progress_bar is not False and not has(ProgressBar):
        callbacks.append(TQDMProgressBar(refresh_rate=10))  # at every step, drawing takes a small network's time
    return callbacks
