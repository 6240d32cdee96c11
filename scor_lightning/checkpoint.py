"""The format of checkpoints: what is in them, how they are written, and whether a file is whole."""

import os
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

LAST = "last.ckpt"
PREVIOUS = "last.previous.ckpt"
AVERAGE = "average.ckpt"
FINAL = "final.ckpt"  # the best one, with what is fitted after training
# What zipfile raises for damaged bytes; NotImplementedError where they name a compression that it does not know.
_DAMAGED = (OSError, BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, brings it to the disk, and only then gives it its name.

    Whatever stops the program, the machine or the disk on the way, the file of that name is whole: the new one or the
    previous one. The previous ``last.ckpt`` is kept as ``last.previous.ckpt``, in case something else damages the new
    one. Lightning's own writer collects the file in the folder for temporary files, which often is another disk,
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
    except OSError:  # a file system without links: for a moment there is only the previous one
        os.replace(path, previous)


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Check that a file is a complete and undamaged checkpoint; reads the whole file."""
    try:
        with ZipFile(path) as file:
            return file.testzip() is None
    except _DAMAGED:
        return False


def read_checkpoint(path: str | os.PathLike[str], option: str = "--ckpt_path") -> dict[str, Any]:
    """Read a checkpoint, or a file of weights, that is whole and holds nothing but data.

    Args:
        path: The file.
        option: The option that names it, for the messages.

    Returns:
        The checkpoint: a dictionary with ``state_dict``, or the weights by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, is damaged, holds more than data, or has weights that are not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option}: expected a checkpoint but there is no file {str(path)!r}")
    if not is_whole(path):
        raise ValueError(
            f"{option}: expected a whole checkpoint but {str(path)!r} is damaged, cut off, or another kind of file"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, whose messages advise to load code
        raise ValueError(
            f"{option}: expected a checkpoint of weights and plain data but {str(path)!r} holds more than data, or none"
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{option}: expected weights by name in {str(path)!r} but found {type(content).__name__}")
    for name, value in weights.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{option}: expected finite weights in {str(path)!r} but {name!r} has others")
    return dict(content)


def read_run_checkpoint(path: str | os.PathLike[str], option: str = "--ckpt_path") -> dict[str, Any]:
    """Read a checkpoint of an :class:`~scor_lightning.ImageClassifier`; as :func:`read_checkpoint`, and refuses all others."""
    content = read_checkpoint(path, option)
    if not {"data", "loss", "state_dict"} <= content.keys():
        raise ValueError(
            f"{option}: expected a checkpoint of an ImageClassifier but {str(path)!r} is another program's"
        )
    return content


def newest_whole(folder: str | Path) -> Path | None:
    """Return the last checkpoint in a folder, the previous one if it is damaged, or None if both are."""
    candidates = (Path(folder) / LAST, Path(folder) / PREVIOUS)
    return next((path for path in candidates if is_whole(path)), None)


def read_stage(path: str | Path) -> int | None:
    """Return the first epoch of the second stage that a checkpoint belongs to; None for one of the first stage."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    stage: int | None = content.get("second_stage_from")
    return stage


def read_epoch(path: str | Path) -> int:
    """Return the epoch after which a checkpoint was written, from 0."""
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])


def kinds_of_loss(loss: nn.Module) -> list[str]:
    """List the classes of a loss and of the losses within it."""
    return [type(module).__name__ for module in loss.modules()]


def describe_checkpoint(checkpoint: dict[str, Any], module: nn.Module, loss: nn.Module) -> None:
    """Add to a checkpoint of a module with a ``loss`` what the names and shapes of its weights do not tell."""
    checkpoint["loss"] = kinds_of_loss(loss)
    # Also beside an average of the weights, which was copied before the loss knew the data.
    of_loss = loss.state_dict(prefix="loss.")
    checkpoint["state_dict"] |= {name: value for name, value in of_loss.items() if name.endswith("_extra_state")}
    backbone = checkpoint.get("hyper_parameters", {}).get("backbone", {})
    if "weights" in backbone.get("init_args", {}):  # those in the checkpoint take their place, without a download
        backbone = {**backbone, "init_args": {**backbone["init_args"], "weights": None}}
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "backbone": backbone}
    checkpoint["groups"] = {  # for `scor-spectrum`
        f"{name}.weight": part.groups
        for name, part in module.named_modules()
        if isinstance(part, _ConvNd) and part.groups > 1
    }


def drop_functions(checkpoint: dict[str, Any]) -> None:
    """Remove the function that ``SWALR`` of older torch versions has in its state, so that the checkpoint is plain data.

    The schedule that the state is loaded into has it already.
    """
    averages = (state.get("scheduler_state") for state in checkpoint.get("callbacks", {}).values())
    for state in (*checkpoint.get("lr_schedulers", ()), *averages):
        if isinstance(state, dict):
            state.pop("anneal_func", None)


def check_checkpoint(checkpoint: dict[str, Any], backbone: nn.Module, num_classes: int) -> None:
    """Check that a checkpoint is one of an :class:`~scor_lightning.ImageClassifier` with this backbone.

    Raises:
        ValueError: If it is not; the first difference is named.
    """
    if not {"data", "loss"} <= checkpoint.keys():
        raise ValueError("Expected a checkpoint of an ImageClassifier but got another program's")
    data = checkpoint["data"]
    if (classes := data.get("num_classes") or len(data["class_names"])) != num_classes:
        raise ValueError(f"Expected a checkpoint of {num_classes} classes but got one of {classes}")
    saved, own = checkpoint["state_dict"], backbone.state_dict(prefix="backbone.")
    for name, value in own.items():
        if isinstance(value, Tensor) and (name not in saved or saved[name].shape != value.shape):
            got = tuple(saved[name].shape) if name in saved else "none"
            raise ValueError(f"Expected {name} of shape {tuple(value.shape)} in the checkpoint but got {got}")
    if unknown := [name for name in saved if name.startswith("backbone.") and name not in own]:
        names = ", ".join(unknown[:5]) + " ..." * (len(unknown) > 5)
        raise ValueError(f"Expected the weights of a {type(backbone).__name__} in the checkpoint but got also {names}")
