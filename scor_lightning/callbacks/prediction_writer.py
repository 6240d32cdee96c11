"""Predictions as a table on disk."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class PredictionWriter(Callback):
    """Writes what ``Trainer.predict`` gives as a CSV: index, true class, predicted class and its probability.

    The file appears under its name when it is whole.

    Args:
        path: File to write.

    Raises:
        ValueError: If several processes predict.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that one process predicts."""
        if stage == "predict" and trainer.world_size > 1:
            raise ValueError(f"Expected one process to predict, `--trainer.devices 1`, but got {trainer.world_size}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file."""
        self._part = self.path.with_name(self.path.name + ".part")
        self._file = self._part.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["index", "true_class", "predicted_class", "probability"])
        self._index = 0

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
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        probability, predicted = outputs.max(dim=-1)
        for true, guess, p in zip(batch[1].tolist(), predicted.tolist(), probability.tolist(), strict=True):
            self._rows.writerow([self._index, names[true], names[guess], f"{p:.6f}"])
            self._index += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the file in its place."""
        self._file.close()
        self._part.replace(self.path)
        print(f"Wrote {self._index} predictions to {self.path}")
