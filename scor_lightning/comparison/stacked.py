"""The stacked engine: many small networks trained at once, as one network with a batch of weights."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.overrides import TorchFunctionMode

from scor_lightning.callbacks import DeferredReweighting, TauNormalization, TemperatureScaling
from scor_lightning.comparison import sequential
from scor_lightning.comparison.measures import BATCH, mark_diverged, spectrum_measures
from scor_lightning.comparison.plan import Plan, Repeat
from scor_lightning.comparison.predictions import KEY
from scor_lightning.comparison.results import Row
from scor_lightning.datamodules import Images, ImagesInMemory
from scor_lightning.datamodules.split import SPLITS, SplitName
from scor_lightning.description import channel_statistics
from scor_lightning.functional import effective_number_weights
from scor_lightning.functional.images import normalize_bytes
from scor_lightning.losses import SCoRLoss
from scor_lightning.losses.base import Loss, logits_and_features, loss_terms, needs_features
from scor_lightning.parts import head_of

MAX_PARAMETERS = 5_000_000  # above, a single network uses the whole device
# Weights trained at once: enough to hide the overhead of the calls, few enough for the memory, of which they take about
# three times their size on the CPU and five times on a GPU. On the CPU that is 160 networks of the size of MNIST's.
WEIGHTS = {"cpu": 16_300_000, "cuda": 200_000_000}
MAX_NETWORKS = 1000
LARGE = 2**14  # elements from which a matrix is multiplied by a separate call
# Elements of large matrices that an optimizer steps at once on the CPU: few enough that their gradient stays in the cache
# between the product and the step, those of four of MNIST's networks.
STEPPED = 500_000
# Options that do not affect stacking.
_MODEL_OPTIONS = ("shot_thresholds", "num_classes")
_TRAINER_OPTIONS = (
    "accelerator",
    "precision",
    "log_every_n_steps",
    "limit_val_batches",
    "limit_test_batches",
    "check_val_every_n_epoch",
    "val_check_interval",
    "inference_mode",
    "profiler",
    "use_distributed_sampler",
    "enable_autolog_hparams",
    "strategy",
)
# Optimizers whose step of a weight depends only on the history of that weight, so that stacking changes nothing.
ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta")


class _Factors:
    """Pairs of stacks of matrices, the sum of whose products is the gradient of a stack of weights.

    A class, because ``vmap`` would unpack a list among the arguments.
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Multiply stacks of matrices, ``[S, M, P] x [S, P, N] -> [S, M, N]``."""
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    size = left.shape[1] * right.shape[2]
    if left.device.type != "cpu" or left.dtype != torch.float32 or size < LARGE or linear is None:
        return left @ right
    # oneDNN, which torch's batched products do not use: twice as fast as MKL on AMD processors, equal on Intel's.
    products = [linear(a, b.mT, None, "none", [], "") for a, b in zip(left, right, strict=True)]
    return products[0][None] if len(products) == 1 else torch.stack(products)


class _StackedLinear(torch.autograd.Function):
    """``weight @ x + bias`` over a stack, ``[S, I, B], [S, O, I], [S, O] -> [S, O, B]``.

    Under ``vmap`` with inputs that the networks share, their weights become the rows of one matrix, so that one large
    product computes them all; with separate inputs the stack becomes longer. The gradient of the weight is a product: if
    ``factors`` is given, its factors are appended there instead, and the caller computes the product.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, factors: _Factors | None) -> Tensor:
        out = _products(weight, x)
        return out if bias is None else out.add_(bias[:, :, None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.factors = inputs[3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        weight_grad = None
        if need_weight and ctx.factors is not None:
            ctx.factors.pairs.append((grad, x.mT))
        elif need_weight:
            weight_grad = _products(grad, x.mT)
        return weight.mT @ grad if need_x else None, weight_grad, grad.sum(2) if need_bias else None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        factors: _Factors | None,
    ) -> Any:
        size = info.batch_size
        place = 1 if in_dims[0] is None else 0  # dimension of the networks: rows or stack

        def flat(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None:
                return None
            if dim is None:
                tensor = tensor.unsqueeze(place).expand(*tensor.shape[:place], size, *tensor.shape[place:])
            else:
                tensor = tensor.movedim(dim, place)
            return tensor.flatten(place, place + 1)

        inputs = x if in_dims[0] is None else flat(x, in_dims[0])
        out = _StackedLinear.apply(inputs, flat(weight, in_dims[1]), flat(bias, in_dims[2]), factors)
        return out.unflatten(place, (size, -1)), place


class _StackLinearLayers(TorchFunctionMode):
    """Replaces every ``F.linear`` of batches ``[B, I]`` by :class:`_StackedLinear`.

    Attributes:
        factors: Containers for the factors of the gradients, by the identity of the weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factors: dict[int, _Factors] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and len(args) == 3 and args[0].ndim == 2:
            x, weight, bias = args
            factors = self.factors.get(id(weight))
            stack = [None if t is None else t.unsqueeze(0) for t in (x.mT, weight, bias)]
            return _StackedLinear.apply(*stack, factors).squeeze(0).mT
        return func(*args, **(kwargs or {}))


def _over_classes(x: Tensor, dim: int) -> bool:
    return x.device.type == "cpu" and x.ndim > 1 and dim % x.ndim == x.ndim - 1


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    if not _over_classes(x, dim):
        return NotImplemented
    return torch.ops.aten._log_softmax(x.mT, x.ndim - 2, half_to_float).mT


def _log_softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if not _over_classes(grad, dim):
        return NotImplemented
    return torch.ops.aten._log_softmax_backward_data(grad.mT, output.mT, grad.ndim - 2, dtype).mT


# On the CPU, torch's reductions over a short last dimension, that of the classes, take twenty times as long as over the
# one before. These replace them when a step is traced.
_FASTER: Any = {
    torch.ops.aten._log_softmax.default: _log_softmax,
    torch.ops.aten._log_softmax_backward_data.default: _log_softmax_backward,
}


class _LossOfFeatures(nn.Module):
    """Wraps a loss so that ``functional_call`` can set the class counts of each repeat."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor, features: Tensor | None, permutation: Tensor | None) -> Tensor:
        if permutation is None:
            terms = loss_terms(self.loss, logits, target, features)
        else:
            terms = self.loss.terms(logits, target, features, permutation=permutation)  # type: ignore[operator]
        return reduce(add, terms.values())


class _StackedLoss:
    """One loss for each of n repeats, evaluated together."""

    def __init__(
        self, losses: list[nn.Module], device: torch.device, reweighting: DeferredReweighting | None = None
    ) -> None:
        self.losses = [loss.to(device).train() for loss in losses]
        self._reweighting = reweighting
        if reweighting is not None:
            for loss in self.losses:
                assert isinstance(loss, Loss)  # why_not has built it
                assert loss.class_counts is not None
                loss.set_class_weights(torch.ones(len(loss.class_counts), device=device))
        self.needs_features = needs_features(losses[0])
        self._template = _LossOfFeatures(self.losses[0])
        buffers: dict[str, list[Tensor]] = defaultdict(list)
        for loss in self.losses:
            for name, buffer in _LossOfFeatures(loss).named_buffers():
                buffers[name].append(buffer.to(device))
        self._buffers = {name: torch.stack(stack) for name, stack in buffers.items()}
        self._device = device

    def begin_epoch(self, row: int, epoch: int, epochs: int) -> None:
        """Update the class weights of a repeat if its method re-weights."""
        if self._reweighting is not None and epoch == self._reweighting.first_epoch(epochs):
            loss: Any = self.losses[row]
            loss.set_class_weights(effective_number_weights(loss.class_counts, self._reweighting.beta))
            for name, buffer in _LossOfFeatures(loss).named_buffers():
                self._buffers[name][row] = buffer

    def state(self, rows: list[int], size: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the buffers of some repeats and, for SCoR, the permutations ``[n, B]`` of their batches."""
        whole = len(rows) == len(self.losses)
        buffers = {name: buffer if whole else buffer[rows] for name, buffer in self._buffers.items()}
        return buffers, self._draw(rows, size)

    def __call__(
        self,
        state: tuple[dict[str, Tensor], Tensor | None],
        logits: Tensor,
        target: Tensor,
        features: Tensor | None,
    ) -> Tensor:
        """Return the losses ``[n]`` of some repeats from ``[n, B, K]``, ``[n, B]`` and ``[n, B, D]``."""
        buffers, permutations = state

        def call(buffers: dict[str, Tensor], *arguments: Tensor | None) -> Tensor:
            loss: Tensor = functional_call(self._template, buffers, arguments)
            return loss

        arguments = (buffers, logits, target, features if self.needs_features else None, permutations)
        losses: Tensor = torch.vmap(call, in_dims=tuple(None if a is None else 0 for a in arguments))(*arguments)
        return losses

    def _draw(self, rows: list[int], size: int) -> Tensor | None:
        """Draw SCoR's permutations, which it cannot draw under ``vmap``."""
        drawn = []
        for row in rows:
            loss = self.losses[row]
            if not isinstance(loss, SCoRLoss) or (loss.odd_batch == "self" and size % 2):
                return None
            drawn.append(torch.randperm(size, generator=loss.generator))
        return torch.stack(drawn).to(self._device, non_blocking=True)


class Stack:
    """The networks of some repeats, one for each loss, with their parameters stacked as ``[n, L, ...]``.

    Args:
        repeats: The n repeats.
        names: Names of the L losses.
        device: Device to train on.
        dtype: Data type of the parameters.
    """

    def __init__(self, repeats: list[Repeat], names: list[str], device: torch.device, dtype: torch.dtype) -> None:
        backbones = [repeat.backbone().to(dtype) for repeat in repeats]
        self.template = backbones[0].to(device)
        self.names = names
        plan = repeats[0].plan
        self.losses = {
            name: _StackedLoss([r.loss(name) for r in repeats], device, plan.reweighting(name)) for name in names
        }
        stacked: dict[str, list[Tensor]] = defaultdict(list)
        for backbone in backbones:
            for name, parameter in backbone.named_parameters():
                stacked[name].append(parameter.detach().to(device).expand(len(names), *parameter.shape))
        self.parameters = {name: torch.stack(values) for name, values in stacked.items()}
        self.trained = [name for name, parameter in self.template.named_parameters() if parameter.requires_grad]
        self._features = any(loss.needs_features for loss in self.losses.values())
        self._graph: GraphModule | None = None
        self._graph_shape: torch.Size | None = None

    @torch.no_grad()
    def network(self, repeat: int, loss: int) -> nn.Module:
        """Return one of the networks, valid until the next call."""
        for name, parameter in self.template.named_parameters():
            parameter.copy_(self.parameters[name][repeat, loss])
        return self.template

    def forward(
        self, parameters: dict[str, Tensor], images: Tensor, factors: dict[str, _Factors] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits ``[n, L, B, K]`` and, if a loss reads them, features ``[n, L, B, D]``."""
        layers = _StackLinearLayers()

        def call(parameters: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor | None]:
            whole = _Whole(self.template, self._features)
            if factors is not None:  # keyed by the tensors that F.linear receives in this call
                layers.factors = {id(p): factors[name] for name, p in parameters.items() if p.numel() >= LARGE}
            named = {f"backbone.{name}": parameter for name, parameter in parameters.items()}
            both: tuple[Tensor, Tensor | None] = functional_call(whole, named, (images,))
            return both

        out_dims: Any = (0, 0 if self._features else None)
        over_losses = torch.vmap(call, in_dims=(0, None), out_dims=out_dims)
        over_repeats = torch.vmap(over_losses, out_dims=out_dims)
        with layers:
            return over_repeats(parameters, images)

    def _differentiate(
        self, parameters: dict[str, Tensor], states: dict[str, Any], images: Tensor, target: Tensor
    ) -> tuple[dict[str, Tensor | None], dict[str, list[tuple[Tensor, Tensor]]]]:
        """Return the arguments of :class:`_Gradients` from parameters ``[n, L, ...]`` and one batch per repeat."""
        parameters = {name: p.detach().requires_grad_(name in self.trained) for name, p in parameters.items()}
        factors: dict[str, _Factors] = defaultdict(_Factors)
        with torch.enable_grad():
            logits, features = self.forward(parameters, images, factors if images.device.type == "cpu" else None)
            losses = [
                self.losses[name](states[name], logits[:, i], target, None if features is None else features[:, i])
                for i, name in enumerate(self.names)
            ]
            # The networks are independent, so the gradient of the sum contains that of each.
            total = torch.stack(losses).sum()
        found = torch.autograd.grad(total, [parameters[name] for name in self.trained], allow_unused=True)
        grads: dict[str, Tensor | None] = dict(zip(self.trained, found, strict=True))
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, left, right in ((name, *pair) for name, place in factors.items() for pair in place.pairs):
            if len(left) % len(parameters[name]) == 0:
                pairs[name].append((left, right))
            else:  # a layer whose input is the same for all networks
                grad, product = grads[name], _products(left, right).view_as(parameters[name])
                grads[name] = product if grad is None else grad + product
        return grads, dict(pairs)

    @torch.no_grad()
    def gradients(self, batches: list[tuple[list[int], Tensor, Tensor]]) -> "_Gradients":
        """Compute the gradients of all repeats.

        Args:
            batches: Some repeats, their images ``[n, B, C, H, W]`` and targets ``[n, B]``; together all repeats.
        """
        whole: dict[str, Tensor | None] = dict.fromkeys(self.trained)
        for rows, images, target in batches:
            states = {name: loss.state(rows, target.shape[1]) for name, loss in self.losses.items()}
            if len(batches) == 1:
                inputs = (self.parameters, states, images, target)
                if self._graph is None:  # the same operations without the Python overhead of vmap and autograd
                    trace = make_fx(lambda *inputs: self._differentiate(*inputs), _FASTER)
                    self._graph, self._graph_shape = trace(*inputs), images.shape
                differentiate = self._graph if images.shape == self._graph_shape else self._differentiate
                return _Gradients(self.parameters, *differentiate(*inputs))
            few = {name: parameter[rows] for name, parameter in self.parameters.items()}
            part = _Gradients(few, *self._differentiate(few, states, images, target))
            for name in self.trained:
                gradient, ours = part.of(name, slice(0, len(rows))), whole[name]
                if gradient is not None:
                    ours = torch.zeros_like(self.parameters[name]) if ours is None else ours
                    ours[rows] = gradient
                whole[name] = ours
        return _Gradients(self.parameters, whole, {})


class _Gradients:
    """The gradients of n repeats; those of large weights as factors, whose product is computed on request.

    Args:
        parameters: The parameters by name, ``[n, L, ...]``.
        grads: Their gradients, None if there are only factors.
        factors: Pairs of stacks of n or ``n * L`` matrices, whose products are added.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        grads: dict[str, Tensor | None],
        factors: dict[str, list[tuple[Tensor, Tensor]]],
    ) -> None:
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._grads = grads
        self._factors = factors

    def of(self, name: str, repeats: slice) -> Tensor | None:
        """Return the gradient of a parameter of the repeats from ``start`` to ``stop``; None if it has none."""
        shape, grad = self._shapes[name], self._grads[name]
        terms = [] if grad is None else [grad[repeats]]
        for left, right in self._factors.get(name, ()):
            each = len(left) // shape[0]
            part = slice(repeats.start * each, repeats.stop * each)
            terms.append(_products(left[part], right[part]).view(-1, *shape[1:]))
        return reduce(add, terms) if terms else None


class _Block:
    """Some parameters of some repeats with their optimizer.

    Args:
        plan: The plan.
        stack: The stack.
        names: The parameters.
        repeats: The repeats.
    """

    def __init__(self, plan: Plan, stack: Stack, names: list[str], repeats: slice) -> None:
        self.repeats = repeats
        self._parts = {name: stack.parameters[name][repeats] for name in names}
        self.optimizer = plan.optimizer(list(self._parts.values()))  # type: ignore[arg-type]
        self._schedule = plan.schedule_of(self.optimizer)

    def step(self, gradients: _Gradients) -> None:
        """Step the optimizer."""
        for name, part in self._parts.items():
            gradient = gradients.of(name, self.repeats)
            part.grad = None if gradient is None else gradient.contiguous()  # fused optimizers disregard strides
        self.optimizer.step()
        for part in self._parts.values():
            part.grad = None

    def end_epoch(self) -> None:
        """Advance the schedule."""
        if self._schedule is not None:
            self._schedule.step()


def _blocks(plan: Plan, stack: Stack) -> list[_Block]:
    """Split the parameters into blocks that fit the cache: on the CPU, few repeats of large weights."""
    weights = {name: stack.parameters[name] for name in stack.trained}
    n = len(next(iter(weights.values())))
    large = [name for name, weight in weights.items() if weight.device.type == "cpu" and weight[0, 0].numel() >= LARGE]
    small = [name for name in weights if name not in large]
    size = max(1, STEPPED // max(1, sum(weights[name][0].numel() for name in large)))
    blocks = [_Block(plan, stack, large, slice(i, min(i + size, n))) for i in range(0, n, size)] if large else []
    return blocks + ([_Block(plan, stack, small, slice(0, n))] if small else [])


class _Whole(nn.Module):
    def __init__(self, backbone: nn.Module, features: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return logits_and_features(self.backbone, images, self.features)


class _Pixels:
    """The images of a data set on the device, normalised as :class:`scor_lightning.ImageClassifier` does."""

    def __init__(self, plan: Plan, dataset: Images, device: torch.device) -> None:
        assert isinstance(dataset, ImagesInMemory)  # checked by why_not
        self.images, self.targets = dataset.images.to(device), dataset.targets.to(device)
        self.dtype = plan.dtype
        expected = channel_statistics(plan.data, plan.network)
        self.mean, self.std = (
            torch.tensor(values, dtype=plan.dtype, device=device).view(-1, 1, 1)
            for values in (expected.mean, expected.std)
        )

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and targets of the indices ``[...]``."""
        images = self.images.index_select(0, index.flatten()).view(*index.shape, *self.images.shape[1:])
        if images.dtype == torch.uint8:
            images = normalize_bytes(images, self.mean, self.std)
        return images.to(self.dtype), self.targets[index]


def why_not(plan: Plan) -> str | None:
    """Return the reason why the networks of a prepared plan cannot be stacked; None if they can.

    The last check compares the gradients of two stacked networks with those of a single one, twice, to detect a loss that
    changes from call to call. A loss that changes only later, for example after some steps, is not detected.
    """
    if plan.parameters > MAX_PARAMETERS:
        return f"the network has {plan.parameters:,} parameters, more than {MAX_PARAMETERS:,}"
    known = {"32-true", "64-true", "32", "64", None}
    if plan.shared.trainer.get("precision") not in known:
        return f"the precision is {plan.shared.trainer['precision']}"
    for kind, options, allowed in (
        ("model", plan.shared.classifier, _MODEL_OPTIONS),
        ("trainer", plan.shared.trainer, _TRAINER_OPTIONS),
    ):
        if unknown := [name for name in options if name not in allowed]:
            return f"`--{kind}.{unknown[0]}` is set"
    for training in plan.trainings.values():
        for callback in (make() for make in training.callbacks):
            if not isinstance(callback, DeferredReweighting | TauNormalization | TemperatureScaling):
                return f"{type(callback).__name__} takes part in the training"
            if isinstance(callback, TemperatureScaling) and not plan.validates:
                return "TemperatureScaling requires a validation set"
            if isinstance(callback, TauNormalization) and not isinstance(head_of(plan.network), nn.Linear):
                return "TauNormalization requires a linear head"
    if any(training.keeps_state for training in plan.trainings.values()):
        return "the loss keeps state from batch to batch"
    repeats = [plan.repeat(0), plan.repeat(1)]
    dataset, _ = repeats[0].data.split("train")
    if not isinstance(dataset, ImagesInMemory):
        return "the images come from files"
    if plan.data.sampling_start:
        return "`--data.sampling_start` is set"
    if plan.data.train_transform is not None or plan.data.eval_transform is not None:
        return "the images are transformed"
    for module in repeats[0].backbone().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{type(module).__name__} keeps statistics of its own"
        if isinstance(module, nn.modules.dropout._DropoutNd):
            return f"{type(module).__name__} draws random numbers"
    optimizer = plan.optimizer(repeats[0].backbone().parameters())
    if len(optimizer.param_groups) > 1:
        return f"{type(optimizer).__name__} treats some parameters unlike others"
    if type(optimizer).__name__ not in ELEMENTWISE or not type(optimizer).__module__.startswith("torch.optim"):
        return f"{type(optimizer).__name__} may not treat every weight apart"
    if isinstance(plan.schedule, ReduceLROnPlateau):
        return "ReduceLROnPlateau follows the validation of each network"
    for name in plan.trainings:
        if any(True for _ in repeats[0].loss(name).parameters()):
            return f"the loss {name!r} has parameters of its own"
    try:
        if not _stacks_right(plan, repeats, dataset):
            return "stacked, the network has other gradients than alone"
    except Exception as error:  # noqa: BLE001  # of any type, from the network, vmap or make_fx
        return f"stacking failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return None


def _stacks_right(plan: Plan, repeats: list[Repeat], dataset: Images) -> bool:
    device, names = torch.device("cpu"), list(plan.trainings)
    pixels = _Pixels(plan, dataset, device)
    index = torch.stack([repeat.data.split("train")[1][:8] for repeat in repeats])
    images, target = (part.double() if part.is_floating_point() else part for part in pixels[index])
    stack = Stack(repeats, names, device, torch.float64)
    stack.template.train()
    alone = {name: (repeats[1].backbone().double().train(), repeats[1].loss(name).train()) for name in names}
    for name, (_, loss) in alone.items():
        if plan.reweighting(name) is not None and isinstance(loss, Loss):
            loss.set_class_weights(None)  # the state at the start of training
    for _ in range(2):  # the second pass detects losses that change with every call
        gradients = stack.gradients([([0, 1], images, target)])
        for i, (backbone, loss) in enumerate(alone.values()):
            backbone.zero_grad()
            whole = _Whole(backbone, needs_features(loss))
            logits, features = whole(images[1])
            reduce(add, loss_terms(loss, logits, target[1], features).values()).backward()
            for key, parameter in backbone.named_parameters():
                if parameter.grad is None:
                    continue
                stacked = gradients.of(key, slice(1, 2))
                if stacked is None or not torch.allclose(stacked[0, i], parameter.grad, rtol=1e-6, atol=1e-9):
                    return False
    return True


def chunk_size(plan: Plan, device: torch.device) -> int:
    """Return the number of repeats to train at once on a device, from the memory that a network takes."""
    networks = min(MAX_NETWORKS, WEIGHTS.get(device.type, WEIGHTS["cpu"]) // plan.parameters)
    return max(1, networks // len(plan.trainings))


@contextmanager
def _quick_optimizers() -> Iterator[None]:
    """Undo a setting of Lightning by which every step of an optimizer queries the GPU driver, which takes 0.1 ms.

    Only without a GPU, because the setting prevents CUDA from being initialised before a process forks.
    """
    if torch.cuda.is_available():
        yield
        return
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def _endless_batches(repeat: Repeat) -> Iterator[Tensor]:
    sampler, (_, index) = repeat.data.train_dataloader().sampler, repeat.data.split("train")
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from (index[draws.positions] for draws in sampler)
        epoch += 1


def train(
    plan: Plan,
    numbers: list[int],
    device: torch.device,
    advance: Callable[[float], None],
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Train methods on some repeats, all at once, and measure each network.

    Args:
        plan: The plan.
        numbers: Numbers of the repeats.
        names: The methods; None means all.
        device: Device to train on.
        advance: Called with the number of trainings' worth of work since the last call.

    Returns:
        One record per repeat and method, with ``every_epoch`` also per epoch.
    """
    repeats = [plan.repeat(number) for number in numbers]
    with _quick_optimizers():
        chosen = list(plan.trainings) if names is None else list(names)
        if plan.shared.lr_scheduler is None:
            return _train(plan, repeats, chosen, device, advance)
        by_length: dict[int, list[Repeat]] = defaultdict(list)  # a schedule requires epochs of equal length
        for repeat in repeats:
            by_length[len(repeat.data.train_dataloader().sampler)].append(repeat)
        return [row for alike in by_length.values() for row in _train(plan, alike, chosen, device, advance)]


def _train(
    plan: Plan, repeats: list[Repeat], names: list[str], device: torch.device, advance: Callable[[float], None]
) -> list[Row]:
    stack = Stack(repeats, names, device, plan.dtype)
    train_pixels = _Pixels(plan, repeats[0].data.split("train")[0], device)
    pixels: dict[SplitName, _Pixels] = {}
    for name in SPLITS:
        images = repeats[0].data.split(name)[0]
        shared = images is repeats[0].data.split("train")[0]
        pixels[name] = train_pixels if shared else _Pixels(plan, images, device)
    blocks = _blocks(plan, stack)
    batches = [_endless_batches(repeat) for repeat in repeats]
    lengths = [len(repeat.data.train_dataloader().sampler) for repeat in repeats]
    steps = plan.epochs * max(lengths)
    rows: list[Row] = []
    for step in range(1, steps + 1):
        # A repeat that has finished its epochs stays in the stack but is no longer read.
        for i, length in enumerate(lengths):
            epoch, within = divmod(step - 1, length)
            if within == 0:
                for loss in stack.losses.values():
                    loss.begin_epoch(i, epoch, plan.epochs)
        indices = [next(batch) for batch in batches]
        by_size: dict[int, list[int]] = defaultdict(list)  # the last batch of an epoch is smaller
        for i, index in enumerate(indices):
            by_size[len(index)].append(i)
        gradients = stack.gradients(
            [(same, *train_pixels[torch.stack([indices[i] for i in same]).to(device)]) for same in by_size.values()]
        )
        for block in blocks:
            block.step(gradients)
            if step % lengths[0] == 0:  # with a schedule all epochs have the same length
                block.end_epoch()
        del gradients  # free them before computing the next ones
        for i, length in enumerate(lengths):
            epoch, within = divmod(step, length)
            if within == 0 and (epoch == plan.epochs or (plan.every_epoch and epoch < plan.epochs)):
                rows += _measure(plan, stack, repeats[i], i, epoch, pixels)
        advance(len(repeats) * len(stack.names) / steps)
    return rows


@torch.no_grad()
def _measure(
    plan: Plan, stack: Stack, repeat: Repeat, i: int, epoch: int, pixels: Mapping[SplitName, _Pixels]
) -> list[Row]:
    stack.template.eval()
    logits, target, features = _evaluate(stack, i, pixels["test"], repeat.data.split("test")[1])
    validation = _evaluate(stack, i, pixels["val"], repeat.data.split("val")[1]) if repeat.has_validation_set else None
    stack.template.train()
    rows = []
    for j, name in enumerate(stack.names):
        loss = stack.losses[name].losses[i].eval()
        own = None if features is None else features[j]
        measures, predictions = repeat.measure(logits[j], target, loss, own)
        if validation is not None:
            measures |= repeat.validate(validation[0][j], validation[1], loss)
        loss.train()
        network = stack.network(i, j)
        if plan.fits_afterwards(name) and epoch == plan.epochs:
            rows.append(sequential.finish(plan, repeat, name, network, loss.eval(), target.device))
            stack.template.train()
            continue
        rows.append(
            mark_diverged(repeat.record(name, epoch) | measures | spectrum_measures(network, plan.spectra), network)
        )
        if plan.predictions and epoch == plan.epochs:
            rows[-1][KEY] = predictions
    return rows


def _evaluate(stack: Stack, i: int, pixels: _Pixels, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the logits of all methods ``[L, N, K]``, the targets ``[N]`` and the features ``[L, N, D]``, if needed."""
    parameters = {name: parameter[i : i + 1] for name, parameter in stack.parameters.items()}
    parts = []
    for part in torch.split(index, BATCH):
        images, target = pixels[part.to(pixels.images.device)]
        logits, features = stack.forward(parameters, images[None])
        parts.append((logits[0], None if features is None else features[0], target))
    read = [features for _, features, _ in parts if features is not None]
    logits, target = torch.cat([z for z, _, _ in parts], dim=1), torch.cat([target for _, _, target in parts])
    return logits, target, torch.cat(read, dim=1) if read else None
