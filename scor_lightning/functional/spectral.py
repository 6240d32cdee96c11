"""Singular values of weights, and measures derived from them."""

from typing import Literal

import torch
from torch import Tensor

_LOST = 1e-6  # below this share of the largest, singular values from the Gram matrix lose four or more digits
_PART = 2**22  # elements converted to float64 at a time, 32 MiB


def weight_matrix(weight: Tensor, groups: int = 1) -> Tensor:
    """Return the matrix of a weight: a linear layer's own, a convolution's kernels as rows.

    The matrix of a grouped convolution is block-diagonal; only the blocks are returned, whose singular values together are
    those of the whole matrix.

    Args:
        weight: ``[out, in]`` or ``[out, in / groups, *kernel]``.
        groups: Groups of the convolution.

    Returns:
        ``[out, in * prod(kernel)]``, or with several groups ``[groups, out / groups, in / groups * prod(kernel)]``.

    Raises:
        ValueError: If the weight has fewer than two dimensions, or its rows are not divisible into the groups.

    Example:
        >>> weight_matrix(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 75])
        >>> weight_matrix(torch.zeros(8, 1, 3, 3), groups=8).shape
        torch.Size([8, 1, 9])
    """
    if weight.ndim < 2:
        raise ValueError(f"Expected a weight of at least two dimensions but got shape {tuple(weight.shape)}")
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"Expected `groups` that divide the {len(weight)} rows of the weight but got {groups}")
    matrix = weight.flatten(1)
    return matrix if groups == 1 else matrix.reshape(groups, len(weight) // groups, -1)


def singular_values(matrix: Tensor) -> Tensor:
    """Compute the singular values of one matrix or of a batch of matrices, largest first.

    They are the square roots of the eigenvalues of the Gram matrix of the smaller side in float64, which for float32
    weights is as accurate as an SVD and several times faster. Squaring loses small values: one of 1e-6 of the largest has
    three correct digits, one of 1e-8 none. A matrix whose smallest value is below 1e-6 of its largest is therefore reduced
    to a triangle by QR and decomposed by :func:`torch.linalg.svdvals`, all in float64. The long side is converted to
    float64 in parts, so that no second matrix of the same size is allocated.

    Args:
        matrix: ``[..., m, n]``, any floating or complex dtype.

    Returns:
        float64 ``[..., min(m, n)]``.

    Raises:
        ValueError: If there is no matrix, or one has a non-finite value.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    if matrix.ndim < 2 or 0 in matrix.shape:
        raise ValueError(f"Expected a matrix [..., m, n] but got shape {tuple(matrix.shape)}")
    if matrix.device.type == "mps":  # without float64
        matrix = matrix.cpu()
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    batch = wide.flatten(0, -3) if wide.ndim > 2 else wide[None]
    rows = batch.shape[1]
    columns = max(rows, _PART // (len(batch) * rows))
    dtype = torch.complex128 if matrix.is_complex() else torch.float64
    gram = batch.new_zeros(len(batch), rows, rows, dtype=dtype)
    for part in torch.split(batch, columns, dim=-1):
        if not part.isfinite().all():
            raise ValueError("Expected a finite matrix but got inf or nan")
        part = part.to(dtype)
        gram.baddbmm_(part, part.mH)
    values: Tensor = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0).sqrt()
    for i in (values[:, -1] < _LOST * values[:, 0]).nonzero().flatten().tolist():
        values[i] = torch.linalg.svdvals(_triangle(batch[i], columns, dtype))
    return values.view(*matrix.shape[:-2], rows)


def _triangle(wide: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Compute R of the QR decomposition of the transposed matrix ``[m, n]``: ``[m, m]`` with the same singular values."""
    triangle = wide.new_zeros(0, len(wide), dtype=dtype)
    for part in torch.split(wide, columns, dim=-1):
        triangle = torch.linalg.qr(torch.cat([triangle, part.to(dtype).mT]), mode="r").R
    return triangle


def circular_singular_values(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute the singular values of the whole linear map of a 2-D convolution with circular padding, largest first.

    The discrete Fourier transform of the kernels decomposes this map into one ``[out, in]`` matrix per frequency, whose
    singular values together are those of the map. Zero padding, which networks use, differs at the border.

    Source: Sedghi, Gupta and Long, "The Singular Values of Convolutional Layers", ICLR 2019,
    https://arxiv.org/abs/1805.10408.

    Args:
        weight: Kernels of a convolution of stride, dilation and groups 1, ``[out, in, kh, kw]``.
        size: Height and width (H, W) of the layer's input.

    Returns:
        float64 ``[H * W * min(out, in)]``.

    Raises:
        ValueError: If the weight is not 4-D, or a kernel is larger than the input.

    Example:
        >>> circular_singular_values(torch.ones(1, 1, 1, 2), (1, 2))  # sums the two pixels at both positions
        tensor([2., 0.], dtype=torch.float64)
    """
    if weight.ndim != 4 or weight.shape[2] > size[0] or weight.shape[3] > size[1]:
        raise ValueError(f"Expected kernels within the input's {tuple(size)} but got shape {tuple(weight.shape)}")
    if weight.device.type == "mps":  # without float64
        weight = weight.cpu()
    height = size[0]
    # [kh, W, out, in]: transformed along the width. The height is transformed row by row, which saves memory.
    across = torch.fft.fft(weight.double(), n=size[1]).permute(2, 3, 0, 1)
    taps = torch.arange(len(across), dtype=torch.float64, device=weight.device)
    values = []
    for row in range(height // 2 + 1):  # a real kernel's row H - u has the values of row u
        phase = torch.polar(torch.ones_like(taps), -2 * torch.pi * row * taps / height)
        values.append(singular_values(torch.tensordot(phase, across, dims=1)).flatten())
        if 0 < row < height - row:
            values.append(values[-1])
    return torch.cat(values).sort(descending=True).values


def numerical_rank(
    values: Tensor,
    shape: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    tolerance: Literal["relative", "absolute"] = "relative",
) -> Tensor:
    """Count the singular values above the noise of the weights' own precision.

    ``rank = #{sigma_i > max(m, n) * eps * sigma_max}``, the tolerance of :func:`torch.linalg.matrix_rank`. The
    absolute tolerance is the SCoR paper's, ``sigma_i > 1e-7``, which for float32 is below the rounding error of the weights.

    Args:
        values: Singular values ``[..., r]``, largest first.
        shape: Shape (m, n) of the matrix.
        dtype: Data type of the weights, which determines eps.
        tolerance: ``"relative"`` or ``"absolute"``.

    Returns:
        int64 ``[...]``.

    Raises:
        ValueError: If the tolerance has another value than those named.
    """
    if tolerance not in ("relative", "absolute"):
        raise ValueError(f'Expected `tolerance` to be "relative" or "absolute" but got {tolerance!r}')
    if tolerance == "absolute":
        return (values > 1e-7).sum(-1)
    return (values > max(shape) * torch.finfo(dtype).eps * values[..., :1]).sum(-1)


def spectral_measures(values: Tensor) -> dict[str, Tensor]:
    r"""Summarise singular values :math:`\sigma_1 \ge \dots \ge \sigma_r`.

    - ``sigma_max`` :math:`\sigma_1`, ``sigma_min`` :math:`\sigma_r`, ``condition_number``
      :math:`\sigma_1 / \sigma_r`, infinite if :math:`\sigma_r = 0`;
    - ``frobenius_norm`` :math:`(\sum \sigma_i^2)^{1/2}`;
    - ``stable_rank`` :math:`\sum \sigma_i^2 / \sigma_1^2`, in [1, r];
    - ``effective_rank`` :math:`\exp(-\sum p_i \log p_i)` with :math:`p_i = \sigma_i / \sum \sigma_j`, in [1, r] (Roy
      and Vetterli, "The effective rank", EUSIPCO 2007).

    Both ranks are r if all values are equal, and 0 for a matrix of zeros.

    Args:
        values: Singular values, float64 ``[..., r]``, largest first.

    Returns:
        float64 ``[...]`` by name.

    Example:
        >>> measures = spectral_measures(torch.tensor([4.0, 4.0, 0.0], dtype=torch.float64))
        >>> {name: round(float(value), 3) for name, value in measures.items() if name.endswith("rank")}
        {'stable_rank': 2.0, 'effective_rank': 2.0}
    """
    largest, smallest = values[..., 0], values[..., -1]
    share = values / values.sum(-1, keepdim=True)
    squares = (values / largest[..., None]).square().sum(-1)
    zero = largest == 0
    return {
        "sigma_max": largest,
        "sigma_min": smallest,
        "condition_number": (largest / smallest).masked_fill(zero, torch.inf),
        "frobenius_norm": torch.linalg.vector_norm(values, dim=-1),
        "stable_rank": squares.masked_fill(zero, 0),
        "effective_rank": torch.special.entr(share).sum(-1).exp().masked_fill(zero, 0),
    }
