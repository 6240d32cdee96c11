import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import scor_lightning.losses
from scor_lightning.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    ConfusionAwareLoss,
    DotRegressionLoss,
    FocalLoss,
    GCLLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
    Loss,
    OPLLoss,
    SCoRLoss,
    VSLoss,
    WeightedCrossEntropyLoss,
    loss_name,
    loss_terms,
)
from scor_lightning.losses.base import check_backbone, describe_loss, evaluate_loss
from scor_lightning.models import MLP, CosineLinear

NEED_COUNTS = [
    WeightedCrossEntropyLoss,
    ClassBalancedLoss,
    LDAMLoss,
    GCLLoss,
    BalancedSoftmaxLoss,
    LabelAwareSmoothingLoss,
    LogitAdjustmentLoss,
    VSLoss,
]
COUNTS = torch.tensor([100, 30, 10, 3, 1])
BATCH = torch.randn(16, 5), torch.randint(3, (16,)), torch.randn(16, 8)  # classes 3 and 4 are absent


def every_loss():
    losses = [
        FocalLoss(),
        OPLLoss(),
        ConfusionAwareLoss(),
        DotRegressionLoss(),
        SCoRLoss(),
        SCoRLoss(LDAMLoss()),
        *(loss() for loss in NEED_COUNTS),
    ]
    for loss in losses:
        loss.set_class_counts(COUNTS)
    return losses


def test_every_public_loss_is_among_those_tested():
    public = {getattr(scor_lightning.losses, name) for name in scor_lightning.losses.__all__}
    concrete = {x for x in public if isinstance(x, type) and not x.__abstractmethods__}
    assert concrete == {type(loss) for loss in every_loss()}


@pytest.mark.parametrize("loss", every_loss(), ids=loss_name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_loss_has_finite_gradients_in_every_precision(loss, dtype):
    logits, target, features = BATCH
    logits = (8 * logits).to(dtype).requires_grad_()
    value = loss(logits, target, features.to(dtype))
    value.backward()
    assert value.ndim == 0
    assert value.dtype in (torch.float32, torch.float64)
    assert value > 0
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", every_loss(), ids=loss_name)
def test_every_loss_takes_one_sample(loss):
    logits = torch.randn(1, 5, requires_grad=True)
    loss(logits, torch.tensor([4]), torch.randn(1, 8)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", every_loss(), ids=loss_name)
def test_every_loss_learns(loss):
    torch.manual_seed(0)
    net = nn.Linear(8, 5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    images, target = torch.randn(64, 8), torch.randint(5, (64,))
    images[torch.arange(64), target] += 5.0
    for _ in range(100):
        logits = net(images)
        optimizer.zero_grad()
        loss(logits, target, images).backward()
        optimizer.step()
    assert (logits.argmax(1) == target).float().mean() > 0.8


@pytest.mark.parametrize("loss", every_loss(), ids=loss_name)
def test_every_loss_under_vmap_and_compile(loss):
    logits, target, features = BATCH
    loss = loss.eval()  # in training SCoR wants its permutations given: see its own test
    stacked = torch.stack([logits, 2 * logits])
    targets, both = target.expand(2, -1), features.expand(2, -1, -1)
    gradient = torch.func.grad(lambda x, y, f: loss(x, y, f))
    expected = torch.stack([gradient(x, target, features) for x in stacked])
    torch.testing.assert_close(torch.func.vmap(gradient)(stacked, targets, both), expected)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target, features), loss(logits, target, features))


@pytest.mark.parametrize("loss_class", NEED_COUNTS)
def test_missing_counts_are_refused(loss_class):
    logits, target, _ = BATCH
    with pytest.raises(ValueError, match=r"Expected class counts for \w+ but got none: \w+\(class_counts=\[...\]\)"):
        loss_class()(logits, target)


@pytest.mark.parametrize("loss_class", NEED_COUNTS)
def test_counts_of_zero_are_refused(loss_class):
    with pytest.raises(ValueError, match=r"Expected training images of every class for \w+ but got none of \[1, 3\]"):
        loss_class().set_class_counts(torch.tensor([5, 0, 1, 0]))


@pytest.mark.parametrize("loss_class", NEED_COUNTS)
def test_counts_of_another_length_are_refused(loss_class):
    loss = loss_class()
    loss.set_class_counts(torch.tensor([5, 1]))
    with pytest.raises(ValueError, match="Expected 5 class counts but got 2"):
        loss(*BATCH)


@pytest.mark.parametrize("loss", [FocalLoss(), *(loss() for loss in NEED_COUNTS)], ids=loss_name)
def test_class_weights_make_a_weighted_mean(loss):
    loss.set_class_counts(COUNTS)
    logits, target, _ = BATCH
    weights = torch.tensor([1.0, 2.0, 0.5, 9.0, 9.0])
    loss.set_class_weights(None)
    if isinstance(loss, GCLLoss):
        loss.amplitude = 0.0  # another number for every batch
    single = torch.stack([loss(z[None], y[None]) for z, y in zip(logits, target, strict=True)])
    torch.testing.assert_close(loss(logits, target), single.mean())
    loss.set_class_weights(weights)
    w = weights[target]
    torch.testing.assert_close(loss(logits, target), (w * single).sum() / w.sum())


def test_a_loss_without_class_weights_refuses_them():
    with pytest.raises(ValueError, match=r"Expected a loss that takes class weights.*OPLLoss"):
        OPLLoss().set_class_weights(torch.ones(5))


@pytest.mark.parametrize("loss", every_loss(), ids=loss_name)
def test_state_round_trip(loss):
    before = loss.state_dict()
    fresh = type(loss)(LDAMLoss()) if isinstance(loss, SCoRLoss) and isinstance(loss.base, Loss) else type(loss)()
    fresh.load_state_dict(before)
    assert torch.equal(fresh.class_counts, COUNTS)
    assert fresh.eval()(*BATCH) == loss.eval()(*BATCH)
    loss.train()


def test_counts_and_weights_move_with_the_module():
    loss = WeightedCrossEntropyLoss()
    loss.set_class_counts(COUNTS)
    loss.to("meta")
    assert loss.class_counts.is_meta
    assert loss.class_weights.is_meta


def test_plain_losses_are_terms_too():
    logits, target, features = BATCH
    terms = loss_terms(nn.CrossEntropyLoss(), logits, target, features)
    assert list(terms) == ["cross_entropy"]
    assert terms["cross_entropy"] == nn.CrossEntropyLoss()(logits, target)


def test_names():
    names = [loss_name(loss) for loss in [SCoRLoss(), OPLLoss(), LDAMLoss(), VSLoss(), LogitAdjustmentLoss()]]
    assert names == ["scor", "opl", "ldam", "vs", "logit_adjustment"]


def test_importing_the_losses_loads_nothing_heavy():
    code = (
        "import sys, scor_lightning.losses;"
        "print([m for m in ('lightning', 'matplotlib', 'scipy', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def summed_losses():
    losses = [FocalLoss(reduction="sum"), SCoRLoss(FocalLoss(reduction="sum"))]
    for loss in losses:
        loss.set_class_counts(COUNTS)
    return losses


def over_the_set(loss, logits, target, features, sizes):
    parts = [
        evaluate_loss(loss, *part) for part in zip(*(x.split(sizes) for x in (logits, target, features)), strict=True)
    ]
    return sum(part.total for part in parts) / sum(part.weight for part in parts)


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("loss", [*every_loss(), *summed_losses()], ids=describe_loss)
def test_in_evaluation_a_loss_is_the_unweighted_mean_however_the_set_is_cut(loss, weigh):
    logits, target, features = BATCH
    if weigh and hasattr(getattr(loss, "base", loss), "class_weights"):
        loss.set_class_weights(torch.tensor([9.0, 0.5, 1.0, 3.0, 0.1]))
    loss.eval()
    alone = torch.stack([loss(z[None], y[None], f[None]) for z, y, f in zip(logits, target, features, strict=True)])
    for sizes in ([16], [7, 9], [1] * 16, [5, 5, 5, 1]):
        torch.testing.assert_close(over_the_set(loss, logits, target, features, sizes), alone.mean())
    torch.testing.assert_close(loss(logits, target, features), alone.mean())
    loss.train()


WEIGHT = torch.tensor([9.0, 0.5, 1.0, 3.0, 0.1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "make",
    [
        nn.CrossEntropyLoss,
        partial(nn.CrossEntropyLoss, label_smoothing=0.1),
        partial(nn.CrossEntropyLoss, weight=WEIGHT),
        partial(nn.CrossEntropyLoss, weight=WEIGHT, label_smoothing=0.3),
        partial(nn.CrossEntropyLoss, weight=WEIGHT, ignore_index=1),
        partial(nn.CrossEntropyLoss, ignore_index=0),
        partial(nn.MultiMarginLoss, weight=WEIGHT),
        nn.MultiMarginLoss,
        lambda reduction: SCoRLoss(nn.CrossEntropyLoss(weight=WEIGHT, reduction=reduction)),
    ],
)
def test_a_plain_loss_is_its_own_mean_over_the_whole_set(make, reduction):
    logits, target, features = BATCH
    whole = make(reduction="mean").eval()(logits, target)
    for sizes in ([16], [7, 9], [1] * 16, [5, 5, 5, 1]):  # with batches of which all samples are ignored
        got = over_the_set(make(reduction=reduction).eval(), logits, target, features, sizes)
        torch.testing.assert_close(got, whole)


@pytest.mark.parametrize("loss", [SCoRLoss(LDAMLoss()), LDAMLoss()])
def test_a_loss_states_what_it_requires_of_the_network(loss):
    with pytest.raises(ValueError, match=r"with the head scor_lightning.models.CosineLinear .* but got Linear"):
        check_backbone(loss, MLP(5))
    with pytest.raises(ValueError, match=r"but got Sequential: use `--config loss/ldam\.yaml`"):
        check_backbone(loss, nn.Sequential(nn.Linear(4, 5)))
    check_backbone(loss, MLP(5, head=CosineLinear))


def test_a_loss_that_reads_features_requires_them():
    for loss in (OPLLoss(), SCoRLoss(OPLLoss())):
        with pytest.raises(
            ValueError, match="Expected a backbone with `forward_features` and a module `head` for OPLLoss"
        ):
            check_backbone(loss, nn.Linear(4, 5))
    check_backbone(nn.CrossEntropyLoss(), nn.Linear(4, 5))
