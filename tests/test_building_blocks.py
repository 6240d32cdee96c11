"""The building blocks in a plain PyTorch loop and in a user's LightningModule."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import scor_lightning
from scor_lightning import (
    ClassBalancedSampler,
    ImageClassifier,
    class_weights,
    effective_number_weights,
    imbalanced,
)
from scor_lightning.datamodules import ClassCounts, LongTail, ReduceClasses
from scor_lightning.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    ConfusionAwareLoss,
    GCLLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
    SCoRLoss,
    VSLoss,
    WeightedCrossEntropyLoss,
)
from scor_lightning.models import MLP
from tests.processes import Processes

COUNTING = (
    *(BalancedSoftmaxLoss, ClassBalancedLoss, ConfusionAwareLoss, GCLLoss, LabelAwareSmoothingLoss, LDAMLoss),
    *(LogitAdjustmentLoss, VSLoss, WeightedCrossEntropyLoss),
)


def dataset(size=600, classes=3, kind=list):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.rand(size, 1, 4, 4, generator=generator), torch.arange(size) % classes)
    data.targets = kind((np.arange(size) % classes).tolist())
    data.classes = ["ant", "bee", "cat"][:classes]
    return data


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_any_data_set_with_targets_is_made_imbalanced(kind):
    data = dataset(kind=kind)
    subset = imbalanced(data, LongTail(10), seed=3)
    assert isinstance(subset, torch.utils.data.Subset)
    assert subset.class_counts.tolist() == [200, 63, 20]
    drawn = torch.tensor([int(target) for _, target in subset])
    assert torch.equal(drawn, subset.targets)
    assert torch.bincount(drawn).tolist() == [200, 63, 20]
    assert subset.indices == sorted(set(subset.indices))
    assert imbalanced(data, LongTail(10), seed=3).indices == subset.indices
    assert imbalanced(data, LongTail(10), seed=4).indices != subset.indices
    assert imbalanced(data, ReduceClasses(0.1, ["bee"])).class_counts.tolist() == [200, 20, 200]
    assert imbalanced(data, ClassCounts({"ant": 3, "bee": 2, "cat": 1})).class_counts.tolist() == [3, 2, 1]


def test_data_without_usable_targets_are_refused():
    data = TensorDataset(torch.zeros(4, 1))
    with pytest.raises(ValueError, match="with `targets`, a class index per sample, but got TensorDataset"):
        imbalanced(data, LongTail(2))
    for wrong in (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4), torch.zeros(3, dtype=torch.int64)):
        data.targets = wrong
        with pytest.raises(ValueError, match="Expected `targets` to be a class index per sample"):
            imbalanced(data, LongTail(2))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_are_drawn_in_proportion_to_a_power_of_their_size(power):
    counts = np.array([900, 90, 10])
    targets = np.repeat(np.arange(3), counts)
    sampler = ClassBalancedSampler(targets.tolist(), power=power, num_samples=60_000)
    drawn = np.bincount(targets[[*sampler]], minlength=3) / 60_000
    expected = counts ** (1 - power) / (counts ** (1 - power)).sum()
    np.testing.assert_allclose(drawn, expected, atol=0.01)
    within = np.bincount([*sampler], minlength=1000)[:900]
    assert within.min() > 0  # of one class every sample is as likely


def test_processes_share_one_order_and_a_stopped_epoch_resumes():
    targets = [0] * 90 + [1] * 11
    whole = ClassBalancedSampler(targets)
    parts = [ClassBalancedSampler(targets, num_replicas=2, rank=rank) for rank in (0, 1)]
    for sampler in (whole, *parts):
        sampler.set_epoch(3)
    drawn = [[*part] for part in parts]
    assert [len(part) for part in drawn] == [51, 51] == [len(part) for part in parts]
    merged = [index for pair in zip(*drawn, strict=True) for index in pair]
    assert merged[:101] == [*whole]
    whole.set_epoch(4)
    order = [*whole]
    assert order != merged[:101]
    stopped = iter(whole)
    taken = [next(stopped) for _ in range(40)]
    state = whole.state_dict()
    resumed = ClassBalancedSampler(targets)
    resumed.load_state_dict(state)
    assert [*taken, *resumed] == order
    assert [*resumed] == order  # the next pass of the epoch is whole again


def test_wrong_samplers_and_weights_are_refused():
    for wrong in ([], [0.5, 1.0], [-1, 0], [[0, 1]]):
        with pytest.raises(ValueError, match="Expected `targets` to be a class index per sample"):
            ClassBalancedSampler(wrong)
    with pytest.raises(ValueError, match="`num_samples` >= 1 but got 0"):
        ClassBalancedSampler([0, 1], num_samples=0)
    for wrong in ([0, 1], [], [1.5, 2.0], [[1, 2]]):
        for function in (class_weights, effective_number_weights):
            with pytest.raises(ValueError, match="Expected `class_counts` to be whole numbers >= 1"):
                function(wrong)


def test_class_weights_are_those_of_the_papers():
    counts = [500, 50, 5]
    inverse = 1 / np.array(counts)
    np.testing.assert_allclose(class_weights(counts), 3 * inverse / inverse.sum(), rtol=1e-6)
    root = inverse**0.5
    np.testing.assert_allclose(class_weights(torch.tensor(counts), power=0.5), 3 * root / root.sum(), rtol=1e-6)
    effective = (1 - 0.99) / (1 - 0.99 ** np.array(counts))
    np.testing.assert_allclose(effective_number_weights(counts, 0.99), 3 * effective / effective.sum(), rtol=1e-6)
    nn.CrossEntropyLoss(weight=class_weights(counts))(torch.zeros(1, 3), torch.tensor([1]))


@pytest.mark.parametrize("kind", COUNTING)
def test_every_loss_that_reads_class_counts_takes_them(kind):
    counts = [30, 10, 2]
    logits, target = torch.randn(8, 3), torch.randint(3, (8,))
    given, told = kind(class_counts=counts), kind()
    told.set_class_counts(torch.tensor(counts))
    values = []
    for loss in (given, told):
        torch.manual_seed(0)
        values.append(loss(logits, target))
    assert torch.equal(*values)
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(class_counts=\[...\]\)|`class_counts` to be whole"):
        kind()(logits, target)
    for wrong in ([30, 10, 0], [30.5, 1, 1], [], 7):
        with pytest.raises(ValueError, match="Expected `class_counts` to be whole numbers >= 1"):
            kind(class_counts=wrong)


def test_a_loss_shows_its_numbers():
    assert "alpha=0.0001" in repr(SCoRLoss(alpha=1e-4))
    assert "beta=0.9" in repr(ClassBalancedLoss(beta=0.9))


def test_a_plain_loop_learns_the_rare_class():
    torch.manual_seed(0)
    data = dataset(size=900)
    for i, (image, target) in enumerate(zip(*data.tensors, strict=True)):
        image[0, 0, int(target)] += 2 if i % 2 else 1  # a pixel for each class
    subset = imbalanced(data, LongTail(60))
    loader = DataLoader(subset, batch_size=32, sampler=ClassBalancedSampler(subset.targets))
    network, loss = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), SCoRLoss(alpha=1e-4)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)
        for images, target in loader:
            optimizer.zero_grad()
            loss(network(images), target).backward()
            optimizer.step()
    images, target = data.tensors
    recalls = [(network(images).argmax(1) == target)[target == c].float().mean() for c in range(3)]
    assert min(recalls) > 0.9


class Foreign(LightningModule):
    """A LightningModule without any class of this package."""

    def __init__(self, counts):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        self.loss = BalancedSoftmaxLoss(class_counts=counts)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[1].clone())
        return self.loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_foreign(devices=1):
    torch.manual_seed(0)
    subset = imbalanced(dataset(), LongTail(10))
    module = Foreign(subset.class_counts.tolist())
    loader = DataLoader(subset, batch_size=24 // devices, sampler=ClassBalancedSampler(subset.targets, num_samples=240))
    strategy = DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    options = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=2, **options).fit(module, loader)
    return torch.cat(module.seen)


def test_a_foreign_module_trains_with_them():
    seen = train_foreign()
    assert len(seen) == 480
    assert torch.bincount(seen).min() > 120
    assert not torch.equal(seen[:240], seen[240:])  # Lightning sets the epoch


@pytest.mark.slow
def test_two_processes_draw_together_what_one_draws():
    alone = train_foreign()
    parts = Processes(2, train_foreign, 2).results()
    assert torch.equal(torch.stack(parts, dim=1).flatten(), alone)


def test_a_classifier_accepts_names_and_counts_of_undescribed_data():
    model = ImageClassifier(
        MLP(3, in_channels=1, image_size=(4, 4)),
        BalancedSoftmaxLoss(),
        class_names=["ant", "bee", "cat"],
        class_counts=[200, 63, 20],
    )
    loader = DataLoader(imbalanced(dataset(), LongTail(10)), batch_size=32)
    options = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", max_epochs=1, **options).fit(model, loader)
    assert model.class_names == ["ant", "bee", "cat"]
    assert model.loss.class_counts.tolist() == [200, 63, 20]
    assert model.class_groups["many"].tolist() == [True, False, False]
    network = MLP(3, in_channels=1, image_size=(4, 4))
    for name, given in (("class_names", ["ant"]), ("class_counts", [1, 2])):
        with pytest.raises(ValueError, match=f"Expected `{name}` of 3 classes but got {len(given)}"):
            ImageClassifier(network, nn.CrossEntropyLoss(), **{name: given})


def test_they_are_exported():
    for name in scor_lightning.__all__:
        assert getattr(scor_lightning, name) is not None
