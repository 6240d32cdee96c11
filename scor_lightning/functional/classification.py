"""Classification losses of single samples, and class weights."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def check_logits(logits: Tensor) -> None:
    """Check that logits are a batch of scores.

    Raises:
        ValueError: If the logits are not 2-D or have no sample.
    """
    if logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"Expected `logits` of shape [B, K] with B >= 1 but got {list(logits.shape)}")


def check_target(logits: Tensor, target: Tensor) -> None:
    """Check that there is one target per sample.

    Raises:
        ValueError: If there are more or fewer of them than logits.
    """
    if target.ndim == 0 or len(target) != len(logits):
        raise ValueError(f"Expected `target` of shape [{len(logits)}] but got {list(target.shape)}")


def check_parameter(name: str, value: float, *, positive: bool = False) -> None:
    """Check that a parameter is finite and not negative.

    Args:
        name: Name of the parameter.
        value: Its value.
        positive: Whether 0 is refused too.

    Raises:
        ValueError: If it is refused; the message names it.
    """
    if not (value > 0 if positive else value >= 0):
        raise ValueError(f"Expected `{name}` {'>' if positive else '>='} 0 but got {value}")
    if value == float("inf"):
        raise ValueError(f"Expected `{name}` to be finite but got {value}")


def upcast(x: Tensor) -> Tensor:
    """Convert a float16 or bfloat16 tensor to float32, for sums of many products."""
    return x.float() if x.dtype.itemsize < 4 else x


def unit_rows(x: Tensor) -> Tensor:
    """Divide each row by its length; rows of zeros stay zeros, with a finite gradient in every precision.

    Args:
        x: Float ``[N, D]``.

    Returns:
        ``[N, D]``, float32 for float16 and bfloat16, otherwise in the dtype of ``x``.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = upcast(x)  # in float16 the square of 300 is infinite, and the usual bound of a norm, 1e-12, is 0
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.masked_fill(length == 0, 1)


def reduce_samples(
    values: Tensor, weight: Tensor | None = None, reduction: Literal["none", "sum", "mean"] = "mean"
) -> Tensor:
    """Reduce the losses of single samples, as ``torch.nn.functional.cross_entropy`` does.

    Args:
        values: Losses, float ``[B]``.
        weight: A weight for each sample, float ``[B]`` >= 0; None is 1.
        reduction: ``"mean"`` divides by the sum of the weights.

    Returns:
        A scalar; with ``"none"`` the weighted losses ``[B]``.

    Raises:
        ValueError: If the reduction is none of those named.
    """
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f'Expected `reduction` to be "none", "sum" or "mean" but got {reduction!r}')
    weighted = values if weight is None else weight * values
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    return weighted.mean() if weight is None else weighted.sum() / weight.sum()


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
) -> Tensor:
    r"""Down-weight the cross entropy of samples that are already classified well.

    With :math:`p_y` the softmax probability of the true class, each sample's loss is

    .. math:: \ell = -w_y \, (1 - p_y)^\gamma \log p_y .

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002, there
    for one-vs-all probabilities; with the softmax as in https://github.com/kaidic/LDAM-DRW.

    Args:
        logits: Unnormalised scores, float ``[B, K]``.
        target: Class indices, int64 ``[B]``.
        gamma: Focusing parameter, >= 0; 0 is cross entropy.
        weight: Class weights, float ``[K]`` >= 0; None is 1. They do not affect the probability.
        reduction: ``"mean"`` (over the weights of the samples), ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``[B]`` with ``"none"``; float32 (float64 for float64 logits).

    Raises:
        ValueError: If the logits are not 2-D or hold no sample, or gamma < 0.

    Example:
        >>> focal_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (1 - 1/2)^2 * log 2
        tensor(0.1733)
    """
    check_logits(logits)
    check_parameter("gamma", gamma)
    log_p = F.log_softmax(upcast(logits), dim=1).gather(1, target[:, None]).squeeze(1)
    # 1 - p without cancellation, and bounded away from 0, where the slope of a power below 1 is infinite
    missing = -torch.expm1(log_p).clamp_max(-torch.finfo(log_p.dtype).tiny)
    return reduce_samples(-(missing**gamma) * log_p, None if weight is None else weight[target], reduction)


def class_weights(counts: Tensor | Sequence[int], power: float = 1.0) -> Tensor:
    r"""Compute class weights from a power of the inverse class frequencies.

    .. math:: w_c \propto n_c^{-p}, \qquad \sum_c w_c = K .

    Args:
        counts: Training samples of each class, ``[K]`` >= 1.
        power: The power p; 0 weights all classes equally, 1 by their inverse frequency.

    Returns:
        Weights that sum to K, float32 ``[K]``, for example for ``torch.nn.CrossEntropyLoss(weight=...)``.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> class_weights([30, 10])
        tensor([0.5000, 1.5000])
    """
    return _summing_to_classes(checked_counts(counts).double() ** -power)


def checked_counts(counts: Tensor | Sequence[int], name: str = "class_counts") -> Tensor:
    """Return class counts as int64 ``[K]``.

    Raises:
        ValueError: If they are not whole numbers of at least 1, one per class.
    """
    checked = torch.as_tensor(counts)
    if checked.ndim != 1 or not len(checked) or checked.is_floating_point() or bool((checked < 1).any()):
        raise ValueError(f"Expected `{name}` to be whole numbers >= 1, one per class, but got {counts}")
    return checked.long()


def _summing_to_classes(weights: Tensor) -> Tensor:
    return (weights * (len(weights) / weights.sum())).float()


def effective_number_weights(counts: Tensor | Sequence[int], beta: float = 0.9999) -> Tensor:
    r"""Compute class weights from the inverse of the effective number of samples.

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad \sum_c w_c = K .

    beta = 0 weights all classes equally; in the limit beta = 1 the weights are proportional to 1 / n.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    https://arxiv.org/abs/1901.05555, https://github.com/richardaecn/class-balanced-loss.

    Args:
        counts: Training samples of each class, ``[K]`` >= 1.
        beta: In [0, 1].

    Returns:
        Weights that sum to K, float32 ``[K]``.

    Raises:
        ValueError: If beta is outside [0, 1] or a count below 1.

    Example:
        >>> effective_number_weights([30, 10], beta=1.0)
        tensor([0.5000, 1.5000])
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"Expected `beta` in [0, 1] but got {beta}")
    n = checked_counts(counts).double()
    return _summing_to_classes(1 / n if beta == 1 else (1 - beta) / (1 - beta**n))


class_balanced_weights = effective_number_weights  # its name in version 0.1.0
