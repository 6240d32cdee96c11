"""What is compared, and how each repeat follows from its number."""

import copy
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from scor_lightning.datamodules import ImageDataModule
from scor_lightning.losses.base import Loss, check_backbone, describe_loss
from scor_lightning.optim import CosineLR, check_schedule
from scor_lightning.seeding import Purpose, derived_seed, seeded

Precision = Literal["32-true", "64-true"]
_ELSEWHERE = ("root", "download", "num_workers", "seed")  # where the data lie, and what every repeat has of its own


@dataclass
class Repeat:
    """One repeat: everything in it is a pure function of the plan's seeds and its number.

    Attributes:
        number: Its number, from 0.
        data: The data module, set up.
        reduced: The classes that the imbalance reduces.
    """

    number: int
    data: ImageDataModule
    reduced: list[int]
    plan: "Plan"
    seed: int

    def record(self, loss: str, epoch: int) -> dict[str, Any]:
        """Begin the record of a trained network."""
        images = int(self.data.class_counts.sum())
        return {"repeat": self.number, "loss": loss, "epoch": epoch, "reduced": self.reduced, "train_images": images}

    def backbone(self) -> nn.Module:
        """Build the network, with the same initial weights at every call."""
        with seeded(self.seed):
            return self.plan.build_backbone()

    def loss(self, name: str) -> nn.Module:
        """Build a loss that knows the class counts; what it draws is the same at every call."""
        with seeded(self.seed):
            # A factory may return the same base loss again and again.
            loss = copy.deepcopy(self.plan.losses[name]())
        check_backbone(loss, self.plan.network)  # by which LDAM takes over the scale of the head
        if isinstance(loss, Loss):
            loss.set_class_counts(self.data.class_counts)
        return loss


@dataclass
class Plan:
    """The configuration of a comparison, without what decides only how fast it runs.

    Args:
        data: The data; a repeat takes another seed of them.
        backbone: Makes the network from ``num_classes``, ``in_channels`` and ``image_size``.
        losses: Makes each loss, by name, at least two.
        epochs: Epochs of each training, >= 1.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes a schedule from the optimizer, which advances once an epoch.
        seed: Seed of the whole comparison, >= 0.
        precision: Of weights and products.
        every_epoch: Whether to measure after every epoch, not after the last alone.
        spectra: Whether to keep all singular values.

    Attributes:
        network: The network without its values, known after :meth:`prepare`.
        parameters: Number of the network's parameters, known after :meth:`prepare`.

    Raises:
        ValueError: If there are fewer than two losses, or a number is out of its range.
    """

    data: ImageDataModule
    backbone: Callable[..., nn.Module]
    losses: Mapping[str, Callable[[], nn.Module]]
    epochs: int = 5
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    seed: int = 0
    precision: Precision = "32-true"
    every_epoch: bool = False
    spectra: bool = False
    network: nn.Module = field(default_factory=nn.Module, init=False, repr=False)
    parameters: int = field(default=0, init=False)
    _network: str = field(default="", init=False, repr=False)
    _norm: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.losses) < 2:
            raise ValueError(f"Expected at least two losses to compare but got {list(self.losses)}")
        if self.epochs < 1:
            raise ValueError(f"Expected `epochs` >= 1 but got {self.epochs}")
        if self.seed < 0:
            raise ValueError(f"Expected `seed` >= 0 but got {self.seed}")
        if self.data.split_file is not None:
            raise ValueError(
                f"Expected no `split_file`, as every repeat draws a split of its own, but got {self.data.split_file!r}"
            )
        if self.precision not in ("32-true", "64-true"):
            raise ValueError(f"Expected `precision` to be '32-true' or '64-true' but got {self.precision!r}")

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and products."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    def prepare(self) -> None:
        """Read the data once, and see that everything can be built and fits together.

        Raises:
            ValueError: If a loss requires what the network does not provide, or something cannot be built.
        """
        self.data.prepare_data()
        repeat = self.repeat(0)
        backbone = repeat.backbone()
        self.network = copy.deepcopy(backbone).to("meta")
        self.parameters = sum(parameter.numel() for parameter in backbone.parameters())
        self._network = " ".join(repr(backbone).split())
        self._norm = sum(float(p.detach().double().square().sum()) for p in backbone.parameters()) ** 0.5
        for name in self.losses:
            try:
                repeat.loss(name)
            except ValueError as error:
                raise ValueError(f"{error} (the loss {name!r})") from error

        if self.schedule is not None and not self.follows_validation:
            check_schedule(self.schedule, self.epochs)
        if self.follows_validation and not len(repeat.data.split("val")[1]):
            raise ValueError(
                "Expected a validation set for ReduceLROnPlateau, which follows `val/loss`, but there is none: raise "
                "`--data.val_fraction`, or use another schedule"
            )

    @property
    def follows_validation(self) -> bool:
        """Whether the schedule follows the validation loss."""
        return isinstance(self.schedule, ReduceLROnPlateau)

    @property
    def schedule(self) -> LRScheduler | None:
        """A schedule of an optimizer of its own, to look at."""
        return self.schedule_of(self.optimizer([nn.Parameter(torch.zeros(1))]))

    def schedule_of(self, optimizer: Optimizer) -> LRScheduler | None:
        """Build the schedule of an optimizer."""
        schedule = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        if isinstance(schedule, CosineLR):
            schedule.set_length(self.epochs)
        return schedule

    def build_backbone(self) -> nn.Module:
        """Build the network that fits the data."""
        data = self.data
        return self.backbone(num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size)

    def repeat(self, number: int) -> Repeat:
        """Return the repeat of a number."""
        seed = derived_seed(Purpose.REPEAT, self.seed, self.data.seed, number)
        data = self.data.with_seed(seed)
        try:
            data.setup()
        except ValueError as error:
            raise ValueError(f"{error} (in repeat {number})") from error
        reduced = data.description.reduced_classes if data.description else None
        return Repeat(number, data, list(reduced or ()), self, seed)

    def description(self) -> dict[str, str]:
        """Describe in words, by option, what the results depend on, for whoever finds them later."""
        data = self.data
        optimizer = self.optimizer([nn.Parameter(torch.zeros(1))])
        options = {
            "data": type(data).__name__,
            "data.classes": ", ".join(data.class_names[:20]),
            "data.targets": f"{_checksum(self.data._targets('train'))}",
        }
        for name in data.arguments():
            if name not in _ELSEWHERE and name in vars(data):
                options[f"data.{name}"] = repr(vars(data)[name])
        for name in ("train_transform", "eval_transform"):
            options[f"data.{name}"] = " ".join(repr(vars(data)[name]).split())
        options["data.seed"] = str(data.seed)
        options["backbone"] = self._network
        for name, make in self.losses.items():
            options[f"losses.{name}"] = describe_loss(make())
        defaults = {k: v for k, v in optimizer.defaults.items() if k not in ("fused", "foreach")}
        options["optimizer"] = f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in defaults.items())})"
        options["lr_scheduler"] = _describe_schedule(self.lr_scheduler and self.lr_scheduler(optimizer))
        for name in ("epochs", "seed", "precision", "every_epoch", "spectra"):
            options[name] = str(getattr(self, name))
        options["backbone.weights"] = f"norm {self._norm:.4g} at first"  # tells pretrained weights from random ones
        return options


def _describe_schedule(schedule: LRScheduler | None) -> str:
    if schedule is None:
        return "none"
    values: dict[str, Any] = {
        k: v for k, v in vars(schedule).items() if isinstance(v, int | float | str | list) and not k.startswith("_")
    }
    return f"{type(schedule).__name__}({', '.join(f'{k}={v}' for k, v in sorted(values.items()))})"


def _checksum(targets: Tensor) -> str:
    return f"{len(targets)} labels, CRC {zlib.crc32(targets.numpy().tobytes()):08x}"
