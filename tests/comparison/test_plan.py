from functools import partial

import pytest
import torch
from torch import nn

from scor_lightning.comparison.plan import Plan
from scor_lightning.datamodules import DigitsDataModule, LongTail, ReduceClasses
from scor_lightning.losses import SCoRLoss
from scor_lightning.models import MLP
from tests.comparison import plan_of

LOSSES = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}


def plan(**options) -> Plan:
    data = DigitsDataModule(evaluation="holdout", val_fraction=0.0, imbalance=ReduceClasses(factor=0.05))
    return plan_of(**{"data": data, "backbone": partial(MLP, hidden=[8]), "losses": LOSSES} | options)


def drawn(plan, number):
    """Everything that a repeat draws."""
    repeat = plan.repeat(number)
    loader = repeat.data.train_dataloader()
    loss = repeat.loss("scor")
    return (
        repeat.reduced,
        repeat.data.split("train")[1].tolist(),
        repeat.data.split("test")[1].tolist(),
        [p.tolist() for p in repeat.backbone().parameters()],
        [draws.positions.tolist() for draws in loader.sampler],
        torch.randperm(64, generator=loss.generator).tolist(),
    )


def test_a_repeat_is_a_function_of_seed_and_number():
    first = drawn(plan(), 7)
    torch.manual_seed(123)
    assert drawn(plan(), 7) == first
    for other in (drawn(plan(), 8), drawn(plan(seed=1), 7)):
        # the reduced class may happen to be the same one; everything else differs
        assert all(a != b for a, b in zip(first[1:], other[1:], strict=True))


def test_the_datas_own_seed_counts_too():
    other = plan()
    other.data.seed = 5
    assert drawn(other, 0) != drawn(plan(), 0)


def test_repeats_reduce_different_classes():
    reduced = {tuple(plan().repeat(n).reduced) for n in range(30)}
    assert len(reduced) > 5
    nine = plan(data=DigitsDataModule(imbalance=ReduceClasses(factor=0.5, others=True)))
    assert all(len(nine.repeat(n).reduced) == 9 for n in range(3))
    tail = plan(data=DigitsDataModule(imbalance=LongTail(ratio=10)))
    assert tail.repeat(0).reduced == list(range(1, 10))
    assert plan(data=DigitsDataModule()).repeat(0).reduced == []


def test_within_a_repeat_the_losses_share_what_scor_draws():
    two = plan(losses={"a": SCoRLoss, "b": partial(SCoRLoss, alpha=1e-3)})
    generators = [two.repeat(3).loss(name).generator for name in "ab"]
    assert torch.randperm(64, generator=generators[0]).equal(torch.randperm(64, generator=generators[1]))


def test_a_factory_may_hand_out_one_base_loss_again_and_again():
    base = nn.CrossEntropyLoss()
    shared = plan(losses={"cross_entropy": nn.CrossEntropyLoss, "scor": lambda: SCoRLoss(base)})
    assert shared.repeat(0).loss("scor").base is not shared.repeat(0).loss("scor").base


def test_the_description_names_what_the_results_depend_on():
    def described(**options):
        identity = plan(**options).identities()["scor"]
        return {name: value for name, value in identity.items() if name != "data.targets"}

    def smaller(**options):  # weights of another origin, as from a checkpoint, in the same network
        network = MLP(hidden=[8], **options)
        network.head.weight.data /= 2
        return network

    first = described()
    assert first == described()
    assert first["loss"] == "SCoRLoss(base=CrossEntropyLoss(), alpha=0.0001)"
    changes = {
        "epochs": {"epochs": 6},
        "seed": {"seed": 1},
        "loss": {"losses": LOSSES | {"scor": partial(SCoRLoss, alpha=1e-3)}},
        "backbone": {"backbone": partial(MLP, hidden=[9])},
        "backbone.weights": {"backbone": smaller},
        "optimizer": {"optimizer": partial(torch.optim.Adam, lr=1e-2)},
        "lr_scheduler": {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=3)},
        "data.imbalance": {
            "data": DigitsDataModule(evaluation="holdout", val_fraction=0.0, imbalance=ReduceClasses(factor=0.1))
        },
        "data.batch_size": {
            "data": DigitsDataModule(
                evaluation="holdout", val_fraction=0.0, imbalance=ReduceClasses(factor=0.05), batch_size=8
            )
        },
    }
    for option, change in changes.items():
        other = described(**change)
        # initial weights differ with the network and the seed, and are named last
        assert next(name for name in first if first[name] != other[name]) == option
        assert {name for name in first if first[name] != other[name]} <= {option, "backbone.weights"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`--trainer.max_epochs` >= 1 but got 0"),
        ({"seed": -1}, "`--seed_everything` >= 0 but got -1"),
        ({"data": DigitsDataModule(split_file="x.json")}, "no `split_file`"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(ValueError, match="Expected") as error:
        plan(**options)
    assert message in str(error.value)
