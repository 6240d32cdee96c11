"""The penalty of Stochastic Covariance Regularization (SCoR)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.classification import check_logits, upcast


def _select(logits: Tensor, permutation: Tensor) -> Tensor:
    """Permute the batch, ``[2 * (B // 2), K]``; an odd last sample is dropped."""
    return logits.index_select(0, permutation[:-1] if len(logits) % 2 else permutation)


def _halves(logits: Tensor, permutation: Tensor) -> Tensor:
    """Return the halves of the permuted batch, ``[2, B // 2, K]``."""
    return _select(logits, permutation).view(2, len(logits) // 2, logits.shape[1])


class _SquaredCross(torch.autograd.Function):
    """``<A A^T, A' A'^T>`` with the gradient ``2 A' A'^T A`` for A, and correspondingly for A'.

    Autograd does not use the symmetry of a Gram matrix and needs two products per gradient, and it scatters the permuted
    rows into a matrix of zeros; here the inverse permutation reorders them. The Gram matrices are returned too, so that the
    backward pass can use them; a second derivative computes them again from the logits.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, permutation: Tensor) -> tuple[Tensor, Tensor]:
        halves = _halves(logits, permutation)
        grams = halves @ halves.mT
        return (grams[0] * grams[1]).sum(), grams

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, permutation, grams = ctx.saved_tensors
        halves = _halves(logits, permutation)
        if torch.is_grad_enabled():
            grams = halves @ halves.mT
        permuted = ((2 * grads[0] * grams.flip(0)) @ halves).flatten(0, 1)
        if len(logits) % 2:
            permuted = F.pad(permuted, (0, 0, 0, 1))
        return permuted.index_select(0, permutation.argsort()), None


def _squared_cross(logits: Tensor, permutation: Tensor) -> Tensor:
    # The compiler cannot trace an autograd.Function under torch.func.vmap, but it can trace plain operations.
    if torch.compiler.is_compiling():
        halves = _halves(logits, permutation)
        grams = halves @ halves.mT
        return (grams[0] * grams[1]).sum()
    squared: Tensor = _SquaredCross.apply(logits, permutation)[0]
    return squared


def scor_penalty(
    logits: Tensor,
    *,
    permutation: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    odd_batch: Literal["drop", "self"] = "drop",
) -> Tensor:
    r"""Measure how strongly the logits of randomly paired samples vary together.

    A random permutation splits the batch into halves :math:`A, A' \in \mathbb{R}^{N \times K}` of
    :math:`N = \lfloor B / 2 \rfloor` rows, and the penalty is the Frobenius norm of their cross-product matrix,

    .. math:: P = \lVert A^\top A' \rVert_F, \qquad P^2 = \langle A A^\top, A' A'^\top \rangle .

    The two expressions are equal; the one with the smaller matrices, K x K or N x N, is computed. The norm
    grows with N; ``reduction="mean"`` divides by it. The gradient is 0 if the matrix is 0. Sums are computed in
    at least float32, also under autocast.

    Source: Erdem and Tek, "Stochastic Covariance Regularization for Imbalanced Datasets", ICANN 2025,
    https://doi.org/10.1007/978-3-032-04558-4_11; package ``scor`` on PyPI.

    Args:
        logits: Unnormalised scores, float ``[B, K]``.
        permutation: Order of the samples, int64 ``[B]``; the first N are paired with the next N. Drawn if None.
        generator: Generator of the permutation; None is torch's default CPU generator.
        reduction: ``"sum"`` over the pairs, as in the paper, or ``"mean"``, with which a weight does not depend on
            the batch size.
        odd_batch: With odd B, ``"drop"`` ignores the last sample of the permutation; ``"self"`` computes
            :math:`\lVert Z^\top Z \rVert_F` over the B samples Z, as the authors' package does, which is a different and
            larger statistic.

    Returns:
        A scalar >= 0, float32 (float64 for float64 logits). It is 0 for one sample, unless ``odd_batch="self"``.

    Raises:
        ValueError: If the logits are not 2-D or have no sample, or an option has another value than those named.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
        >>> scor_penalty(logits, permutation=torch.tensor([0, 1, 2, 3]))  # 3 and 2 on the diagonal
        tensor(3.6056)
        >>> scor_penalty(logits, permutation=torch.tensor([0, 1, 3, 2]), reduction="mean")
        tensor(3.0414)
    """
    check_logits(logits)
    if reduction not in ("sum", "mean"):
        raise ValueError(f'Expected `reduction` to be "sum" or "mean" but got {reduction!r}')
    if odd_batch not in ("drop", "self"):
        raise ValueError(f'Expected `odd_batch` to be "drop" or "self" but got {odd_batch!r}')
    if torch.is_autocast_enabled(logits.device.type):
        with torch.autocast(logits.device.type, enabled=False):
            return scor_penalty(
                logits, permutation=permutation, generator=generator, reduction=reduction, odd_batch=odd_batch
            )
    logits = upcast(logits)
    size = len(logits)
    if odd_batch == "self" and size % 2:
        pairs = size
        wide = logits.shape[1] > size
        norm: Tensor = torch.linalg.vector_norm(logits @ logits.mT if wide else logits.mT @ logits)
        return norm / pairs if reduction == "mean" else norm
    if permutation is None:
        device = "cpu" if generator is None else generator.device
        permutation = torch.randperm(size, generator=generator, device=device)
    elif permutation.shape != (size,):
        raise ValueError(f"Expected `permutation` of shape [{size}] but got {list(permutation.shape)}")
    permutation = permutation.to(logits.device, non_blocking=True)
    pairs = size // 2
    if logits.shape[1] <= pairs:
        left, right = _select(logits, permutation).chunk(2)
        norm = torch.linalg.vector_norm(left.mT @ right)
    else:
        squared = _squared_cross(logits, permutation)
        # The slope of a square root at 0 is infinite; 0 is a subgradient of the norm there.
        positive = squared > 0
        norm = torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)
    return norm / max(pairs, 1) if reduction == "mean" else norm
