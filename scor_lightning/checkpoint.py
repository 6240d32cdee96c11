"""Checkpoints: their contents, how they are written, and checks that a file is complete."""

import os
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from scor_lightning.trust import only_known_classes

LAST = "last.ckpt"
PREVIOUS = "last.previous.ckpt"
AVERAGE = "average.ckpt"
FINAL = "final.ckpt"  # the best checkpoint with the values that are fitted after training
# What zipfile raises for damaged bytes; NotImplementedError if they name an unknown compression.
_DAMAGED = (OSError, BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in the same folder, flushes it to the disk, and then renames it.

    If the program, the machine or the disk fails meanwhile, the file of that name is still complete: either the new or
    the previous checkpoint. The previous ``last.ckpt`` is kept as ``last.previous.ckpt``, in case the new one is damaged
    later. Lightning's own writer uses the folder for temporary files, which is often on another disk, and then copies
    the result over the old file.

    Raises:
        OSError: If the file cannot be written, for example on a full disk; the message names the file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint to a file; remote paths are left to Lightning."""
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
        except (OSError, RuntimeError) as error:  # torch raises some file system errors as RuntimeError
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
    except OSError:  # a file system without hard links
        os.replace(path, previous)


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Check that a file is a complete and undamaged checkpoint; reads the whole file."""
    try:
        with ZipFile(path) as file:
            return file.testzip() is None
    except _DAMAGED:
        return False


def read_checkpoint(path: str | os.PathLike[str], option: str = "--ckpt_path") -> dict[str, Any]:
    """Read a checkpoint or a file of weights; refuse files that are damaged or contain more than plain data.

    Args:
        path: The file.
        option: The option that names the file, for error messages.

    Returns:
        The checkpoint: a dictionary with ``state_dict``, or the weights by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint, is damaged, contains more than data, or has non-finite weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option}: expected a checkpoint but there is no file {str(path)!r}")
    if not is_whole(path):
        raise ValueError(
            f"{option}: expected a whole checkpoint but {str(path)!r} is damaged, cut off, or another kind of file"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, with messages that advise loading code
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
    """Read a checkpoint of an :class:`~scor_lightning.ImageClassifier`, as :func:`read_checkpoint`; refuse any other."""
    content = read_checkpoint(path, option)
    if not {"data", "loss", "state_dict"} <= content.keys():
        raise ValueError(
            f"{option}: expected a checkpoint of an ImageClassifier but {str(path)!r} is another program's"
        )
    return content


@contextmanager
def building_from(path: Any, weights_only: bool, trust_code: bool) -> Iterator[None]:
    """Check a checkpoint, and restrict the classes that are imported while a classifier is built from it.

    Args:
        path: The file. It is read and checked first if it is local and ``weights_only`` is true.
        weights_only: See ``torch.load``.
        trust_code: Whether to admit classes of any package.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint of a classifier, names a class that is not allowed, or does not contain how
            backbone and loss are built.
    """
    options: dict[str, Any] = {}
    if weights_only and isinstance(path, str | os.PathLike) and "://" not in str(path):
        options = read_run_checkpoint(path, "checkpoint_path").get("hyper_parameters", {})
    try:
        with only_known_classes({"model": options}, str(path), trust_code):
            yield
    except TypeError as error:
        if "required positional argument" not in str(error):
            raise
        raise ValueError(
            f"Expected `backbone=...` and `loss=...` beside {str(path)!r}: they were built in Python, and a checkpoint "
            "holds their weights alone"
        ) from error


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


def save_arguments(module: LightningModule) -> None:
    """Save the arguments of a module's ``__init__``, which calls this, as hyperparameters.

    Those of the command line include modules and callables, as dictionaries from which they are built. What is built in Python
    is left out: a checkpoint of plain data cannot contain it.
    """
    frame = sys._getframe(1)  # of `__init__`
    with warnings.catch_warnings():  # Lightning warns about modules before they can be removed
        warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`.*")
        module.save_hyperparameters(frame=frame)
    built = [name for name, value in module.hparams.items() if callable(value) or is_dataclass(value)]
    for name in built:
        module.hparams.pop(name)  # `ignore` does this only in later versions of Lightning
    module.save_hyperparameters(ignore=built, frame=frame)


def kinds_of_loss(loss: nn.Module) -> list[str]:
    """List the classes of a loss and of the losses within it."""
    return [type(module).__name__ for module in loss.modules()]


def describe_checkpoint(checkpoint: dict[str, Any], module: nn.Module, loss: nn.Module) -> None:
    """Add to a checkpoint of a module with a ``loss`` what cannot be derived from the names and shapes of its weights."""
    checkpoint["loss"] = kinds_of_loss(loss)
    # An average of the weights was copied before the loss received the class counts.
    of_loss = loss.state_dict(prefix="loss.")
    checkpoint["state_dict"] |= {name: value for name, value in of_loss.items() if name.endswith("_extra_state")}
    backbone = checkpoint.get("hyper_parameters", {}).get("backbone", {})
    if "weights" in backbone.get("init_args", {}):  # replaced by those in the checkpoint, without a download
        backbone = {**backbone, "init_args": {**backbone["init_args"], "weights": None}}
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "backbone": backbone}
    checkpoint["groups"] = {  # for `scor-spectrum`
        f"{name}.weight": part.groups
        for name, part in module.named_modules()
        if isinstance(part, _ConvNd) and part.groups > 1
    }


def drop_functions(checkpoint: dict[str, Any]) -> None:
    """Remove the function that ``SWALR`` of older torch versions has in its state, so that the checkpoint is plain data.

    The schedule that loads the state already has it.
    """
    averages = (state.get("scheduler_state") for state in checkpoint.get("callbacks", {}).values())
    for state in (*checkpoint.get("lr_schedulers", ()), *averages):
        if isinstance(state, dict):
            state.pop("anneal_func", None)


def replace_state_of_other_loss(checkpoint: dict[str, Any], loss: nn.Module) -> None:
    """Replace the state of the loss in a checkpoint by that of ``loss`` if the two are of different classes."""
    if checkpoint["loss"] != kinds_of_loss(loss):
        weights = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("loss.")}
        checkpoint["state_dict"] = weights | loss.state_dict(prefix="loss.")


def check_checkpoint(checkpoint: dict[str, Any], backbone: nn.Module, num_classes: int) -> None:
    """Check that a checkpoint belongs to an :class:`~scor_lightning.ImageClassifier` with this backbone.

    Raises:
        ValueError: If it does not; the message names the first difference.
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
