"""The speed of a run, and whether it waits for data."""

import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.data import suggested_max_num_workers

MUCH = 0.1  # share of the time from which more workers are suggested


class InputReport(pl.Callback):
    """Reports after the first epoch whether the run waits for data, what to change, and its speed.

    Two wall times are compared: in the loader, waiting for the next batch, and in the training steps. The first batch,
    for which workers have to start, is excluded. On a CUDA device steps are queued, so that the device may be busy while the
    process waits, and the share is an upper bound of what a faster loader can save. Nothing is synchronised. The loader
    must count its ``seconds_waited``, as :class:`~scor_lightning.datamodules.ResumableDataLoader` does; otherwise nothing
    is reported.

    The speed is that of the epoch's steps after the first one, in training images per second over all processes. The peak
    memory is that of this process on its GPU, or without one in main memory. If ``limit_train_batches`` shortens the epoch,
    the duration of a whole one is estimated from the speed.

    Example:
        >>> trainer = pl.Trainer(logger=False, callbacks=[InputReport()])
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._in_steps = 0.0
        self._first_end = 0.0
        self._last_end = 0.0
        self._waited_before: float | None = None
        self._reported = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the start of a step."""
        if self._waited_before is None:
            self._waited_before = getattr(trainer.train_dataloader, "seconds_waited", None)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the duration of a step."""
        self._last_end = time.perf_counter()
        self._in_steps += self._last_end - self._started
        if batch_idx == 0:
            self._first_end = self._last_end

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, once, how the time of the first epoch was spent."""
        if self._reported or self._waited_before is None:
            return
        self._reported = True
        loader: Any = trainer.train_dataloader
        share = (waited := loader.seconds_waited - self._waited_before) / (waited + self._in_steps)
        free = suggested_max_num_workers(trainer.num_devices)  # per process
        if share < MUCH:
            advice = "Training is compute-bound; faster loading would not help."
        elif loader.num_workers < free:
            advice = (
                f"The run waits for data: raise `--data.num_workers` (now {loader.num_workers}, there are cores for {free}), "
                "or store smaller images, or on a faster disk."
            )
        else:
            advice = (
                "The run waits for data, with a worker on every core: store smaller images, or on a faster disk, or use a "
                "machine with more cores."
            )
        seconds = f"{waited + self._in_steps:.2g} s"
        # On a separate line beside the progress bar, by the first process only.
        pl_module.print(f"Input: {share:.0%} of the first epoch's {seconds} was spent waiting for data. {advice}")
        steps = trainer.num_training_batches - 1
        if steps < 1 or self._first_end == 0:  # the run was resumed within the epoch
            return
        whole = (self._last_end - self._first_end) / steps * len(loader)
        images = len(loader.dataset)
        speed = f"{images / whole:,.0f}" if images > 100 * whole else f"{images / whole:.3g}"
        line = f"Speed: {speed} images per second, peak memory {_peak_memory(pl_module.device)}"
        if trainer.num_training_batches < len(loader):
            line += f"; an epoch of all {images:,} training images would take {timedelta(seconds=round(whole))}"
        pl_module.print(line)


def _peak_memory(device: torch.device) -> str:
    """Return the peak memory of the process as text."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.3g} GB of the GPU"
    if sys.platform == "win32":
        return "unknown"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.3g} GB"
