"""The layout of TensorBoard: charts of what is compared, with runs side by side."""

import os
import re
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from scor_lightning.callbacks.protocol import as_classifier, network_of, state_of
from scor_lightning.callbacks.weight_spectrum import WeightSpectrum
from scor_lightning.loggers import log_hyperparameters
from scor_lightning.losses.base import describe_loss, loss_name
from scor_lightning.spectrum import select_layers

SMALLEST = 6  # number of the smallest classes whose recalls are shown
# Metrics by which runs are compared, with the titles of their columns; the cell of a missing one is empty.
METRICS = {
    "test/balanced_accuracy": "balanced accuracy",
    "test/accuracy_few": "few-shot accuracy",
    "test/accuracy_reduced": "accuracy of reduced classes",
    "test/f1_macro": "macro F1",
    "spectrum/{classifier}/sigma_min": "sigma_min of classifier",
    "test/accuracy": "accuracy",
    "test/accuracy_medium": "medium-shot accuracy",
    "test/accuracy_many": "many-shot accuracy",
    "test/g_mean": "G-mean",
    "test/mcc": "MCC",
    "test/calibration_error": "calibration error",
    "test/cross_entropy": "cross entropy",
    "test/loss": "test loss",
    "spectrum/{classifier}/sigma_max": "sigma_max of classifier",
    "spectrum/{classifier}/effective_rank": "effective rank of classifier",
}
SHOWN_FIRST = ("loss", "imbalance", "lr", "epochs", "seed")  # TensorBoard shows five columns by default


class Dashboard(Callback):
    """Arranges a run's scalars in TensorBoard when training starts.

    "Custom scalars" has one chart per comparison: accuracy over the classes of many, medium and few
    training images, the recalls of the six smallest classes, the terms of the loss, singular values of the classifier
    and by layer. "HParams" has one row per run: loss, data and optimizer beside the final metrics. Other loggers receive
    the hyperparameters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", callbacks=[Dashboard()])
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prevent Lightning from filling "HParams" with a metric of -1, which would hide later values."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger._default_hp_metric = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout of the charts and the columns of the table; the values are the run's scalars."""
        if trainer.is_global_zero:
            log_hyperparameters(trainer, _hyperparameters(trainer, pl_module))
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not trainer.is_global_zero:
            return
        classifier = None  # without WeightSpectrum there are no curves of it
        if any(isinstance(callback, WeightSpectrum) for callback in state_of(trainer).callbacks):
            model = as_classifier(pl_module)
            network, num_classes = network_of(pl_module), None if model is None else model.num_classes
            classifier = select_layers(network, num_classes=num_classes).classifier
        titles = {
            tag.format(classifier=classifier): title
            for tag, title in METRICS.items()
            if classifier is not None or "{classifier}" not in tag
        }
        experiment, start, self._end = hparams(_hyperparameters(trainer, pl_module), dict.fromkeys(titles, 0.0))
        _name_columns(experiment, titles)
        layout = _layout(pl_module, classifier)
        for logger in loggers:
            logger.experiment.add_custom_scalars(layout)
            writer = logger.experiment._get_file_writer()
            writer.add_summary(experiment)
            writer.add_summary(start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the run has finished."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment._get_file_writer().add_summary(self._end)


def _layout(pl_module: LightningModule, classifier: str | None) -> dict[str, dict[str, list[Any]]]:
    # Charts with the same title in several runs are merged, with one colour per run.
    model = as_classifier(pl_module)
    few, many = model.shot_thresholds if model else (0, 0)
    groups = model.class_groups if model else {}
    counts = model.description.counts if model else None
    ranges = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
    classes = {"all classes (balanced accuracy)": _exactly("val/balanced_accuracy")} | {
        f"{group}-shot: {images} training images": _exactly(f"val/accuracy_{group}")
        for group, images in ranges.items()
        if group in groups and groups[group].any()
    }
    smallest = {}
    if model is not None and counts is not None:
        names = model.class_names
        for c in counts.argsort()[:SMALLEST].tolist():
            smallest[f"{names[c]}: {int(counts[c]):,} training images"] = _exactly(f"val/recall/{names[c]}")
    weights = {}
    if classifier is not None:
        head = f"the classifier ({classifier})"
        weights = {
            f"smallest singular value of {head}": _exactly(f"spectrum/{classifier}/sigma_min"),
            f"largest singular value of {head}": _exactly(f"spectrum/{classifier}/sigma_max"),
            f"effective rank of {head}": _exactly(f"spectrum/{classifier}/effective_rank"),
            "smallest singular value of every layer": "spectrum/.*/sigma_min",
            "largest singular value of every layer": "spectrum/.*/sigma_max",
            f"norms of the rows of {head}": re.escape(f"spectrum/{classifier}/row_norm/") + ".*",
        }
    charts = {
        "Which classes suffer: validation accuracy": classes,
        "The smallest classes: validation recall": smallest,
        "Loss": {
            "terms of the training loss": "train/(?!loss$|scor_share$).*",
            "SCoR's share of the training loss": _exactly("train/scor_share"),
            "validation loss": _exactly("val/loss"),
            "validation cross entropy": _exactly("val/cross_entropy"),
        },
        "Weights": weights,
    }
    return {
        category: {title: ["Multiline", [tag]] for title, tag in members.items()}
        for category, members in charts.items()
        if members
    }


def _exactly(tag: str) -> str:
    """Return a pattern that matches only this tag; TensorBoard interprets the tags of a chart as regular expressions."""
    return re.escape(tag) + "$"


def _hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, str | float]:
    # The same names in every run, because TensorBoard takes its columns from one of them. Integers as text, because
    # numbers are shown with three decimals.
    data = state_of(trainer).datamodule
    options = {} if data is None else vars(data)
    model = as_classifier(pl_module)
    loss = None if model is None else model.loss
    optimizer = trainer.optimizers[0]
    group = optimizer.param_groups[0]
    return {
        "loss": "none" if loss is None else loss_name(loss),
        "loss in full": "none" if loss is None else describe_loss(loss),
        "alpha": 0.0 if loss is None else float(vars(loss).get("alpha", 0.0)),
        "data": type(data).__name__,
        "data seed": str(options.get("seed")),
        "imbalance": str(options.get("imbalance")),
        "sampling": str(options.get("sampling")),
        "batch size": str(options.get("batch_size")),
        "backbone": type(network_of(pl_module)).__name__,
        "optimizer": type(optimizer).__name__,
        "lr": float(group["lr"]),
        "weight decay": float(group.get("weight_decay", 0.0)),
        "epochs": str(trainer.max_epochs),
        "seed": os.environ.get("PL_GLOBAL_SEED", "none"),
    }


def _name_columns(experiment: Any, titles: dict[str, str]) -> None:
    """Set the titles and the order of the columns in the summary of :func:`torch.utils.tensorboard.summary.hparams`."""
    plugin_data = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    for metric in content.experiment.metric_infos:
        metric.display_name = titles[metric.name.tag]
    for hyperparameter in content.experiment.hparam_infos:
        hyperparameter.differs = hyperparameter.name in SHOWN_FIRST  # differing ones come first
    plugin_data.content = content.SerializeToString()
