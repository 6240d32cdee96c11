"""The checkpoint with the best validation score."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from scor_lightning.callbacks.protocol import SECOND_STAGE, stage_of
from scor_lightning.metrics import lower_is_better

BEST = "best.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best score, always as ``best.ckpt``.

    Lightning's :class:`~lightning.pytorch.callbacks.ModelCheckpoint` with these differences: ``best.ckpt`` is the best
    checkpoint under every ``filename`` and ``save_top_k``; whether a higher score is better follows from the monitored
    metric; a slash in the name of a metric, such as ``{val/accuracy:.3f}``, does not become a folder; a run that is
    resumed from a folder that was moved remembers its scores.

    Args:
        monitor: The metric; None keeps the newest checkpoint.
        mode: ``"min"`` if lower values are better, ``"max"`` if higher ones are; ``"auto"`` depends on the metric: lower
            is better for losses and calibration errors, higher for the others.
        filename: Name of the file without its ending, with ``{epoch}``, ``{step}`` and metrics in braces. If several
            checkpoints are kept and the name lacks the step, epoch and step are appended.
        save_top_k: How many checkpoints to keep; -1 keeps all.
        enable_version_counter: Whether to append a counter to the name of a file that exists, instead of overwriting it.
        **kwargs: As of ``ModelCheckpoint``.

    Example:
        >>> BestCheckpoint(monitor="val/loss").mode
        'min'
    """

    def __init__(
        self,
        monitor: str | None = "val/balanced_accuracy",
        mode: Literal["auto", "min", "max"] = "auto",
        filename: str = "best",
        save_top_k: int = 1,
        enable_version_counter: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("save_last"):
            raise ValueError("Expected no `--checkpoint.save_last`: the last checkpoint is always kept, as `last.ckpt`")
        for name in ("every_n_epochs", "every_n_train_steps"):
            if kwargs.get(name) is not None and kwargs[name] < 1:
                raise ValueError(f"Expected `{name}` >= 1 but got {kwargs[name]}, with which no checkpoint is written")
        if mode == "auto":
            mode = "min" if monitor is not None and lower_is_better(monitor) else "max"
        if save_top_k != 1 and "{step" not in filename:  # several checkpoints must not share a file
            filename += "-{step}" if "{epoch" in filename else "-{epoch}-{step}"
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_top_k=save_top_k,
            enable_version_counter=enable_version_counter,
            **kwargs,
        )
        name_without_folders(self)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the folder; a second stage has a separate one."""
        super().setup(trainer, pl_module, stage)
        place = Path(str(self.dirpath))
        if self.dirpath and stage_of(pl_module) == 2 and place.parent.name != SECOND_STAGE:
            self.dirpath = str(place.parent / SECOND_STAGE / place.name)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores, even if the folder has since been moved."""
        scores = state_dict.get("best_k_models", {})
        here = {path: os.path.join(str(self.dirpath), os.path.basename(path)) for path in scores}
        if scores and all(os.path.isfile(path) for path in here.values()):
            paths = {
                name: os.path.join(str(self.dirpath), os.path.basename(state_dict[name]))
                for name in ("best_model_path", "kth_best_model_path")
                if state_dict.get(name)
            }
            own = {"dirpath": self.dirpath, "best_k_models": {here[path]: score for path, score in scores.items()}}
            state_dict = {**state_dict, **paths, **own}
        super().load_state_dict(state_dict)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        path = Path(filepath)
        if filepath == self.best_model_path and path.name != BEST and trainer.is_global_zero:
            second_name = path.with_name(f"{BEST}.tmp")
            second_name.unlink(missing_ok=True)
            try:
                os.link(path, second_name)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, second_name)
            os.replace(second_name, path.with_name(BEST))


def name_without_folders(checkpoint: ModelCheckpoint) -> None:
    """Prevent slashes in the names of metrics, such as ``val/accuracy``, from creating folders.

    Example:
        >>> checkpoint = ModelCheckpoint(filename="{epoch}-{val/accuracy:.2f}")
        >>> name_without_folders(checkpoint)
        >>> checkpoint.format_checkpoint_name({"epoch": 3, "val/accuracy": 0.5})
        'epoch=3-val_accuracy=0.50.ckpt'
    """
    if checkpoint.filename and checkpoint.auto_insert_metric_name:
        equals = checkpoint.CHECKPOINT_EQUALS_CHAR
        checkpoint.filename = re.sub(
            r"\{([^:}]*)", lambda found: found[1].replace("/", "_") + equals + found[0], checkpoint.filename
        )
        checkpoint.auto_insert_metric_name = False
