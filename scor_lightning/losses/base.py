"""The interface of losses."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from scor_lightning.functional.classification import check_logits, check_target, checked_counts, reduce_samples, upcast
from scor_lightning.losses.distributed import sum_over_processes, world_size
from scor_lightning.parts import check_parts, features_of, head_of

T = TypeVar("T")


class Evaluated(NamedTuple):
    """The loss of a batch in evaluation; over a set it is the sum of the totals over the sum of the weights.

    Args:
        total: Sum over the batch, a scalar.
        weight: Weight of the batch, a scalar: its number of samples, or the sum of their weights.
    """

    total: Tensor
    weight: Tensor


class Loss(nn.Module, ABC):
    """A classification loss that is the sum of named terms.

    A subclass implements :meth:`terms`. Plain ``torch.nn`` losses, without terms, features or class counts, are used
    through :func:`loss_terms`, so they need no wrapper.

    If several processes train together, the mean of a term and of its gradient over the processes, as computed by
    DistributedDataParallel, equals that of one process with the whole batch.

    In evaluation mode the loss is the unweighted mean over the samples, without class weights and without terms that
    compare samples. Over a set it does not depend on how the set is divided into batches.

    Attributes:
        needs_features: Whether the loss reads the features in front of the classifier's head.
        needs_class_counts: Whether the loss reads the class counts.
        pairs_samples: Whether the loss compares the samples of a batch with each other, so that accumulating gradients over
            smaller batches changes it.
        keeps_state: Whether the loss of a batch depends on previous batches or on random numbers.
        gives_probabilities: Whether the softmax of the logits from :meth:`adjust_logits` is trained to predict
            probabilities.
        class_counts: Training images per class, int64 ``[K]``, or None before :meth:`set_class_counts`.
    """

    needs_features: bool = False
    needs_class_counts: bool = False
    pairs_samples: bool = False
    keeps_state: bool = False
    gives_probabilities: bool = True
    class_counts: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        # Not persistent: a buffer that is initially None breaks strict loading. The extra state stores it instead.
        self.register_buffer("class_counts", None, persistent=False)

    @abstractmethod
    def terms(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """Return the named parts whose sum is the loss.

        Args:
            logits: Unnormalised scores, float ``[B, K]``.
            target: Class indices, int64 ``[B]``, in ``0..K-1``.
            features: Inputs of the classifier's head, float ``[B, D]``.

        Returns:
            Scalars by name, including their weights in the sum.
        """

    def forward(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the sum of :meth:`terms`, a scalar."""
        check_logits(logits)
        check_target(logits, target)
        return reduce(add, self.terms(logits, target, features).values())

    def mixed_terms(
        self, logits: Tensor, target: Tensor, other: Tensor, weight: Tensor, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the terms of a mixed batch; see :func:`mixed_loss_terms`."""
        raise ValueError(
            f"Expected a loss that is a mean over single samples for mixed batches but got {loss_name(self)}"
        )

    def check_mixing(self) -> None:
        """Check that the loss is defined on mixed batches.

        Raises:
            ValueError: If it is not a mean over single samples.
        """
        if type(self).mixed_terms is Loss.mixed_terms:
            raise ValueError(
                f"Expected a loss that is a mean over single samples for `mixing` but got {type(self).__name__}"
            )

    def evaluate(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> Evaluated:
        """Evaluate a batch, with the arguments of :meth:`terms`; the loss must be in evaluation mode."""
        weight = logits.new_tensor(len(target), dtype=torch.float32)
        return Evaluated(self(logits, target, features) * weight, weight)

    def check_backbone(self, backbone: nn.Module) -> None:
        """Check that a network provides what the loss requires; :class:`~scor_lightning.ImageClassifier` calls it.

        Raises:
            ValueError: If it does not; the message states the remedy.
        """
        check_features(self, backbone)

    def set_class_counts(self, counts: Tensor) -> None:
        """Set the number of training images per class, int64 ``[K]``, before training starts.

        :class:`~scor_lightning.ImageClassifier` calls it if the data module has ``class_counts``.

        Raises:
            ValueError: If the loss reads the counts and one of them is below 1.
        """
        if self.needs_class_counts and (empty := (counts < 1).nonzero().flatten().tolist()):
            raise ValueError(f"Expected training images of every class for {loss_name(self)} but got none of {empty}")
        self.class_counts = counts

    def _take_counts(self, class_counts: Sequence[int] | None) -> None:
        """Set the class counts given to the constructor, after its other arguments."""
        if class_counts is not None:
            self.set_class_counts(checked_counts(class_counts))

    def extra_repr(self) -> str:
        """Show the arguments that are numbers or strings."""
        return ", ".join(f"{name}={value!r}" for name, value, _ in _arguments(self) if isinstance(value, _SIMPLE))

    def set_class_weights(self, weights: Tensor | None) -> None:
        """Weight every sample by its class from now on, float ``[K]``, or none; a loss that supports weights overrides this.

        Raises:
            ValueError: If the loss does not support class weights.
        """
        raise ValueError(
            f"Expected a loss that takes class weights, such as WeightedCrossEntropyLoss, but got {type(self).__name__}"
        )

    def counts_of(self, logits: Tensor) -> Tensor:
        """Return the class counts, ``[K]``, on the device of the logits, ``[B, K]``.

        Raises:
            ValueError: If the counts are not set or have another length.
        """
        if self.class_counts is None:
            raise ValueError(
                f"Expected class counts for {type(self).__name__} but got none: {type(self).__name__}(class_counts=[...]) or "
                "`set_class_counts`"
            )
        if len(self.class_counts) != logits.shape[1]:
            raise ValueError(f"Expected {logits.shape[1]} class counts but got {len(self.class_counts)}")
        return self.class_counts.to(logits.device, non_blocking=True)

    def adjust_logits(self, logits: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` used for prediction: the logits themselves unless a loss overrides this."""
        return logits

    def get_extra_state(self) -> dict[str, Any]:
        """Return the class counts, for the checkpoint."""
        return {"class_counts": self.class_counts}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the class counts from a checkpoint."""
        if state["class_counts"] is not None:
            self.set_class_counts(state["class_counts"])


class PerSampleLoss(Loss):
    """The mean of one value per sample, optionally weighted by class.

    A subclass implements :meth:`sample_losses`. With weights it is the weighted mean, as in
    ``torch.nn.CrossEntropyLoss``, over all processes. In evaluation mode it is the unweighted mean.

    Args:
        reduction: ``"mean"`` or ``"sum"`` over a training batch.

    Attributes:
        class_weights: Float ``[K]`` >= 0; None weights all samples equally.
    """

    class_weights: Tensor | None

    def __init__(self, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f'Expected `reduction` to be "mean" or "sum" but got {reduction!r}')
        self.reduction = reduction
        self.register_buffer("class_weights", None, persistent=False)

    @abstractmethod
    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, float ``[B]``, from float32 or float64 logits ``[B, K]``."""

    def terms(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """Return one term, named after the class."""
        check_logits(logits)
        if self.needs_class_counts:
            self.counts_of(logits)
        values = self.sample_losses(upcast(logits), target)
        if not self.training:
            return {loss_name(self): values.mean()}
        return self._reduced(
            values, None if self.class_weights is None else self.class_weights.to(values, non_blocking=True)[target]
        )

    def mixed_terms(
        self, logits: Tensor, target: Tensor, other: Tensor, weight: Tensor, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the mean over the samples of both targets, each weighted by its share and by its class."""
        check_logits(logits)
        logits, both = upcast(logits), torch.cat([target, other])
        values = torch.cat([self.sample_losses(logits, target), self.sample_losses(logits, other)])
        weight = torch.cat([weight, 1 - weight]).to(values)
        return self._reduced(
            values,
            weight if self.class_weights is None else weight * self.class_weights.to(values, non_blocking=True)[both],
        )

    def _reduced(self, values: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
        loss = reduce_samples(values, weight, self.reduction)
        if world_size() > 1:
            if self.reduction == "sum":
                loss = loss * world_size()
            elif weight is not None:
                loss = loss * (world_size() * weight.sum() / sum_over_processes(weight.sum()))
        return {loss_name(self): loss}

    def set_class_weights(self, weights: Tensor | None) -> None:
        """Weight every sample by its class from now on, float ``[K]`` >= 0; None weights all equally."""
        self.class_weights = weights


def loss_name(loss: nn.Module) -> str:
    """Return the name of a loss in tags and runs, derived from its class.

    Example:
        >>> import torch
        >>> loss_name(nn.CrossEntropyLoss())
        'cross_entropy'
    """
    return re.sub("(?<=[a-z])(?=[A-Z][a-z])", "_", type(loss).__name__.removesuffix("Loss")).lower()


def describe_loss(loss: nn.Module) -> str:
    """Return a loss as a constructor call, with its numbers and the other arguments that are not defaults.

    Example:
        >>> describe_loss(nn.CrossEntropyLoss(label_smoothing=0.1))
        'CrossEntropyLoss(label_smoothing=0.1)'
    """
    known = _arguments(loss)
    arguments = [f"{name}={describe_loss(value)}" for name, value, _ in known if isinstance(value, nn.Module)]
    arguments += [
        f"{name}={value!r}"
        for name, value, default in known
        if isinstance(value, _SIMPLE) and (value != default or (isinstance(loss, Loss) and isinstance(value, float)))
    ]
    return f"{type(loss).__name__}({', '.join(arguments)})"


_SIMPLE = str | int | float


def _arguments(loss: nn.Module) -> list[tuple[str, Any, Any]]:
    """Return name, value and default of each argument; the default as value where the loss does not keep it."""
    return [
        (name, getattr(loss, name, parameter.default), parameter.default)
        for name, parameter in inspect.signature(type(loss)).parameters.items()
    ]


def regularize(loss: nn.Module, regularizer: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Wrap a loss in a regularizer; a loss of the same class is replaced."""
    try:
        regularized = regularizer(loss)
    except TypeError as error:  # the first argument is not a loss
        raise ValueError(
            f"Expected `regularizer` to make a loss over another one, such as SCoRLoss, but it failed: {error}"
        ) from error
    if type(regularized) is not type(loss):
        return regularized
    from lightning.pytorch.utilities import rank_zero_info  # here, so that importing a loss does not import Lightning

    base: Any = loss.base
    rank_zero_info(f"The regularizer replaces the {type(loss).__name__} that `loss` names, and keeps its base.")
    return regularizer(base)


def warn_of_few_pairs(loss: nn.Module, batches: int, batch_size: int | None) -> None:
    """Warn if a loss that compares the samples of a batch has fewer or none to compare than it seems.

    Args:
        loss: The loss.
        batches: Number of batches over which gradients are accumulated.
        batch_size: Number of images in a batch, over all processes; None if it is not known.
    """
    if not (isinstance(loss, Loss) and loss.pairs_samples) or (batches == 1 and batch_size != 1):
        return
    # Here, so that importing a loss does not import Lightning.
    from lightning.pytorch.utilities import rank_zero_warn

    compares = f"{type(loss).__name__} compares the samples of a batch with each other."
    if batch_size == 1:
        rank_zero_warn(f"{compares} A batch of one image has none to compare: raise `--data.batch_size`.")
    else:
        rank_zero_warn(
            f"{compares} With gradients accumulated over {batches} batches, it compares only samples of the same batch, which "
            "is not the loss of one large batch."
        )


def gives_probabilities(loss: nn.Module) -> bool:
    """Return whether a loss, of this package or not, trains a network to predict probabilities."""
    return all(part.gives_probabilities for part in loss.modules() if isinstance(part, Loss))


def needs_features(loss: nn.Module) -> bool:
    """Return whether a loss, of this package or not, reads features."""
    return bool(getattr(loss, "needs_features", False))


def check_features(loss: nn.Module, backbone: nn.Module) -> None:
    """Check that a network returns features if the loss reads them.

    Raises:
        ValueError: If the loss reads features and the network has no ``forward_features`` and ``head``.
    """
    if needs_features(loss):
        check_parts(backbone, f"{type(loss).__name__}, which reads features,")


def check_head(loss: nn.Module, backbone: nn.Module, kind: type[T], overlay: str) -> T:
    """Return the head of a network, checked to be of the class that the loss requires.

    Args:
        loss: The loss.
        backbone: The network.
        kind: A class of :mod:`scor_lightning.models`.
        overlay: A configuration with such a head, for the message.

    Raises:
        ValueError: If the head is of another class, or missing.
    """
    head = head_of(backbone)
    if not isinstance(head, kind):
        path = f"scor_lightning.models.{kind.__name__}"
        raise ValueError(  # noqa: TRY004 (as for other wrong configurations)
            f"Expected a network with the head {path} for {type(loss).__name__} but got "
            f"{type(backbone if head is None else head).__name__}: use `--config {overlay}`, or give the backbone "
            f"`head: {path}`"
        )
    return head


def check_backbone(loss: nn.Module, backbone: nn.Module) -> None:
    """Check that a network provides what any loss requires; see :meth:`Loss.check_backbone`."""
    if isinstance(loss, Loss):
        loss.check_backbone(backbone)
    else:
        check_features(loss, backbone)


def logits_and_features(backbone: nn.Module, images: Tensor, features: bool) -> tuple[Tensor, Tensor | None]:
    """Return the logits ``[B, K]`` of images and, on request, the features ``[B, D]`` in front of the head."""
    if not features:
        return backbone(images), None
    read, head = features_of(backbone, images), head_of(backbone)
    assert head is not None  # checked with the loss
    return head(read), read


def loss_terms(loss: nn.Module, logits: Tensor, target: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
    """Return the named terms of any loss: those of a :class:`Loss`, or the value of a plain ``torch.nn`` loss.

    Raises:
        ValueError: If the logits are not ``[B, K]`` with B >= 1, there is not one target for each of them, or a plain loss
            does not return one number for logits and class indices.
    """
    check_logits(logits)
    check_target(logits, target)
    if isinstance(loss, Loss):
        return loss.terms(logits, target, features)
    value = _plain_value(loss, logits, target)
    if value.numel() != 1:
        raise ValueError(
            f"Expected a loss that is one number but {describe_loss(loss)} returns a tensor of shape {tuple(value.shape)}"
        )
    return {loss_name(loss): value}


def _plain_value(loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Compute a loss from outside this package."""
    try:
        value = loss(logits, target)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"Expected a loss of logits [B, {logits.shape[1]}] and class indices [B] but {describe_loss(loss)} fails: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not isinstance(value, Tensor):
        raise ValueError(f"Expected a loss that is a tensor but {describe_loss(loss)} returns {value!r:.60}")  # noqa: TRY004
    return value


def mixed_loss_terms(
    loss: nn.Module, logits: Tensor, target: Tensor, other: Tensor, weight: Tensor, features: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the named terms of any loss on a mixed batch.

    The loss is the weighted mean over the samples of weight_i l_i(target) + (1 - weight_i) l_i(other). Terms without
    targets, such as SCoR's penalty, count once.

    Args:
        loss: A :class:`Loss`, or a ``torch.nn`` loss with ``reduction``.
        logits: Logits of the mixed images, float ``[B, K]``.
        target: First target, int64 ``[B]``.
        other: Second target, int64 ``[B]``.
        weight: Weight of the first target, float ``[B]``.
        features: Float ``[B, D]``.

    Raises:
        ValueError: If the loss has no value for a single sample, or compares the samples of a batch by their classes.
    """
    check_mixing(loss)
    if isinstance(loss, Loss):
        return loss.mixed_terms(logits, target, other, weight, features)
    reduction: Any = loss.reduction
    loss.reduction = "none"  # type: ignore[assignment]
    try:
        values = torch.cat([weight * loss(logits, target), (1 - weight) * loss(logits, other)])
    finally:
        loss.reduction = reduction
    total = values.sum()
    class_weights = getattr(loss, "weight", None)
    if class_weights is None:
        return {loss_name(loss): total if reduction == "sum" else total / len(target)}
    counted = (weight * class_weights[target] + (1 - weight) * class_weights[other]).sum()
    return {loss_name(loss): total if reduction == "sum" else total / counted}


def check_mixing(loss: nn.Module) -> None:
    """Check that any loss is defined on mixed batches; see :meth:`Loss.check_mixing`."""
    if isinstance(loss, Loss):
        loss.check_mixing()
    elif _reduction_of(loss) not in ("mean", "sum"):
        raise ValueError(f"Expected a loss with `reduction` for `mixing` but got {type(loss).__name__}")


def _reduction_of(loss: nn.Module) -> Any:
    """Return the ``reduction`` of a loss of ``torch.nn``, or of a wrapper that forwards it; None if it has none."""
    return getattr(loss, "reduction", None)


def evaluate_loss(loss: nn.Module, logits: Tensor, target: Tensor, features: Tensor | None = None) -> Evaluated:
    """Evaluate any loss, in evaluation mode, on a batch.

    A :class:`Loss` of this package is the unweighted mean over the samples. A plain ``torch.nn`` loss has its value for the
    whole set as one batch, with ``reduction="sum"`` replaced by the mean; for ``CrossEntropyLoss(weight=...)`` that is the
    weighted mean.
    """
    if isinstance(loss, Loss):
        return loss.evaluate(logits, target, features)
    value = _plain_value(loss, logits, target)
    weight = value.new_tensor(len(target), dtype=torch.float32)
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        counted = target != loss.ignore_index
        if loss.weight is None:
            weight = counted.sum().to(weight)
        else:
            weight = (loss.weight[target.where(counted, 0)] * counted).sum()
    if value.ndim or _reduction_of(loss) == "sum":
        return Evaluated(value.sum(), weight)
    return Evaluated((value * weight).where(weight > 0, 0), weight)  # the mean over no samples is nan
