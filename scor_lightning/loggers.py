"""The logger of a run folder, and one way to reach every kind of logger.

Scalars are logged by Lightning's own ``log_metrics``. The functions below pass images, histograms, files and
hyperparameters to the loggers that support them.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from numpy.typing import NDArray
from torch import Tensor

from scor_lightning.files import csv_text, six_digits, write_whole


class RunLogger(CSVLogger):
    """The first logger of a run: it writes ``metrics.csv``, and Lightning's own files follow it to the run's folder.

    A resumed run appends to the existing file.

    Args:
        folder: The folder of the run, ``<experiments>/<experiment>/version_<n>``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parents[1], folder.parent.name, int(folder.name.removeprefix("version_")))

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.log_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of ``metrics.csv``."""
        if not isinstance(self._experiment, ExperimentWriter):
            self._experiment = _ContinuedMetrics(self.log_dir)
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: they are in ``config.yaml``."""

    def drop_after(self, step: int) -> None:
        """Remove rows after a step from which a run is resumed, which logs them again."""
        file = self.folder / "metrics.csv"
        header, rows = _read_metrics(file)
        if not header:
            return
        place = header.index("step")
        # Lightning counts steps from 0, so that step n is the first one after n steps; spectra and tests after n steps have n.
        after = [i for i, name in enumerate(header) if name.startswith(("spectrum/", "test/"))]
        kept = (row for row in rows if (at := int(row[place])) < step or (at == step and any(row[i] for i in after)))
        write_whole(file, csv_text([header, *kept]))


def _read_metrics(file: Path) -> tuple[list[str], list[list[str]]]:
    """Read a table of metrics without incomplete lines from a killed process."""
    if not file.is_file():
        return [], []
    with file.open(newline="") as lines:
        header, *rows = [*csv.reader(lines)] or [[]]
    if "step" not in header:
        return [], []
    place = header.index("step")
    return header, [row for row in rows if len(row) == len(header) and row[place].isdecimal()]


class _ContinuedMetrics(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        file = Path(self.metrics_file_path)
        self.metrics_keys, _ = _read_metrics(file)
        if not self.metrics_keys:
            file.unlink(missing_ok=True)  # a killed process may leave an empty file

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        values = {name: value if isinstance(value, int) else float(value) for name, value in metrics_dict.items()}
        super().log_metrics(six_digits(values), step)

    def _check_log_dir_exists(self) -> None:  # Lightning's deletes the file
        pass

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:  # Lightning's loses the file if it is killed
        file = Path(self.metrics_file_path)
        header, rows = _read_metrics(file)
        columns = [header.index(name) if name in header else None for name in fieldnames]
        moved = (["" if i is None else row[i] for i in columns] for row in rows)
        write_whole(file, csv_text([fieldnames, *moved]))


def takes_images(trainer: Trainer) -> bool:
    """Return whether one of the trainer's loggers supports images."""
    return any(isinstance(logger, TensorBoardLogger | WandbLogger | MLFlowLogger) for logger in trainer.loggers)


def log_image(trainer: Trainer, tag: str, pixels: NDArray[np.uint8]) -> None:
    """Log an image, uint8 ``[H, W, 3]``, at the current step."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [pixels], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(str(logger.run_id), pixels, f"{tag}/step={step:08d}.png")


def log_histogram(trainer: Trainer, tag: str, values: Tensor) -> None:
    """Log a histogram of values ``[n]`` at the current step."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(tag, values, step)
        elif isinstance(logger, WandbLogger):
            from wandb import Histogram

            histogram: Any = Histogram(values.tolist())
            logger.log_metrics({tag: histogram}, step)


def log_hyperparameters(trainer: Trainer, values: dict[str, str | float]) -> None:
    """Log the hyperparameters by which runs are compared; for TensorBoard :class:`~scor_lightning.callbacks.Dashboard` does."""
    values = {f"run/{name}": value for name, value in values.items()}  # distinct from the classifier's own
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger):  # which refuses a changed value, such as `epochs` of a resumed run
            known = logger.experiment.get_run(str(logger.run_id)).data.params
            logger.log_hyperparams({name: value for name, value in values.items() if name not in known})
        elif not isinstance(logger, TensorBoardLogger | CSVLogger):
            logger.log_hyperparams(values)


def log_files(trainer: Trainer, folder: Path) -> None:
    """Log the files of a folder to loggers that store files."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.save(str(folder / "*"), base_path=str(folder.parent), policy="now")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifacts(str(logger.run_id), str(folder), folder.name)
