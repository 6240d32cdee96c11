"""The penalty of Stochastic Covariance Regularization (SCoR)."""

from typing import Any, Literal

import torch
from torch import Tensor

from scor_lightning.functional.classification import check_logits, upcast


class _Gram(torch.autograd.Function):
    """``x @ x.T`` with one matrix product in the backward pass where autograd, blind to the symmetry, takes two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor
        (x,), (grad,) = ctx.saved_tensors, grads
        return (grad + grad.mT) @ x


def _gram(x: Tensor) -> Tensor:
    # The compiler cannot trace an autograd.Function under torch.func.vmap; plain operations it can.
    gram: Tensor = x @ x.mT if torch.compiler.is_compiling() else _Gram.apply(x)
    return gram


def _cross_norm(a: Tensor, b: Tensor) -> Tensor:
    """Give ``||a.T @ b||_F`` of two ``[N, K]`` matrices by products of ``[min(N, K)] * 2`` elements."""
    if a.shape[1] <= a.shape[0]:
        norm: Tensor = torch.linalg.vector_norm(a.mT @ b)
        return norm
    squared = (_gram(a) * _gram(b)).sum()
    # The slope of a square root at 0 is infinite; the norm's own subgradient there is 0.
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


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

    The two expressions are the same number; the one with the smaller matrices, K x K or N x N, is taken. The norm
    grows with N; ``reduction="mean"`` divides by it. The gradient is 0 where the matrix is 0. Sums are taken in
    float32 at least, under autocast too.

    Source: Erdem and Tek, "Stochastic Covariance Regularization for Imbalanced Datasets", ICANN 2025,
    https://doi.org/10.1007/978-3-032-04558-4_11; package ``scor`` on PyPI.

    Args:
        logits: Unnormalised scores, float ``[B, K]``.
        permutation: Order of the samples, int64 ``[B]``; the first N are paired with the next N. Drawn if None.
        generator: Where the permutation is drawn from; None is torch's default generator of the CPU.
        reduction: ``"sum"`` over the pairs, as in the paper, or ``"mean"``, which keeps the meaning of a weight when
            the batch size changes.
        odd_batch: With odd B, ``"drop"`` leaves out the last sample of the permutation; ``"self"`` takes
            :math:`\lVert Z^\top Z \rVert_F` over the B samples Z, as the authors' package does. That is a larger
            statistic of another kind.

    Returns:
        A scalar >= 0, float32 (float64 for float64 logits). It is 0 for one sample, unless ``odd_batch="self"``.

    Raises:
        ValueError: If the logits are not 2-D or hold no sample, or an option is none of those named.

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
        pairs, left, right = size, logits, logits
    else:
        pairs = size // 2
        if permutation is None:
            device = "cpu" if generator is None else generator.device
            permutation = torch.randperm(size, generator=generator, device=device)
        elif permutation.shape != (size,):
            raise ValueError(f"Expected `permutation` of shape [{size}] but got {list(permutation.shape)}")
        order = (permutation[:-1] if size % 2 else permutation).to(logits.device, non_blocking=True)
        left, right = logits.index_select(0, order).chunk(2)
    norm = _cross_norm(left, right)
    return norm / max(pairs, 1) if reduction == "mean" else norm
