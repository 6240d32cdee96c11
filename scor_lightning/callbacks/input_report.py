"""Whether a run waits for its data."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.data import suggested_max_num_workers

MUCH = 0.1  # share of the time from which more workers are worth a try


class InputReport(pl.Callback):
    """Says in one line after the first epoch whether the run waits for data or for the device, and what to change.

    Two wall times are compared: in the loader, waiting for the next batch, and in the training steps. The first batch,
    for which workers have to start, is left out. On a CUDA device the steps are queued, so that it may have work while the
    process waits, and the share is the most that a faster loader can save. Nothing is synchronised. The loader has to
    count its ``seconds_waited``, as :class:`~scor_lightning.datamodules.ResumableDataLoader` does; for another one
    nothing is said.

    Example:
        >>> trainer = pl.Trainer(logger=False, callbacks=[InputReport()])
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._in_steps = 0.0
        self._waited_before: float | None = None
        self._reported = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when a step begins."""
        if self._waited_before is None:
            self._waited_before = getattr(trainer.train_dataloader, "seconds_waited", None)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the time in steps."""
        self._in_steps += time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report once where the time of the first epoch went."""
        if self._reported or self._waited_before is None:
            return
        self._reported = True
        loader: Any = trainer.train_dataloader
        share = (waited := loader.seconds_waited - self._waited_before) / (waited + self._in_steps)
        free = suggested_max_num_workers(trainer.num_devices)  # of each process
        if share < MUCH:
            advice = "Training is compute-bound; faster loading would not help."
        elif loader.num_workers < free:
            advice = (
                f"The run waits for data: raise `--data.num_workers` (now {loader.num_workers}, there are cores for {free}), "
                "or keep the images smaller or nearer."
            )
        else:
            advice = (
                "The run waits for data, with a worker on every core: keep the images smaller or nearer, or take a machine "
                "of more cores."
            )
        seconds = f"{waited + self._in_steps:.2g} s"
        # On a line of its own, beside the progress bar, by the first process alone.
        pl_module.print(f"Input: {share:.0%} of the first epoch's {seconds} was spent waiting for data. {advice}")
