"""Singular values of weights and what is derived from them."""

import torch
from torch import Tensor


def weight_matrix(weight: Tensor) -> Tensor:
    """Give the matrix of a weight: a linear layer's own, a convolution's kernels as rows.

    Args:
        weight: ``[out, in]`` or ``[out, in, *kernel]``.

    Returns:
        ``[out, in * prod(kernel)]``.

    Raises:
        ValueError: If the weight has fewer than two dimensions.
    """
    if weight.ndim < 2:
        raise ValueError(f"Expected a weight of at least two dimensions but got shape {tuple(weight.shape)}")
    return weight.flatten(1)


def singular_values(matrix: Tensor) -> Tensor:
    """Give the singular values of one matrix or of a batch of them, largest first.

    They are the square roots of the eigenvalues of the Gram matrix of the smaller side in float64, which for float32
    weights is as exact as an SVD and several times faster. Squaring loses values below 1e-8 of the largest one: where
    the smallest comes out below 1e-6 of it, :func:`torch.linalg.svdvals` in float64 takes over.

    Args:
        matrix: ``[..., m, n]``, any floating dtype.

    Returns:
        float64 ``[..., min(m, n)]``.

    Raises:
        ValueError: If there is no matrix, or one with a value that is not finite.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    if matrix.ndim < 2:
        raise ValueError(f"Expected a matrix [..., m, n] but got shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise ValueError("Expected a finite matrix but got inf or nan")
    wide = matrix.double()
    if wide.shape[-2] > wide.shape[-1]:
        wide = wide.mT
    values = torch.linalg.eigvalsh(wide @ wide.mT).flip(-1).clamp_min(0).sqrt()
    if (values[..., -1] < 1e-6 * values[..., 0]).any():
        values = torch.linalg.svdvals(wide)
    return values  # type: ignore[no-any-return]


def numerical_rank(values: Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Count the singular values above the noise of the weights' own precision.

    ``rank = #{sigma_i > max(m, n) * eps * sigma_max}``, the tolerance of :func:`torch.linalg.matrix_rank`.

    Args:
        values: Singular values ``[..., r]``, largest first.
        shape: Shape (m, n) of the matrix.
        dtype: Precision of the weights, whose eps is taken.

    Returns:
        int64 ``[...]``.
    """
    return (values > max(shape) * torch.finfo(dtype).eps * values[..., :1]).sum(-1)
