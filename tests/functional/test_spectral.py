import pytest
import torch

from scor_lightning.functional.spectral import numerical_rank, singular_values, weight_matrix


@pytest.mark.parametrize("shape", [(128, 784), (10, 128), (64, 64), (300, 20), (1, 5), (3, 16, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_a_float64_svd(shape, dtype):
    matrix = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(matrix.double())
    assert (singular_values(matrix) - expected).abs().max() <= 1e-12 * expected.max()


def test_small_values_survive():
    left = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(30, 20, dtype=torch.float64)).Q
    sigma = torch.logspace(0, -12, 20, dtype=torch.float64)
    values = singular_values(left @ torch.diag(sigma) @ right.T)
    assert torch.allclose(values, sigma, rtol=1e-2, atol=1e-15)


def test_rank_of_a_product_is_its_inner_width():
    product = torch.randn(128, 64) @ torch.randn(64, 128)
    assert numerical_rank(singular_values(product), (128, 128)) == 64
    assert numerical_rank(singular_values(torch.zeros(4, 4)), (4, 4)) == 0


def test_a_convolution_is_the_matrix_of_its_kernels():
    weight = torch.randn(8, 3, 5, 5)
    assert weight_matrix(weight).equal(weight.reshape(8, 75))


def test_what_has_no_singular_values_is_refused():
    with pytest.raises(ValueError, match="two dimensions"):
        weight_matrix(torch.ones(3))
    with pytest.raises(ValueError, match="Expected a matrix"):
        singular_values(torch.ones(3))
    with pytest.raises(ValueError, match="finite"):
        singular_values(torch.full((2, 2), torch.nan))
