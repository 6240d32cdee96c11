"""What makes TensorBoard answer the question: charts that belong together, and runs side by side."""

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from scor_lightning.losses.base import describe_loss
from scor_lightning.spectrum import select_layers

# What the runs are compared by; of one that a run does not have the cell is empty.
METRICS = (
    "test/balanced_accuracy",
    "test/accuracy",
    "test/f1_macro",
    "test/accuracy_many",
    "test/accuracy_medium",
    "test/accuracy_few",
    "test/accuracy_reduced",
    "test/g_mean",
    "test/calibration_error",
    "test/loss",
    "spectrum/classifier/sigma_min",
    "spectrum/classifier/sigma_max",
)


class Dashboard(Callback):
    """Arranges a run's scalars in TensorBoard.

    "Custom scalars" gets the charts of what is compared: accuracy over many-, medium- and few-shot classes and the
    recalls of the classes, the terms of the loss, smallest and largest singular value and rank by layer. "HParams" gets
    one row a run: loss, data and optimizer beside the final metrics, so that losses are compared side by side. Other
    loggers are left alone.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", callbacks=[Dashboard()])
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the charts, and name what the run is compared by: the values are scalars of the run."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not trainer.is_global_zero:
            return
        classifier = select_layers(
            getattr(pl_module, "backbone", pl_module), num_classes=getattr(pl_module, "num_classes", None)
        ).classifier
        metrics = {name.replace("/classifier/", f"/{classifier}/"): 0.0 for name in METRICS}
        experiment, start, self._end = hparams(_hyperparameters(trainer, pl_module), metrics)  # type: ignore[no-untyped-call]
        for logger in loggers:
            logger.experiment.add_custom_scalars(_layout(classifier))
            writer = logger.experiment._get_file_writer()
            writer.add_summary(experiment)
            writer.add_summary(start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the run has come to its end."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment._get_file_writer().add_summary(self._end)


def _layout(classifier: str | None) -> dict[str, dict[str, list[Any]]]:
    # Regular expressions that each run writes alike: TensorBoard shows a chart once that many runs ask for.
    return {
        "Classes": {
            "accuracy by training images of the class: many, medium, few": [
                "Multiline",
                ["val/accuracy_many", "val/accuracy_medium", "val/accuracy_few"],
            ],
            "balanced accuracy": ["Multiline", ["val/balanced_accuracy"]],
            "recall of each class": ["Multiline", ["val/recall/.*"]],
        },
        "Loss": {
            "terms of the training loss": ["Multiline", ["train/(?!loss$|scor_share$).*"]],
            "validation loss": ["Multiline", ["val/loss"]],
        },
        "Weights": {
            f"smallest singular value of the classifier ({classifier})": [
                "Multiline",
                [f"spectrum/{classifier}/sigma_min"],
            ],
            "smallest singular value by layer": ["Multiline", ["spectrum/.*/sigma_min"]],
            "largest singular value by layer": ["Multiline", ["spectrum/.*/sigma_max"]],
            "effective rank by layer": ["Multiline", ["spectrum/.*/effective_rank"]],
            "norms of the classifier's rows by class": ["Multiline", ["spectrum/.*/row_norm/.*"]],
        },
    }


def _hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, str | float]:
    # The same names in every run, because TensorBoard takes its columns from one of them.
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loss: Any = getattr(pl_module, "loss", None)
    optimizer = trainer.optimizers[0]
    group = optimizer.param_groups[0]
    return {
        "loss": "none" if loss is None else describe_loss(loss),
        "alpha": float(getattr(loss, "alpha", 0.0)),
        "data": type(data).__name__,
        "imbalance": str(getattr(data, "imbalance", None)),
        "sampling": str(getattr(data, "sampling", None)),
        "data seed": getattr(data, "seed", -1),
        "batch size": getattr(data, "batch_size", -1),
        "backbone": type(getattr(pl_module, "backbone", pl_module)).__name__,
        "optimizer": type(optimizer).__name__,
        "lr": float(group["lr"]),
        "weight decay": float(group.get("weight_decay", 0.0)),
        "epochs": trainer.max_epochs if trainer.max_epochs is not None else -1,
        "seed": int(os.environ.get("PL_GLOBAL_SEED", "-1")),
    }
