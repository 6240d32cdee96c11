"""The stored predictions of networks, from which every measure of predictions can be computed again."""

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scor_lightning.files import write_whole
from scor_lightning.losses.base import Loss

KEY = "predictions"  # key in a row that has not been written yet
_BATCH = 4096  # images per batch of probabilities


@dataclass(frozen=True)
class HeldOut:
    """The test images of a repeat.

    Attributes:
        target: Their classes, int64 ``[N]``.
        index: Their indices in the data from which the test set is drawn, int64 ``[N]``; None if all repeats have the
            same test set.
        class_counts: Training images of each class, int64 ``[K]``.
    """

    target: NDArray[Any]
    index: NDArray[Any] | None
    class_counts: NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """The predictions of one network.

    Attributes:
        predicted: The predicted class of each test image, unsigned ``[N]``.
        log_probability: The logarithm of the probability of the true class, float16 ``[N]``.
        test_set: The images.
    """

    predicted: NDArray[Any]
    log_probability: NDArray[Any]
    test_set: HeldOut


def adjusted(logits: Tensor, loss: nn.Module, temperature: float = 1.0) -> Tensor:
    """Return the logits for prediction from those of a network.

    Args:
        logits: ``[N, K]``.
        loss: The training loss in evaluation mode.
        temperature: Divisor of the adjusted logits.
    """
    return (loss.adjust_logits(logits) if isinstance(loss, Loss) else logits) / temperature


def predict(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predictions for images.

    Args:
        logits: Logits for prediction, ``[N, K]``.
        target: Class indices, int64 ``[N]``.

    Returns:
        The predicted classes, int64 ``[N]``, and the log-probability of the true classes, ``[N]``.
    """
    parts = zip(torch.split(logits, _BATCH), torch.split(target, _BATCH), strict=True)
    return logits.argmax(dim=1), torch.cat([-F.cross_entropy(z, y, reduction="none") for z, y in parts])


def pack(predicted: Tensor, log_probability: Tensor, num_classes: int, test_set: HeldOut) -> Predictions:
    """Return predictions in the dtypes in which they are stored."""
    kind = np.uint8 if num_classes <= 2**8 else np.uint16
    return Predictions(
        predicted.cpu().numpy().astype(kind), log_probability.float().cpu().numpy().astype(np.float16), test_set
    )


def write_predictions(path: Path, found: Sequence[tuple[int, str, Predictions]]) -> None:
    """Write the predictions of some trainings, each with its repeat and method, to a compressed NumPy archive.

    The arrays of the trainings are concatenated: ``repeat``, ``method`` and ``end`` have one entry per training, and
    training i has the entries from ``end[i - 1]`` to ``end[i]`` of ``predicted`` and ``log_probability``. Those of the
    test sets likewise: ``set_repeat``, ``set_end`` and ``class_counts`` have one entry per repeat, ``target`` and, if the
    test set is redrawn, ``index`` one per image. A test set that all repeats share is stored once, with the repeat -1.

    Raises:
        OSError: If the disk is full.
    """
    shared = all(each.test_set.index is None for _, _, each in found)
    sets: dict[int, HeldOut] = {}
    counts: dict[int, NDArray[Any]] = {}
    for number, _, each in found:
        sets.setdefault(-1 if shared else number, each.test_set)
        counts.setdefault(number, each.test_set.class_counts)
    classes = len(next(iter(counts.values())))
    kind = np.uint8 if classes <= 2**8 else np.uint16
    arrays: dict[str, NDArray[Any]] = {
        "repeat": np.array([number for number, _, _ in found], np.int32),
        "method": np.array([name for _, name, _ in found]),
        "end": np.cumsum([len(each.predicted) for _, _, each in found]),
        "predicted": np.concatenate([each.predicted for _, _, each in found]),
        "log_probability": np.concatenate([each.log_probability for _, _, each in found]),
        "set_repeat": np.array(list(sets), np.int32),
        "set_end": np.cumsum([len(each.target) for each in sets.values()]),
        "target": np.concatenate([each.target for each in sets.values()]).astype(kind),
        "counts_repeat": np.array(list(counts), np.int32),
        "class_counts": np.stack(list(counts.values())).astype(np.int64),
    }
    if not shared:
        arrays["index"] = np.concatenate([each.index for each in sets.values() if each.index is not None]).astype(
            np.int32
        )
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())


def read_predictions(path: Path) -> Iterable[tuple[int, str, Predictions]]:
    """Read a file of :func:`write_predictions`.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: Mapping[str, NDArray[Any]] = {name: file[name] for name in file.files}
        sets = dict(zip(arrays["set_repeat"].tolist(), _parts(arrays["set_end"], len(arrays["target"])), strict=True))
        counts = dict(zip(arrays["counts_repeat"].tolist(), arrays["class_counts"], strict=True))
        test_sets: dict[int, HeldOut] = {}
        for number, one in counts.items():
            part = sets[number if number in sets else -1]
            test_sets[number] = HeldOut(
                arrays["target"][part], arrays["index"][part] if "index" in arrays else None, one
            )
        parts = _parts(arrays["end"], len(arrays["predicted"]))
        columns = zip(arrays["repeat"].tolist(), arrays["method"].tolist(), parts, strict=True)
        return [
            (number, name, Predictions(arrays["predicted"][part], arrays["log_probability"][part], test_sets[number]))
            for number, name, part in columns
        ]
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"Expected the predictions of a comparison in {str(path)!r}, which is damaged: {error}. Delete it to "
            "report without these predictions"
        ) from error


def _parts(ends: NDArray[Any], length: int) -> list[slice]:
    if len(ends) and ends[-1] != length:
        raise ValueError(f"expected {ends[-1]} images but got {length}")
    return [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
