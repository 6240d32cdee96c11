"""A second stage of training: frozen parts, the head, and the optimizer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scor_lightning.datamodules.loader import Sampling
from scor_lightning.losses.base import check_backbone, check_mixing, regularize
from scor_lightning.mixing import Mixing
from scor_lightning.models.heads import CosineLinear
from scor_lightning.optim import CosineLR, with_schedule
from scor_lightning.parts import reset_of, reset_parameters, split_body
from scor_lightning.seeding import Purpose, derived_seed, seeded

BODY = "body"
_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm
_SCALE = "logit_scale"  # parameter name of a learned scale


@dataclass(frozen=True)
class SecondStage:
    """A second training of a network that begins with the weights of the first.

    Losses and samplers for imbalanced data help the classifier more than the features, so many methods train the two
    separately (Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
    https://arxiv.org/abs/1910.09217). Optimizer and schedule are new; a regularizer applies to both stages.

    Args:
        max_epochs: Epochs of the stage, >= 1.
        freeze: Parts of the backbone that are not trained: names of its modules, and ``"body"`` for all but the head.
        batch_norm: ``"train"`` keeps updating the statistics of frozen batch norms, ``"eval"`` uses them unchanged.
        head: ``"new"`` re-initialises the head, ``"kept"`` keeps its weights, ``"scaled"`` keeps them and learns a factor
            per logit: z_k = s_k (w_k f + b_k), initially s = 1.
        head_lr_factor: Learning rate of the head, without the learned factors, as a multiple of the optimizer's, > 0.
        head_scale: New scale of a :class:`~scor_lightning.models.CosineLinear` head, > 0; None keeps it.
        sampling: As of :class:`~scor_lightning.datamodules.ImageDataModule`; None keeps that of the first stage.
        mixing: As of :class:`~scor_lightning.ImageClassifier`; None disables mixing.
        optimizer: Builds the optimizer; None is SGD with a learning rate of .1 and momentum .9.
        lr_scheduler: Builds the schedule, which advances every epoch of the stage.
        loss: Loss of the stage; None keeps that of the first stage, without class weights.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> SecondStage(max_epochs=10).freeze
        ('body',)
    """

    max_epochs: int
    freeze: Sequence[str] = (BODY,)
    batch_norm: Literal["train", "eval"] = "train"
    head: Literal["new", "kept", "scaled"] = "new"
    head_lr_factor: float = 1.0
    head_scale: float | None = None
    sampling: Sampling | None = None
    mixing: Mixing | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    loss: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise ValueError(f"Expected `second_stage.max_epochs` >= 1 but got {self.max_epochs}")
        if self.batch_norm not in ("train", "eval"):
            raise ValueError(f"Expected `second_stage.batch_norm` to be 'train' or 'eval' but got {self.batch_norm!r}")
        if self.head not in ("new", "kept", "scaled"):
            raise ValueError(f"Expected `second_stage.head` to be 'new', 'kept' or 'scaled' but got {self.head!r}")
        if not self.head_lr_factor > 0:
            raise ValueError(f"Expected `second_stage.head_lr_factor` > 0 but got {self.head_lr_factor}")
        if self.head_scale is not None and not self.head_scale > 0:
            raise ValueError(f"Expected `second_stage.head_scale` > 0 but got {self.head_scale}")

    def check_backbone(self, backbone: nn.Module) -> None:
        """Check that a network fits the stage.

        Raises:
            ValueError: If it has no ``head``, ``freeze`` names none of its modules, or the head does not fit.
        """
        modules = dict(backbone.named_modules())
        head = modules.get("head")
        if head is None:
            raise ValueError(f"Expected a network with `head` for a second stage but got {type(backbone).__name__}")
        for name in self.freeze:
            if name != BODY and (name not in modules or not name):
                known = ", ".join(dict.fromkeys([BODY, *(child for child, _ in backbone.named_children())]))
                raise ValueError(f"Expected `second_stage.freeze` to name one of {known} but got {name!r}")
        if self.head == "scaled" and any(isinstance(module, CosineLinear) for module in head.modules()):
            raise ValueError(
                "Expected a linear head for a learned scale but got CosineLinear, whose logits have one scale"
            )
        if self.head_scale is not None and not isinstance(head, CosineLinear):
            raise ValueError(
                f"Expected the head CosineLinear for `second_stage.head_scale` but got {type(head).__name__}"
            )
        if self.head == "new":
            _check_resettable(head)
        frozen = {parameter for name in self.freeze for parameter in _parameters(backbone, name)}
        if self.head != "scaled" and frozen >= set(backbone.parameters()):
            raise ValueError("Expected a part of the network that the second stage trains but all of it is frozen")

    def check_loss(self, loss: nn.Module, backbone: nn.Module) -> None:
        """Check that the loss of the stage fits a network and the mixing.

        Args:
            loss: Loss of the first stage, which the stage keeps if it has no loss of its own.
            backbone: The network.

        Raises:
            ValueError: If it does not.
        """
        if self.loss is not None:
            check_backbone(self.loss, backbone)
        if self.mixing is not None:
            check_mixing(loss if self.loss is None else self.loss)

    def regularized(self, regularizer: Callable[[nn.Module], nn.Module]) -> "SecondStage":
        """Return the stage with a regularizer over its own loss, if it has one."""
        return self if self.loss is None else replace(self, loss=regularize(self.loss, regularizer))

    def apply(self, backbone: nn.Module, seed: int) -> None:
        """Change a network for the stage; the seed determines new weights of the head."""
        head = backbone.get_submodule("head")
        if self.head == "new":
            with seeded(derived_seed(Purpose.HEAD, seed, 2)):
                reset_parameters(head)
        for name in self.freeze:
            for parameter in _parameters(backbone, name):
                parameter.requires_grad_(False)
        if self.head == "scaled":
            learn_logit_scale(head, int(backbone.num_classes))  # type: ignore[arg-type]
        if self.head_scale is not None:
            assert isinstance(head, CosineLinear)  # checked
            head.scale = self.head_scale

    def set_modes(self, backbone: nn.Module) -> None:
        """Set the mode of frozen batch norms; call it after the network was set to training mode."""
        if self.batch_norm == "eval":
            for module in backbone.modules():
                if isinstance(module, _BATCH_NORM) and not any(p.requires_grad for p in module.parameters()):
                    module.eval()

    def parameter_groups(self, backbone: nn.Module, parameters: Sequence[nn.Parameter]) -> Any:
        """Group the trained parameters by learning rate, in the format of ``torch.optim``."""
        if self.head_lr_factor == 1:
            return parameters
        head = {p for name, p in backbone.get_submodule("head").named_parameters() if name != _SCALE}
        groups = {
            "head": [parameter for parameter in parameters if parameter in head],
            "rest": [parameter for parameter in parameters if parameter not in head],
        }
        return [{"params": members, "name": name} for name, members in groups.items() if members]

    def configure(self, module: nn.Module, backbone: nn.Module, val_every: int | None) -> Any:
        """Build optimizer and schedule, with the arguments and the result of :meth:`scor_lightning.optim.Recipe.configure`."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = self._build_optimizer(self.parameter_groups(backbone, parameters))
        schedule = None if (make := self.lr_scheduler) is None else make(optimizer)
        return with_schedule(optimizer, schedule, interval="epoch", warmup=0, val_every=val_every)

    def set_length(self, schedule: Any, epochs: int | None, steps: Callable[[], float]) -> None:
        """Set the length of a schedule to the epochs of the stage; see :meth:`scor_lightning.optim.Recipe.set_length`."""
        if isinstance(schedule, CosineLR):
            schedule.set_length(self.max_epochs)

    def _build_optimizer(self, groups: Any) -> Optimizer:
        make = self.optimizer
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9) if make is None else make(groups)
        for group in optimizer.param_groups:
            if group.get("name") == "head":
                group["lr"] *= self.head_lr_factor
        return optimizer


def learn_logit_scale(head: nn.Module, num_classes: int) -> None:
    """Add one factor per logit to a head, a parameter initialised to 1; the other parameters keep their names."""
    like = next(head.parameters())
    head.register_parameter(_SCALE, nn.Parameter(like.new_ones(num_classes)))
    head.register_forward_hook(_scale_logits)


def _scale_logits(head: nn.Module, _: Any, logits: Tensor) -> Tensor:
    scaled: Tensor = logits * head.get_parameter(_SCALE)
    return scaled


def _parameters(backbone: nn.Module, name: str) -> set[nn.Parameter]:
    if name != BODY or BODY in dict(backbone.named_children()):
        return set(backbone.get_submodule(name).parameters())
    return split_body(backbone)


def _check_resettable(head: nn.Module) -> None:
    for module in head.modules():
        if reset_of(module) is None and any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"Expected a head that can be re-initialised, by `reset_parameters`, but {type(module).__name__} has none; "
                "use `second_stage.head: kept`"
            )
