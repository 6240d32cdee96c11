"""The callbacks that are added automatically."""

import pydoc
import sys
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
    """Return the callbacks of every :class:`~scor_lightning.ImageClassifier`, except those present."""
    kinds: tuple[type[Callback], ...] = (MonitorCheck, FiniteCheck, PenaltyShare)
    return [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in present)]


def callbacks_of_a_run(trainer: Any) -> list[Callback]:
    """Return the callbacks that ``scor-fit`` and the evaluation commands add, except those configured.

    :class:`~scor_lightning.callbacks.BestCheckpoint` and :class:`~scor_lightning.callbacks.LastCheckpoint` are added as
    separate options, and ``scor-fit`` adds :class:`~scor_lightning.callbacks.run_folder.RunFolder`.

    Args:
        trainer: The options of the trainer.
    """
    configured = [pydoc.locate(callback.class_path) for callback in trainer.callbacks or ()]

    def has(kind: type[Callback]) -> bool:
        return any(isinstance(each, type) and issubclass(each, kind) for each in configured)

    kinds: tuple[type[Callback], ...] = (ClassReport, Dashboard, InputReport)
    callbacks = [kind() for kind in kinds if not has(kind)]
    if trainer.enable_progress_bar is not False and not has(ProgressBar):
        # Drawing at every step would slow down a small network, and fill the log of a long run that has no terminal.
        callbacks.append(TQDMProgressBar(refresh_rate=10 if sys.stdout.isatty() else 1000))
    return callbacks
