import copy
import io
import pickle

import pytest
import torch
from scor.losses import SCoR, SCoRandLS
from torch import nn
from torch.func import grad, vmap

from scor_lightning.functional import scor_penalty
from scor_lightning.losses import BalancedSoftmaxLoss, FocalLoss, LogitAdjustmentLoss, OPLLoss, SCoRLoss, loss_terms


@pytest.fixture
def batch():
    return torch.randn(64, 10), torch.randint(10, (64,))


@pytest.mark.parametrize("size", [64, 63])
@pytest.mark.parametrize(
    ("base", "reference"),
    [(None, SCoR), (nn.CrossEntropyLoss(label_smoothing=0.1), SCoRandLS)],
)
def test_value_and_gradient_of_the_authors_package(base, reference, size, monkeypatch):
    logits = torch.randn(size, 10, requires_grad=True)
    target = torch.randint(10, (size,))
    loss = SCoRLoss(base, alpha=1e-2, odd_batch="self")
    permutation = torch.randperm(size, generator=loss.generator.clone_state())
    ours = loss(logits, target)
    monkeypatch.setattr(torch, "randperm", lambda n: permutation)
    theirs = reference(alpha=1e-2)(logits, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def test_terms_keep_the_names_of_the_base_and_add_up(batch):
    features = torch.randn(64, 5)
    loss = SCoRLoss(OPLLoss(weight=0.5), alpha=1e-2)
    state = loss.generator.get_state()
    terms = loss_terms(loss, *batch, features)
    assert list(terms) == ["cross_entropy", "opl_penalty", "scor_penalty"]
    loss.generator.set_state(state)
    torch.testing.assert_close(loss(*batch, features), sum(terms.values()))
    loss.generator.set_state(state)
    torch.testing.assert_close(terms["scor_penalty"], 1e-2 * scor_penalty(batch[0], generator=loss.generator))


def test_alpha_zero_is_the_base_loss(batch):
    assert SCoRLoss(alpha=0)(*batch) == nn.CrossEntropyLoss()(*batch)


def test_options_reach_the_penalty():
    logits, target = torch.randn(7, 3), torch.zeros(7, dtype=torch.long)
    loss = SCoRLoss(alpha=2.0, reduction="mean", odd_batch="self")
    expected = 2 * torch.linalg.matrix_norm(logits.T @ logits) / 7
    torch.testing.assert_close(loss.terms(logits, target)["scor_penalty"], expected)


def test_evaluation_is_the_base_loss_and_draws_nothing(batch):
    loss = SCoRLoss(FocalLoss(), alpha=10.0).eval()
    own, default = loss.generator.get_state(), torch.get_rng_state()
    assert list(loss.terms(*batch)) == ["focal"]
    assert loss(*batch) == FocalLoss()(*batch)
    assert torch.equal(loss.generator.get_state(), own)
    assert torch.equal(torch.get_rng_state(), default)


def test_training_draws_from_its_own_generator_alone(batch):
    torch.manual_seed(3)
    loss, twin = SCoRLoss(), SCoRLoss()
    before = torch.get_rng_state()
    first, second = loss(*batch), loss(*batch)
    assert first != second
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert [twin(*batch), twin(*batch)] == [first, second]
    torch.manual_seed(4)
    assert SCoRLoss()(*batch) != first


def test_a_loaded_loss_draws_the_same_permutations(batch):
    loss = SCoRLoss(LogitAdjustmentLoss())
    loss.set_class_counts(torch.arange(1, 11))
    loss(*batch)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    expected = [loss(*batch) for _ in range(3)]
    file.seek(0)
    torch.manual_seed(99)
    resumed = SCoRLoss(LogitAdjustmentLoss())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [resumed(*batch) for _ in range(3)] == expected


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_draw_alike_and_apart(batch, clone):
    loss = SCoRLoss()
    loss(*batch)
    other = clone(loss)
    expected = [loss(*batch), loss(*batch)]
    assert [other(*batch), other(*batch)] == expected


def test_what_concerns_the_base_reaches_it(batch):
    counts, weights = torch.arange(1, 11), torch.rand(10)
    adjusting = SCoRLoss(LogitAdjustmentLoss(post_hoc=True))
    adjusting.set_class_counts(counts)
    adjusting.set_class_weights(weights)
    assert torch.equal(adjusting.base.class_counts, counts)
    assert torch.equal(adjusting.base.class_weights, weights)
    assert torch.equal(adjusting.adjust_logits(batch[0]), adjusting.base.adjust_logits(batch[0]))
    assert not torch.equal(adjusting.adjust_logits(batch[0]), batch[0])
    assert not adjusting.needs_features
    assert SCoRLoss(OPLLoss()).needs_features
    with pytest.raises(ValueError, match="Expected training images of every class for balanced_softmax"):
        SCoRLoss(BalancedSoftmaxLoss()).set_class_counts(torch.tensor([1, 0]))


def test_a_plain_base_stays_as_it_is(batch):
    loss = SCoRLoss()
    loss.set_class_counts(torch.zeros(10, dtype=torch.long))  # it does not read them
    assert loss.adjust_logits(batch[0]) is batch[0]
    assert not loss.needs_features
    with pytest.raises(ValueError, match="Expected a loss that takes class weights"):
        loss.set_class_weights(torch.ones(10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    head = nn.Linear(8, 1000)
    nn.init.constant_(head.weight, 4.0)
    with torch.autocast("cpu", dtype=dtype):
        logits = head(torch.ones(64, 8))
        loss = SCoRLoss()(logits, torch.zeros(64, dtype=torch.long))
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("odd_batch", ["drop", "self"])
def test_one_sample(odd_batch):
    logits = torch.randn(1, 3, requires_grad=True)
    loss = SCoRLoss(odd_batch=odd_batch)(logits, torch.tensor([0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_a_head_of_zeros_learns():
    head = nn.Linear(4, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    SCoRLoss(alpha=1.0)(head(torch.randn(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
    assert head.weight.grad.isfinite().all()
    assert head.weight.grad.abs().max() > 0


def test_compile_of_the_module(batch):
    torch._dynamo.reset()
    loss, twin = SCoRLoss(alpha=1e-2), SCoRLoss(alpha=1e-2)
    assert torch.equal(loss.generator.get_state(), twin.generator.get_state())
    compiled = torch.compile(loss)
    for _ in range(2):
        torch.testing.assert_close(compiled(*batch), twin(*batch))


def test_vmap_and_full_graph_with_the_permutation_given():
    loss = SCoRLoss(alpha=1.0)
    logits, target = torch.randn(3, 16, 20), torch.randint(20, (3, 16))
    orders = torch.stack([torch.randperm(16) for _ in logits])

    def gradient(x, y, order):
        return grad(lambda x: sum(loss.terms(x, y, permutation=order).values()))(x)

    expected = torch.stack([gradient(*args) for args in zip(logits, target, orders, strict=True)])
    torch.testing.assert_close(vmap(gradient)(logits, target, orders), expected)
    torch._dynamo.reset()
    compiled = torch.compile(vmap(gradient), fullgraph=True)
    torch.testing.assert_close(compiled(logits, target, orders), expected)


@pytest.mark.parametrize("alpha", [-1.0, float("nan")])
def test_refuses_alpha(alpha):
    with pytest.raises(ValueError, match=f"Expected `alpha` >= 0 but got {alpha}"):
        SCoRLoss(alpha=alpha)


@pytest.mark.parametrize("shape", [(0, 3), (6,), (2, 3, 4)])
def test_refuses_what_is_no_batch_of_logits(shape):
    with pytest.raises(ValueError, match=r"Expected `logits` of shape \[B, K\]"):
        SCoRLoss(FocalLoss())(torch.zeros(shape), torch.zeros(shape[:1], dtype=torch.long))
