"""The measures of a trained network, the same for both engines."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from scor_lightning.losses.base import evaluate_loss
from scor_lightning.metrics import class_groups, probability_metrics, recall_measures
from scor_lightning.spectrum import select_layers, weight_spectrum

BATCH = 1000  # images per evaluation batch


def prediction_measures(
    predicted: Tensor, log_probability: Tensor, target: Tensor, class_counts: Tensor, reduced: list[int]
) -> dict[str, float]:
    """Compute the measures of the predictions for the test set.

    Args:
        predicted: The predicted classes, int64 ``[N]``.
        log_probability: The logarithm of the probability of the true class, ``[N]``.
        target: The true classes, int64 ``[N]``.
        class_counts: Training images of each class, int64 ``[K]``.
        reduced: Classes whose accuracy and F1 are measured separately.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that occur; ``worst_class_recall``, the lowest
        of them; ``f1_macro``, the mean F1 of the classes that occur or are predicted; with reduced classes, ``accuracy_reduced``
        over their images and ``f1_reduced``, their mean F1, nan if they neither occur nor are predicted; if the classes form several groups,
        many-, medium- and few-shot, the mean recall of each as ``accuracy_many`` and so on; ``accuracy_head_third`` and so on, and the accuracies of
        :func:`~scor_lightning.metrics.shifted_accuracies`; ``g_mean`` and ``harmonic_mean`` of the recalls;
        ``cross_entropy``, that of the distribution used for prediction, the negative log-likelihood.

    Example:
        >>> predicted, target = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1])
        >>> measures = prediction_measures(predicted, torch.zeros(3), target, torch.tensor([9, 9, 9]), [0])
        >>> round(measures["accuracy"], 4), round(measures["balanced_accuracy"], 4), round(measures["f1_macro"], 4)
        (0.6667, 0.75, 0.6667)
    """
    num_classes = len(class_counts)
    confusion = torch.bincount(target * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.view(num_classes, num_classes).double().cpu()
    right, support, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * right / (support + guessed)  # 0 / 0 for a class that neither occurs nor is predicted
    recalls = (right / support)[support > 0]
    measures = {
        "accuracy": float(right.sum() / support.sum()),
        "balanced_accuracy": float(recalls.mean()),
        "worst_class_recall": float(recalls.min()),
        "f1_macro": float(f1[support + guessed > 0].mean()),
    }
    if reduced:
        measures["accuracy_reduced"] = float(right[reduced].sum() / support[reduced].sum())
        measures["f1_reduced"] = float(f1[reduced].nanmean())
    counts = class_counts.cpu()
    groups = {name: members for name, members in class_groups(counts).items() if members.any()}
    accuracies = recall_measures(right / support, support, groups if len(groups) > 1 else {}, counts)
    measures |= {name: float(value) for name, value in accuracies.items()}
    measures |= {"g_mean": float(recalls.log().mean().exp()), "harmonic_mean": float(1 / (1 / recalls).mean())}
    return measures | {"cross_entropy": -float(log_probability.double().mean())}


def probability_measures(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Compute the measures of the predicted probabilities; see :func:`~scor_lightning.metrics.probability_metrics`.

    Args:
        logits: Logits for prediction, ``[N, K]``.
        target: The true classes, int64 ``[N]``.
    """
    metrics = {name: m for name, m in probability_metrics(logits.shape[1]).items() if name != "cross_entropy"}
    for start in range(0, len(target), BATCH):
        for metric in metrics.values():
            metric.to(logits.device).update(logits[start : start + BATCH], target[start : start + BATCH])
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def balanced_accuracy(predicted: Tensor, target: Tensor) -> float:
    """Return the mean recall of the classes that occur; arguments as of :func:`prediction_measures`."""
    support = torch.bincount(target)
    right = torch.bincount(target[predicted == target], minlength=len(support))
    return float((right / support)[support > 0].double().mean())


def mean_loss(logits: Tensor, target: Tensor, loss: nn.Module, features: Tensor | None = None) -> float:
    """Return the value of the loss on the test set, as ``scor-test`` does.

    Args:
        logits: ``[N, K]``.
        target: Class indices, int64 ``[N]``.
        loss: The training loss in evaluation mode.
        features: ``[N, D]``, for a loss that reads them.
    """
    total, weight = 0.0, 0.0
    for start in range(0, len(target), BATCH):
        part = slice(start, start + BATCH)
        evaluated = evaluate_loss(loss, logits[part], target[part], None if features is None else features[part])
        total, weight = total + float(evaluated.total), weight + float(evaluated.weight)
    return total / weight if weight else math.nan


def spectrum_measures(network: nn.Module, spectra: bool) -> dict[str, float | list[float]]:
    """Compute the singular values of a network's weights, for the layers and shapes of ``weight_spectrum``.

    Args:
        network: The network.
        spectra: Whether to return all singular values.

    Returns:
        ``spectrum/<layer>/rank``, ``.../sigma_max``, ``.../sigma_min``, and with ``spectra`` ``.../values``; NaN if
        a weight is not finite.

    Example:
        >>> head = nn.Linear(2, 2)
        >>> _ = head.weight.data.copy_(torch.diag(torch.tensor([3.0, 4.0])))
        >>> spectrum_measures(nn.Sequential(head), spectra=False)
        {'spectrum/0/rank': 2.0, 'spectrum/0/sigma_max': 4.0, 'spectrum/0/sigma_min': 3.0}
    """
    try:
        chosen = select_layers(network).layers
    except ValueError:  # a network without matrices
        return {}
    found = weight_spectrum(network).layers
    row: dict[str, float | list[float]] = {}
    for name, layer in chosen.items():
        spectrum = found.get(name)  # None where a training diverged
        for measure in ("rank", "sigma_max", "sigma_min"):
            row[f"spectrum/{name}/{measure}"] = torch.nan if spectrum is None else float(spectrum.measures[measure])
        if spectra:
            values = torch.full((min(layer.shape),), torch.nan) if spectrum is None else spectrum.values
            row[f"spectrum/{name}/values"] = values.tolist()
    return row


def mark_diverged(row: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """Mark the record of a network: of one that diverged all measures are NaN, whatever it predicts by chance.

    A training diverged if a weight or the loss is not finite.
    """
    finite = math.isfinite(row.get("cross_entropy", row["test_loss"])) and all(
        bool(p.isfinite().all()) for p in network.parameters()
    )
    row["diverged"] = not finite
    if finite:
        return row
    return {name: _not_a_number(value) if _is_measure(name, value) else value for name, value in row.items()}


def _is_measure(name: str, value: Any) -> bool:
    return name.startswith("spectrum/") or (isinstance(value, float) and name != "train_seconds")


def _not_a_number(value: Any) -> Any:
    return [math.nan] * len(value) if isinstance(value, list) else math.nan
