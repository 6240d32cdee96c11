"""The table at the end of an evaluation."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from scor_lightning.losses.base import describe_loss

MAX_CLASSES = 10


class ClassReport(Callback):
    """Prints one table after a test or a validation run: loss, metrics, and images and recall of each class.

    Where there are more than ten classes, the ten with the lowest recall are shown.
    """

    @rank_zero_only
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table, below the progress bar that has ended by now."""
        split = {"test": "test", "validate": "val"}.get(stage)
        if f"{split}/accuracy" in trainer.callback_metrics:  # absent where the run was stopped
            print(self.table(str(split), trainer, pl_module), flush=True)

    def table(self, split: str, trainer: Trainer, pl_module: LightningModule) -> str:
        """Lay out the results of the last evaluation of a split."""
        results = {name: float(value) for name, value in trainer.callback_metrics.items()}
        names: list[str] = pl_module.class_names  # type: ignore[assignment]
        counts: Tensor | None = pl_module.class_counts  # type: ignore[assignment]  # of the data it was trained on
        images = ["?"] * len(names) if counts is None else [f"{count:,}" for count in counts.tolist()]
        rows = [(name, size, results[f"{split}/recall/{name}"]) for name, size in zip(names, images, strict=True)]
        heading = "class"
        if len(rows) > MAX_CLASSES:
            rows = sorted(rows, key=lambda row: row[2])[:MAX_CLASSES]
            heading = f"class (the {MAX_CLASSES} lowest recalls of {len(names)})"
        width = max(len(heading), *(len(row[0]) for row in rows))
        lines = [
            "",
            f"loss               {describe_loss(pl_module.loss)}",  # type: ignore[arg-type]
            f"accuracy           {results[f'{split}/accuracy']:.4f}",
            f"balanced accuracy  {results[f'{split}/balanced_accuracy']:.4f}",
            f"macro F1           {results[f'{split}/f1_macro']:.4f}",
            "",
            f"{heading:<{width}}  training images  recall",
        ]
        lines += [f"{name:<{width}}  {size:>15}  {recall:6.4f}" for name, size, recall in rows]
        return "\n".join([*lines, ""])
