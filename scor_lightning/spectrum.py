"""The spectra of a network's weights as a table, with or without Lightning."""

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
    """A weight that a network multiplies by.

    Attributes:
        parameter: Name of the parameter.
        weight: ``[out, in / groups, *kernel]``, detached; of a transposed convolution ``[in, out / groups, *kernel]``.
        groups: Groups of a convolution, else 1.
        module: What it belongs to; None in a checkpoint, which does not tell.
    """

    parameter: str
    weight: Tensor
    groups: int = 1
    module: nn.Module | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix, a grouped convolution's with the zeros beside its blocks."""
        return self.weight.shape[0], self.groups * prod(self.weight.shape[1:])


@dataclass(frozen=True)
class LayerSpectrum:
    """What the spectrum of one layer is.

    Attributes:
        shape: Rows and columns (m, n) of the matrix.
        values: Its singular values, largest first, float64 ``[min(m, n)]`` on the CPU; of a grouped convolution those of
            its blocks.
        measures: ``rank`` and what :func:`~scor_lightning.functional.spectral.spectral_measures` gives.
    """

    shape: tuple[int, int]
    values: Tensor
    measures: dict[str, float]


@dataclass(frozen=True)
class NetworkSpectrum:
    """The spectra of a network, which print as a table.

    Attributes:
        layers: Spectra by the name of their layer, in the network's order.
        skipped: Why a parameter was not read, by its name.
        classifier: Which of the layers gives the logits: the last one, with a row for each class where their number is
            known; None where no such layer was read.
        row_norms: Norms of the classifier's rows, float64 ``[K]``.
        seconds: How long it took.
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
        """Lay out the table, and below it what was not read."""
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

    Read are the parameters called ``weight`` or ``..._weight`` with two dimensions or more, which linear, convolution
    and attention layers and the heads of this package multiply by, under ``torch.nn.utils.parametrize`` as they enter
    the layer. Not read: vectors, look-up tables (``nn.Embedding``), and what has another name, such as the position
    embedding of a vision transformer.

    Args:
        model: A network, or the ``state_dict`` of one.
        layers: ``"all"``, ``"classifier"``, or a pattern of names such as ``"layer4.*"`` (that of a shell).
        num_classes: Number of classes K, which identifies the classifier; None reads ``model.num_classes``.
        groups: For a ``state_dict``, which does not tell: the groups of the weights of grouped convolutions, by name. Those
            left out are read as convolutions of one group.
        convolution: ``"kernel"`` takes the matrix ``[out, in * kh * kw]`` of the kernels, a grouped convolution by
            group. ``"circular"`` takes the whole linear map, with circular padding, for 2-D convolutions of stride,
            dilation and groups 1, and skips the others.
        sizes: For ``"circular"``, (H, W) of each layer's input by name, as :func:`input_sizes` finds them.
        tolerance: Of the rank, see :func:`~scor_lightning.functional.spectral.numerical_rank`.

    Returns:
        Spectra by layer; printed, a table.

    Raises:
        ValueError: If no layer has the name, an option is none of those named, ``"circular"`` lacks sizes, or weights
            are sharded over processes.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> print(weight_spectrum(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))))
        layer  matrix   rank  largest  smallest  condition  stable rank  effective rank  Frobenius
        0       3 x 4      3    ...
        2       2 x 3      2    ...
        not read: 0.bias, 1.weight, 1.bias and 1 more (a vector)
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
            # The blocks of a grouped convolution make one spectrum.
            spectra = singular_values(batch).flatten(1).sort(descending=True).values
            values.update(zip(part, spectra, strict=True))

    result = {}
    for name, layer in found.items():
        sigma, (rows, columns) = values[name].cpu(), layer.shape
        # The rounding is that of the kernels, however large the image that a circular operator works on.
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
        # In parts, because the norm in float64 makes a copy.
        row_norms = torch.cat([part.cpu().double().norm(dim=1) for part in parts])
    return NetworkSpectrum(result, skipped, classifier, row_norms, time.perf_counter() - started)


@dataclass(frozen=True)
class Selection:
    """Which weights of a network are read.

    Attributes:
        layers: Those that are, by name in the network's order.
        skipped: Why not, for each parameter that is not and that the choice does not leave out.
        classifier: The layer that gives the logits, chosen or not; None where none has a row for each class.
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
    """Find the weights that :func:`weight_spectrum` reads; arguments and errors are its own."""
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
    seen: dict[int, tuple[str, Tensor]] = {}  # with the tensors, as the id of one that is gone may come again
    for layer in parameters:
        name, weight = layer.parameter, layer.weight
        if nn.parameter.is_lazy(weight):
            skipped[name] = "not initialised"
        elif weight.ndim < 2:
            skipped[name] = "a vector"
        elif not weight.numel() or not weight.is_floating_point():
            skipped[name] = "empty or no floating point"
        elif not name.endswith("weight"):
            skipped[name] = "not called `weight`"
        elif isinstance(layer.module, nn.Embedding | nn.EmbeddingBag):
            skipped[name] = "a look-up table"
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
    parametrization.eval()  # in training mode spectral_norm takes a step at each look
    try:
        return getattr(module, name)  # type: ignore[no-any-return]
    finally:
        parametrization.train(training)


def _saved_parameters(state: Mapping[str, Any], groups: Mapping[str, int]) -> Iterator[Layer]:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield Layer(name.replace("_orig_mod.", ""), value, groups.get(name, 1))


def _is_finite(weight: Tensor) -> bool:
    low, high = weight.aminmax()  # makes no second tensor of that size
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
    """Find the height and width of what each 2-D convolution reads, by one pass in evaluation mode.

    Args:
        model: A network.
        images: A batch that it takes.

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
    """Lay out the spectra of one network, or of several below one another layer by layer.

    Args:
        spectra: Spectra by a name for their network; the name of a single one may be empty.
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
    """Report what was not read, one line per reason.

    Example:
        >>> describe_skipped({"0.bias": "a vector", "1.bias": "a vector", "pos": "not called `weight`"})
        ['not read: 0.bias, 1.bias (a vector)', 'not read: pos (not called `weight`)']
    """
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in skipped.items():
        reasons[reason].append(name)
    return [f"not read: {shorten_names(names)} ({reason})" for reason, names in reasons.items()]


def shorten_names(names: Iterable[str], most: int = 3) -> str:
    """Write the first few of some names.

    Example:
        >>> shorten_names("abcde")
        'a, b, c and 2 more'
    """
    names = list(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more" if len(names) > most else ", ".join(names)


def name_apart(paths: Sequence[Path]) -> list[str]:
    """Name files by the parts of their paths that tell them apart.

    Raises:
        ValueError: If a file is there twice.

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
    """Decompose the weights in a checkpoint file, which is read without running any code in it.

    Args:
        path: A checkpoint of this package, of Lightning, or a ``state_dict`` that was saved by ``torch.save``. Of this
            package's only the backbone is read.
        layers: As of :func:`weight_spectrum`.
        options: As of :func:`weight_spectrum`.

    Raises:
        ValueError: If it is not a file with weights, or has no layer of that name.
    """
    saved = read_checkpoint(path, "CHECKPOINT")
    state = saved.get("state_dict", saved)
    if "data" in saved and "loss" in saved and "state_dict" in saved:  # of an ImageClassifier
        state = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
        groups = {name.removeprefix("backbone."): number for name, number in saved.get("groups", {}).items()}
        num_classes = saved["data"].get("num_classes") or len(saved["data"]["class_names"])
        options = {"num_classes": num_classes, "groups": groups} | options
    return weight_spectrum(state, layers, **options)
