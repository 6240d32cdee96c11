"""The trainings of a comparison, and the repeats as functions of their numbers."""

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from scor_lightning.callbacks import DeferredReweighting
from scor_lightning.callbacks.monitor_check import check_monitor
from scor_lightning.callbacks.protocol import AfterTraining
from scor_lightning.classifier import ImageClassifier
from scor_lightning.comparison.measures import balanced_accuracy, mean_loss, prediction_measures, probability_measures
from scor_lightning.comparison.predictions import HeldOut, Predictions, adjusted, pack, predict
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.datamodules.images import remaining_transform
from scor_lightning.datamodules.transforms import apply_transform
from scor_lightning.functional.images import normalize_bytes
from scor_lightning.losses.base import (
    Loss,
    check_backbone,
    describe_loss,
    gives_probabilities,
    logits_and_features,
    loss_terms,
    needs_features,
)
from scor_lightning.metrics import OF_PROBABILITIES
from scor_lightning.optim import CosineLR, built, check_schedule
from scor_lightning.seeding import Purpose, derived_seed, seeded

_ELSEWHERE = (
    "root",
    "download",
    "num_workers",
    "seed",
)  # the location of the data, and the seed, which each repeat replaces


class Built(ABC):
    """An argument of the classifier that is built for each training, with a comparable description."""

    @abstractmethod
    def build(self) -> Any:
        """Build it."""


@dataclass(frozen=True)
class Training:
    """One training, described by the functions that build its parts.

    Args:
        data: The data; each repeat uses another data seed.
        backbone: Builds the network from ``num_classes``, ``in_channels`` and ``image_size``.
        loss: Builds the loss.
        epochs: Number of epochs, >= 1.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a schedule from the optimizer.
        seed: Seed of weights, dropout and permutations, >= 0; together with the data seed it determines the repeats.
        classifier: Other arguments of :class:`~scor_lightning.ImageClassifier`.
        trainer: Other arguments of Lightning's ``Trainer``, such as ``precision`` and ``accelerator``.
        callbacks: Build the callbacks.
        configuration: The resolved configuration by option, if the training was read from one.

    Raises:
        ValueError: If a number is out of range, or the data have a fixed split.

    Example:
        >>> from scor_lightning.datamodules import DigitsDataModule
        >>> from scor_lightning.models import MLP
        >>> Training(DigitsDataModule(), MLP, nn.CrossEntropyLoss).epochs
        5
    """

    data: ImageDataModule
    backbone: Callable[..., nn.Module]
    loss: Callable[[], nn.Module]
    epochs: int = 5
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    seed: int = 0
    classifier: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callable[[], Callback]] = ()
    configuration: Mapping[str, str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"Expected `--trainer.max_epochs` >= 1 but got {self.epochs}")
        if self.seed < 0:
            raise ValueError(f"Expected `--seed_everything` >= 0 but got {self.seed}")
        if self.data.split_file is not None:
            raise ValueError(
                f"Expected no `split_file`, as every repeat draws another split, but got {self.data.split_file!r}"
            )

    @property
    def total_epochs(self) -> int:
        """The epochs of both stages."""
        stage = self.classifier.get("second_stage")
        return self.epochs + (0 if stage is None else stage.max_epochs)

    def classifier_arguments(self) -> dict[str, Any]:
        """Return the other arguments of the classifier, built for one training."""
        return {
            name: value.build() if isinstance(value, Built) else copy.deepcopy(value)
            for name, value in self.classifier.items()
        }

    def shares_all_but_the_loss(self, other: "Training") -> bool:
        """Return whether two trainings differ only in the loss and its re-weighting, so that they can be stacked."""
        alike = (f.name for f in fields(self) if f.compare and f.name not in ("loss", "callbacks"))
        if self.keeps_state or other.keeps_state:
            return False
        return self._other_callbacks() == other._other_callbacks() and all(
            getattr(self, name) == getattr(other, name) for name in alike
        )

    @cached_property
    def keeps_state(self) -> bool:
        """Whether the loss depends on previous batches, so that it cannot be stacked."""
        return any(isinstance(part, Loss) and part.keeps_state for part in self.loss().modules())

    def _other_callbacks(self) -> list[Callable[[], Callback]]:
        return [make for make in self.callbacks if not isinstance(make(), DeferredReweighting)]


@dataclass
class Repeat:
    """One repeat: everything in it is a pure function of the plan's seeds and its number.

    Attributes:
        number: Number of the repeat, from 0.
        data: The data module, set up.
        reduced: The classes that the imbalance reduces.
        seed: Seed of the data and of everything else: ``scor-fit --data.seed SEED --seed_everything SEED``.
    """

    number: int
    data: ImageDataModule
    reduced: list[int]
    plan: "Plan"
    seed: int

    def record(self, method: str, epoch: int) -> dict[str, Any]:
        """Create the record of a trained network."""
        assert self.data.description is not None  # the data are set up
        names = self.data.description.class_names or ()
        return {
            "repeat": self.number,
            "method": method,
            "epoch": epoch,
            "reduced": [names[c] for c in self.reduced],
            "seed": self.seed,
            "train_images": int(self.data.class_counts.sum()),
            "test_images": len(self.data.split("test")[1]),
        }

    def measure(
        self, logits: Tensor, target: Tensor, loss: nn.Module, features: Tensor | None, temperature: float = 1.0
    ) -> tuple[dict[str, float], Predictions]:
        """Compute the measures of the predictions for the test set; arguments as of :func:`mean_loss`."""
        predictive = adjusted(logits, loss, temperature)
        predicted, log_probability = predict(predictive, target)
        classes = logits.shape[1]
        counts = self.data.class_counts
        measures = prediction_measures(predicted, log_probability, target, counts.to(target.device), self.reduced)
        measures |= probability_measures(predictive, target)
        if not gives_probabilities(loss):
            log_probability = torch.full_like(log_probability, torch.nan)
            measures = {name: value for name, value in measures.items() if name not in OF_PROBABILITIES}
        measures["test_loss"] = mean_loss(logits, target, loss, features)
        return measures, pack(predicted, log_probability, classes, self.test_set)

    def validate(self, logits: Tensor, target: Tensor, loss: nn.Module) -> dict[str, float]:
        """Compute the validation measures by which epochs and settings are selected."""
        return {"val_balanced_accuracy": balanced_accuracy(adjusted(logits, loss).argmax(dim=1), target)}

    @property
    def has_validation_set(self) -> bool:
        """Whether there is a validation set."""
        return len(self.data.split("val")[1]) > 0

    @cached_property
    def test_set(self) -> HeldOut:
        """The test images, the same for all methods."""
        images, index = self.data.split("test")
        redrawn = images is self.data.split("train")[0]
        targets = images.targets[index].numpy()
        return HeldOut(targets, index.numpy() if redrawn else None, self.data.class_counts.numpy())

    def backbone(self) -> nn.Module:
        """Build the network, with the same initial weights at every call."""
        with seeded(self.seed):
            return self.plan.build_backbone()

    def loss(self, method: str) -> nn.Module:
        """Build the loss of a method with the class counts; its random numbers are the same at every call."""
        with seeded(self.seed):
            # A factory may return the same base loss at every call.
            loss = copy.deepcopy(self.plan.trainings[method].loss())
        check_backbone(loss, self.plan.network)  # LDAM takes over the scale of the head
        if isinstance(loss, Loss):
            loss.set_class_counts(self.data.class_counts)
        return loss


@dataclass
class Plan:
    """Methods that share everything except the loss.

    Args:
        trainings: The training of each method, by name, at least one.
        every_epoch: Whether to measure after every epoch instead of only after the last.
        spectra: Whether to keep all singular values.
        predictions: Whether to keep the predictions of the last epoch.

    Attributes:
        network: The network without weights, set by :meth:`prepare`.
        parameters: Number of the network's parameters, set by :meth:`prepare`.
        train_images: Number of training images of the first repeat, set by :meth:`prepare`.
        class_names: Names of the K classes, set by :meth:`prepare`.
        validates: Whether there is a validation set, set by :meth:`prepare`.
        resampling_ratio: n_test/n_train of the pool if each repeat draws its test images from one pool; otherwise None.
    """

    trainings: Mapping[str, Training]
    every_epoch: bool = False
    spectra: bool = False
    predictions: bool = False
    network: nn.Module = field(default_factory=nn.Module, init=False, repr=False)
    parameters: int = field(default=0, init=False)
    train_images: int = field(default=0, init=False)
    class_names: tuple[str, ...] = field(default=(), init=False)
    validates: bool = field(default=False, init=False)
    resampling_ratio: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.shared = next(iter(self.trainings.values()))
        self.data, self.epochs, self.optimizer = self.shared.data, self.shared.epochs, self.shared.optimizer

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        return torch.float64 if self.shared.trainer.get("precision") == "64-true" else torch.float32

    def prepare(self) -> None:
        """Read the data once, and check that all parts can be built and fit together.

        Raises:
            ValueError: If a loss does not fit the network, or a part cannot be built.
        """
        self.data.prepare_data()
        repeat = self.repeat(0)
        self.class_names = tuple(map(str, self.data.class_names))
        self.resampling_ratio = repeat.data.resampling_ratio()
        self.validates = repeat.has_validation_set
        backbone = repeat.backbone()
        self.network = copy.deepcopy(backbone).to("meta")
        self.parameters = sum(parameter.numel() for parameter in backbone.parameters())
        self.train_images = int(repeat.data.class_counts.sum())
        images, target = self._first_batch(repeat)
        for name in self.trainings:
            try:
                loss = repeat.loss(name).train()
                logits, features = logits_and_features(backbone.float().train(), images, needs_features(loss))
                terms = loss_terms(loss, logits, target, features)
                if any(term.numel() != 1 for term in terms.values()):
                    raise ValueError(f"Expected a loss that is one number but got {describe_loss(loss)}")
            except (ValueError, RuntimeError, TypeError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(f"{reason} (the method {name!r})") from error
        self._check_monitors(repeat)
        schedule = self.schedule
        if isinstance(schedule, ReduceLROnPlateau):
            if not len(repeat.data.split("val")[1]):
                raise ValueError(
                    "Expected a validation set for ReduceLROnPlateau, which follows `val/loss`, but there is none: raise "
                    "`--data.val_fraction`, or use another schedule"
                )
        elif schedule is not None and self.shared.classifier.get("lr_interval", "epoch") == "epoch":
            check_schedule(schedule, self.epochs)

    def _check_monitors(self, repeat: Repeat) -> None:
        """Check that early stopping monitors a metric that will be logged."""
        for name, training in self.trainings.items():
            for make in training.callbacks:
                callback = make()
                if isinstance(callback, EarlyStopping):
                    classifier = ImageClassifier(repeat.backbone(), repeat.loss(name))
                    try:
                        check_monitor("`monitor` of EarlyStopping", callback.monitor, classifier, repeat.data)
                    except ValueError as error:
                        raise ValueError(f"{error} (the method {name!r})") from error

    def _first_batch(self, repeat: Repeat) -> tuple[Tensor, Tensor]:
        """Return some training images as inputs of the network, float ``[B, C, H, W]``, and their targets ``[B]``."""
        data, index = repeat.data.split("train")
        some = index[torch.linspace(0, len(index) - 1, min(4, len(index))).long()]
        images, target = data[some]
        transform = remaining_transform(repeat.data.train_transform, data)
        images = apply_transform(transform, images, torch.arange(len(some)))
        if images.dtype == torch.uint8:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.data.mean, self.data.std))
            images = normalize_bytes(images, mean, std)
        return images, target

    @property
    def schedule(self) -> LRScheduler | None:
        """A schedule with a separate optimizer, for inspection."""
        return self.schedule_of(built(self.optimizer, [nn.Parameter(torch.zeros(1))], "optimizer"))

    def schedule_of(self, optimizer: Optimizer) -> LRScheduler | None:
        """Build the schedule of an optimizer."""
        make = self.shared.lr_scheduler
        schedule = None if make is None else built(make, optimizer, "lr_scheduler")
        if isinstance(schedule, CosineLR):
            schedule.set_length(self.epochs)
        return schedule

    def build_backbone(self) -> nn.Module:
        """Build the network that fits the data."""
        data = self.data
        return self.shared.backbone(
            num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size
        )

    def fits_afterwards(self, method: str) -> bool:
        """Return whether a method fits parameters after training."""
        return any(isinstance(make(), AfterTraining) for make in self.trainings[method].callbacks)

    def reweighting(self, method: str) -> DeferredReweighting | None:
        """Build the deferred re-weighting of a method; None if it has none."""
        made = [make() for make in self.trainings[method].callbacks]
        return next((callback for callback in made if isinstance(callback, DeferredReweighting)), None)

    def repeat(self, number: int) -> Repeat:
        """Return the repeat with a number."""
        seed = (
            derived_seed(Purpose.REPEAT, self.shared.seed, self.data.seed, number) >> 31
        )  # the range of scor-fit's seed
        data = self.data.with_seed(seed)
        try:
            data.setup()
        except ValueError as error:
            raise ValueError(f"{error} (in repeat {number})") from error
        reduced = data.description.reduced_classes if data.description else None
        return Repeat(number, data, list(reduced or ()), self, seed)

    def identities(self) -> dict[str, dict[str, str]]:
        """Return by method and option what the results depend on, for the manifest."""
        part = self.data.part("train")
        assert part is not None  # read before
        checksum = _checksum(part.targets)
        return {
            name: {"data.targets": checksum, **(training.configuration or self._describe(training))}
            for name, training in self.trainings.items()
        }

    def _describe(self, training: Training) -> dict[str, str]:
        data = self.data
        optimizer = self.optimizer([nn.Parameter(torch.zeros(1))])
        options = {"data": type(data).__name__, "data.classes": ", ".join(data.class_names[:20])}
        for name in data.arguments():
            if name not in _ELSEWHERE and name in vars(data):
                options[f"data.{name}"] = repr(vars(data)[name])
        for name in ("train_transform", "eval_transform"):
            options[f"data.{name}"] = " ".join(repr(vars(data)[name]).split())
        options["data.seed"] = str(data.seed)
        with seeded(0):
            backbone = self.build_backbone()
        options["backbone"] = " ".join(repr(backbone).split())
        options["loss"] = describe_loss(training.loss())
        defaults = {k: v for k, v in optimizer.defaults.items() if k not in ("fused", "foreach")}
        options["optimizer"] = f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in defaults.items())})"
        options["lr_scheduler"] = _describe_schedule(self.schedule)
        options |= {name: str(value) for name, value in (("epochs", self.epochs), ("seed", training.seed))}
        options |= {f"classifier.{name}": repr(value) for name, value in training.classifier.items()}
        options |= {f"trainer.{name}": repr(value) for name, value in training.trainer.items() if name == "precision"}
        options["callbacks"] = ", ".join(type(make()).__name__ for make in training.callbacks)
        norm = sum(float(p.detach().double().square().sum()) for p in backbone.parameters()) ** 0.5
        options["backbone.weights"] = f"norm {norm:.4g} at first"  # distinguishes pretrained from random weights
        return options


def unpaired(plans: Sequence[Plan]) -> list[str]:
    """Describe which methods start with another body than the first one, though the networks are equal."""
    first, *others = plans
    body = _body(first)
    lines = []
    for plan in others:
        theirs = _body(plan)
        if body.keys() == theirs.keys() and any(not torch.equal(body[name], theirs[name]) for name in body):
            lines.append(
                f"{', '.join(plan.trainings)}: the body starts with other weights than that of {', '.join(first.trainings)}; "
                "build the head by scor_lightning.models.build_head to pair them"
            )
    return lines


def _body(plan: Plan) -> dict[str, Tensor]:
    state = plan.repeat(0).backbone().state_dict()
    return {name: value for name, value in state.items() if not name.startswith("head.") and isinstance(value, Tensor)}


def group(trainings: Mapping[str, Training], every_epoch: bool, spectra: bool, predictions: bool) -> list[Plan]:
    """Group methods that share everything except the loss into plans, in their order."""
    groups: list[dict[str, Training]] = []
    for name, training in trainings.items():
        same = (g for g in groups if next(iter(g.values())).shares_all_but_the_loss(training))
        found = next(same, None)
        if found is None:
            groups.append({name: training})
        else:
            found[name] = training
    return [Plan(each, every_epoch, spectra, predictions) for each in groups]


def _describe_schedule(schedule: LRScheduler | None) -> str:
    if schedule is None:
        return "none"
    values: dict[str, Any] = {
        k: v for k, v in vars(schedule).items() if isinstance(v, int | float | str | list) and not k.startswith("_")
    }
    return f"{type(schedule).__name__}({', '.join(f'{k}={v}' for k, v in sorted(values.items()))})"


def _checksum(targets: Tensor) -> str:
    return f"{len(targets)} labels, CRC {zlib.crc32(targets.numpy().tobytes()):08x}"
