"""Parameter groups, a cosine schedule, and a warm-up for any schedule."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from scor_lightning.parts import split_body

T = TypeVar("T")


class CosineLR(LRScheduler):
    r"""Decay the learning rate along half a cosine, from its initial value to a fraction of it, over the whole training.

    .. math:: \eta_t = \eta \left(s + (1 - s) \, \frac{1 + \cos(\pi t / T)}{2}\right)

    T is set by :class:`~scor_lightning.ImageClassifier` from the trainer: epochs, or steps with
    ``lr_interval="step"``. ``torch.optim.lr_scheduler.CosineAnnealingLR`` is the same with T given.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    https://arxiv.org/abs/1608.03983, without the restarts.

    Args:
        optimizer: Optimizer with the initial learning rate.
        final_share: Final fraction s of the learning rate, in [0, 1].

    Attributes:
        depends_on_training_length: Marks schedules and callbacks whose effect changes with the length of the training; a
            run with one cannot be resumed with more epochs.

    Raises:
        ValueError: If final_share is outside [0, 1].

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = CosineLR(optimizer)
        >>> schedule.set_length(4)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     schedule.step()
        ...     print(round(optimizer.param_groups[0]["lr"], 3))
        0.854
        0.5
        0.146
        0.0
    """

    depends_on_training_length = True

    def __init__(self, optimizer: Optimizer, final_share: float = 0.0) -> None:
        if not 0 <= final_share <= 1:
            raise ValueError(f"Expected `final_share` in [0, 1] but got {final_share}")
        self.final_share = final_share
        self.length: int | None = None
        super().__init__(optimizer)

    def set_length(self, length: int) -> None:
        """Set the length of the training, in calls of :meth:`step`."""
        self.length = length

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group.

        Raises:
            RuntimeError: If :meth:`set_length` was not called.
        """
        if self.last_epoch > 0 and self.length is None:
            raise RuntimeError("Expected `set_length(length)` to be called before the schedule advances")
        progress = min(self.last_epoch / (self.length or 1), 1.0)
        share = self.final_share + (1 - self.final_share) * (1 + cos(pi * progress)) / 2
        return [share * lr for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the length, which the resumed training sets itself."""
        return {name: value for name, value in super().state_dict().items() if name != "length"}


class Warmup(LRScheduler):
    r"""Multiply a schedule by a factor that rises linearly to 1: 1/n, 2/n, ..., 1 at its first n values.

    The schedule itself is not delayed: a step at epoch 160 stays at epoch 160.

    Args:
        optimizer: The optimizer.
        schedule: Schedule of the same optimizer; None keeps the learning rate constant after the warm-up.
        length: Number n of values, at least 1.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = Warmup(optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [3]), length=2)
        >>> for _ in range(4):
        ...     print(round(optimizer.param_groups[0]["lr"], 3))
        ...     optimizer.step()
        ...     schedule.step()
        0.5
        1.0
        1.0
        0.1
    """

    def __init__(self, optimizer: Optimizer, schedule: LRScheduler | None, length: int) -> None:
        self.schedule = schedule
        self.length = length
        self._bare = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group."""
        if self.schedule is not None and self.last_epoch > 0:
            # Many schedules compute from the current learning rate, so restore the one without warm-up.
            for group, lr in zip(self.optimizer.param_groups, self._bare, strict=True):
                group["lr"] = lr
            self.schedule.step()
            self._bare = [group["lr"] for group in self.optimizer.param_groups]
        return [min(1.0, (self.last_epoch + 1) / self.length) * lr for lr in self._bare]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, including that of the inner schedule."""
        return {**super().state_dict(), "schedule": self.schedule and self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state."""
        if self.schedule is not None:
            self.schedule.load_state_dict(state_dict["schedule"])
        super().load_state_dict(
            {name: value for name, value in state_dict.items() if name not in ("schedule", "length")}
        )


def built(make: Callable[[Any], T], argument: Any, option: str) -> T:
    """Build an optimizer or a schedule.

    Raises:
        ValueError: If it cannot be built; the message names the option.
    """
    try:
        return make(argument)
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{option}` cannot be built: {error}") from error


def check_schedule(schedule: LRScheduler, steps: int) -> None:
    """Step a schedule, which cannot be used afterwards, through a whole training.

    Raises:
        ValueError: If it ends before the training does, or fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the schedule steps before its optimizer
            for _ in range(steps):
                schedule.step()
    except Exception as error:  # of any type, raised by a user's own schedule
        raise ValueError(
            f"Expected a schedule for all {steps} epochs but {type(schedule).__name__} fails: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error


def parameter_groups(
    parameters: Sequence[nn.Parameter], body: set[nn.Parameter] | None, decay_norms_and_biases: bool
) -> Sequence[nn.Parameter] | list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay.

    Args:
        parameters: Those that are trained.
        body: Those with a separate learning rate, see :func:`scale_body_lr`; None if there are none.
        decay_norms_and_biases: False excludes norms and biases, all parameters of one dimension, from weight decay.

    Returns:
        The groups, in the format of ``torch.optim``; or the parameters themselves if there is only one group.

    Raises:
        ValueError: If there are no parameters.
    """
    if not parameters:
        raise ValueError(
            "Expected parameters to train but all are frozen; scor_lightning.callbacks.BackboneFinetuning trains the head first"
        )
    if body is None and decay_norms_and_biases:
        return parameters
    groups: dict[str, dict[str, Any]] = {}
    for parameter in parameters:
        in_body, decays = parameter in (body or ()), decay_norms_and_biases or parameter.ndim > 1
        name = ("body" if in_body else "head" if body else "all") + ("" if decays else ", not decayed")
        group = groups.setdefault(name, {"params": [], "name": name, "in_body": in_body})
        group["params"].append(parameter)
        if not decays:
            group["weight_decay"] = 0.0
    return list(groups.values())


def scale_body_lr(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rate of the groups of the body."""
    for group in optimizer.param_groups:
        if group.get("in_body", False):
            group["lr"] *= factor


@dataclass
class Recipe:
    """How a network is optimised; the arguments are those of :class:`~scor_lightning.ImageClassifier`.

    Raises:
        ValueError: If an argument lies outside its range.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    lr_interval: Literal["epoch", "step"] = "epoch"
    lr_warmup: int = 0
    body_lr_factor: float = 1.0
    decay_norms_and_biases: bool = True

    def __post_init__(self) -> None:
        if self.lr_interval not in ("epoch", "step"):
            raise ValueError(f"Expected `lr_interval` to be 'epoch' or 'step' but got {self.lr_interval!r}")
        if self.lr_warmup < 0:
            raise ValueError(f"Expected `lr_warmup` >= 0 but got {self.lr_warmup}")
        if not self.body_lr_factor > 0:
            raise ValueError(f"Expected `body_lr_factor` > 0 but got {self.body_lr_factor}")

    def check_backbone(self, backbone: nn.Module) -> None:
        """Check that the body and the head can be separated for ``body_lr_factor``.

        Raises:
            ValueError: If it cannot.
        """
        if self.body_lr_factor != 1 and "head" not in dict(backbone.named_children()):
            raise ValueError(f"Expected a backbone with `head` for `body_lr_factor` but got {type(backbone).__name__}")

    def configure(self, module: nn.Module, backbone: nn.Module, val_every: int | None) -> Any:
        """Build the optimizer of a module, and the schedule if there is one, for Lightning's ``configure_optimizers``.

        Args:
            module: The module whose parameters are trained.
            backbone: Its network.
            val_every: Epochs between validations, after which ``ReduceLROnPlateau`` reads its metric.
        """
        body = split_body(backbone) if self.body_lr_factor != 1 else None
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups: Any = parameter_groups(parameters, body, self.decay_norms_and_biases)
        optimizer = built(self.optimizer, groups, "optimizer")
        scale_body_lr(optimizer, self.body_lr_factor)
        schedule = built(self.lr_scheduler, optimizer, "lr_scheduler") if self.lr_scheduler else None
        return with_schedule(optimizer, schedule, interval=self.lr_interval, warmup=self.lr_warmup, val_every=val_every)

    def set_length(self, schedule: Any, epochs: int | None, steps: Callable[[], float]) -> None:
        """Set the length of a schedule over the whole training.

        Args:
            schedule: The schedule that :meth:`configure` built, or None.
            epochs: Epochs of the training.
            steps: Counts the steps of the training.

        Raises:
            ValueError: If the training has no end.
        """
        if isinstance(schedule, Warmup):
            schedule = schedule.schedule
        if not isinstance(schedule, CosineLR):
            return
        length = epochs if self.lr_interval == "epoch" else steps()
        if length is None or length < 0 or length == float("inf"):
            wanted = "max_epochs" if self.lr_interval == "epoch" else "max_epochs` or `max_steps"
            raise ValueError(f"Expected `{wanted}` of the trainer for a schedule over the whole training but got none")
        schedule.set_length(int(length))


def with_schedule(
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    *,
    interval: Literal["epoch", "step"],
    warmup: int,
    val_every: int | None,
) -> Any:
    """Combine optimizer and schedule as Lightning's ``configure_optimizers`` returns them.

    Args:
        optimizer: The optimizer.
        schedule: Its schedule, or None.
        interval: Unit of the schedule.
        warmup: Epochs or steps of linear warm-up; 0 for none.
        val_every: Epochs between validations, after which ``ReduceLROnPlateau`` reads its metric.

    Raises:
        ValueError: If ``ReduceLROnPlateau`` is to advance by step, or with a warm-up.
    """
    if warmup:
        if isinstance(schedule, ReduceLROnPlateau):
            raise ValueError("Expected a schedule of epochs or steps for `lr_warmup` but got ReduceLROnPlateau")
        schedule = Warmup(optimizer, schedule, warmup)
    if schedule is None:
        return optimizer
    configured: dict[str, Any] = {"scheduler": schedule, "interval": interval, "monitor": "val/loss"}
    if isinstance(schedule, ReduceLROnPlateau):
        if interval != "epoch":
            raise ValueError(
                f"Expected `--model.lr_interval epoch` for ReduceLROnPlateau, which follows the validation, but got {interval}"
            )
        configured["monitor"] = getattr(schedule, "monitor", "val/loss")  # an attribute of Lightning's own subclass
        configured["frequency"] = val_every or 1  # only after validation epochs
    return {"optimizer": optimizer, "lr_scheduler": configured}


def sharpness_aware(
    closure: Callable[[], Any],
    optimizer: Optimizer,
    rho: float,
    module: nn.Module,
    second_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[], Any]:
    r"""Return the closure of a step of sharpness-aware minimisation (SAM).

    The optimizer steps from the weights w by the gradient at :math:`w + \rho \, g / \lVert g \rVert`, with g the gradient at w
    and the norm over all parameters. Both passes see the same batch; only the first updates the state of batch norms and losses.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021,
    https://arxiv.org/abs/2010.01412; on long-tailed data Rangwani et al., "Escaping Saddle Points for Effective
    Generalization on Class-Imbalanced Data", NeurIPS 2022, https://arxiv.org/abs/2212.13827.

    Args:
        closure: Sets the gradients to those at the current weights and returns the loss; called twice per step.
        optimizer: The optimizer; its weights are moved by rho for the second pass, and restored.
        rho: The radius, > 0.
        module: Module whose generators (attributes ``generator``) and state of losses are restored for the second pass, and
            whose batch norms keep the statistics of the first.
        second_pass: Returns the context of the second pass, for example one that seeds dropout as in the first.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step() -> Any:
        generators = [
            each for part in module.modules() if isinstance(each := getattr(part, "generator", None), Generator)
        ]
        states = [generator.get_state() for generator in generators]
        keeping: list[Any] = [part for part in module.modules() if getattr(part, "keeps_state", False)]
        kept = [part.get_extra_state() for part in keeping]
        loss = closure()
        if loss is None:  # the step is skipped
            return loss
        moved = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        before = [parameter.detach().clone() for parameter, _ in moved]
        scale = rho / (torch.nn.utils.get_total_norm([gradient for _, gradient in moved]) + 1e-12)
        with torch.no_grad():
            for parameter, gradient in moved:
                parameter.add_(scale * gradient)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        counted = [part.get_extra_state() for part in keeping]
        for part, state_before in zip(keeping, kept, strict=True):
            part.set_extra_state(state_before)
        try:
            with second_pass(), _still_batch_norms(module):
                closure()
        finally:
            for part, state_after in zip(keeping, counted, strict=True):
                part.set_extra_state(state_after)
            with torch.no_grad():
                for (parameter, _), value in zip(moved, before, strict=True):
                    parameter.copy_(value)
        return loss

    return step


@contextmanager
def _still_batch_norms(module: nn.Module) -> Iterator[None]:
    """Freeze the statistics of batch norms in training mode."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def check_sharpness_aware(precision: Any, accumulated: int) -> None:
    """Check that a trainer can train with ``sam_rho``.

    Raises:
        ValueError: If its precision scales gradients, or it accumulates them.
    """
    if str(precision).startswith("16-"):
        raise ValueError(f"Expected `--trainer.precision` bf16-mixed or 32-true with `sam_rho` but got {precision}")
    if accumulated > 1:
        raise ValueError(f"Expected no `--trainer.accumulate_grad_batches` with `sam_rho` but got {accumulated}")
