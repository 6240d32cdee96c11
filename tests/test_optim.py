import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, MultiStepLR

from scor_lightning.optim import CosineLR, Warmup
from scor_lightning.parser import training_parser


def optimizer(*rates):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates or (1.0,)])


def rates(schedule, steps):
    values = []
    for _ in range(steps):
        values.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return torch.tensor(values, dtype=torch.float64).squeeze(1)


@pytest.mark.parametrize("config", ["protocol/cao2019.yaml", "cifar10lt_scor.yaml", "cifar100lt_scor.yaml"])
def test_the_schedule_of_long_tailed_cifar(config):
    """Epoch by epoch, as LDAM-DRW's `adjust_learning_rate` counts them from 1."""
    model = training_parser().parse_args(["--config", config]).model
    assert model.lr_interval == "epoch"
    assert model["lr_scheduler"]["class_path"].endswith(".MultiStepLR")
    sgd = optimizer(model["optimizer"]["init_args"]["lr"])
    schedule = Warmup(sgd, MultiStepLR(sgd, **model["lr_scheduler"]["init_args"]), model["lr_warmup"])
    expected = []
    for epoch in range(1, 201):
        rate = 0.1 * epoch / 5 if epoch <= 5 else 0.1
        expected.append(rate * (0.0001 if epoch > 180 else 0.01 if epoch > 160 else 1))
    torch.testing.assert_close(rates(schedule, 200), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda sgd: CosineAnnealingLR(sgd, T_max=20, eta_min=0.05),
        lambda sgd: ExponentialLR(sgd, 0.9),
        lambda sgd: LambdaLR(sgd, lambda epoch: 1 / (1 + epoch)),
        lambda sgd: MultiStepLR(sgd, [3, 9]),
        lambda sgd: None,
    ],
)
def test_a_warm_up_multiplies_any_schedule(make):
    warm, plain = optimizer(1.0, 0.1), optimizer(1.0, 0.1)
    schedule = make(plain)
    expected = (
        torch.tensor([[1.0, 0.1]], dtype=torch.float64).expand(20, 2) if schedule is None else rates(schedule, 20)
    )
    factors = torch.tensor([min(1, (t + 1) / 7) for t in range(20)], dtype=torch.float64)
    torch.testing.assert_close(rates(Warmup(warm, make(warm), 7), 20), expected * factors[:, None], rtol=1e-9, atol=0)


def test_the_cosine_is_torchs_with_the_length_from_outside():
    sgd = optimizer(0.4, 0.1)
    schedule = CosineLR(sgd, final_share=0.25)
    schedule.set_length(10)
    expected = [[lr * (0.25 + 0.75 * (1 + math.cos(math.pi * t / 10)) / 2) for lr in (0.4, 0.1)] for t in range(11)]
    torch.testing.assert_close(rates(schedule, 11), torch.tensor(expected, dtype=torch.float64))
    schedule.step()  # beyond its end it stays
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("stop", [1, 3, 8])
def test_a_schedule_resumes_from_its_state(stop):
    def build():
        sgd = optimizer(0.4)
        cosine = CosineLR(sgd)
        cosine.set_length(12)
        return Warmup(sgd, cosine, 5)

    expected = rates(build(), 12)
    first = build()
    rates(first, stop)
    second = build()
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, 12 - stop).equal(expected[stop:])


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match=r"`final_share` in \[0, 1\] but got 2"):
        CosineLR(optimizer(), final_share=2)
    schedule = CosineLR(optimizer())
    schedule.optimizer.step()
    with pytest.raises(RuntimeError, match="set_length"):
        schedule.step()
