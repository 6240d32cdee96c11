"""The pictures of a comparison with their captions; those that require more repeats are omitted with a note."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scor_lightning.comparison.intervals import Values
from scor_lightning.comparison.ranks import Ranking
from scor_lightning.comparison.results import Row
from scor_lightning.comparison.statistics import ACCURACIES, LOWER_IS_BETTER, Statistics, measured_often
from scor_lightning.comparison.wording import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; the baseline is grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#F0E442", "#332288")
_CURVES = 12  # maximum number of methods whose curves can be distinguished
_FEW = 6  # minimum number of repeats for the distribution of a measure
_CORRELATED = 20  # minimum number of repeats for a rank correlation


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        name: File name without extension.
        title: Heading.
        caption: What it shows, or why it is omitted.
        png: The image; None if it is omitted.
    """

    name: str
    title: str
    caption: str
    png: bytes | None


def draw(statistics: Statistics, rows: Sequence[Row]) -> list[Picture]:
    """Draw all pictures that the results support.

    Args:
        statistics: The statistics of the last epochs.
        rows: All records, also of earlier epochs.
    """
    return [*_Pictures(statistics, rows).all()]


class _Pictures:
    def __init__(self, statistics: Statistics, rows: Sequence[Row]) -> None:
        self.statistics, self.rows = statistics, rows
        self.methods, self.baseline = statistics.methods, statistics.baseline
        self.others = [method for method in self.methods if method != self.baseline]
        colours = {method: _COLOURS[i % len(_COLOURS)] for i, method in enumerate(self.others)}
        self.colours = {self.baseline: "#666666"} | colours
        # If there are more methods than colours, line styles distinguish the others.
        strokes = ("-", "--", ":", "-.")
        self.strokes = {method: strokes[i // len(_COLOURS) % len(strokes)] for i, method in enumerate(self.others)}
        self.strokes[self.baseline] = "-"
        self.repeats = len(statistics.repeats)
        # Curves: of many methods only the baseline and the best.
        means = {method: mean.mean for method, mean in statistics.means[statistics.measure].items()}
        finite = [method for method in self.others if means[method] is not None]
        sign = -1 if statistics.measure in LOWER_IS_BETTER else 1
        best = sorted(finite, key=lambda method: -sign * (means[method] or 0.0))[: _CURVES - 1]
        few = len(self.methods) <= _CURVES
        self.curved = self.methods if few else [m for m in self.methods if m == self.baseline or m in best]
        self.which = "" if few else f" Of {len(self.methods)} methods, {self.baseline} and the {len(best)} best."

    def all(self) -> list[Picture]:
        pictures = []
        if self.repeats > 1:
            caption = (
                "Thick lines: the interval for new images, where it is defined. Thin lines: the interval over redraws. "
                f"Right of the line a method is above {self.baseline}; the grey band is the margin."
            )
            pictures.append(Picture("differences", f"Differences to {self.baseline}", caption, _png(self._forest())))
        if curves := self._recall_curves():
            caption = (
                "Mean recall of the classes, the one with most training images first; the number of training images is "
                f"written below.{self.which}"
            )
            pictures.append(Picture("recall", "Recall by class size", caption, _png(self._recalls(curves))))
        pictures.append(self._if_enough(_FEW, "boxes", "All repeats", _BOXES, self._boxes))
        layers = [name.split("/")[1] for name in self.statistics.means if name.endswith("/sigma_min")]
        if layers:
            title = f"Singular values of {layers[-1]}"
            if spectra := self._spectra(layers[-1]):
                picture = Picture("spectrum", title, _SPECTRUM + self.which, _png(self._spectrum(spectra)))
            else:
                picture = self._if_enough(_FEW, "spectrum", title, _EXTREMES, lambda: self._extremes(layers[-1]))
            pictures.append(picture)
            title = "Smallest singular value and macro F1"
            pictures.append(
                self._if_enough(
                    _CORRELATED, "sigma_min_against_f1", title, _SCATTER + self.which, lambda: self._scatter(layers[-1])
                )
            )
        if measured_often(self.rows):
            pictures.append(Picture("epochs", "Epochs", f"Means over the repeats.{self.which}", _png(self._epochs())))
        return pictures

    def _if_enough(self, least: int, name: str, title: str, caption: str, figure: "Callable[[], Figure]") -> Picture:
        if self.repeats >= least:
            return Picture(name, title, caption, _png(figure()))
        return Picture(name, title, f"Omitted: it requires at least {least} repeats.", None)

    def _style(self, method: str) -> dict[str, Any]:
        return {"color": self.colours[method], "linestyle": self.strokes[method]}

    def _forest(self) -> "Figure":
        measures = self.statistics.headline()
        figure, axes = _grid(len(measures), height=0.3 * len(self.others) + 1.1)
        for axis, measure in zip(axes, measures, strict=True):
            margin = 0.0
            for i, method in enumerate(self.others):
                difference = self.statistics.differences[measure][method]
                margin = difference.margin
                for interval, y, width in ((difference.new_images, i, 3.5), (difference.redraws, i + 0.25, 1.2)):
                    if interval is not None:
                        axis.plot([interval.low, interval.high], [y, y], color=self.colours[method], linewidth=width)
                if difference.mean is not None:
                    axis.plot(difference.mean, i, "o", color=self.colours[method], markersize=6)
            axis.axvspan(-margin, margin, color="#eeeeee", zorder=0)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(range(len(self.others)), [_plain(method) for method in self.others])
            axis.set_ylim(len(self.others) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=5)
            axis.label_outer()
            axis.xaxis.set_tick_params(labelbottom=True)
            _title(axis, measure)
            axis.grid(axis="x", alpha=0.3)
        return figure

    def _recall_curves(self) -> dict[str, tuple[Values, Values]]:
        curves = {method: self.statistics.images.recall_by_size(method) for method in self.curved}
        return {method: curve for method, curve in curves.items() if curve is not None}

    def _recalls(self, curves: "dict[str, tuple[Values, Values]]") -> "Figure":
        figure, (axis,) = _grid(1, height=4, width=9)
        for method, (_, recalls) in curves.items():
            style = self._style(method)
            marker = "o" if len(recalls) <= 30 else None
            axis.plot(range(len(recalls)), recalls, marker=marker, markersize=4, label=_plain(method), **style)
        sizes = next(iter(curves.values()))[0]
        shown = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), 12)).round().astype(int))
        axis.set_xticks(shown.tolist(), [f"{sizes[k]:,.0f}" for k in shown])
        axis.set_xlabel("training images of the class")
        axis.set_ylabel("recall")
        axis.grid(alpha=0.3)
        _legend(axis)
        return figure

    def _boxes(self) -> "Figure":
        shown = (*ACCURACIES, "accuracy_many", "accuracy_medium", "accuracy_few", "f1_reduced", "cross_entropy")
        measures = [name for name in shown if name in self.statistics.means]
        figure, axes = _grid(len(measures), height=0.32 * len(self.methods) + 1.1)
        for axis, measure in zip(axes, measures, strict=True):
            self._boxes_of(axis, measure)
        return figure

    def _extremes(self, layer: str) -> "Figure":
        figure, axes = _grid(2, height=0.32 * len(self.methods) + 1.1)
        for axis, kind in zip(axes, ("sigma_min", "sigma_max"), strict=True):
            self._boxes_of(axis, f"spectrum/{layer}/{kind}")
        return figure

    def _boxes_of(self, axis: "Axes", measure: str) -> None:
        values = [self.statistics.values(measure, method) for method in self.methods]
        boxes = axis.boxplot(
            [each[np.isfinite(each)] for each in values],
            orientation="horizontal",
            tick_labels=[_plain(method) for method in self.methods],
            patch_artist=True,
            widths=0.6,
            showmeans=True,
            flierprops={"markersize": 2, "alpha": 0.4},
            meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
            medianprops={"color": "black"},
        )
        for box, method in zip(boxes["boxes"], self.methods, strict=True):
            box.set_facecolor(self.colours[method])
            box.set_alpha(0.7)
        axis.invert_yaxis()
        axis.locator_params(axis="x", nbins=5)
        axis.label_outer()
        axis.xaxis.set_tick_params(labelbottom=True)
        _title(axis, measure)
        axis.grid(axis="x", alpha=0.3)

    def _spectra(self, layer: str) -> dict[str, Values]:
        """Return the singular values ``[n, rank]`` of the methods whose networks all have the layer and kept them."""
        key, found = f"spectrum/{layer}/values", {}
        for method in self.curved:
            rows = [row for row in self.statistics.rows if row["method"] == method]
            if rows and all(key in row for row in rows):
                values = np.array([row[key] for row in rows], np.float64)
                values = values[np.isfinite(values).all(axis=1)]
                if len(values):
                    found[method] = values
        return found

    def _spectrum(self, spectra: Mapping[str, Values]) -> "Figure":
        figure, (axis,) = _grid(1, height=4, width=9)
        for method, values in spectra.items():
            numbers, style = range(1, values.shape[1] + 1), self._style(method)
            axis.plot(numbers, values.mean(axis=0), label=_plain(method), **style)
            low, high = values.min(axis=0), values.max(axis=0)
            axis.fill_between(numbers, low, high, color=self.colours[method], alpha=0.12, linewidth=0)
        axis.set_xlabel("singular value, largest first")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        _legend(axis)
        return figure

    def _scatter(self, layer: str) -> "Figure":
        from scipy.stats import spearmanr

        figure, (axis,) = _grid(1, height=5, width=9)
        for method in self.curved:
            x = self.statistics.values(f"spectrum/{layer}/sigma_min", method)
            y = self.statistics.values("f1_macro", method)
            both = np.isfinite(x) & np.isfinite(y)
            label = method
            if both.sum() >= _CORRELATED and np.ptp(x[both]) > 0 and np.ptp(y[both]) > 0:
                label = f"{method} ({spearmanr(x[both], y[both]).statistic:+.2f})"
            size = float(np.clip(1500 / max(1, both.sum()), 5, 30))
            axis.scatter(x[both], y[both], s=size, alpha=0.6, color=self.colours[method], label=_plain(label))
        axis.set_xlabel(_plain(title_of(f"spectrum/{layer}/sigma_min")))
        axis.set_ylabel(title_of("f1_macro"))
        axis.grid(alpha=0.3)
        _legend(axis)
        return figure

    def _epochs(self) -> "Figure":
        epochs = sorted({row["epoch"] for row in self.rows})
        measures = self.statistics.headline()
        figure, axes = _grid(len(measures), height=2.8)
        for axis, measure in zip(axes, measures, strict=True):
            for method in self.curved:
                found: dict[int, list[float]] = {epoch: [] for epoch in epochs}
                for row in self.rows:
                    if row["method"] == method and np.isfinite(row[measure]):
                        found[row["epoch"]].append(row[measure])
                measured = {epoch: float(np.mean(values)) for epoch, values in found.items() if values}
                style = self._style(method)
                axis.plot([*measured], [*measured.values()], marker="o", markersize=3, label=_plain(method), **style)
            _title(axis, measure)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.3)
        _legend(axes[0])
        return figure


def critical_difference_diagram(ranking: Ranking) -> bytes:
    """Draw mean ranks on a line, with bars that join methods within the critical difference."""
    from matplotlib.figure import Figure

    order = np.argsort(ranking.mean_ranks, kind="stable")
    number, groups = len(order), ranking.groups()
    left, height = (number + 1) // 2, 0.28
    figure = Figure(figsize=(9, 1.2 + height * (left + len(groups))), layout="constrained")
    axis = figure.subplots()
    depth = 0.5 + 0.3 * len(groups)
    for position, m in enumerate(order):
        x, on_left = ranking.mean_ranks[m], position < left
        y = depth + (position if on_left else number - 1 - position) * 0.5
        end = 0.6 if on_left else number + 0.4
        axis.plot([x, x, end], [0, y, y], color="black", linewidth=0.8)
        text = f"{_plain(ranking.methods[m])}  {x:.2f}" if on_left else f"{x:.2f}  {_plain(ranking.methods[m])}"
        axis.text(end, y, f" {text} ", ha="right" if on_left else "left", va="center", fontsize=9)
    ranks = dict(zip(ranking.methods, ranking.mean_ranks, strict=True))
    for i, group in enumerate(groups):
        ends = [ranks[group[0]] - 0.04, ranks[group[-1]] + 0.04]
        axis.plot(ends, [0.25 + 0.3 * i] * 2, color="#D55E00", linewidth=4, solid_capstyle="butt")
    critical = ranking.critical_difference or 0.0
    axis.plot([1, 1 + critical], [-0.8, -0.8], color="black", marker="|")
    axis.text(1 + critical / 2, -0.95, f"CD = {critical:.2f}", ha="center", va="bottom", fontsize=9)
    axis.set_xlim(0.6, number + 0.4)
    axis.set_ylim(depth + 0.5 * left, -1.6)
    axis.spines[["bottom", "left", "right"]].set_visible(False)
    axis.spines["top"].set_position(("data", 0))
    axis.xaxis.tick_top()
    axis.set_xticks(range(1, number + 1))
    axis.set_yticks([])
    return _png(figure)


_BOXES = (
    "One box per method over the repeats: it spans the middle half, the line is the median, the diamond the mean. Repeats are "
    "paired, so overlapping boxes do not mean that a difference is undecided."
)
_SPECTRUM = "Means over the networks, shaded from the smallest to the largest."
_EXTREMES = "One box per method over the networks. `--spectra true` keeps all singular values."
_SCATTER = (
    "One point per network, with the rank correlation within each method. The paper associates SCoR with smaller singular "
    "values; this shows whether they go with a better F1."
)


def _title(axis: "Axes", measure: str) -> None:
    axis.set_title("\n".join(map(_plain, textwrap.wrap(title_of(measure), 34))), fontsize=10)


def _legend(axis: "Axes") -> None:
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _grid(count: int, height: float, width: float = 4.4) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    columns = min(count, 3 if count != 4 else 2)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _plain(text: str) -> str:
    from scor_lightning.figures import plain  # with matplotlib

    return plain(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


_LONGEST = 40  # maximum length of a method's name in a picture


def _png(figure: "Figure") -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()
