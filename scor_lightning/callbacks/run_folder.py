"""The folder of a run: its location, its contents, and its lock."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from scor_lightning.callbacks.protocol import state_of
from scor_lightning.files import write_whole
from scor_lightning.loggers import RunLogger

LOCK = ".lock"
# Seconds to wait for a lock: the loader's workers of a killed process hold it for up to five.
PATIENCE = 8.0
_IDENTITIES = "loggers.json"  # names of the run in other services, by the class of the logger
# For trainers without a logger that has a folder.
_OWN_FOLDERS: "WeakKeyDictionary[Trainer, Path]" = WeakKeyDictionary()


class RunFolder(Callback):
    """Creates the folder of a run when the data are set up, locks it, and directs the loggers to it.

    The folder is ``<experiment>/version_<n>`` with the next free n, for any logger. It contains ``config.yaml``,
    ``metrics.csv``, ``checkpoints/`` (``best.ckpt``, ``last.ckpt``, ``average.ckpt``), ``test/`` and, of tests of other data or
    checkpoints, ``test_2/`` and so on, ``spectra/``, and the loggers' own files; a second stage gets ``stage_2/``. A run that
    fails before its first step leaves nothing behind.

    Args:
        experiment: The folder of the experiment's runs.
        config: The content of ``config.yaml``.
        loggers: Functions by name that build the loggers from the folder and the name of the resumed run in the logger's
            service.
        resumed: The folder of the run to resume; None creates a new one.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If another process uses the folder.
    """

    def __init__(
        self,
        experiment: Path,
        config: str,
        loggers: Mapping[str, Callable[[Path, str | None], Logger]] | None = None,
        resumed: Path | None = None,
    ) -> None:
        self.experiment = experiment
        self.config = config
        self.loggers = loggers or {}
        self.resumed = resumed
        self.folder: Path | None = None
        self._lock: FileLock | None = None
        self._stepped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create or lock the folder in the first process, and build the loggers."""
        if stage != "fit" or self.folder is not None or state_of(trainer).fast_dev_run:
            return
        folder, error = None, None
        if trainer.is_global_zero:
            try:
                folder = self._open()
            except (OSError, ValueError) as problem:
                error = problem
        folder, error = trainer.strategy.broadcast((folder, error))  # all processes end, or none of them
        if error is not None:
            raise error
        assert folder is not None
        self.folder = folder
        known = _read_identities(folder)
        trainer.loggers = [RunLogger(folder)]
        for name, make in self.loggers.items():
            try:
                logger = make(folder, known.get(name))
                trainer.loggers = [*trainer.loggers, logger]
                if trainer.is_global_zero and (identity := _identity(logger)) is not None:
                    known[name] = identity
            except Exception as problem:
                reason = str(problem).strip().splitlines()[0]
                raise ConnectionError(
                    f"{name} could not start: {reason} Train without it, or for Weights & Biases log in by `wandb login` or "
                    "set WANDB_MODE=offline"
                ) from problem
        if trainer.is_global_zero:
            write_whole(folder / _IDENTITIES, json.dumps(known))

    def _open(self) -> Path:
        folder = self.resumed
        try:
            if folder is None:
                folder = _make_next_version(self.experiment)
                try:
                    write_whole(folder / "config.yaml", self.config)
                except OSError:
                    _remove(folder)
                    raise
            self._lock = FileLock(folder / LOCK)
            self._lock.acquire(timeout=0 if self.resumed is None else PATIENCE)
        except Timeout as error:
            raise ValueError(
                f"Expected a run that no other process trains but {str(folder)!r} is locked: end that process, or start a "
                "new run without `--ckpt_path last`"
            ) from error
        except OSError as error:
            raise OSError(
                f"Expected to write the run folder {str(folder or self.experiment)!r} but got: {error}"
            ) from error
        return folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the metrics that a resumed run logs again."""
        if self.resumed is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    logger.drop_after(trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        """Record that the run has begun."""
        self._stepped = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the folder of a new run that fails before its first step."""
        if self.folder is not None and self.resumed is None and not self._stepped and trainer.is_global_zero:
            for logger in trainer.loggers:
                with suppress(Exception):  # the service is not available; the error of the training is reported
                    _withdraw(logger)
            _remove(self.folder)
        self.release()

    def release(self) -> None:
        """Unlock the folder, after the training and its test."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def run_folder(trainer: Trainer) -> Path:
    """Return the folder to which the callbacks of a run write; every process has to call this function.

    It is the folder of the trainer's first logger with one, otherwise ``<default_root_dir>/runs/python/version_<n>``.
    """
    folder: Path | None = None
    if trainer.is_global_zero:
        of_loggers = [place for logger in trainer.loggers if (place := _folder_of(logger)) is not None]
        if not of_loggers and trainer not in _OWN_FOLDERS:
            _OWN_FOLDERS[trainer] = _make_next_version(Path(trainer.default_root_dir) / "runs" / "python")
        folder = of_loggers[0] if of_loggers else _OWN_FOLDERS[trainer]
    return cast(Path, trainer.strategy.broadcast(folder))


def _folder_of(logger: Logger) -> Path | None:
    if isinstance(logger, CSVLogger | TensorBoardLogger):
        return Path(logger.log_dir)
    if logger.save_dir is None or logger.version is None:
        return None
    version = f"version_{logger.version}" if isinstance(logger.version, int) else logger.version
    return Path(logger.save_dir) / str(logger.name) / version  # as in ModelCheckpoint


def numbered(path: Path) -> Iterator[Path]:
    """Yield a path, then the path with ``_2``, ``_3`` and so on appended.

    Example:
        >>> names = numbered(Path("test"))
        >>> [str(next(names)) for _ in range(3)]
        ['test', 'test_2', 'test_3']
    """
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}_{number}")


def _make_next_version(experiment: Path) -> Path:
    experiment.mkdir(parents=True, exist_ok=True)
    taken = [
        int(name.removeprefix("version_"))
        for name in os.listdir(experiment)
        if name[:8] == "version_" and name[8:].isdecimal()
    ]
    number = max(taken, default=-1) + 1
    while True:
        folder = experiment / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run was started at the same time
            number += 1
        else:
            return folder


def _remove(folder: Path) -> None:
    """Remove a folder, and parent folders that are then empty."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parents[1]):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _withdraw(logger: Logger) -> None:
    """Stop writing to the folder of a run that never began, and delete the run from a logger's service."""
    if isinstance(logger, CSVLogger | TensorBoardLogger):
        logger.finalize("failed")  # writes what is left, for which Lightning's own call comes too late
    elif isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=1)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.delete_run(str(logger.run_id))
        if logger.save_dir is None:
            return
        store = Path(logger.save_dir)  # a file store, in which nothing else is changed, including deleted runs
        shutil.rmtree(store / str(logger.experiment_id) / str(logger.run_id), ignore_errors=True)
        if {path.name for path in (store / str(logger.experiment_id)).rglob("*")} <= {"meta.yaml"}:
            shutil.rmtree(store / str(logger.experiment_id))
        if {path.name for path in store.rglob("*") if path.is_file()} <= {"meta.yaml"} and not any(
            path.is_dir() and path.name not in (".trash", "0", "models") for path in store.iterdir()
        ):
            shutil.rmtree(store)


def _identity(logger: Logger) -> str | None:
    if isinstance(logger, WandbLogger):
        return str(logger.experiment.id)
    if isinstance(logger, MLFlowLogger):
        return logger.run_id
    return None


def _read_identities(folder: Path) -> dict[str, str | None]:
    try:
        identities: dict[str, str | None] = json.loads((folder / _IDENTITIES).read_text())
    except (OSError, ValueError):
        return {}
    return identities
