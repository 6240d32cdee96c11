"""The report: a table, `results.csv`, `summary.json`, pictures, and one HTML page that holds everything."""

import base64
import html
import io
import json
import os
import shlex
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from scor_lightning.comparison.methods import training_options
from scor_lightning.comparison.results import ResultsFolder, Row
from scor_lightning.comparison.statistics import diverged, final_rows, measures_of, paired, summarize
from scor_lightning.files import csv_text, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREDICTION = ("accuracy", "balanced_accuracy", "f1_macro", "accuracy_reduced", "f1_reduced")
_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "accuracy_reduced": "accuracy over the reduced classes",
    "f1_reduced": "F1 of the reduced classes",
    "cross_entropy": "cross entropy on the held-out set",
    "test_loss": "the loss itself on the held-out set",
    "rank": "numerical rank",
    "sigma_max": "largest singular value",
    "sigma_min": "smallest singular value",
}
# Okabe and Ito's colours, which colour-blind readers tell apart; the baseline is grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#F0E442", "#332288")


def title_of(measure: str) -> str:
    """Name a measure in words."""
    if measure.startswith("spectrum/"):
        _, layer, kind = measure.split("/")
        return f"{_TITLES[kind]} of {layer}"
    return _TITLES.get(measure, measure)


class Report:
    """What a folder of results says.

    Args:
        path: The folder that :func:`scor_lightning.comparison.compare` wrote.
        baseline: The loss that the others are compared with; None is the one the comparison named.

    Raises:
        ValueError: If the folder holds no finished training, or the baseline is none of its losses.
    """

    def __init__(self, path: str | os.PathLike[str], baseline: str | None = None) -> None:
        folder = ResultsFolder(path)
        self.path = folder.path
        self.manifest = folder.manifest()
        self.losses: list[str] = self.manifest["methods"]
        self.baseline: str = baseline or self.manifest["baseline"]
        if self.baseline not in self.losses:
            raise ValueError(f"Expected `baseline` to be one of {', '.join(self.losses)} but got {baseline!r}")
        self.rows = folder.rows()
        if not self.rows:
            raise ValueError(f"Expected a finished training in {str(path)!r} but there is none yet")
        self.summary = summarize(self.rows, self.losses, self.baseline)
        self.diverged = diverged(self.rows)
        self.repeats = len({row["repeat"] for row in self.rows})
        others = [loss for loss in self.losses if loss != self.baseline]
        self.colours = {self.baseline: "#666666"} | {loss: _COLOURS[i % len(_COLOURS)] for i, loss in enumerate(others)}

    def headline_measures(self) -> list[str]:
        """Name the measures that the table shows: those of prediction, and the classifier's smallest singular value."""
        layers = [name for name in self.summary if name.endswith("/sigma_min")]
        return [name for name in PREDICTION if name in self.summary] + layers[-1:]

    def table(self) -> str:
        """Lay out the headline measures for a terminal."""
        width = max(map(len, self.losses))
        against = f"minus {self.baseline}"
        lines = [
            f"{self._count()}: mean, standard deviation, 95 % interval of the mean; paired difference to the baseline, its",
            "95 % interval, Wilcoxon p corrected over the measures, effect size d_z, how often above the baseline",
            *self._warnings(),
        ]
        for measure in self.headline_measures():
            lines += ["", f"{title_of(measure):<{width + 40}}  {against}"]
            for loss in self.losses:
                lines.append(f"  {loss:<{width}}  {'  '.join(self._cells(measure, loss))}".rstrip())
        return "\n".join([*lines, ""])

    def _count(self) -> str:
        return f"{self.repeats} repeat{'' if self.repeats == 1 else 's'}"

    def _warnings(self) -> list[str]:
        few = "Too few repeats to tell a difference from chance: with fewer than six p cannot be below 0.05"
        return ([few] if self.repeats < 6 else []) + [
            f"{loss} diverged in {count} of {self._count()}; what is not finite is left out of its means"
            for loss, count in self.diverged.items()
        ]

    def _cells(self, measure: str, loss: str) -> list[str]:
        about = self.summary[measure][loss]
        cells = [_number(about["mean"]), _number(about["sd"]), _interval(about)]
        if difference := about.get("difference"):
            p = difference["p_corrected"]
            effect, higher = difference["effect_size"], difference["higher_in"]
            cells += [
                f"{_number(difference['mean'], sign=True):>8}",
                _interval(difference, sign=True),
                "-" if p is None else ("p<0.0001" if p < 1e-4 else f"p={p:.4f}"),
                "-" if effect is None else f"d={effect:+.2f}",
                "-" if higher is None else f"{higher:4.0%}",
            ]
        return cells

    def write(self) -> None:
        """Write ``results.csv``, ``summary.json``, ``pictures/*.png`` and ``report.html`` into the folder."""
        path = self.path
        write_whole(path / "results.csv", self._csv(final_rows(self.rows)))
        if len({row["epoch"] for row in self.rows}) > 1:
            write_whole(path / "epochs.csv", self._csv(self.rows))
        about = self.manifest | {"baseline": self.baseline, "repeats": self.repeats, "diverged": self.diverged}
        write_whole(path / "summary.json", json.dumps(about | {"measures": self.summary}, indent=2))
        pictures = {name: _png(draw) for name, draw in self._pictures().items()}
        (path / "pictures").mkdir(exist_ok=True)
        for name, png in pictures.items():
            write_whole(path / "pictures" / f"{name}.png", png)
        write_whole(path / "report.html", self._page(pictures))

    def _csv(self, rows: list[Row]) -> str:
        measures = measures_of(rows)
        measures = [name for name in measures if name != "train_seconds"]
        first = ["repeat", "method", "epoch", "engine", "threads", "reduced", "train_images", "test_images"]
        lines: list[list[Any]] = [[*first, *measures, "diverged", "train_seconds"]]
        for row in rows:
            values = {**row, "reduced": json.dumps(row["reduced"], ensure_ascii=False)}
            lines.append([values.get(name, "") for name in lines[0]])
        return csv_text(lines)

    def _pictures(self) -> dict[str, Callable[[], "Figure"]]:
        pictures: dict[str, Callable[[], Figure]] = {"boxes": self._boxes}
        if self.repeats > 1:
            pictures["differences"] = self._differences
        if any(name.endswith("/sigma_min") for name in self.summary):
            pictures |= {"spectrum": self._spectrum, "sigma_min_against_f1": self._scatter}
        if len({row["epoch"] for row in self.rows}) > 1:
            pictures["epochs"] = self._epochs
        return pictures

    def _boxes(self) -> "Figure":
        measures = [name for name in (*PREDICTION, "cross_entropy") if name in self.summary]
        figure, axes = _grid(len(measures), height=0.32 * len(self.losses) + 1.1)
        rows = final_rows(self.rows)
        for axis, measure in zip(axes, measures, strict=True):
            values = paired(rows, measure, self.losses)
            boxes = axis.boxplot(
                [values[loss][np.isfinite(values[loss])] for loss in self.losses],
                orientation="horizontal",
                tick_labels=[_plain(loss) for loss in self.losses],
                patch_artist=True,
                widths=0.6,
                showmeans=True,
                flierprops={"markersize": 2, "alpha": 0.4},
                meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
                medianprops={"color": "black"},
            )
            for box, loss in zip(boxes["boxes"], self.losses, strict=True):
                box.set_facecolor(self.colours[loss])
                box.set_alpha(0.7)
            axis.invert_yaxis()
            axis.set_title(_plain(title_of(measure)), fontsize=10)
            axis.grid(axis="x", alpha=0.3)
        return figure

    def _differences(self) -> "Figure":
        measures = [name for name in PREDICTION if name in self.summary]
        others = [loss for loss in self.losses if loss != self.baseline]
        figure, axes = _grid(len(measures), height=0.28 * len(others) + 1.1)
        for axis, measure in zip(axes, measures, strict=True):
            for i, loss in enumerate(others):
                d = self.summary[measure][loss]["difference"]
                if d["mean"] is None or d["low"] is None:
                    continue
                axis.plot([d["low"], d["high"]], [i, i], color=self.colours[loss], linewidth=2)
                axis.plot(d["mean"], i, "o", color=self.colours[loss])
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(range(len(others)), [_plain(loss) for loss in others])
            axis.set_ylim(len(others) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=5)
            axis.set_title(_plain(title_of(measure)), fontsize=10)
            axis.grid(axis="x", alpha=0.3)
        return figure

    def _spectrum(self) -> "Figure":
        rows = final_rows(self.rows)
        layers = [name.split("/")[1] for name in self.summary if name.endswith("/sigma_min")][-4:]
        whole = f"spectrum/{layers[0]}/values" in rows[0]
        names = [
            f"{layer}/{kind}" for layer in layers for kind in (["values"] if whole else ["sigma_min", "sigma_max"])
        ]
        figure, axes = _grid(len(names), height=2.6)
        for axis, name in zip(axes, names, strict=True):
            by_loss = {
                loss: np.hstack([r[f"spectrum/{name}"] for r in rows if r["method"] == loss] or [[]])
                for loss in self.losses
            }
            finite = np.hstack([values[np.isfinite(values)] for values in by_loss.values()])
            layer, kind = name.split("/")
            if whole:
                finite = np.log10(finite[finite > 0])
                axis.set_xlabel(f"log10 of the singular values of {_plain(layer)}")
            else:
                axis.set_xlabel(f"{_TITLES[kind]} of {_plain(layer)}")
            bins = np.histogram_bin_edges(finite, bins=min(50, 8 + int(len(finite) ** 0.5))).tolist()
            for loss, values in by_loss.items():
                values = values[np.isfinite(values)]
                values = np.log10(values[values > 0]) if whole else values
                shape = {"bins": bins, "histtype": "stepfilled", "color": self.colours[loss]}
                axis.hist(values, **shape, alpha=0.25)
                axis.hist(values, **shape | {"histtype": "step"}, linewidth=1.5, label=_plain(loss))
            axis.set_ylabel("singular values" if whole else "networks")
        axes[0].legend(fontsize=8)
        return figure

    def _scatter(self) -> "Figure":
        from scipy.stats import spearmanr

        rows = final_rows(self.rows)
        sigma = [name for name in self.summary if name.endswith("/sigma_min")][-1]
        measures = [name for name in ("f1_macro", "f1_reduced") if name in self.summary]
        figure, axes = _grid(len(measures), height=4.2)
        for axis, measure in zip(axes, measures, strict=True):
            x, y = paired(rows, sigma, self.losses), paired(rows, measure, self.losses)
            for loss in self.losses:
                both = np.isfinite(x[loss]) & np.isfinite(y[loss])
                label = loss
                if both.sum() > 2 and np.ptp(x[loss][both]) > 0 and np.ptp(y[loss][both]) > 0:
                    label = f"{loss} (rank correlation {spearmanr(x[loss][both], y[loss][both]).statistic:+.2f})"
                size = float(np.clip(1500 / both.sum(), 5, 30)) if both.any() else 5
                axis.scatter(
                    x[loss][both], y[loss][both], s=size, alpha=0.6, color=self.colours[loss], label=_plain(label)
                )
            axis.set_xlabel(_plain(title_of(sigma)))
            axis.set_ylabel(_plain(title_of(measure)))
            axis.legend(fontsize=7, loc="best", markerscale=1.5)
            axis.grid(alpha=0.3)
        return figure

    def _epochs(self) -> "Figure":
        epochs = sorted({row["epoch"] for row in self.rows})
        figure, axes = _grid(len(measures := self.headline_measures()), height=2.6)
        for axis, measure in zip(axes, measures, strict=True):
            for loss in self.losses:
                means = [
                    np.nanmean([r[measure] for r in self.rows if r["method"] == loss and r["epoch"] == epoch])
                    for epoch in epochs
                ]
                axis.plot(epochs, means, marker="o", markersize=3, color=self.colours[loss], label=_plain(loss))
            axis.set_title(_plain(title_of(measure)), fontsize=10)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
        return figure

    def _page(self, pictures: dict[str, bytes]) -> str:
        blocks = [
            _CAPTIONS[name].format(baseline=html.escape(self.baseline)) + _embed(name, pictures) for name in pictures
        ]
        configuration = "".join(
            f"<tr><td>{html.escape(option)}</td><td>{html.escape(value)}</td></tr>" for option, value in self._options()
        )
        headline = [m for m in self.summary if m in self.headline_measures()]
        rest = [m for m in self.summary if m not in headline]
        return _PAGE.format(
            title=html.escape(
                f"{' against '.join(self.losses[:2])}" if len(self.losses) == 2 else f"{len(self.losses)} losses"
            ),
            about=html.escape(
                f"{', '.join(self.losses)}; {self._count()}, paired. "
                f"scor_lightning {self.manifest['version']}, torch {self.manifest['torch']}, {date.today()}."
            ),
            verdicts="".join(f"<li>{line}</li>" for line in [*self._verdicts(), *map(html.escape, self._warnings())]),
            headline=self._html_table(headline),
            rest=self._html_table(rest),
            columns=_COLUMNS.format(baseline=html.escape(self.baseline)),
            pictures="".join(blocks),
            configuration=configuration,
            commands=html.escape(self._commands()),
        )

    def _options(self) -> list[tuple[str, str]]:
        """List the options of the baseline, and those in which the other methods differ."""
        if "identities" not in self.manifest:  # of version 0.1.0
            return list(self.manifest["configuration"].items())
        identities = self.manifest["identities"]
        shared = identities[self.baseline]
        lines = list(shared.items())
        for name in self.losses:
            options = identities[name]
            different = [
                option for option in dict.fromkeys([*shared, *options]) if options.get(option) != shared.get(option)
            ]
            lines += [(f"{name}: {option}", str(options.get(option))) for option in different]
        return lines

    def _commands(self) -> str:
        """Write the command that trains each method alone, and the seeds of the repeats."""
        if "options" not in self.manifest:
            return "The methods were built in Python."
        lines = []
        for name in self.losses:
            overlays = self.manifest["overlays"][name]
            words = [
                *self.manifest["options"],
                *training_options(overlays),
                "--data.seed",
                "SEED",
                "--seed_everything",
                "SEED",
            ]
            alone = next((row for row in self.rows if row["method"] == name), {})
            threads = f"OMP_NUM_THREADS={alone['threads']} " if alone.get("engine") == "sequential" else ""
            lines.append(f"{name}: {threads}{shlex.join(['scor-fit', *words])}")
        seeds = {row["repeat"]: row["seed"] for row in self.rows if "seed" in row}
        return "\n".join([*lines, "", "SEED of each repeat: " + ", ".join(f"{n}: {seed}" for n, seed in seeds.items())])

    def _verdicts(self) -> list[str]:
        lines = []
        for loss in self.losses:
            parts = []
            for measure in ("f1_macro", "f1_reduced"):
                d = self.summary.get(measure, {}).get(loss, {}).get("difference")
                if not d or d["low"] is None or d["p_corrected"] is None:
                    continue
                sure = d["p_corrected"] < 0.05
                word = ("higher" if d["mean"] > 0 else "lower") if sure else "not clearly different"
                parts.append(
                    f"{title_of(measure)} <b>{word}</b> ({d['mean']:+.4f}, {d['low']:+.4f} to {d['high']:+.4f}; higher in "
                    f"{d['higher_in']:.0%} of {d['n']} repeats)"
                )
            if parts:
                lines.append(f"<b>{html.escape(loss)}</b> against {html.escape(self.baseline)}: {'; '.join(parts)}.")
        return lines or ["Too few repeats to compare."]

    def _html_table(self, measures: list[str]) -> str:
        lines = []
        for measure in measures:
            lines.append(f'<tr class="measure"><th colspan="9">{html.escape(title_of(measure))}</th></tr>')
            for loss in self.losses:
                cells = self._cells(measure, loss)
                difference = self.summary[measure][loss].get("difference") or {}
                p = difference.get("p_corrected")
                marked = ' class="sure"' if p is not None and p < 0.05 else ""
                shown = "".join(f"<td>{html.escape(cell.strip())}</td>" for cell in cells)
                blank = "<td></td>" * (8 - len(cells))
                lines.append(f"<tr{marked}><td>{html.escape(loss)}</td>{shown}{blank}</tr>")
        return "".join(lines)


def write_report(path: str | os.PathLike[str], baseline: str | None = None) -> Report:
    """Write everything that can be said of a folder of results into it, and give it.

    Args:
        path: The folder that :func:`scor_lightning.comparison.compare` wrote.
        baseline: The loss that the others are compared with; None is the one the comparison named.

    Raises:
        ValueError: If the folder holds no finished training, or the baseline is none of its losses.
    """
    report = Report(path, baseline)
    report.write()
    return report


def _number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "-"
    digits = 4 if abs(value) < 10 else (2 if abs(value) < 1000 else 0)
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _interval(about: dict[str, Any], sign: bool = False) -> str:
    if about["low"] is None:
        return "-"
    return f"[{_number(about['low'], sign)}, {_number(about['high'], sign)}]"


def _grid(count: int, height: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    columns = min(count, 3 if count != 4 else 2)
    lines = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _plain(text: str) -> str:
    from scor_lightning.figures import plain  # with matplotlib

    return plain(text)


def _png(draw: Callable[[], "Figure"]) -> bytes:
    data = io.BytesIO()
    draw().savefig(data, format="png", dpi=130)
    return data.getvalue()


def _embed(name: str, pictures: dict[str, bytes]) -> str:
    return f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(pictures[name]).decode()}">'


_CAPTIONS = {
    "boxes": "<h2>All repeats</h2><p>Boxes span the middle half of the repeats, the line is the median, the diamond the "
    "mean.</p>",
    "differences": "<h2>Paired differences to {baseline}</h2><p>Mean over the repeats with its 95 % interval; "
    "right of the line the loss is above {baseline}.</p>",
    "spectrum": "<h2>Singular values of the weights</h2>",
    "sigma_min_against_f1": "<h2>Smallest singular value of the classifier against F1</h2><p>One point a network. The "
    "paper associates SCoR with smaller singular values; whether they go with a better F1 is what the rank correlation "
    "within each loss says.</p>",
    "epochs": "<h2>Over the epochs</h2><p>Means over the repeats.</p>",
}

_COLUMNS = """<thead><tr><th>loss</th><th>mean</th><th>standard<br>deviation</th><th>95 % interval<br>of the
mean</th><th>minus<br>{baseline}</th><th>95 % interval of<br>the difference</th><th>p,<br>corrected</th>
<th>effect<br>size</th><th>higher<br>in</th></tr></thead>"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>scor-compare: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }}
h1 {{ font-size: 1.6em; }} h2 {{ font-size: 1.25em; margin-top: 2em; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
.scroll {{ overflow-x: auto; }}
td, th {{ padding: .2em .8em; text-align: right; white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
thead th {{ border-bottom: 2px solid #888; vertical-align: bottom; }}
.measure th {{ text-align: left; padding-top: .8em; border-bottom: 1px solid #ccc; }}
.sure {{ background: #eef6ff; }}
img {{ max-width: 100%; }}
details td {{ white-space: normal; text-align: left; vertical-align: top; }}
.note {{ color: #555; }}
</style></head><body>
<h1>Comparison of {title}</h1>
<p>{about}</p>
<ul>{verdicts}</ul>
<div class="scroll"><table>{columns}<tbody>{headline}</tbody></table></div>
<p class="note">Within a repeat all losses have the same subset, split, initial weights and batches. Intervals of means by
Student's t, of paired differences by bootstrap (BCa; Student's t below ten repeats), p by Wilcoxon's signed ranks,
corrected by Holm's method over all losses and measures, apart for predictions and weights; shaded where below 0.05.
Effect size: mean over standard deviation of the differences. The repeats draw from one data set, so they speak about this
data set and procedure.</p>
{pictures}
<h2>All measures</h2>
<details><summary>Show the remaining measures</summary><div class="scroll"><table>{columns}<tbody>{rest}</tbody></table></div></details>
<h2>Configuration</h2>
<details><summary>Show what was compared</summary><table><tbody>{configuration}</tbody></table></details>
<details><summary>Show the commands that train one repeat of a method alone</summary><pre>
{commands}
</pre></details>
</body></html>
"""
