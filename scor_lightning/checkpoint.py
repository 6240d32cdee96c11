"""Checkpoints on disk: written so that a whole one is always there, and recognised where one is not whole."""

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

LAST = "last.ckpt"
PREVIOUS = "last.previous.ckpt"
AVERAGE = "average.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, brings it to the disk, and only then gives it its name.

    Whatever stops the program, the machine or the disk on the way, the file of that name is whole: the new one or the
    one before. Of ``last.ckpt`` the one before is kept as ``last.previous.ckpt``, for the day that something else
    damages it. Lightning's own writer collects the file in the folder for temporary files, which often is another disk,
    and then copies it over the old one.

    Raises:
        OSError: If the file cannot be written, as on a full disk; it names the file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint to a file; other places than files are left to Lightning."""
        if "://" in str(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.tmp")
        try:
            with open(beside, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch words some errors of the file system as its own
            beside.unlink(missing_ok=True)
            why = error if isinstance(error, OSError) else error.__context__ or error
            raise OSError(f"Expected to write the checkpoint {str(path)!r} but got: {why}") from error
        if path.name == LAST and path.exists():
            _keep(path, path.with_name(PREVIOUS))
        os.replace(beside, path)


def _keep(path: Path, previous: Path) -> None:
    second_name = previous.with_name(f"{previous.name}.tmp")
    try:
        second_name.unlink(missing_ok=True)
        os.link(path, second_name)
        os.replace(second_name, previous)
    except OSError:  # a file system without links: for a moment there is only the one before
        os.replace(path, previous)


def is_whole(path: str | Path) -> bool:
    """Check that a file is a complete and undamaged checkpoint; reads the whole file."""
    try:
        with ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, BadZipFile):
        return False


def newest_whole(folder: str | Path) -> Path | None:
    """Return the last checkpoint in a folder, the previous one if it is damaged, or None if both are."""
    candidates = (Path(folder) / LAST, Path(folder) / PREVIOUS)
    return next((path for path in candidates if is_whole(path)), None)
