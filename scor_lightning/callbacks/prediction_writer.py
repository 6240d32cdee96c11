"""Predictions as a CSV file."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scor_lightning.callbacks.protocol import Classifier, as_classifier
from scor_lightning.files import safe_cell
from scor_lightning.losses.base import gives_probabilities

TOP = 5


class PredictionWriter(Callback):
    """Writes the predictions of ``Trainer.predict`` to a CSV file, one row per image.

    The columns are ``index`` and ``true_class``, or ``file`` if files are named; ``predicted_class`` and its
    ``probability``; and ``class_2``, ``probability_2`` to ``class_5``, ``probability_5``, the next most likely classes. The
    other cells of an unreadable image are empty. The file is written atomically.

    Args:
        path: File to write.
        files: Names of the images, in their order, if they have no true classes; the second part of a batch, bool
            ``[B]``, is then whether each image could be read.
        all_classes: Whether to add a column ``probability[<class>]`` for each class.

    Raises:
        ValueError: If several processes predict.
    """

    def __init__(
        self, path: str | os.PathLike[str], files: Sequence[str] | None = None, all_classes: bool = False
    ) -> None:
        self.path = Path(path)
        self.files = files
        self.all_classes = all_classes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a single process predicts."""
        if stage == "predict" and trainer.world_size > 1:
            raise ValueError(f"Expected one process to predict, `--trainer.devices 1`, but got {trainer.world_size}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file."""
        self._part = self.path.with_name(self.path.name + ".part")
        self._file = self._part.open("w", newline="")
        self._rows = csv.writer(self._file)
        leading = ["index", "true_class"] if self.files is None else ["file"]
        names = _classifier(pl_module).class_names
        ranks = range(2, min(TOP, len(names)) + 1)
        following = [name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}")]
        each = [f"probability[{name}]" for name in names] if self.all_classes else []
        self._header = [*leading, "predicted_class", "probability", *following, *each]
        self._rows.writerow(map(safe_cell, self._header))
        self._index = self._unreadable = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of a batch."""
        model = _classifier(pl_module)
        names = model.class_names
        targets = [] if self.files is not None else model.own_targets(batch[1]).tolist()
        probabilities, classes = outputs.topk(min(TOP, outputs.shape[1]))
        for i, (guesses, shares) in enumerate(zip(classes.tolist(), probabilities.tolist(), strict=True)):
            leading = [self.files[self._index]] if self.files is not None else [self._index, names[targets[i]]]
            readable = self.files is None or bool(batch[1][i])
            share = "{:.6f}" if gives_probabilities(model.loss) else ""
            row = [*leading]
            if readable:
                row += [cell for c, p in zip(guesses, shares, strict=True) for cell in (names[c], share.format(p))]
                row += map(share.format, outputs[i].tolist()) if self.all_classes else []
            self._rows.writerow([*map(safe_cell, row), *[""] * (len(self._header) - len(row))])
            self._index += 1
            self._unreadable += not readable

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the incomplete file."""
        if hasattr(self, "_file"):
            self._file.close()
            self._part.unlink(missing_ok=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rename the complete file."""
        self._file.close()
        self._part.replace(self.path)
        what, but = "prediction", ""
        if self._unreadable:
            what, but = "image", f", {self._unreadable} without a prediction because they cannot be read"
        print(f"Wrote {self._index} {what}{'s' * (self._index != 1)} to {self.path}{but}")


def is_table_of_predictions(start: bytes) -> bool:
    """Return whether the beginning of a file is that of one written by :class:`PredictionWriter`."""
    return start.startswith((b"file,predicted_class,probability", b"index,true_class,predicted_class"))


def _classifier(pl_module: LightningModule) -> Classifier:
    model = as_classifier(pl_module)
    if model is None:
        raise ValueError(f"PredictionWriter requires an ImageClassifier but got {type(pl_module).__name__}")
    return model
