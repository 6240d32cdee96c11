"""The spectra of a network's weights as a table."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from scor_lightning.checkpoint import read_checkpoint
from scor_lightning.description import count_classes
from scor_lightning.functional.spectral import (
    circular_singular_values,
    numerical_rank,
    singular_values,
    spectral_measures,
    weight_matrix,
)

# Titles of the table's columns.
MEASURES = {
    "rank": "rank",
    "sigma_max": "largest",
    "sigma_min": "smallest",
    "condition_number": "condition",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "frobenius_norm": "Frobenius",
}
_BATCH = 2**22  # elements of same-shaped matrices that are decomposed together


@dataclass(frozen=True)
class Layer:
    """A weight matrix of a network.

    Attributes:
        parameter: Name of the parameter.
        weight: ``[out, in / groups, *kernel]``, detached; for a transposed convolution ``[in, out / groups, *kernel]``.
        groups: Groups of a convolution, otherwise 1.
        module: Its module; None if it was read from a checkpoint.
    """

    parameter: str
    weight: Tensor
    groups: int = 1
    module: nn.Module | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix; for a grouped convolution including the zeros beside its blocks."""
        return self.weight.shape[0], self.groups * prod(self.weight.shape[1:])


@dataclass(frozen=True)
class LayerSpectrum:
    """The spectrum of one layer.

    Attributes:
        shape: Rows and columns (m, n) of the matrix.
        values: Its singular values, largest first, float64 ``[min(m, n)]`` on the CPU; for a grouped convolution those of
            its blocks.
        measures: ``rank`` and the measures of :func:`~scor_lightning.functional.spectral.spectral_measures`.
    """

    shape: tuple[int, int]
    values: Tensor
    measures: dict[str, float]


@dataclass(frozen=True)
class NetworkSpectrum:
    """The spectra of a network; printed, a table.

    Attributes:
        layers: Spectra by the name of their layer, in the network's order.
        skipped: The reason for each parameter that was skipped, by name.
        classifier: Name of the layer that computes the logits: the last one, with one row per class if their number is
            known; None if no such layer was read.
        row_norms: Norms of the classifier's rows, float64 ``[K]``.
        seconds: Duration.
    """

    layers: dict[str, LayerSpectrum]
    skipped: dict[str, str]
    classifier: str | None
    row_norms: Tensor | None
    seconds: float

    def records(self) -> list[dict[str, Any]]:
        """Return one dictionary per layer: ``layer``, ``rows``, ``columns`` and the measures."""
        return [
            {"layer": name, "rows": layer.shape[0], "columns": layer.shape[1], **layer.measures}
            for name, layer in self.layers.items()
        ]

    def __str__(self) -> str:
        """Return the table, followed by what was skipped."""
        return "\n".join([spectrum_table({"": self}), *describe_skipped(self.skipped)])


def weight_spectrum(
    model: nn.Module | Mapping[str, Any],
    layers: str = "all",
    *,
    num_classes: int | None = None,
    groups: Mapping[str, int] | None = None,
    convolution: Literal["kernel", "circular"] = "kernel",
    sizes: Mapping[str, tuple[int, int]] | None = None,
    tolerance: Literal["relative", "absolute"] = "relative",
) -> NetworkSpectrum:
    """Decompose the weights of a network.

    It reads the parameters named ``weight`` or ``..._weight`` with at least two dimensions: those of linear, convolution
    and attention layers and of the heads of this package, under ``torch.nn.utils.parametrize`` as the layer uses them. It
    does not read vectors, look-up tables (``nn.Embedding``), or parameters with other names, such as the position
    embedding of a vision transformer.

    Args:
        model: A network, or the ``state_dict`` of one.
        layers: ``"all"``, ``"classifier"``, or a shell pattern of names such as ``"layer4.*"``.
        num_classes: Number of classes K, which identifies the classifier; None reads ``model.num_classes``.
        groups: For a ``state_dict``: the groups of grouped convolutions by the name of the weight. Others are read as
            convolutions of one group.
        convolution: ``"kernel"`` uses the matrix ``[out, in * kh * kw]`` of the kernels, per group of a grouped
            convolution. ``"circular"`` uses the whole linear map, with circular padding, for 2-D convolutions with
            stride, dilation and groups 1, and skips the others.
        sizes: For ``"circular"``, (H, W) of each layer's input by name, as :func:`input_sizes` finds them.
        tolerance: Tolerance of the rank, see :func:`~scor_lightning.functional.spectral.numerical_rank`.

    Returns:
        Spectra by layer; printed, a table.

    Raises:
        ValueError: If no layer matches, an option has another value than those named, ``"circular"`` lacks sizes, or
            weights are sharded over processes.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> print(weight_spectrum(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))))
        layer  matrix   rank  largest  smallest  condition  stable rank  effective rank  Frobenius
        0       3 x 4      3    ...
        2       2 x 3      2    ...
        skipped: 0.bias, 1.weight, 1.bias and 1 more (vectors)
    """
    started = time.perf_counter()
    chosen = select_layers(model, layers, num_classes=num_classes, groups=groups, convolution=convolution, sizes=sizes)
    found, skipped = dict(chosen.layers), dict(chosen.skipped)
    sizes = {name: (sizes or {})[name] for name in found if convolution == "circular" and name in (sizes or {})}
    for name, layer in list(found.items()):
        if not _is_finite(layer.weight):
            skipped[layer.parameter] = "not finite"
            del found[name]

    values: dict[str, Tensor] = {}
    by_shape: dict[Any, list[str]] = defaultdict(list)
    for name, layer in found.items():
        if name in sizes:
            values[name] = circular_singular_values(layer.weight, sizes[name])
        else:
            by_shape[layer.groups, layer.weight.shape, layer.weight.dtype, layer.weight.device].append(name)
    for (blocks, shape, *_), names in by_shape.items():
        for start in range(0, len(names), size := max(1, _BATCH // prod(shape))):
            part = names[start : start + size]
            matrices = [weight_matrix(found[name].weight, blocks) for name in part]
            batch = torch.stack(matrices) if len(part) > 1 else matrices[0][None]
            # The blocks of a grouped convolution form one spectrum.
            spectra = singular_values(batch).flatten(1).sort(descending=True).values
            values.update(zip(part, spectra, strict=True))

    result = {}
    for name, layer in found.items():
        sigma, (rows, columns) = values[name].cpu(), layer.shape
        # The rounding error is that of the kernels, regardless of the image size of a circular operator.
        rank = numerical_rank(sigma, (rows, columns), layer.weight.dtype, tolerance)
        if name in sizes:
            area = prod(sizes[name])
            rows, columns = layer.weight.shape[0] * area, layer.weight.shape[1] * area
        measures = {"rank": int(rank)} | {key: float(value) for key, value in spectral_measures(sigma).items()}
        result[name] = LayerSpectrum((rows, columns), sigma, {key: measures[key] for key in MEASURES})
    row_norms = None
    classifier = chosen.classifier if chosen.classifier in found else None
    if classifier is not None:
        parts = torch.split(found[classifier].weight.flatten(1), max(1, _BATCH // found[classifier].shape[1]))
        # In parts, because a norm in float64 copies its input.
        row_norms = torch.cat([part.cpu().double().norm(dim=1) for part in parts])
    return NetworkSpectrum(result, skipped, classifier, row_norms, time.perf_counter() - started)


@dataclass(frozen=True)
class Selection:
    """The weights of a network that are read.

    Attributes:
        layers: The selected layers by name, in the network's order.
        skipped: The reason for each parameter that was selected but skipped.
        classifier: The layer that computes the logits, selected or not; None if no layer has one row per class.
    """

    layers: dict[str, Layer]
    skipped: dict[str, str]
    classifier: str | None


def select_layers(
    model: nn.Module | Mapping[str, Any],
    layers: str = "all",
    *,
    num_classes: int | None = None,
    groups: Mapping[str, int] | None = None,
    convolution: Literal["kernel", "circular"] = "kernel",
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> Selection:
    """Find the weights that :func:`weight_spectrum` reads; with the same arguments and errors."""
    if convolution not in ("kernel", "circular"):
        raise ValueError(f'Expected `convolution` to be "kernel" or "circular" but got {convolution!r}')
    if convolution == "circular" and (sizes is None or not isinstance(model, nn.Module)):
        raise ValueError(
            'Expected a network and `sizes`, those of the inputs of its layers, for `convolution="circular"`'
        )
    found, skipped = _find_layers(model, groups or {})
    num_classes = num_classes or count_classes(model)
    classifier = next((name for name in reversed(found) if num_classes in (None, found[name].shape[0])), None)
    if layers == "classifier":
        if classifier is None:
            raise ValueError(f"Expected a layer with a row for each of the {num_classes} classes but found none")
        found, skipped = {classifier: found[classifier]}, {}
    elif layers != "all":
        chosen = {name: layer for name, layer in found.items() if fnmatchcase(name, layers)}
        if not chosen:
            known = shorten_names(found, 12)
            raise ValueError(f"Expected `layers` to be all, classifier or a pattern of {known} but got {layers!r}")
        found, skipped = chosen, {}
    if convolution == "circular":
        for name, layer in list(found.items()):
            if reason := _why_not_circular(layer, (sizes or {}).get(name)):
                skipped[layer.parameter] = reason
                del found[name]
    return Selection(found, skipped, classifier)


def _find_layers(
    model: nn.Module | Mapping[str, Any], groups: Mapping[str, int]
) -> tuple[dict[str, Layer], dict[str, str]]:
    parameters = _module_parameters(model) if isinstance(model, nn.Module) else _saved_parameters(model, groups)
    layers: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    seen: dict[
        int, tuple[str, Tensor]
    ] = {}  # the tensors are kept alive, because the id of a deleted one may be reused
    for layer in parameters:
        name, weight = layer.parameter, layer.weight
        if nn.parameter.is_lazy(weight):
            skipped[name] = "not initialised"
        elif weight.ndim < 2:
            skipped[name] = "vectors"
        elif not weight.numel() or not weight.is_floating_point():
            skipped[name] = "empty or no floating point"
        elif not name.endswith("weight"):
            skipped[name] = "not called `weight`"
        elif isinstance(layer.module, nn.Embedding | nn.EmbeddingBag):
            skipped[name] = "look-up tables"
        elif id(weight) in seen:
            skipped[name] = f"shared with {seen[id(weight)][0]}"
        elif hasattr(weight, "full_tensor"):
            raise ValueError(f"Expected whole weights but got {name} sharded over processes, as under FSDP")
        else:
            seen[id(weight)] = name, weight
            layers[name.removesuffix(".weight")] = replace(layer, weight=weight.detach())
    if not layers:
        raise ValueError("Expected a network with a `weight` of at least two dimensions but found none")
    return layers, skipped


def _module_parameters(model: nn.Module) -> Iterator[Layer]:
    for path, module in model.named_modules():
        if isinstance(module, nn.utils.parametrize.ParametrizationList) or ".parametrizations." in f".{path}.":
            continue
        weights = dict(module.named_parameters(recurse=False))
        if nn.utils.parametrize.is_parametrized(module):
            weights |= {name: _parametrized(module, name) for name in module.parametrizations}
        for name, weight in weights.items():
            groups = module.groups if name == "weight" and isinstance(module, _ConvNd) else 1
            full = f"{path}.{name}".removeprefix(".").replace("_orig_mod.", "")  # the prefix of torch.compile
            yield Layer(full, weight, groups, module)


@torch.no_grad()
def _parametrized(module: nn.Module, name: str) -> Tensor:
    parametrization: Any = module.parametrizations[name]  # type: ignore[index]
    training = parametrization.training
    parametrization.eval()  # in training mode, each access to spectral_norm takes a step
    try:
        return getattr(module, name)  # type: ignore[no-any-return]
    finally:
        parametrization.train(training)


def _saved_parameters(state: Mapping[str, Any], groups: Mapping[str, int]) -> Iterator[Layer]:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield Layer(name.replace("_orig_mod.", ""), value, groups.get(name, 1))


def _is_finite(weight: Tensor) -> bool:
    low, high = weight.aminmax()  # without a temporary of that size
    return bool(low.isfinite() and high.isfinite())


def _why_not_circular(layer: Layer, size: tuple[int, int] | None) -> str:
    conv = layer.module
    if not isinstance(conv, _ConvNd):
        return ""  # a linear layer has its matrix
    if not isinstance(conv, nn.Conv2d):
        return "no circular operator of " + type(conv).__name__
    for option, steps in (("stride", conv.stride), ("dilation", conv.dilation)):
        if max(steps) != 1:
            return f"no circular operator with {option} {max(steps)}"
    if conv.groups != 1:
        return f"no circular operator with {conv.groups} groups"
    if size is None:
        return "not reached by the images"
    if any(kernel > side for kernel, side in zip(conv.kernel_size, size, strict=True)):
        return "no circular operator with a kernel larger than the input"
    return ""


@torch.no_grad()
def input_sizes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Find the input height and width of each 2-D convolution by one pass in evaluation mode.

    Args:
        model: A network.
        images: A batch of its inputs.

    Returns:
        (H, W) by the name of the layer.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Any:
        return lambda module, inputs: sizes.__setitem__(name, tuple(inputs[0].shape[-2:]))

    hooks = [
        module.register_forward_pre_hook(note(name.replace("_orig_mod.", "")))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return sizes


def spectrum_table(spectra: Mapping[str, NetworkSpectrum]) -> str:
    """Format the spectra of one network, or of several grouped by layer.

    Args:
        spectra: Spectra by the name of their network; the name of a single one may be empty.
    """
    names = list(dict.fromkeys(layer for spectrum in spectra.values() for layer in spectrum.layers))
    rows = [["layer", "network", "matrix", *MEASURES.values()]]
    for name in names:
        for label, spectrum in spectra.items():
            if name in spectrum.layers:
                layer = spectrum.layers[name]
                numbers = [
                    f"{layer.measures[key]:.4g}" if key != "rank" else str(layer.measures[key]) for key in MEASURES
                ]
                rows.append([name, label, "{} x {}".format(*layer.shape), *numbers])
    if list(spectra) == [""]:
        rows = [[row[0], *row[2:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(rows[0]) - len(MEASURES) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def describe_skipped(skipped: Mapping[str, str]) -> list[str]:
    """Return one line per reason for which parameters were skipped.

    Example:
        >>> describe_skipped({"0.bias": "vectors", "1.bias": "vectors", "pos": "not called `weight`"})
        ['skipped: 0.bias, 1.bias (vectors)', 'skipped: pos (not called `weight`)']
    """
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in skipped.items():
        reasons[reason].append(name)
    return [f"skipped: {shorten_names(names)} ({reason})" for reason, names in reasons.items()]


def shorten_names(names: Iterable[str], most: int = 3) -> str:
    """Return the first few of some names as text.

    Example:
        >>> shorten_names("abcde")
        'a, b, c and 2 more'
    """
    names = list(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more" if len(names) > most else ", ".join(names)


def name_apart(paths: Sequence[Path]) -> list[str]:
    """Return a distinct name for each file, from the parts of its path that differ.

    Raises:
        ValueError: If a file occurs twice.

    Example:
        >>> name_apart([Path("runs/a/version_0/best.ckpt"), Path("runs/b/version_0/best.ckpt")])
        ['a', 'b']
    """
    if len(set(paths)) < len(paths):
        raise ValueError(f"Expected different checkpoints but got one twice in {', '.join(map(str, paths))}")
    if len(paths) == 1:
        return [paths[0].stem]
    parts = [path.parts for path in paths]
    if len({len(part) for part in parts}) > 1:
        return [str(path) for path in paths]
    differ = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    return ["/".join(part[i] for i in differ) for part in parts]


def checkpoint_spectrum(path: Path, layers: str = "all", **options: Any) -> NetworkSpectrum:
    """Decompose the weights in a checkpoint file; no code in it is run.

    Args:
        path: A checkpoint of this package or of Lightning, or a ``state_dict`` saved by ``torch.save``. Only the backbone
            of this package's checkpoints is read.
        layers: As of :func:`weight_spectrum`.
        options: As of :func:`weight_spectrum`.

    Raises:
        ValueError: If the file has no weights or no layer of that name.
    """
    saved = read_checkpoint(path, "CHECKPOINT")
    state = saved.get("state_dict", saved)
    if "data" in saved and "loss" in saved and "state_dict" in saved:  # a checkpoint of an ImageClassifier
        state = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
        groups = {name.removeprefix("backbone."): number for name, number in saved.get("groups", {}).items()}
        num_classes = saved["data"].get("num_classes") or len(saved["data"]["class_names"])
        options = {"num_classes": num_classes, "groups": groups} | options
    return weight_spectrum(state, layers, **options)
