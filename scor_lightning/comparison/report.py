"""The report of a comparison: a table, one HTML page with everything, tables for a paper, numbers for programs."""

import base64
import json
import os
import shlex
from datetime import date
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from scor_lightning.comparison import pictures
from scor_lightning.comparison.epochs import epoch_choices
from scor_lightning.comparison.intervals import Interval
from scor_lightning.comparison.methods import training_options
from scor_lightning.comparison.results import ResultsFolder, Row
from scor_lightning.comparison.statistics import (
    Difference,
    Mean,
    Statistics,
    diverged,
    final_rows,
    measured_often,
    measures_of,
)
from scor_lightning.comparison.tuning import Trials, Tuning, select
from scor_lightning.comparison.wording import bounds, coverage, number, short_verdict, title_of, verdict
from scor_lightning.files import csv_text, printable, six_digits, write_whole

_COLUMNS = ("repeat", "method", "epoch", "engine", "threads", "reduced", "train_images", "test_images")


class Report:
    """The report of a folder of results.

    Args:
        path: A folder written by :func:`scor_lightning.comparison.compare`.
        baseline: The method that the others are compared with; None uses that of the comparison.
        measure: The measure that determines the best method; None uses that of the comparison.
        margin: Differences up to this count as none; None uses that of the comparison.

    Raises:
        ValueError: If the folder has no finished training, or an argument does not fit it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        baseline: str | None = None,
        measure: str | None = None,
        margin: float | None = None,
    ) -> None:
        folder = ResultsFolder(path)
        self.path = folder.path
        self.manifest = folder.manifest()
        self.tried: Trials | None = self.manifest.get("tuned")
        methods: list[str] = list(self.tried or self.manifest["methods"])
        baseline = baseline or self.manifest["baseline"]
        if baseline not in methods:
            raise ValueError(f"Expected `--baseline` to be one of {', '.join(methods)} but got {baseline!r}")
        rows, trained = folder.rows(), self.manifest["methods"]
        self.trained = self.rows = [row for row in rows if row["method"] in trained]
        self.left_out = sorted({row["method"] for row in rows} - set(trained))
        predictions = folder.predictions()
        measure = measure or self.manifest.get("measure", "balanced_accuracy")
        self.tunings: dict[str, Tuning] = {}
        if self.tried:
            self.rows, predictions, self.tunings = select(self.rows, predictions, self.tried, measure)
        if not self.rows:
            raise ValueError(f"Expected a finished training in {str(path)!r} but there is none yet")
        self.statistics = Statistics(
            self.rows,
            methods,
            baseline,
            measure,
            self.manifest.get("margin") if margin is None else margin,
            predictions,
            self.manifest.get("resampling_ratio"),
            self.manifest.get("class_names"),
        )
        self.diverged = diverged(self.rows)
        self.choices = epoch_choices(self.rows, methods, measure) if measured_often(self.rows) else {}

    @property
    def methods(self) -> list[str]:
        """The methods in the report."""
        return self.statistics.methods

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return self.statistics.baseline

    def table(self) -> str:
        """Return the verdict and the headline measures for a terminal."""
        width = max(len("method"), *(len(printable(method)) for method in self.methods))
        heads = ("mean", "sd", "difference", "new images", "redraws", "better in", "p", "verdict")
        widths = (7, 7, 10, 19, 19, 9, 8, 0)
        lines = [*verdict(self.statistics), coverage(self.statistics), *self._warnings(), "", self._explanation()]
        for measure in self.statistics.headline():
            cells = "  ".join(head.rjust(w) for head, w in zip(heads, widths, strict=True))
            lines += ["", title_of(measure), f"  {'method':<{width}}  {cells}".rstrip()]
            for method in self.methods:
                difference = self.statistics.differences[measure].get(method)
                found = [*self._cells(measure, method), short_verdict(difference) if difference else "baseline"]
                cells = "  ".join(cell.rjust(w) for cell, w in zip(found, widths, strict=True))
                lines.append(f"  {printable(method):<{width}}  {cells}".rstrip())
        return "\n".join(printable(line) for line in [*lines, ""])

    def write(self) -> None:
        """Write the report into the folder.

        ``report.html``, ``results.csv``, ``summary.json``, ``table.md``, ``table.tex``, ``pictures/*.png``, and
        ``epochs.csv`` if every epoch was measured.
        """
        drawn = pictures.draw(self.statistics, self.rows)
        files: dict[str, str | bytes] = {"results.csv": self._csv(final_rows(self.trained))}
        if self.choices:
            files["epochs.csv"] = self._csv(self.trained)
        files["summary.json"] = json.dumps(six_digits(self.summary()), indent=2)
        files |= {name: render(name, self._paper_table()) for name in ("table.md", "table.tex")}
        files |= {f"pictures/{picture.name}.png": picture.png for picture in drawn if picture.png}
        files["report.html"] = render("report.html", self._page(drawn))
        (self.path / "pictures").mkdir(exist_ok=True)
        for name, content in files.items():
            write_whole(self.path / name, content)

    def summary(self) -> dict[str, Any]:
        """Return all numbers of the report, the content of ``summary.json``."""
        statistics = self.statistics
        measures = {
            measure: {
                method: vars(mean)
                | (
                    {"difference": statistics.differences[measure][method].to_dict()}
                    if method in statistics.differences.get(measure, {})
                    else {}
                )
                for method, mean in means.items()
            }
            for measure, means in statistics.means.items()
        }
        return self.manifest | {
            "baseline": self.baseline,
            "repeats": len(statistics.repeats),
            "diverged": self.diverged,
            "measure": statistics.measure,
            "confidence": statistics.confidence,
            "best": statistics.best,
            "runner_up": statistics.runner_up,
            "lead": None if statistics.lead is None else statistics.lead.to_dict(),
            "verdict": verdict(statistics),
            "coverage": coverage(statistics),
            "measures": measures,
            "recalls": self._recalls(),
            "epochs": {
                method: {
                    "last": vars(choice.last),
                    "validation": vars(choice.validation) if choice.validation else None,
                    "test": vars(choice.test),
                    "gain_from_test_selection": _ends(choice.gain),
                }
                for method, choice in self.choices.items()
            },
            "tuning": {
                method: {"selected": tuning.selected, "gain": _ends(tuning.gain)}
                for method, tuning in self.tunings.items()
            },
        }

    def _recalls(self) -> dict[str, dict[str, Any]]:
        """Return by class and method the mean recall on a fixed test set and the interval of its difference."""
        found = {method: self.statistics.images.recalls(method) for method in self.methods}
        names = self.manifest.get("class_names", ())
        summary: dict[str, dict[str, Any]] = {}
        for c, name in enumerate(names):
            summary[name] = {}
            for method, recalls in found.items():
                if recalls is None or not np.isfinite(recalls[c]):
                    continue
                interval = None if method == self.baseline else self.statistics.recall_difference(c, method)
                summary[name][method] = {"mean": float(recalls[c])}
                if interval is not None:
                    summary[name][method]["difference"] = [interval.mean, interval.low, interval.high]
        return {name: by_method for name, by_method in summary.items() if by_method}

    def _count(self) -> str:
        n = len(self.statistics.repeats)
        return f"{n} repeat{'' if n == 1 else 's'}"

    def _warnings(self) -> list[str]:
        frozen = [method for method in self.methods if method in self.manifest.get("frozen_body", ())]
        which = "Compares" if len(frozen) == len(self.methods) else f"Of {', '.join(frozen)} compares"
        note = f"{which} heads on a fixed body; to compare full fine-tuning: `--model.frozen_body false --data.augment true`."
        constant = {method: self._constant(method) for method in self.methods}
        named = ", ".join(f"{method} ({count} of {self._count()})" for method, count in constant.items() if count)
        recorded, most = self.statistics.recorded, max(self.statistics.recorded.values())
        unfinished = ", ".join(f"{each} ({recorded[each]} of {most})" for each in self.methods if recorded[each] < most)
        return [
            *([f"Unfinished, and not ranked: {unfinished} repeats."] if unfinished else []),
            *(
                [f"The folder has results of other methods: {', '.join(self.left_out)}; `--methods` reports them too."]
                if self.left_out
                else []
            ),
            *([note] if frozen else []),
            *(f"{each}." for each in self.manifest.get("notes", ())),
            *([f"Predicted the same class for every test image: {named}."] if named else []),
            *(
                f"{method} diverged in {count} of {self._count()}; its means exclude them."
                for method, count in self.diverged.items()
            ),
        ]

    def _constant(self, method: str) -> int:
        """Return the number of repeats in which a method predicted the same class for every test image."""
        converged = {
            row["repeat"] for row in final_rows(self.rows) if row["method"] == method and not row.get("diverged")
        }
        return len(converged & self.statistics.images.constant(method))

    def _explanation(self) -> str:
        comparisons = len(self.methods) - 1
        shared = "" if comparisons == 1 else f" (Bonferroni: 95% jointly over {comparisons} comparisons)"
        return (
            f"{self._count()}, paired{self._test_images()}. Intervals of differences to {self.baseline} at "
            f"{100 * self.statistics.confidence:.4g}%{shared}; the one for new images decides where it is defined, the one "
            "over redraws otherwise. 'Better in' is the fraction of repeats won (meaningful from 0.75 on, Bouthillier et al. 2021); p is Wilcoxon's, corrected by "
            "Holm over these measures and methods. Neither decides."
        )

    def _test_images(self) -> str:
        """Return which test images the repeats have, as the end of a phrase; empty for results of version 0.1.0."""
        if "test_images" not in self.rows[0]:
            return ""
        if self.manifest.get("resampling_ratio") is not None:
            return ", each on test images of its own"
        return f", on the same {self.rows[0]['test_images']:,} test images"

    def _cells(self, measure: str, method: str, intervals: bool = False) -> list[str]:
        """Return the cells of a row; with ``intervals`` also that of P(A > B), which does not fit a terminal."""
        mean = self.statistics.means[measure][method]
        cells = [number(mean.mean), number(mean.sd)]
        difference = self.statistics.differences.get(measure, {}).get(method)
        if difference is None:
            return [*cells, "", "", "", "", ""]
        p = difference.p_corrected
        return [
            *cells,
            number(difference.mean, sign=True),
            bounds(difference, "new_images"),
            bounds(difference, "redraws"),
            _fraction(difference.better_in, intervals),
            "-" if p is None else ("<0.0001" if p < 1e-4 else f"{p:.4f}"),
        ]

    def _csv(self, rows: list[Row]) -> str:
        measures = [name for name in measures_of(rows) if name != "train_seconds"]
        lines: list[list[Any]] = [[*_COLUMNS, *measures, "diverged", "seed", "train_seconds"]]
        for row in rows:
            values = {**row, "reduced": json.dumps(row["reduced"], ensure_ascii=False)}
            lines.append([values.get(name, "") for name in lines[0]])
        return csv_text(lines)

    def _paper_table(self) -> dict[str, Any]:
        measures = self.statistics.headline()
        means = {measure: self.statistics.means[measure] for measure in measures}
        best = {measure: self._best(measure) for measure in measures}
        rows = [
            {
                "method": method,
                "cells": [
                    {"mean": number(of[method].mean), "sd": _or_nothing(of[method]), "best": method == best[measure]}
                    for measure, of in means.items()
                ],
            }
            for method in self.methods
        ]
        caption = f"Mean ± standard deviation over {self._count()}. {' '.join(verdict(self.statistics)[:1])}"
        return {"measures": [title_of(measure) for measure in measures], "rows": rows, "caption": caption}

    def _best(self, measure: str) -> str | None:
        if measure.startswith("spectrum/"):  # neither high nor low is better
            return None
        means = {m: mean.mean for m, mean in self.statistics.means[measure].items() if mean.mean is not None}
        return max(means, key=lambda method: means[method], default=None)

    def _page(self, drawn: "list[pictures.Picture]") -> dict[str, Any]:
        methods = self.methods
        headline = self.statistics.headline()
        rest = [measure for measure in self.statistics.means if measure not in headline]
        versions = f"scor_lightning {self.manifest['version']}, torch {self.manifest['torch']}, {date.today()}"
        return {
            "title": " against ".join(methods) if len(methods) == 2 else f"Comparison of {len(methods)} methods",
            "about": f"{', '.join(methods)}; {self._count()}, paired. {versions}.",
            "verdict": verdict(self.statistics),
            "coverage": coverage(self.statistics),
            "warnings": self._warnings(),
            "explanation": self._explanation(),
            "baseline": self.baseline,
            "headline": [self._block(measure) for measure in headline],
            "rest": [self._block(measure) for measure in rest],
            "pictures": [
                {
                    "title": picture.title,
                    "caption": picture.caption,
                    "data": base64.b64encode(picture.png).decode() if picture.png else "",
                }
                for picture in drawn
            ],
            "choices": self._choices(),
            "tuning": self._tuning(),
            "cost": self._cost(),
            "changes": self._changes(),
            "baseline_options": self._options(self.baseline).items(),
            **self._commands(),
        }

    def _block(self, measure: str) -> dict[str, Any]:
        rows = []
        for method in self.methods:
            difference: Difference | None = self.statistics.differences.get(measure, {}).get(method)
            rows.append(
                {
                    "method": method,
                    "cells": self._cells(measure, method, intervals=True),
                    "verdict": short_verdict(difference) if difference else "",
                    "verdict_class": difference.verdict if difference else "",
                }
            )
        return {"title": title_of(measure), "rows": rows}

    def _choices(self) -> dict[str, Any] | None:
        if not self.choices:
            return None
        name = title_of(self.statistics.measure)
        rows = [
            [
                method,
                number(choice.last.mean),
                number(choice.validation.mean if choice.validation else None),
                number(choice.test.mean),
                _with_interval(choice.gain),
            ]
            for method, choice in self.choices.items()
        ]
        return {
            "caption": f"Mean {name} at the last epoch, which all other tables show; at the epoch of the best balanced "
            f"accuracy on the validation set; and at the epoch of the best {name} on the test set itself, which is what most "
            "papers in the field report. The gain from selection on the test set is the third minus the first, with its 95% "
            "interval over redraws.",
            "columns": ["last epoch", "best by validation", "best on the test set", "gain from test selection"],
            "rows": rows,
        }

    def _tuning(self) -> dict[str, Any] | None:
        if not self.tunings:
            return None
        rows = []
        for method, tuning in self.tunings.items():
            total = sum(tuning.selected.values())
            for i, (setting, count) in enumerate(tuning.selected.items()):
                share = f"{count} of {total}"
                gain = "" if i else _with_interval(tuning.gain)
                rows.append({"method": "" if i else method, "setting": setting or "-", "share": share, "gain": gain})
        return {
            "caption": "Each repeat selected the setting with the best balanced accuracy on its validation set. All tables "
            f"show the selected settings. Gain: {title_of(self.statistics.measure)} of the selected setting minus the mean of "
            "all settings, with its 95% interval over redraws.",
            "rows": rows,
        }

    def _cost(self) -> list[dict[str, str]]:
        means = self.statistics.means.get("train_seconds")
        if means is None:  # results of version 0.1.0
            return []
        reference = means[self.baseline].mean
        engines = {row["method"]: row.get("engine", "-") for row in self.statistics.rows}
        return [
            {
                "method": method,
                "engine": engines.get(method, "-"),
                "seconds": number(means[method].mean),
                "relative": f"{seconds / reference:.2f}" if (seconds := means[method].mean) and reference else "-",
            }
            for method in self.methods
        ]

    def _options(self, method: str) -> dict[str, str]:
        """Return the options of a method; of a tuned one with all values that it tries."""
        identities, otherwise = self.manifest.get("identities", {}), self.manifest.get("configuration", {})
        trials = [identities.get(trial, otherwise) for trial in self._trials(method)]
        options = dict.fromkeys(option for trial in trials for option in trial)
        values = {option: dict.fromkeys(str(trial.get(option, "-")) for trial in trials) for option in options}
        return {option: f"{'one of ' if len(of) > 1 else ''}{', '.join(of)}" for option, of in values.items()}

    def _trials(self, method: str) -> list[str]:
        return list(self.tried[method]) if self.tried else [method]

    def _changes(self) -> list[dict[str, Any]]:
        shared = self._options(self.baseline)
        changes = []
        for method in self.methods:
            options = self._options(method)
            names = [o for o in dict.fromkeys([*shared, *options]) if options.get(o) != shared.get(o)]
            first, *others = [self.manifest.get("overlays", {}).get(trial, []) for trial in self._trials(method)]
            given = [each for each in first if all(each in other for other in others)]
            overlays = [each if isinstance(each, str) else json.dumps(each) for each in given]
            lines = [" + ".join(overlays)] if overlays else []
            lines += [f"{option}: {options.get(option, '-')}" for option in names]
            changes.append({"method": method, "lines": lines or ["-"]})
        return changes

    def _commands(self) -> dict[str, Any]:
        """Return the command that trains each method alone, and the seeds of the repeats."""
        if "options" not in self.manifest:
            return {"reproduce": "The methods were built in Python.", "commands": [], "seeds": ""}
        lines = []
        for method in self.manifest["methods"]:
            overlays = training_options(self.manifest["overlays"][method])
            words = [*self.manifest["options"], *overlays, "--data.seed", "SEED", "--seed_everything", "SEED"]
            one: Row = next((row for row in self.trained if row["method"] == method), {})
            threads = f"OMP_NUM_THREADS={one['threads']} " if one.get("engine") == "sequential" else ""
            lines.append(f"{method}: {threads}{shlex.join(['scor-fit', *words])}")
        seeds = {row["repeat"]: row["seed"] for row in self.trained if "seed" in row}
        return {
            "reproduce": "Each command trains one repeat of a method; replace SEED with the repeat's seed. Run it in the working "
            "directory of the comparison, with the same PYTHONPATH. Rows are those of the last epoch, last.ckpt; scor-fit tests "
            "the best one, and counts epochs from 0.",
            "commands": lines,
            "seeds": ", ".join(f"{repeat}: {seed}" for repeat, seed in seeds.items()),
        }


def write_report(
    path: str | os.PathLike[str],
    baseline: str | None = None,
    measure: str | None = None,
    margin: float | None = None,
) -> Report:
    """Write the report of a folder of results into it, and return it; arguments as of :class:`Report`."""
    report = Report(path, baseline, measure, margin)
    report.write()
    return report


def render(template: str, context: dict[str, Any]) -> str:
    """Render a template; names are escaped."""
    return _environment().get_template(template).render(context)


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.mean, interval.low, interval.high]


def _with_interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{number(interval.mean, True)} [{number(interval.low, True)}, {number(interval.high, True)}]"


def _fraction(found: tuple[float, float, float] | None, with_interval: bool) -> str:
    if found is None:
        return "-"
    return f"{found[0]:.2f}" + (f" [{found[1]:.2f}, {found[2]:.2f}]" if with_interval else "")


def _or_nothing(mean: Mean) -> str:
    return "" if mean.sd is None else number(mean.sd)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("scor_lightning.comparison"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not markup
    )
    environment.filters |= {"md": _markdown, "tex": _latex, "comment": lambda text: " ".join(printable(text).split())}
    return environment


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|~$!"} | {"&": "&amp;"})
_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
    }
)


def _markdown(text: str) -> str:
    r"""Escape a text for Markdown.

    Example:
        >>> print(_markdown("a|b_c"))
        a\|b\_c
    """
    return printable(text).translate(_MARKDOWN)


def _latex(text: str) -> str:
    r"""Escape a text for LaTeX.

    Example:
        >>> print(_latex("50 % of $x_1$"))
        50 \% of \$x\_1\$
    """
    return printable(text).translate(_LATEX)
