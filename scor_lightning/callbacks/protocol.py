"""The attributes of a classifier, regardless of its class, and of a trainer that callbacks read."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import get_protocol_members

from scor_lightning.description import DataDescription
from scor_lightning.second_stage import SecondStage


class Classifier(Protocol):
    """A LightningModule like :class:`~scor_lightning.ImageClassifier`."""

    backbone: nn.Module
    loss: nn.Module
    num_classes: int
    shot_thresholds: tuple[int, int]
    class_results: dict[str, dict[str, Tensor]]
    fitted: dict[str, float]
    second_stage: SecondStage | None

    @property
    def description(self) -> DataDescription:
        """Description of the training data."""

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes."""

    @property
    def stage(self) -> int:
        """The stage of the training, 1 or 2."""

    @property
    def class_groups(self) -> Mapping[str, Tensor]:
        """Members of groups of classes, bool ``[K]``."""

    def own_targets(self, target: Tensor) -> Tensor:
        """Return targets of the data as the classifier numbers its classes."""


class AfterTraining(Callback, ABC):
    """Fits parameters to a trained network, without further training.

    :func:`scor_lightning.stages.finish` calls it: ``scor-fit`` for the best checkpoint, which it saves as ``final.ckpt``, and
    ``scor-compare`` for the last weights.
    """

    @abstractmethod
    def finish(self, trainer: Trainer, pl_module: Any, datamodule: Any) -> dict[str, float]:
        """Change the network in place; return the fitted values by name, for tables and checkpoints."""


def as_classifier(pl_module: LightningModule) -> Classifier | None:
    """Return the module as a classifier; None if it is not one."""
    # Not `isinstance`, which since Python 3.12 does not find submodules such as the backbone. Members of the class are looked
    # up there, so that no property is computed.
    kind, names = type(pl_module), get_protocol_members(Classifier)
    known = all(hasattr(kind, name) or hasattr(pl_module, name) for name in names)
    return cast(Classifier, pl_module) if known else None


SECOND_STAGE = "stage_2"  # folder of the second stage within the run folder


def stage_of(pl_module: LightningModule) -> int | None:
    """Return the stage, 1 or 2, of a training that has two; None if it has one."""
    model = as_classifier(pl_module)
    return None if model is None or model.second_stage is None else model.stage


class TrainerState(Protocol):
    """Attributes of a Trainer that its connectors set, invisible to type checkers."""

    callbacks: list[Callback]
    datamodule: LightningDataModule | None
    fast_dev_run: int | bool
    log_every_n_steps: int


def state_of(trainer: Trainer) -> TrainerState:
    """Return the trainer, with the types of those attributes."""
    return cast(TrainerState, trainer)


def network_of(pl_module: LightningModule) -> nn.Module:
    """Return the ``backbone`` of a module; the module itself if it has none."""
    try:
        return pl_module.get_submodule("backbone")
    except AttributeError:
        return pl_module
