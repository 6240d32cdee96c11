"""The stacked engine: many small networks trained at once, as one network with a batch of weights."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from scor_lightning.comparison.measures import BATCH, prediction_measures, spectrum_measures
from scor_lightning.comparison.plan import Plan, Repeat
from scor_lightning.comparison.results import Row
from scor_lightning.datamodules import ImagesInMemory
from scor_lightning.datamodules.base import Images
from scor_lightning.functional.images import normalize_bytes
from scor_lightning.losses import SCoRLoss
from scor_lightning.losses.base import logits_and_features, loss_terms

MAX_PARAMETERS = 5_000_000  # above, one network alone keeps the device busy
# Weights trained at once: enough to hide the cost of the calls, few enough for the memory, in which they stand about
# five times. On the CPU that is 64 networks of the size of MNIST's.
WEIGHTS = {"cpu": 6_600_000, "cuda": 200_000_000}
MAX_NETWORKS = 1000
# Of these the step of a weight depends on that weight's own history alone, so that stacking changes nothing.
ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta")


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Multiply stacks of matrices, ``[S, M, P] x [S, N, P] -> [S, M, N]``."""
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    size = left.shape[1] * right.shape[1]
    if left.device.type != "cpu" or left.dtype != torch.float32 or size < 2**14 or linear is None:
        return left @ right.mT
    # oneDNN, which no batched product of torch reaches: twice as fast as MKL on AMD processors, equal on Intel's.
    out = left.new_empty(len(left), left.shape[1], right.shape[1])
    for i in range(len(left)):
        out[i] = linear(left[i].contiguous(), right[i].contiguous(), None, "none", [], "")
    return out


class _StackedLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` over a stack, ``[S, B, I], [S, O, I], [S, O] -> [S, B, O]``.

    Under ``vmap`` with inputs that the networks share, their weights become the rows of one matrix, so that one large
    product serves them all; with inputs of their own the stack becomes longer.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = _products(x, weight)
        return out if bias is None else out.add_(bias[:, None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            grad @ weight if need_x else None,
            _products(grad.mT, x.mT) if need_weight else None,
            grad.sum(1) if need_bias else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        size = info.batch_size

        def behind_stack(tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor.unsqueeze(1).expand(-1, size, *tensor.shape[1:])
            return tensor.movedim(dim, 1)

        weight = behind_stack(weight, in_dims[1])
        if bias is not None:
            bias = behind_stack(bias, in_dims[2])
        if in_dims[0] is None:
            out = _StackedLinear.apply(x, weight.flatten(1, 2), None if bias is None else bias.flatten(1, 2))
            return out.unflatten(2, (size, -1)), 2
        x = behind_stack(x, in_dims[0])
        out = _StackedLinear.apply(x.flatten(0, 1), weight.flatten(0, 1), None if bias is None else bias.flatten(0, 1))
        return out.unflatten(0, (-1, size)), 1


class _StackLinearLayers(TorchFunctionMode):
    """Lets every ``F.linear`` of batches ``[B, I]`` go through :class:`_StackedLinear`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and len(args) == 3 and args[0].ndim == 2:
            x, weight, bias = args
            return _StackedLinear.apply(x[None], weight[None], None if bias is None else bias[None])[0]
        return func(*args, **(kwargs or {}))


class _LossOfFeatures(nn.Module):
    """Calls a loss so that ``functional_call`` can give it the class counts of each repeat."""

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

    def __init__(self, losses: list[nn.Module], device: torch.device) -> None:
        self.losses = [loss.to(device).train() for loss in losses]
        self.needs_features = bool(getattr(losses[0], "needs_features", False))
        self._template = _LossOfFeatures(self.losses[0])
        buffers: dict[str, list[Tensor]] = defaultdict(list)
        for loss in self.losses:
            for name, buffer in _LossOfFeatures(loss).named_buffers():
                buffers[name].append(buffer.to(device))
        self._buffers = {name: torch.stack(stack) for name, stack in buffers.items()}
        self._device = device

    def __call__(self, rows: list[int], logits: Tensor, target: Tensor, features: Tensor | None) -> Tensor:
        """Give the losses ``[n]`` of some repeats from ``[n, B, K]``, ``[n, B]`` and ``[n, B, D]``."""
        buffers = {name: buffer[rows] for name, buffer in self._buffers.items()}
        permutations = self._draw(rows, target.shape[1])

        def call(buffers: dict[str, Tensor], *arguments: Tensor | None) -> Tensor:
            loss: Tensor = functional_call(self._template, buffers, arguments)
            return loss

        arguments = (buffers, logits, target, features if self.needs_features else None, permutations)
        losses: Tensor = torch.vmap(call, in_dims=tuple(None if a is None else 0 for a in arguments))(*arguments)
        return losses

    def _draw(self, rows: list[int], size: int) -> Tensor | None:
        """Draw the permutations that SCoR would draw itself, which it cannot under ``vmap``."""
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
        device: Where to train.
        dtype: Of the parameters.
    """

    def __init__(self, repeats: list[Repeat], names: list[str], device: torch.device, dtype: torch.dtype) -> None:
        backbones = [repeat.backbone().to(dtype) for repeat in repeats]
        self.template = backbones[0].to(device)
        self.names = names
        self.losses = {name: _StackedLoss([r.loss(name) for r in repeats], device) for name in names}
        stacked: dict[str, list[Tensor]] = defaultdict(list)
        for backbone in backbones:
            for name, parameter in backbone.named_parameters():
                stacked[name].append(parameter.detach().to(device).expand(len(names), *parameter.shape))
        trained = {name for name, parameter in self.template.named_parameters() if parameter.requires_grad}
        self.parameters = {
            name: torch.stack(values).requires_grad_(name in trained) for name, values in stacked.items()
        }
        self._features = any(loss.needs_features for loss in self.losses.values())

    def forward(self, parameters: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give logits ``[n, L, B, K]`` and, where a loss reads them, features ``[n, L, B, D]``."""

        def call(parameters: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor | None]:
            whole = _Whole(self.template, self._features)
            named = {f"backbone.{name}": parameter for name, parameter in parameters.items()}
            both: tuple[Tensor, Tensor | None] = functional_call(whole, named, (images,))
            return both

        out_dims: Any = (0, 0 if self._features else None)
        over_losses = torch.vmap(call, in_dims=(0, None), out_dims=out_dims)
        over_repeats = torch.vmap(over_losses, out_dims=out_dims)
        with _StackLinearLayers():
            return over_repeats(parameters, images)

    def backward(self, rows: list[int], images: Tensor, target: Tensor) -> None:
        """Add to the gradients of some repeats those of a batch, ``[n, B, C, H, W]`` and ``[n, B]``."""
        whole = len(rows) == len(next(iter(self.parameters.values())))
        parameters = self.parameters if whole else {name: p[rows] for name, p in self.parameters.items()}
        logits, features = self.forward(parameters, images)
        losses = [
            self.losses[name](rows, logits[:, i], target, None if features is None else features[:, i])
            for i, name in enumerate(self.names)
        ]
        # The networks are independent of one another, so the gradient of the sum holds that of each.
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


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
        assert isinstance(dataset, ImagesInMemory)  # why_not has seen to it
        self.images, self.targets = dataset.images.to(device), dataset.targets.to(device)
        self.dtype = plan.dtype
        self.mean, self.std = (
            torch.tensor(values, dtype=plan.dtype, device=device).view(-1, 1, 1)
            for values in (plan.data.mean, plan.data.std)
        )

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Give images and targets of the indices ``[...]``."""
        images = self.images.index_select(0, index.flatten()).view(*index.shape, *self.images.shape[1:])
        if images.dtype == torch.uint8:
            images = normalize_bytes(images, self.mean, self.std)
        return images.to(self.dtype), self.targets[index]


def why_not(plan: Plan) -> str | None:
    """Say in a few words why the networks of a plan, which is prepared, cannot be stacked; None if they can.

    The last check trains a step of two stacked networks and compares their gradients with those of one alone.
    """
    if plan.parameters > MAX_PARAMETERS:
        return f"the network has {plan.parameters:,} parameters, more than {MAX_PARAMETERS:,}"
    repeats = [plan.repeat(0), plan.repeat(1)]
    dataset, _ = repeats[0].data.split("train")
    if not isinstance(dataset, ImagesInMemory):
        return "the images are not held in memory"
    if plan.data.train_transform is not None or plan.data.eval_transform is not None:
        return "the images are transformed"
    for module in repeats[0].backbone().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{type(module).__name__} keeps statistics of its own"
        if isinstance(module, nn.modules.dropout._DropoutNd):
            return f"{type(module).__name__} draws random numbers"
    optimizer = plan.optimizer([nn.Parameter(torch.zeros(1))])
    if type(optimizer).__name__ not in ELEMENTWISE or not type(optimizer).__module__.startswith("torch.optim"):
        return f"{type(optimizer).__name__} may not treat every weight apart"
    for name in plan.losses:
        if any(True for _ in repeats[0].loss(name).parameters()):
            return f"the loss {name!r} has parameters of its own"
    try:
        if not _stacks_right(plan, repeats, dataset):
            return "stacked, the network has other gradients than alone"
    except (RuntimeError, TypeError, ValueError) as error:
        return f"stacking failed: {str(error).strip().splitlines()[0]}"
    return None


def _stacks_right(plan: Plan, repeats: list[Repeat], dataset: Images) -> bool:
    device, names = torch.device("cpu"), list(plan.losses)
    pixels = _Pixels(plan, dataset, device)
    index = torch.stack([repeat.data.split("train")[1][:8] for repeat in repeats])
    images, target = (part.double() if part.is_floating_point() else part for part in pixels[index])
    stack = Stack(repeats, names, device, torch.float64)
    stack.template.train()
    stack.backward([0, 1], images, target)
    for i, name in enumerate(names):
        alone, loss = repeats[1].backbone().double().train(), repeats[1].loss(name).train()
        whole = _Whole(alone, bool(getattr(loss, "needs_features", False)))
        logits, features = whole(images[1])
        reduce(add, loss_terms(loss, logits, target[1], features).values()).backward()  # type: ignore[no-untyped-call]
        for key, parameter in alone.named_parameters():
            if parameter.grad is None:
                continue
            stacked = stack.parameters[key].grad
            if stacked is None or not torch.allclose(stacked[1, i], parameter.grad, rtol=1e-6, atol=1e-9):
                return False
    return True


def chunk_size(plan: Plan, device: torch.device) -> int:
    """Give the number of repeats to train at once on a device, from the memory that a network takes."""
    networks = min(MAX_NETWORKS, WEIGHTS.get(device.type, WEIGHTS["cpu"]) // plan.parameters)
    return max(1, networks // len(plan.losses))


def _endless_batches(repeat: Repeat) -> Iterator[Tensor]:
    sampler, (_, index) = repeat.data.train_dataloader().sampler, repeat.data.split("train")
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for draws in sampler:
            yield index[draws.positions]
        epoch += 1


def train(plan: Plan, numbers: list[int], device: torch.device, advance: Callable[[float], None]) -> list[Row]:
    """Train every loss on some repeats, all at once, and measure each network.

    Args:
        plan: What is compared.
        numbers: The repeats.
        device: Where to train.
        advance: Is told, again and again, how many trainings' worth of work was done since.

    Returns:
        A record for each repeat and loss, and epoch if asked.
    """
    repeats = [plan.repeat(number) for number in numbers]
    if plan.lr_scheduler is None:
        return _train(plan, repeats, device, advance)
    by_length: dict[int, list[Repeat]] = defaultdict(list)  # one schedule needs epochs of one length
    for repeat in repeats:
        by_length[len(repeat.data.train_dataloader().sampler)].append(repeat)
    return [row for alike in by_length.values() for row in _train(plan, alike, device, advance)]


def _train(plan: Plan, repeats: list[Repeat], device: torch.device, advance: Callable[[float], None]) -> list[Row]:
    stack = Stack(repeats, list(plan.losses), device, plan.dtype)
    train_pixels = _Pixels(plan, repeats[0].data.split("train")[0], device)
    same = repeats[0].data.split("test")[0] is repeats[0].data.split("train")[0]
    test_pixels = train_pixels if same else _Pixels(plan, repeats[0].data.split("test")[0], device)
    optimizer = plan.optimizer([p for p in stack.parameters.values() if p.requires_grad])  # type: ignore[misc]
    schedule = plan.lr_scheduler(optimizer) if plan.lr_scheduler else None
    batches = [_endless_batches(repeat) for repeat in repeats]
    lengths = [len(repeat.data.train_dataloader().sampler) for repeat in repeats]
    steps = plan.epochs * max(lengths)
    rows: list[Row] = []
    for step in range(1, steps + 1):
        # A repeat whose epochs are over goes on with the others, no longer looked at.
        indices = [next(batch) for batch in batches]
        by_size: dict[int, list[int]] = defaultdict(list)  # the last batch of an epoch is smaller
        for i, index in enumerate(indices):
            by_size[len(index)].append(i)
        optimizer.zero_grad()
        for group in by_size.values():
            images, target = train_pixels[torch.stack([indices[i] for i in group]).to(device)]
            stack.backward(group, images, target)
        optimizer.step()
        if schedule is not None and step % lengths[0] == 0:
            schedule.step()
        for i, length in enumerate(lengths):
            epoch, within = divmod(step, length)
            if within == 0 and (epoch == plan.epochs or (plan.every_epoch and epoch < plan.epochs)):
                rows += _measure(plan, stack, repeats[i], i, epoch, test_pixels)
        advance(len(repeats) * len(stack.names) / steps)
    return rows


@torch.no_grad()
def _measure(plan: Plan, stack: Stack, repeat: Repeat, i: int, epoch: int, pixels: _Pixels) -> list[Row]:
    parameters = {name: parameter[i : i + 1] for name, parameter in stack.parameters.items()}
    _, index = repeat.data.split("test")
    stack.template.eval()
    parts = []
    for part in torch.split(index, BATCH):
        images, target = pixels[part.to(pixels.images.device)]
        logits, features = stack.forward(parameters, images[None])
        parts.append((logits[0], None if features is None else features[0], target))
    stack.template.train()
    logits, target = torch.cat([p[0] for p in parts], dim=1), torch.cat([p[2] for p in parts])
    features = None if parts[0][1] is None else torch.cat([p[1] for p in parts if p[1] is not None], dim=1)
    rows = []
    spectra = spectrum_measures({name: p[0] for name, p in parameters.items()}, plan.spectra)
    for j, name in enumerate(stack.names):
        loss = stack.losses[name].losses[i].eval()
        own = None if features is None else features[j]
        measures = prediction_measures(logits[j], target, loss, repeat.reduced, own)
        loss.train()
        rows.append(repeat.record(name, epoch) | measures | spectra[j])
    return rows
