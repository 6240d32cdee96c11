"""What is measured of a trained network, the same for both engines."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scor_lightning.functional.spectral import numerical_rank, singular_values
from scor_lightning.losses.base import Loss, loss_terms

BATCH = 1000  # images that are evaluated at once; the loss is the mean over such batches


def prediction_measures(
    logits: Tensor, target: Tensor, loss: nn.Module, reduced: list[int], features: Tensor | None = None
) -> dict[str, float]:
    """Measure what a network predicts of the held-out set.

    Args:
        logits: ``[N, K]``.
        target: Class indices, int64 ``[N]``.
        loss: What the network was trained with, in evaluation mode.
        reduced: Classes whose accuracy and F1 are measured apart.
        features: ``[N, D]``, for a loss that reads them.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that occur; ``f1_macro``, the mean F1 of the
        classes that occur or are predicted; where there are reduced classes, ``accuracy_reduced`` over their images and
        ``f1_reduced``, the same mean over them alone, nan where there is nothing to measure; ``test_loss``, the loss
        itself; ``cross_entropy``, which compares losses.

    Example:
        >>> measures = prediction_measures(torch.eye(3), torch.tensor([0, 1, 1]), nn.CrossEntropyLoss(), reduced=[0])
        >>> round(measures["accuracy"], 4), round(measures["balanced_accuracy"], 4), round(measures["f1_macro"], 4)
        (0.6667, 0.75, 0.5556)
    """
    total, cross_entropy = 0.0, 0.0
    for start in range(0, len(target), BATCH):
        part = slice(start, start + BATCH)
        terms = loss_terms(loss, logits[part], target[part], None if features is None else features[part])
        size = len(target[part])
        total += size * float(sum(terms.values()))
        cross_entropy += size * float(F.cross_entropy(logits[part], target[part]))
    if isinstance(loss, Loss):
        logits = loss.adjust_logits(logits)
    classes = logits.shape[1]
    confusion = torch.bincount(target * classes + logits.argmax(dim=1), minlength=classes**2).view(classes, classes)
    confusion = confusion.double().cpu()
    right, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * right / (support + predicted)  # 0 / 0 where a class neither occurs nor is predicted
    measures = {
        "accuracy": float(right.sum() / support.sum()),
        "balanced_accuracy": float((right / support)[support > 0].mean()),
        "f1_macro": float(f1[support + predicted > 0].mean()),
    }
    if reduced:
        measures["accuracy_reduced"] = float(right[reduced].sum() / support[reduced].sum())
        measures["f1_reduced"] = float(f1[reduced].nanmean())
    return measures | {"test_loss": total / len(target), "cross_entropy": cross_entropy / len(target)}


def spectrum_measures(parameters: Mapping[str, Tensor], spectra: bool) -> list[dict[str, float | list[float]]]:
    """Measure the singular values of the weight matrices of R networks at once.

    Args:
        parameters: The networks' parameters by name, stacked as ``[R, ...]``. The weight of a convolution is taken as
            ``[out, in * prod(kernel)]``; what is no matrix is left out.
        spectra: Whether to give all singular values.

    Returns:
        For each network ``spectrum/<layer>/rank``, ``.../sigma_max``, ``.../sigma_min``, and ``.../values`` if asked;
        nan where a weight is not finite.

    Example:
        >>> spectrum_measures({"head.weight": torch.diag(torch.tensor([3.0, 4.0]))[None]}, spectra=False)
        [{'spectrum/head/rank': 2.0, 'spectrum/head/sigma_max': 4.0, 'spectrum/head/sigma_min': 3.0}]
    """
    rows: list[dict[str, float | list[float]]] = [{} for _ in next(iter(parameters.values()))]
    for name, stack in parameters.items():
        if not name.endswith("weight") or stack.ndim < 3:
            continue
        layer = name.removesuffix(".weight")
        stack = stack.detach().flatten(2)
        finite = stack.isfinite().flatten(1).all(dim=1)  # not so where a training diverged
        values = torch.full((len(stack), min(stack.shape[1:])), torch.nan, dtype=torch.float64, device=stack.device)
        if finite.any():
            values[finite] = singular_values(stack[finite])
        ranks = numerical_rank(values, (stack.shape[1], stack.shape[2]), stack.dtype).double()
        ranks[~finite] = torch.nan
        for row, sigma, rank in zip(rows, values.tolist(), ranks.tolist(), strict=True):
            row[f"spectrum/{layer}/rank"] = rank
            row[f"spectrum/{layer}/sigma_max"] = sigma[0]
            row[f"spectrum/{layer}/sigma_min"] = sigma[-1]
            if spectra:
                row[f"spectrum/{layer}/values"] = sigma
    return rows
