import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scor_lightning.functional import spectral
from scor_lightning.functional.spectral import (
    circular_singular_values,
    numerical_rank,
    singular_values,
    spectral_measures,
    weight_matrix,
)


def matrix_of(sigma, rows, columns, seed=0):
    """A matrix with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(sigma), dtype=torch.float64, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, len(sigma), dtype=torch.float64, generator=generator)).Q
    return left @ torch.diag(sigma) @ right.T


@pytest.mark.parametrize("shape", [(128, 784), (10, 128), (64, 64), (300, 20), (1, 5), (3, 16, 40), (2, 3, 7, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_values_are_those_of_a_float64_svd(shape, dtype):
    matrix = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(matrix.to(torch.complex128 if dtype.is_complex else torch.float64))
    assert (singular_values(matrix) - expected).abs().max() <= 1e-12 * expected.max()


@pytest.mark.parametrize("part", [2**22, 64])
@pytest.mark.parametrize("shape", [(20, 300), (300, 20)])
def test_small_values_survive(monkeypatch, part, shape):
    monkeypatch.setattr(spectral, "_PART", part)
    sigma = torch.logspace(0, -12, 20, dtype=torch.float64)
    values = singular_values(matrix_of(sigma, *shape))
    assert torch.allclose(values, sigma, rtol=1e-2, atol=1e-15)


def test_only_ill_conditioned_matrices_are_decomposed_by_svd(monkeypatch):
    sigma = torch.stack([torch.linspace(2, 1, 8), torch.logspace(0, -11, 8), torch.zeros(8)]).double()
    seen = []
    svdvals = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda matrix: seen.append(matrix.shape) or svdvals(matrix))
    values = singular_values(torch.stack([matrix_of(row, 8, 50) for row in sigma]))
    assert seen == [(8, 8)]
    assert torch.allclose(values, sigma, rtol=1e-2, atol=1e-15)


def test_rank_of_a_product_is_its_inner_width():
    generator = torch.Generator().manual_seed(0)
    product = torch.randn(128, 64, generator=generator) @ torch.randn(64, 128, generator=generator)
    values = singular_values(product)
    assert numerical_rank(values, (128, 128)) == 64 == torch.linalg.matrix_rank(product)
    assert numerical_rank(values, (128, 128), tolerance="absolute") > 120  # counts rounding, as the paper's code does
    assert numerical_rank(singular_values(torch.zeros(4, 4)), (4, 4)) == 0
    with pytest.raises(ValueError, match='Expected `tolerance` to be "relative" or "absolute" but got 1e-07'):
        numerical_rank(values, (128, 128), tolerance=1e-7)


def test_a_convolution_is_the_matrix_of_its_kernels():
    weight = torch.randn(8, 3, 5, 5)
    assert weight_matrix(weight).equal(weight.reshape(8, 75))


@pytest.mark.parametrize("groups", [2, 4, 12])
def test_the_blocks_of_a_grouped_convolution_have_the_values_of_the_whole(groups):
    weight = torch.randn(12, 3, 2, 2, dtype=torch.float64)
    blocks = weight_matrix(weight, groups)
    whole = torch.block_diag(*blocks)
    assert whole.shape == (12, groups * 12)
    values = singular_values(blocks).flatten().sort(descending=True).values
    assert torch.allclose(values, torch.linalg.svdvals(whole)[: len(values)])
    # The blocks are those that the convolution multiplies by.
    pixels = torch.randn(1, groups * 3, 2, 2, dtype=torch.float64)
    assert torch.allclose(F.conv2d(pixels, weight, groups=groups).flatten(), whole @ pixels.flatten())


@pytest.mark.parametrize("size", [(5, 4), (4, 7), (3, 3), (1, 2)])
@pytest.mark.parametrize(("rows", "columns"), [(3, 2), (2, 4)])
def test_the_circular_operator_is_what_the_convolution_does(size, rows, columns):
    kernel = (min(3, size[0]), 2)
    weight = torch.randn(rows, columns, *kernel, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = torch.eye(columns * size[0] * size[1], dtype=torch.float64).view(-1, columns, *size)
    padded = F.pad(pixels, (0, kernel[1] - 1, 0, kernel[0] - 1), mode="circular")
    operator = F.conv2d(padded, weight).flatten(1).T
    values = circular_singular_values(weight, size)
    assert len(values) == min(rows, columns) * size[0] * size[1]
    assert torch.allclose(values, torch.linalg.svdvals(operator), atol=1e-12)


def test_measures_are_those_of_their_formulas():
    matrix = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measures = spectral_measures(singular_values(matrix))
    for i, one in enumerate(matrix.numpy()):
        sigma = np.linalg.svd(one, compute_uv=False)
        share = sigma / sigma.sum()
        expected = {
            "sigma_max": np.linalg.norm(one, 2),
            "sigma_min": sigma[-1],
            "condition_number": np.linalg.cond(one),
            "frobenius_norm": np.linalg.norm(one),
            "stable_rank": np.linalg.norm(one) ** 2 / np.linalg.norm(one, 2) ** 2,
            "effective_rank": np.prod(share**-share),
        }
        assert {name: float(value[i]) for name, value in measures.items()} == pytest.approx(expected, rel=1e-12)


def test_measures_of_zeros_and_of_equal_values():
    zero = {name: float(value) for name, value in spectral_measures(torch.zeros(4, dtype=torch.float64)).items()}
    assert zero.pop("condition_number") == float("inf")
    assert set(zero.values()) == {0.0}
    equal = spectral_measures(torch.full((4,), 2.5, dtype=torch.float64))
    assert [float(equal[name]) for name in ("stable_rank", "effective_rank", "condition_number")] == pytest.approx(
        [4, 4, 1]
    )


def test_what_has_no_singular_values_is_refused():
    with pytest.raises(ValueError, match="two dimensions"):
        weight_matrix(torch.ones(3))
    with pytest.raises(ValueError, match="divide the 8 rows of the weight but got 3"):
        weight_matrix(torch.ones(8, 2, 3, 3), groups=3)
    for shape in [(3,), (0, 3), (2, 3, 0)]:
        with pytest.raises(ValueError, match="Expected a matrix"):
            singular_values(torch.ones(shape))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite"):
            singular_values(torch.full((2, 2), bad))
    for shape in [(2, 3), (2, 2, 5, 3)]:
        with pytest.raises(ValueError, match=r"Expected kernels within the input's \(4, 4\)"):
            circular_singular_values(torch.ones(shape), (4, 4))
