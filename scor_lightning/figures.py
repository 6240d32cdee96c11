"""Pictures: class sizes and recalls, confusion matrices, single images, spectra."""

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from scor_lightning.files import printable, shortened, write_whole
from scor_lightning.spectrum import NetworkSpectrum

GROUP_COLORS = {"many": "#1f77b4", "medium": "#ff7f0e", "few": "#d62728"}
MAX_NAMED = 50  # maximum number of classes with a label each
MAX_NAME = 18  # maximum length of a class name beside an axis
MAX_PANELS = 16
_CHARACTER = 0.09  # width of a character of a title, in inches
_SOFTWARE = "scor_lightning"


def render(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure as an image, uint8 ``[H, W, 3]``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_image(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write an image, uint8 ``[H, W, 3]``, atomically."""
    content = BytesIO()
    about = PngInfo()
    about.add_text("Software", _SOFTWARE)
    Image.fromarray(pixels).save(content, format="PNG", pnginfo=about)
    write_whole(path, content.getvalue())


def is_own_image(start: bytes) -> bool:
    """Check whether the beginning of a file is that of one written by :func:`save_image`."""
    return f"Software\0{_SOFTWARE}".encode() in start


def plain(text: str) -> str:
    r"""Escape a text for matplotlib.

    It typesets text between two dollar signs as mathematics and omits labels with a leading underscore from legends.

    Example:
        >>> print(plain("$5 and $10"))
        \$5 and \$10
    """
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _set_title(figure: Figure, title: str) -> None:
    """Set the title of a figure; lines that are wider than the figure are wrapped."""
    width = max(20, int(figure.get_figwidth() / _CHARACTER))
    lines = (part for line in title.splitlines() for part in textwrap.wrap(line, width))
    figure.suptitle("\n".join(map(plain, lines)), fontsize=11)


def class_sizes_figure(
    counts: Sequence[int],
    names: Sequence[str],
    groups: Mapping[str, Tensor],
    recalls: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """Draw the number of training images of each class, largest class first, with its recall above.

    Args:
        counts: Training images of the K classes.
        names: Their names.
        groups: Members of the groups "many", "medium" and "few", bool ``[K]``, which give the colours.
        recalls: Recall of each class, in [0, 1]; NaN for a class without test images.
        title: Title of the figure.
    """
    order = by_size(counts)
    colors = ["gray"] * len(counts)
    for group, members in groups.items():
        for c in members.nonzero().flatten().tolist():
            colors[c] = GROUP_COLORS[group]
    colors = [colors[c] for c in order]
    positions = range(len(order))
    bar = 0.8 if len(order) <= MAX_NAMED else 1.0
    figure = Figure(figsize=(6.4, 3.2 if recalls is None else 5.0), layout="constrained")
    rows = [(np.array(counts)[order], "training images")]
    if recalls is not None:
        rows.insert(0, (np.array(recalls)[order], "recall"))
    axes = figure.subplots(len(rows), sharex=True, squeeze=False)[:, 0]
    for ax, (heights, label) in zip(axes, rows, strict=True):
        ax.bar(positions, heights, width=bar, color=colors)
        ax.set_ylabel(label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.01)
        if len(order) <= 20:
            texts = [f"{height:.2f}" if label == "recall" else f"{height:,}" for height in heights]
            ax.bar_label(ax.containers[0], [text.replace("nan", "") for text in texts], fontsize=8)
    if recalls is not None:
        axes[0].set_ylim(0, 1.05)
    if max(counts) > 20 * max(min(counts), 1):
        axes[-1].set_yscale("log")
        axes[-1].set_ylim(bottom=max(min(counts), 1) / 2)  # the smallest class has a bar too
    _name_classes(axes[-1], "x", [shortened(names[c], MAX_NAME) for c in order])
    axes[-1].set_xlabel("class, from the most to the fewest training images")
    handles = [
        (axes[0].bar([0], [0], color=GROUP_COLORS[group]), f"{group}-shot classes")
        for group, members in groups.items()
        if members.any()
    ]
    if len(handles) > 1:
        figure.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=len(handles), frameon=False)
    _set_title(figure, title)
    return figure


def confusion_figure(matrix: Tensor, names: Sequence[str], counts: Sequence[int] | None, title: str = "") -> Figure:
    """Draw a confusion matrix, classes in the order of their training images.

    Args:
        matrix: Number of images of each true class (row) and predicted class (column), int64 ``[K, K]``.
        names: Names of the K classes.
        counts: Their training images; None keeps the order of the classes.
        title: Title of the figure.
    """
    order = by_size(counts) if counts is not None else list(range(len(names)))
    sorted_matrix = matrix[order][:, order].double()
    shares = (sorted_matrix / sorted_matrix.sum(1, keepdim=True).clamp_min(1)).numpy()
    side = min(max(5.4, 0.3 * len(order) + 2.4), 10.0)
    figure = Figure(figsize=(side + 0.8, side), layout="compressed")
    ax = figure.subplots()
    # The square root makes the few images off the diagonal visible.
    picture = ax.imshow(
        shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest" if len(order) <= 50 else "antialiased"
    )
    figure.colorbar(
        picture, ax=ax, fraction=0.04, label="share of the true class's images", ticks=[0, 0.01, 0.1, 0.25, 0.5, 1]
    )
    if len(order) <= 15:
        for i, row in enumerate(sorted_matrix.long().tolist()):
            for j, count in enumerate(row):
                if count:
                    ax.text(
                        j,
                        i,
                        str(count),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if shares[i, j] > 0.4 else "black",
                    )
    labels = [shortened(names[c], MAX_NAME) for c in order]
    _name_classes(ax, "x", labels)
    if counts is not None:
        labels = [f"{label} ({counts[c]:,})" for label, c in zip(labels, order, strict=True)]
    _name_classes(ax, "y", labels)
    ordered = ", largest class first" if counts is not None else ""
    ax.set_xlabel(f"predicted class{ordered}")
    ax.set_ylabel("true class (training images)" if counts is not None else "true class")
    _set_title(figure, title)
    return figure


def worst_images_figure(
    images: Sequence[Tensor],
    true: Sequence[str],
    taken_for: Sequence[str],
    probabilities: Sequence[float],
    title: str = "",
) -> Figure:
    """Draw images with their true class, predicted class and predicted probability of the true class.

    Args:
        images: uint8 or float ``[C, H, W]``; floats are scaled to their own range.
        true: Names of the true classes.
        taken_for: Names of the predicted classes.
        probabilities: Predicted probability of the true class, in [0, 1].
        title: Title of the figure.
    """
    columns = min(len(images), 6)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(max(1.25 * columns, 4.5), 1.7 * rows + 0.6), layout="constrained")
    for i, image in enumerate(images):
        ax = figure.add_subplot(rows, columns, i + 1)
        pixels = image if len(image) in (1, 3) else image[:1]
        if pixels.is_floating_point():
            low, high = pixels.min(), pixels.max()
            pixels = (pixels - low) / (high - low).clamp_min(1e-12)
        ax.imshow(pixels.permute(1, 2, 0).numpy(), cmap="gray")
        ax.set_axis_off()
        verdict = f"{shortened(true[i], 10)} → {shortened(taken_for[i], 10)}"
        ax.set_title(f"{plain(verdict)}\n{100 * probabilities[i]:.2g} %", fontsize=9)
    _set_title(figure, title)
    return figure


def spectra_figure(spectra: Mapping[str, NetworkSpectrum]) -> Figure:
    """Draw the singular values of each layer, one line per network; of many layers, a selection spread evenly over the depth.

    Args:
        spectra: Spectra by the name of their network.
    """
    names = list(dict.fromkeys(layer for spectrum in spectra.values() for layer in spectrum.layers))
    shown = names
    if len(names) > MAX_PANELS:
        shown = [names[round(i * (len(names) - 1) / (MAX_PANELS - 1))] for i in range(MAX_PANELS)]
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(3.2 * columns, 5), 2.5 * rows + 0.8), layout="constrained")
    lines = {}
    for i, name in enumerate(shown):
        ax = figure.add_subplot(rows, columns, i + 1)
        shape = ""
        for j, (label, spectrum) in enumerate(spectra.items()):
            if name in spectrum.layers:
                layer = spectrum.layers[name]
                shape = "{} x {}".format(*layer.shape)
                marker = "." if len(layer.values) <= 50 else ""
                lines[label] = ax.plot(
                    range(1, len(layer.values) + 1), layer.values.numpy(), marker=marker, color=f"C{j}"
                )[0]
        ax.set_yscale("log")
        for of in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            of(LogFormatter(minor_thresholds=(2, 0.5)))  # 0.4 instead of 4 x 10^-1
        ax.set_title(f"{plain(name)}  {shape}", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.tick_params(labelsize=8, which="both")
        if i >= len(shown) - columns:
            ax.set_xlabel("index", fontsize=9)
        ax.grid(alpha=0.3)
    few = "" if shown == names else f" ({len(shown)} of {len(names)} layers)"
    figure.supylabel("singular value", fontsize=9)
    figure.suptitle(f"Singular values, largest first{few}", x=0.01, ha="left", fontsize=11)
    if len(spectra) > 1:
        figure.legend(lines.values(), map(plain, lines), loc="outside lower center", frameon=False, fontsize=9, ncols=2)
    return figure


def by_size(counts: Sequence[int]) -> list[int]:
    """Return class indices from the most images to the fewest; ties keep their order.

    Example:
        >>> by_size([5, 9, 5])
        [1, 0, 2]
    """
    return sorted(range(len(counts)), key=lambda c: -counts[c])


def _name_classes(ax: Axes, axis: str, labels: Sequence[str]) -> None:
    step = 1 if len(labels) <= MAX_NAMED else -(-len(labels) // 20)
    ticks = range(0, len(labels), step)
    shown = [plain(labels[i]) for i in ticks]
    if axis == "x":
        ax.set_xticks(ticks, shown, rotation=90 if max(map(len, shown)) > 3 else 0, fontsize=8)
    else:
        ax.set_yticks(ticks, shown, fontsize=8)
