"""What callbacks read of a classifier, whatever its class, and of a trainer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from scor_lightning.description import DataDescription


class Classifier(Protocol):
    """A LightningModule like :class:`~scor_lightning.ImageClassifier`."""

    backbone: nn.Module
    loss: nn.Module
    num_classes: int
    shot_thresholds: tuple[int, int]
    class_results: dict[str, dict[str, Tensor]]

    @property
    def description(self) -> DataDescription:
        """The data that the classifier is trained on."""

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes."""

    @property
    def class_groups(self) -> Mapping[str, Tensor]:
        """Members of groups of classes, bool ``[K]``."""

    def own_targets(self, target: Tensor) -> Tensor:
        """Return targets of the data as the classifier numbers its classes."""


class AfterTraining(Callback, ABC):
    """Fits something to a trained network, without training on.

    :func:`scor_lightning.stages.finish` calls it: ``scor-fit`` for the best checkpoint, which it saves as ``final.ckpt``, and
    ``scor-compare`` for the last weights.
    """

    @abstractmethod
    def finish(self, trainer: Trainer, pl_module: Any, datamodule: Any) -> dict[str, float]:
        """Change the network in place; return by name what was fitted, for tables and checkpoints."""


def as_classifier(pl_module: LightningModule) -> Classifier | None:
    """Return the module as a classifier; None if it is another one."""
    # Not `isinstance`, which from Python 3.12 on does not find submodules such as the backbone.
    names = (*Classifier.__annotations__, "class_names", "class_groups", "own_targets")
    return cast(Classifier, pl_module) if all(hasattr(pl_module, name) for name in names) else None


SECOND_STAGE = "stage_2"  # the folder of a second stage, in that of the run


def stage_of(pl_module: LightningModule) -> int | None:
    """Return the stage, 1 or 2, of a training that has two; None if it has one."""
    if getattr(pl_module, "second_stage", None) is None:
        return None
    stage: int = getattr(pl_module, "stage", 1)
    return stage


class TrainerState(Protocol):
    """Attributes of a Trainer that its connectors set, where no type checker sees them."""

    callbacks: list[Callback]
    datamodule: LightningDataModule | None
    fast_dev_run: int | bool
    log_every_n_steps: int


def state_of(trainer: Trainer) -> TrainerState:
    """Return the trainer, with the types of those attributes."""
    return cast(TrainerState, trainer)


def network_of(pl_module: LightningModule) -> nn.Module:
    """Return the ``backbone`` of a module; the module itself if it has none."""
    network: nn.Module = getattr(pl_module, "backbone", pl_module)
    return network
