"""The checkpoint from which a stopped or killed run resumes, and an orderly end on a signal."""

import os
import signal
import threading
import time
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from scor_lightning.callbacks.protocol import state_of
from scor_lightning.checkpoint import AVERAGE, AtomicCheckpointIO
from scor_lightning.signals import STOP_SIGNALS


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``: written after every epoch, every few minutes, and when a signal asks the run to stop.

    After Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP to any of the processes, the current step is finished, including a validation
    that follows it; the checkpoint is written, and ``Trainer.fit`` raises :class:`SystemExit` with the status 128 + signal.
    Another Ctrl-C ends the run at once. An ignored signal, as under ``nohup``, stays ignored. If the ``torchrun`` that
    started a process ends, the process treats this as SIGHUP.

    A run that resumes from the checkpoint ends with bit-identical weights, provided that its loader has a ``state_dict``
    (see :class:`~scor_lightning.datamodules.ResumableDataLoader`) and all random numbers are a function of seed, epoch and
    step, as in :class:`~scor_lightning.ImageClassifier`.

    The average of Lightning's ``StochasticWeightAveraging`` is saved as ``average.ckpt`` at the end of training.

    The file is written by :class:`~scor_lightning.checkpoint.AtomicCheckpointIO`, unless the trainer has its own checkpoint
    plugin. While gradients are accumulated, which no checkpoint stores, nothing is written.

    Under SLURM, pass the plugin ``SLURMEnvironment(auto_requeue=False)`` to your own ``Trainer``, as the command line does:
    outside of training steps, Lightning's own handler would save too, and later runs would start from that checkpoint.

    Args:
        minutes: Minutes between checkpoints within an epoch, >= 0; 0 writes one after every step. A killed run loses at
            most this time.

    Raises:
        ValueError: If minutes < 0.
        ConnectionError: If one of several processes was lost.

    Example:
        >>> trainer = pl.Trainer(logger=False, callbacks=[LastCheckpoint(minutes=5)])
    """

    def __init__(self, minutes: float = 15.0) -> None:
        if not minutes >= 0:
            raise ValueError(f"Expected `minutes` >= 0 but got {minutes}")
        super().__init__(filename="last", enable_version_counter=False)
        self.minutes = minutes
        self._received = 0  # by this process
        self._received_at = 0.0
        self._stop = 0  # agreed on by all processes
        self._saved_at = 0.0
        self._launcher = 0
        self._exchange: _Exchange | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the folder, and write checkpoints atomically."""
        super().setup(trainer, pl_module, stage)
        self._received = self._stop = 0
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers; signals take effect after the first step."""
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers."""
        super().on_train_start(trainer, pl_module)
        self._listen()
        self._saved_at = time.monotonic()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._exchange = _Exchange(trainer) if trainer.world_size > 1 and dist.is_initialized() else None

    def _listen(self) -> None:
        # The Trainer has just installed its own handlers, which would save and broadcast in mid-step; it restores the
        # previous ones when it ends.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        # A terminal and a launcher may both forward the same Ctrl-C.
        if number == signal.SIGINT and self._received and now - self._received_at > 1:
            raise KeyboardInterrupt
        if not self._received:
            self._received, self._received_at = number, now
            if getattr(rank_zero_only, "rank", 0) == 0:
                name, again = signal.Signals(number).name, " again" * (number == signal.SIGINT)
                # The signal may have interrupted `print`.
                os.write(2, f"\n{name}: stopping after this step; Ctrl-C{again} ends it at once\n".encode())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if the previous step was the last one, after its validation."""
        self._leave_if_stopped(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due or the run stops."""
        last = trainer.is_last_batch
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not last:
            return
        if self._launcher and self._launcher != os.getppid():
            self._received = self._received or signal.SIGHUP
        due, self._stop = self._exchange.before() if self._exchange else (self._due(), self._received)
        # A run that `max_steps` or `max_time` ends within an epoch can be continued.
        stops = trainer.should_stop and not (trainer.min_epochs or trainer.min_steps)  # which may postpone the end
        ends = stops or trainer.global_step == trainer.max_steps
        if self._stop or ((due or ends) and not last):  # the end of the epoch writes one
            self._save(trainer)
        if self._exchange:
            self._exchange.begin(self._due() and trainer.is_global_zero, self._received)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save again after a validation, so that a resumed run does not repeat it."""
        if (
            not trainer.sanity_checking
            and trainer.state.fn == "fit"
            and self._last_global_step_saved == trainer.global_step
            and not trainer.is_last_batch
        ):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a checkpoint, and stop if a signal was received, also during the validation."""
        if trainer.is_last_batch or self._last_global_step_saved != trainer.global_step:
            self._save(trainer)
        if self._exchange:
            self._exchange.before()
            self._exchange.begin(False, self._received)
        self._stop = self._stop or (self._exchange.before()[1] if self._exchange else self._received)
        self._leave_if_stopped(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the average of Lightning's stochastic weight averaging, which it has now copied into the network."""
        super().on_train_end(trainer, pl_module)
        for callback in state_of(trainer).callbacks:
            if isinstance(callback, StochasticWeightAveraging) and trainer.current_epoch - 1 >= callback.swa_end >= 0:
                trainer.save_checkpoint(os.path.join(str(self.dirpath), AVERAGE), weights_only=True)

    def _due(self) -> bool:
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_at = time.monotonic()
        if not state_of(trainer).fast_dev_run:
            self.best_model_path = self.last_model_path = self.format_checkpoint_name({})
            self._save_checkpoint(trainer, self.best_model_path)

    def _leave_if_stopped(self, trainer: pl.Trainer) -> None:
        if not self._stop:
            return
        rank_zero_info(
            f"{signal.Signals(self._stop).name}: stopped after step {trainer.global_step}, in epoch "
            f"{trainer.current_epoch}; saved in {self.last_model_path}"
        )
        # Lightning kills the first process if one that it started fails.
        environment = getattr(trainer.strategy, "cluster_environment", None)
        started_by_lightning = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        raise SystemExit(0 if started_by_lightning else 128 + self._stop)


class _Exchange:
    """Makes all processes decide the same at the same step, delayed by one step.

    Each step starts an asynchronous reduction of the requests on the CPU, and reads the result of the reduction that the
    previous step started, so that neither the device nor the step waits.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        timeout = getattr(trainer.strategy, "_timeout", None)
        self.group: Any = dist.new_group(backend="gloo", timeout=timeout)
        self.processes = trainer.world_size
        self._begun: tuple[Any, torch.Tensor] | None = None

    def begin(self, save: bool, stop: int) -> None:
        asked = torch.tensor([int(save), stop])
        self._begun = dist.all_reduce(asked, dist.ReduceOp.MAX, self.group, async_op=True), asked

    def before(self) -> tuple[bool, int]:
        if self._begun is None:
            return False, 0
        (work, asked), self._begun = self._begun, None
        try:
            work.wait()
        except RuntimeError as error:
            raise ConnectionError(f"One of the {self.processes} processes was lost: {error}") from error
        save, stop = asked.tolist()
        return bool(save), stop
