import pytest
import torch
from scor.losses import SCoR
from torch.func import grad, vmap

from scor_lightning.functional import scor_penalty

WIDE_AND_NARROW = [(64, 10), (32, 16), (32, 17), (16, 100)]  # K below, at, above B / 2


def reference_penalty(logits, permutation, monkeypatch):
    """The authors' value at alpha 1, without its cross entropy."""
    loss = SCoR(alpha=1.0)
    target = torch.zeros(len(logits), dtype=torch.long)
    monkeypatch.setattr(torch, "randperm", lambda n: permutation)
    return loss(logits, target) - torch.nn.functional.cross_entropy(logits, target)


@pytest.mark.parametrize(("size", "classes"), [*WIDE_AND_NARROW, (33, 10), (15, 100)])
def test_value_and_gradient_of_the_authors_package(size, classes, monkeypatch):
    logits = torch.randn(size, classes, dtype=torch.float64, requires_grad=True)
    permutation = torch.randperm(size)
    ours = scor_penalty(logits, permutation=permutation, odd_batch="self")
    (our_grad,) = torch.autograd.grad(ours, logits)
    theirs = reference_penalty(logits, permutation, monkeypatch)
    (their_grad,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_grad, their_grad)


def test_without_a_permutation_it_draws_what_the_authors_package_draws():
    logits = torch.randn(64, 10)
    target = torch.randint(10, (64,))
    torch.manual_seed(7)
    theirs = SCoR(alpha=1.0)(logits, target) - torch.nn.functional.cross_entropy(logits, target)
    torch.manual_seed(7)
    torch.testing.assert_close(scor_penalty(logits), theirs)


def test_the_generator_decides_the_pairs_and_leaves_the_default_one_alone():
    logits = torch.randn(64, 10)
    before = torch.get_rng_state()
    first = scor_penalty(logits, generator=torch.Generator().manual_seed(1))
    again = scor_penalty(logits, generator=torch.Generator().manual_seed(1))
    other = scor_penalty(logits, generator=torch.Generator().manual_seed(2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_values_worked_out_by_hand():
    # pairs (row 0, row 2) and (row 1, row 3): [[1 * 3, 0], [0, 2 * 1]]
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    order = torch.arange(4)
    assert scor_penalty(logits, permutation=order).item() == pytest.approx(13**0.5)
    assert scor_penalty(logits, permutation=order, reduction="mean").item() == pytest.approx(13**0.5 / 2)
    # three samples: one pair and one left out, or all three with themselves: diag(1 + 9, 4)
    assert scor_penalty(logits[:3], permutation=torch.tensor([0, 2, 1])).item() == pytest.approx(3.0)
    assert scor_penalty(logits[:3], odd_batch="self").item() == pytest.approx(116**0.5)
    assert scor_penalty(logits[:3], odd_batch="self", reduction="mean").item() == pytest.approx(116**0.5 / 3)


def test_a_left_out_sample_has_no_gradient():
    logits = torch.randn(7, 3, requires_grad=True)
    scor_penalty(logits, permutation=torch.tensor([6, 0, 5, 2, 1, 4, 3])).backward()
    assert (logits.grad[3] == 0).all()
    assert (logits.grad[:3] != 0).all()


def test_swapping_the_halves_or_the_classes_changes_nothing():
    logits = torch.randn(32, 40, dtype=torch.float64)
    order = torch.randperm(32)
    expected = scor_penalty(logits, permutation=order)
    torch.testing.assert_close(scor_penalty(logits, permutation=order.roll(16)), expected)
    torch.testing.assert_close(scor_penalty(logits[:, torch.randperm(40)], permutation=order), expected)


@pytest.mark.parametrize("odd_batch", ["drop", "self"])
@pytest.mark.parametrize(("size", "classes"), [(8, 3), (8, 11), (7, 3), (7, 11)])
def test_gradients_of_first_and_second_order(size, classes, odd_batch):
    logits = torch.randn(size, classes, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(size)

    def penalty(x):
        return scor_penalty(x, permutation=order, odd_batch=odd_batch)

    assert torch.autograd.gradcheck(penalty, logits)
    assert torch.autograd.gradgradcheck(penalty, logits)


@pytest.mark.parametrize("classes", [3, 50])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_zero_matrix_has_gradient_zero(size, classes):
    logits = torch.zeros(size, classes, requires_grad=True)
    penalty = scor_penalty(logits)
    penalty.backward()
    assert penalty == 0
    assert (logits.grad == 0).all()


def test_one_sample_has_no_pair():
    logits = torch.randn(1, 5, requires_grad=True)
    penalty = scor_penalty(logits, reduction="mean")
    penalty.backward()
    assert penalty == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "classes"), WIDE_AND_NARROW)
def test_dtypes(size, classes, dtype):
    logits = torch.randn(size, classes).to(dtype).requires_grad_()
    order = torch.randperm(size)
    penalty = scor_penalty(logits, permutation=order)
    penalty.backward()
    assert penalty.dtype == torch.promote_types(dtype, torch.float32)
    assert logits.grad.dtype == dtype
    expected = scor_penalty(logits.detach().double(), permutation=order)
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [10, 1000])
def test_float16_does_not_overflow(classes):
    logits = torch.full((256, classes), 30.0, dtype=torch.float16, requires_grad=True)
    penalty = scor_penalty(logits)
    penalty.backward()
    assert penalty.item() == pytest.approx(128 * 900 * classes)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("size", "classes"), WIDE_AND_NARROW)
def test_autocast_changes_nothing(size, classes):
    logits = torch.randn(size, classes, requires_grad=True)
    order = torch.randperm(size)
    expected = scor_penalty(logits, permutation=order)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = scor_penalty(logits, permutation=order)
    penalty.backward()
    assert penalty == expected
    assert torch.equal(logits.grad, expected_grad)


@pytest.mark.parametrize(("size", "classes"), [(16, 5), (16, 20), (15, 20)])
@pytest.mark.exhaustive
def test_vmap_and_compile_alone_and_together(size, classes):
    logits = torch.randn(3, size, classes)
    orders = torch.stack([torch.randperm(size) for _ in logits])

    def gradient(x, order):
        return grad(lambda x: scor_penalty(x, permutation=order))(x)

    expected = torch.stack([gradient(x, order) for x, order in zip(logits, orders, strict=True)])
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(vmap(gradient)(logits, orders), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(gradient, fullgraph=True)(logits[0], orders[0]), expected[0])
    torch.testing.assert_close(torch.compile(vmap(gradient), fullgraph=True)(logits, orders), expected)


def test_no_matrix_of_all_pairs_of_classes():
    classes = 200_000  # their matrix would take 160 GB
    assert scor_penalty(torch.randn(4, classes)).isfinite()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((0, 3), {}, r"Expected `logits` of shape \[B, K\] with B >= 1 but got \[0, 3\]"),
        ((6,), {}, r"Expected `logits` of shape \[B, K\] with B >= 1 but got \[6\]"),
        ((2, 3, 4), {}, "Expected `logits`"),
        ((6, 3), {"reduction": "max"}, "Expected `reduction` .* but got 'max'"),
        ((6, 3), {"odd_batch": "pad"}, "Expected `odd_batch` .* but got 'pad'"),
        ((6, 3), {"permutation": torch.arange(5)}, r"Expected `permutation` of shape \[6\] but got \[5\]"),
    ],
)
def test_refusals(shape, options, message):
    with pytest.raises(ValueError, match=message):
        scor_penalty(torch.zeros(shape), **options)
