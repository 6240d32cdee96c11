import math
import os
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.lr_scheduler import (
    CyclicLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import WeightSpectrum
from scor_lightning.comparison import sequential, stacked
from scor_lightning.datamodules import DigitsDataModule, ImagesInMemory, MNISTDataModule, ReduceClasses
from scor_lightning.losses import (
    ClassBalancedLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
    OPLLoss,
    SCoRLoss,
    VSLoss,
)
from scor_lightning.models import MLP, ConvNet, CosineLinear
from scor_lightning.optim import CosineLR
from scor_lightning.seeding import seeded
from tests.comparison import compare_losses, plan_of, without_times
from tests.data.mnist import write_mnist

CPU = torch.device("cpu")
LOSSES = {
    "cross_entropy": nn.CrossEntropyLoss,
    "label_smoothing": partial(nn.CrossEntropyLoss, label_smoothing=0.1),
    "focal": FocalLoss,
    "scor": partial(SCoRLoss, alpha=1e-2),
    "scor_self": partial(SCoRLoss, alpha=1e-2, odd_batch="self"),
    "scor_class_balanced": lambda: SCoRLoss(ClassBalancedLoss(gamma=1.0), alpha=1e-2),
    "opl": OPLLoss,
    "ldam": LDAMLoss,
    "logit_adjustment": partial(LogitAdjustmentLoss, post_hoc=True),
    "vs": VSLoss,
}


class Convolutional(nn.Module):
    """A network with a convolution, a layer norm and no bias in its head."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, stride=2)
        self.norm = nn.LayerNorm(4 * 9)
        self.head = nn.Linear(4 * 9, num_classes, bias=False)
        self.num_classes = num_classes

    def forward(self, x):
        return self.head(self.norm(self.conv(x).relu().flatten(1)))


class WeightUsedTwice(nn.Module):
    """Large layers of which one is used twice, and a parameter that is never used."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.first = nn.Linear(64, 256)
        self.again = nn.Linear(256, 256)
        self.head = nn.Linear(256, num_classes)
        self.unused = nn.Parameter(torch.ones(2**14))
        self.num_classes = num_classes

    def forward(self, x):
        return self.head(self.again(self.again(self.first(x.flatten(1)).relu()).relu()).relu())


class SameForAll(nn.Module):
    """A large layer whose input is neither an image nor a network's own."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.table = nn.Linear(64, 256)
        self.register_buffer("places", torch.linspace(-1, 1, 64 * 16).view(16, 64))
        self.head = nn.Linear(16, num_classes)
        self.num_classes = num_classes

    def forward(self, x):
        return self.head((x.flatten(1) @ self.table(self.places)[:, :64].T).tanh())


class FrozenLayer(MLP):
    """A large layer that is not trained."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, hidden=[256])
        self.body[1].requires_grad_(False)


class UnevenDigits(DigitsDataModule):
    """Classes of many sizes, so that epochs are of many lengths."""

    def load(self, split):
        data = super().load(split)
        if data is None:
            return None
        kept = torch.cat([(data.targets == c).nonzero().flatten()[: 140 - 9 * c] for c in range(10)]).sort().values
        return ImagesInMemory(*data[kept])


def digits(**options):
    return UnevenDigits(
        **{"evaluation": "holdout", "val_fraction": 0.0, "imbalance": ReduceClasses(factor=0.05)} | options
    )


@pytest.fixture
def weights(monkeypatch):
    """Catch the weights that each engine measures, by engine, repeat and loss."""
    caught: dict[tuple[str, int, str], dict[str, torch.Tensor]] = {}
    measure_stack, measure_one = stacked._measure, sequential._Measure.measure

    def of_stack(plan, stack, repeat, i, epoch, pixels):
        for j, name in enumerate(stack.names):
            values = {key: p[i, j].detach().clone() for key, p in stack.parameters.items()}
            caught["stacked", repeat.number, name] = values
        return measure_stack(plan, stack, repeat, i, epoch, pixels)

    def of_one(self, model, epoch):
        values = {key: p.detach().clone() for key, p in model.backbone.named_parameters()}
        caught["sequential", self.repeat.number, self.name] = values
        measure_one(self, model, epoch)

    monkeypatch.setattr(stacked, "_measure", of_stack)
    monkeypatch.setattr(sequential._Measure, "measure", of_one)
    return caught


def train_both(plan, repeats, of, names=None):
    rows = {(r["repeat"], r["method"], r["epoch"]): r for r in stacked.train(plan, repeats, CPU, lambda _: None)}
    alone = [row for name in names or plan.trainings for row in sequential.train(plan, of, name, CPU, lambda _: None)]
    return [(rows[row["repeat"], row["method"], row["epoch"]], row) for row in alone]


def assert_alike(caught, repeat, names, tolerance):
    for name in names:
        for key, one in caught["sequential", repeat, name].items():
            assert (one - caught["stacked", repeat, name][key]).abs().max() <= tolerance, (name, key)


def assert_same_measures(pairs, tolerance):
    for stack, one in pairs:
        assert list(stack) == list(one)
        for key, value in one.items():
            expected = pytest.approx(value, abs=tolerance, nan_ok=True) if isinstance(value, float) else value
            assert stack[key] == expected, (one["method"], key)


def test_in_float64_the_engines_agree_after_an_epoch_under_every_loss(weights):
    # Repeats of several lengths, whose last batches are odd, even and full, train together.
    network = partial(MLP, hidden=[16], head=CosineLinear)  # which LDAM requires
    plan = plan_of(digits(batch_size=31), network, LOSSES, epochs=1, precision="64-true")
    lengths = {len(plan.repeat(n).data.train_dataloader().dataset) for n in range(6)}
    assert len({-(-length // 31) for length in lengths}) > 1
    assert {length % 31 % 2 for length in lengths} == {0, 1}
    pairs = train_both(plan, list(range(6)), of=2)
    assert_alike(weights, 2, [name for name in LOSSES if name != "vs"], 1e-10)
    assert_alike(weights, 2, ["vs"], 1e-8)  # its divisors are powers in float32
    assert_same_measures(pairs, 1e-8)


def test_in_float32_the_engines_agree_after_100_steps(weights, tmp_path):
    data = MNISTDataModule(str(write_mnist(tmp_path)), batch_size=4, evaluation="holdout", val_fraction=0.0)
    names = ("cross_entropy", "label_smoothing", "focal", "scor")
    losses = {name: LOSSES[name] for name in names} | {"scor": SCoRLoss}
    plan = plan_of(data, MLP, losses, epochs=2)
    assert 2 * len(plan.repeat(0).data.train_dataloader()) >= 100
    train_both(plan, [0, 1], of=1)
    assert_alike(weights, 1, names, 1e-5)


@pytest.mark.parametrize(
    "backbone",
    [partial(MLP, hidden=[16, 8], head=CosineLinear), Convolutional, WeightUsedTwice, SameForAll, FrozenLayer],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
        torch.optim.AdamW,
        partial(torch.optim.Adam, fused=True),
    ],
)
def test_other_networks_and_optimizers_stack_too(weights, backbone, optimizer):
    losses = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}
    plan = plan_of(digits(), backbone, losses, epochs=1, optimizer=optimizer, precision="64-true")
    assert stacked.why_not(plan) is None
    assert_same_measures(train_both(plan, [0, 1], of=1), 1e-9)
    assert_alike(weights, 1, losses, 1e-9)


@pytest.mark.parametrize("stepped", [stacked.STEPPED, 1, 3700])  # all four repeats at once, one by one, three and one
def test_schedules_advance_with_each_repeats_own_epochs(weights, monkeypatch, stepped):
    monkeypatch.setattr(stacked, "LARGE", 1)
    monkeypatch.setattr(stacked, "STEPPED", stepped)
    losses = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    plan = plan_of(digits(), partial(MLP, hidden=[8]), losses, epochs=2, lr_scheduler=schedule, precision="64-true")
    stack = stacked.Stack([plan.repeat(n) for n in range(4)], list(losses), CPU, torch.float64)
    sizes = [block.repeats.stop - block.repeats.start for block in stacked._blocks(plan, stack)]
    assert sizes == {1: [1, 1, 1, 1], 3700: [3, 1]}.get(stepped, [4])
    train_both(plan, [0, 1, 2, 3], of=3)
    assert_alike(weights, 3, losses, 1e-10)


def test_measures_after_every_epoch_and_whole_spectra():
    losses = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}
    plan = plan_of(
        digits(batch_size=128),
        partial(MLP, hidden=[8]),
        losses,
        epochs=3,
        precision="64-true",
        every_epoch=True,
        spectra=True,
    )
    pairs = train_both(plan, [0, 1], of=0)
    assert [row["epoch"] for _, row in pairs] == [1, 2, 3] * 2
    for stack, one in pairs:
        values = one.pop("spectrum/head/values")
        assert stack.pop("spectrum/head/values") == pytest.approx(values, abs=1e-10)
        assert len(values) == 8
        assert values[0] == one["spectrum/head/sigma_max"]
        assert stack.pop("spectrum/body.1/values") == pytest.approx(one.pop("spectrum/body.1/values"), abs=1e-10)
    assert_same_measures(pairs, 1e-10)


def test_class_balanced_sampling_is_the_same(weights):
    losses = {"cross_entropy": nn.CrossEntropyLoss, "focal": FocalLoss}
    data = digits(sampling="class_balanced", evaluation="official")
    plan = plan_of(data, partial(MLP, hidden=[8]), losses, epochs=1, precision="64-true")
    train_both(plan, [0, 1], of=1)
    assert_alike(weights, 1, losses, 1e-10)


def test_a_training_that_diverges_is_a_result():
    losses = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}
    optimizer = partial(torch.optim.SGD, lr=1e30)
    plan = plan_of(digits(), partial(MLP, hidden=[8]), losses, epochs=1, optimizer=optimizer)
    for stack, one in train_both(plan, [0], of=0):
        assert one["diverged"]
        assert math.isnan(one["spectrum/head/rank"])
        assert math.isnan(one["accuracy"])
        assert str(stack) == str(one)  # NaN differs from NaN


def dropout(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, num_classes))


class Noisy(nn.Module):
    """Draws random numbers from a hidden generator."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.head = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.head(x.flatten(1) + torch.randn_like(x.flatten(1)))


class Learned(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def two_rates(parameters):
    first, *others = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": others, "lr": 0.1}], lr=0.01)


class Counting(nn.CrossEntropyLoss):
    """Grows with every call."""

    calls = 0

    def forward(self, input, target):
        self.calls += 1
        return self.calls * super().forward(input, target)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone": partial(ConvNet, widths=[4, 4])}, "BatchNorm2d keeps statistics"),
        ({"backbone": dropout}, "Dropout draws random numbers"),
        ({"backbone": Noisy}, "stacking failed"),
        ({"backbone": partial(MLP, hidden=[80_000])}, "6,000,010 parameters"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS may not"),
        ({"optimizer": two_rates}, "SGD treats some parameters unlike others"),
        ({"losses": {"a": nn.CrossEntropyLoss, "b": Learned}}, "'b' has parameters"),
        ({"losses": {"a": nn.CrossEntropyLoss, "b": Counting}}, "other gradients"),
        ({"data": DigitsDataModule(resolution=16)}, "images are transformed"),
    ],
)
def test_trainings_that_cannot_be_stacked_are_detected_beforehand(change, reason):
    losses = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}
    plan = plan_of(**{"data": digits(), "backbone": MLP, "losses": losses} | change)
    assert reason in stacked.why_not(plan)


@pytest.mark.parametrize(("shape", "dim"), [((3, 5, 4), 2), ((3, 5, 4), -1), ((5, 4), 1), ((3, 5, 4), 1), ((4,), 0)])
def test_traced_log_softmax_is_that_of_torch(shape, dim):
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(shape, dtype=torch.float64)

    def both(x):
        x = x.detach().requires_grad_()
        out = torch.log_softmax(x, dim)
        return out, torch.autograd.grad((out * weight).sum(), x)[0]

    for traced, direct in zip(make_fx(both, stacked._FASTER)(x)(x), both(x), strict=True):
        torch.testing.assert_close(traced, direct)


def test_lightnings_look_for_a_gpu_is_put_off_while_optimizers_step(monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

    def fail():
        with stacked._quick_optimizers():
            assert torch.cuda.is_available() or "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


@pytest.mark.parametrize("size", [1, 0, 2])
def test_the_engines_agree_where_the_last_batch_would_be_one_image(weights, size):
    data = digits()
    data.setup()
    images = int(data.class_counts.sum())
    batch_size = next(b for b in range(20, 200) if images % b == size)
    plan = plan_of(
        digits(batch_size=batch_size), partial(MLP, hidden=[8]), LOSSES_OF_TWO, epochs=2, precision="64-true"
    )
    assert_same_measures(train_both(plan, [0, 1, 2], of=1), 1e-8)
    assert_alike(weights, 1, LOSSES_OF_TWO, 1e-9)


LOSSES_OF_TWO = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}
ADAM = partial(torch.optim.Adam, lr=3e-3)
SCHEDULES = {
    "cosine": CosineLR,
    "multi_step": partial(MultiStepLR, milestones=[1, 2]),
    "chained": lambda o: SequentialLR(o, [LinearLR(o, total_iters=1), ExponentialLR(o, 0.5)], milestones=[1]),
    "cyclic": partial(CyclicLR, base_lr=1e-4, max_lr=1e-2, step_size_up=1, cycle_momentum=False),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_are_the_same_under_both_engines(weights, schedule):
    plan = plan_of(
        digits(), partial(MLP, hidden=[8]), LOSSES_OF_TWO, 3, optimizer=ADAM, lr_scheduler=schedule, precision="64-true"
    )
    assert stacked.why_not(plan) is None
    assert_same_measures(train_both(plan, [0, 1], of=1), 1e-8)
    assert_alike(weights, 1, LOSSES_OF_TWO, 1e-9)
    constant = plan_of(digits(), partial(MLP, hidden=[8]), LOSSES_OF_TWO, 3, optimizer=ADAM, precision="64-true")
    (row, *_) = sequential.train(constant, 1, "scor", CPU, lambda _: None)
    assert row["cross_entropy"] != pytest.approx(
        train_both(plan, [1], of=1, names=["scor"])[0][1]["cross_entropy"], 1e-6
    )


class FailsLate(LRScheduler):
    """A user's schedule with two epochs."""

    def get_lr(self):
        return [[1e-2, 1e-3, 1e-4][self.last_epoch] for _ in self.base_lrs]


def test_a_schedule_that_follows_the_validation_is_not_stacked():
    data = digits(val_fraction=0.2, evaluation="official")
    plan = plan_of(data, partial(MLP, hidden=[8]), LOSSES_OF_TWO, epochs=5, lr_scheduler=ReduceLROnPlateau)
    assert "ReduceLROnPlateau follows the validation" in stacked.why_not(plan)


@pytest.mark.parametrize("schedule", [partial(OneCycleLR, max_lr=0.1, total_steps=2), FailsLate])
@pytest.mark.parametrize("engine", ["auto", "sequential"])
def test_a_schedule_that_ends_before_the_training_is_refused(schedule, engine):
    with pytest.raises(ValueError, match=r"Expected a schedule for all 5 epochs but (OneCycleLR|FailsLate) fails"):
        compare_losses(digits(), MLP, LOSSES_OF_TWO, repeats=1, epochs=5, lr_scheduler=schedule, engine=engine)


@pytest.mark.parametrize("scale", [10.0, 30.0])
def test_ldam_has_the_scale_of_the_head_under_both_engines(weights, scale):
    losses = {"cross_entropy": nn.CrossEntropyLoss, "ldam": LDAMLoss, "scor": lambda: SCoRLoss(LDAMLoss())}
    network = partial(MLP, hidden=[8], head=partial(CosineLinear, scale=scale))
    plan = plan_of(digits(), network, losses, epochs=1, precision="64-true")
    assert stacked.why_not(plan) is None
    pairs = train_both(plan, [0, 1], of=1)
    assert_same_measures(pairs, 1e-8)
    assert_alike(weights, 1, losses, 1e-9)
    repeat = plan.repeat(1)
    alone = LDAMLoss(scale=scale)
    alone.set_class_counts(repeat.data.class_counts)
    logits, target = torch.randn(4, 10), torch.arange(4)
    assert repeat.loss("ldam")(logits, target) == alone(logits, target)


def test_a_plateau_is_followed_one_training_at_a_time():
    steep = partial(ReduceLROnPlateau, patience=0, threshold=1e9, factor=0.1)  # nothing is ever an improvement
    options = {"backbone": partial(MLP, hidden=[8]), "losses": LOSSES_OF_TWO, "repeats": 2, "epochs": 4}
    data = {"val_fraction": 0.2, "evaluation": "official"}
    followed = compare_losses(digits(**data), **options, lr_scheduler=steep)
    constant = compare_losses(digits(**data), **options, engine="sequential")
    assert len(followed) == 4
    for row, other in zip(followed, constant, strict=True):
        assert row["cross_entropy"] > other["cross_entropy"]  # a tenth of the learning rate after each epoch
    with pytest.raises(ValueError, match="Expected a validation set for ReduceLROnPlateau"):
        compare_losses(digits(), **options, lr_scheduler=steep)


def test_building_repeats_and_training_leave_the_callers_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plan = plan_of(digits(), partial(MLP, hidden=[8]), LOSSES_OF_TWO, epochs=1)
    repeat = plan.repeat(3)
    repeat.backbone(), repeat.loss("scor")
    for engine in ("stacked", "sequential"):
        rows = compare_losses(digits(), partial(MLP, hidden=[8]), LOSSES_OF_TWO, repeats=1, epochs=1, engine=engine)
        assert torch.get_rng_state().equal(before)
        torch.manual_seed(6)  # nor does the result depend on it
        again = compare_losses(digits(), partial(MLP, hidden=[8]), LOSSES_OF_TWO, repeats=1, epochs=1, engine=engine)
        assert without_times(again) == without_times(rows)
        torch.manual_seed(5)


class ManyKinds(nn.Module):
    """Layers that cannot be distinguished by the names and shapes of their weights."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.grouped = nn.Conv2d(in_channels, 4, 3, stride=2)
        self.depthwise = nn.Conv2d(4, 8, 3, groups=4)
        self.bounded = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
        self.table = nn.Embedding(3, 6)
        self.head = nn.Linear(6, num_classes)
        self.num_classes = num_classes

    def forward(self, x):
        x = self.depthwise(self.grouped(x).relu()).mean((2, 3))
        return self.head(self.bounded(x) + self.table.weight.mean(0))


def test_the_spectra_are_those_of_the_callback_under_both_engines(tmp_path, weights):
    plan = plan_of(digits(), ManyKinds, LOSSES_OF_TWO, epochs=1, precision="64-true")
    assert stacked.why_not(plan) is None
    logged = {}

    class Catch(CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.update({k: v for k, v in metrics.items() if k.startswith("spectrum/")})

    repeat = plan.repeat(1)
    with seeded(repeat.seed):
        model = ImageClassifier(repeat.backbone(), repeat.loss("scor"))
    Trainer(
        accelerator="cpu", max_epochs=1, precision="64-true", logger=Catch(tmp_path), callbacks=[WeightSpectrum()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, repeat.data)  # fmt: skip
    for row in train_both(plan, [0, 1], of=1, names=["scor"])[0]:
        measured = {name: value for name, value in row.items() if name.startswith("spectrum/")}
        assert {name.split("/")[1] for name in measured} == {"grouped", "depthwise", "bounded", "head"}
        for name, value in measured.items():
            assert value == pytest.approx(logged[name], rel=1e-8), name
