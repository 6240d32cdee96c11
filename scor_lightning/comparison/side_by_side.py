"""The ranking of methods over several data sets, from finished comparisons."""

import base64
import json
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from scor_lightning.comparison import pictures
from scor_lightning.comparison.ranks import ENOUGH, rank
from scor_lightning.comparison.report import Report, render
from scor_lightning.comparison.statistics import LOWER_IS_BETTER
from scor_lightning.comparison.wording import number, title_of
from scor_lightning.files import printable, six_digits, write_whole


class SideBySide:
    """Comparisons of the same methods on several data sets.

    Args:
        paths: At least two folders written by :func:`scor_lightning.comparison.compare`.
        measure: The measure that is ranked; None uses that of the first comparison.

    Raises:
        ValueError: If a folder has other methods than the first one, or lacks a result of one of them.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], measure: str | None = None) -> None:
        reports = [Report(path, measure=measure) for path in paths]
        first = reports[0]
        self.measure = first.statistics.measure
        self.methods = first.methods
        for path, report in zip(paths, reports, strict=True):
            if set(report.methods) != set(self.methods):
                raise ValueError(
                    f"Expected the methods {', '.join(self.methods)} of {str(paths[0])!r} in {str(path)!r} but got "
                    f"{', '.join(report.methods)}"
                )
            if report.statistics.measure != self.measure:
                raise ValueError(
                    f"{str(path)!r} was compared by {report.statistics.measure} and {str(paths[0])!r} by {self.measure}; "
                    "name one by `--measure`"
                )
        self.data_sets = _names(paths)
        self.repeats = [len(report.statistics.repeats) for report in reports]
        self.means = [[report.statistics.means[self.measure][method] for method in self.methods] for report in reports]
        values = np.array([[np.nan if mean.mean is None else mean.mean for mean in row] for row in self.means])
        if not np.isfinite(values).all():
            d, m = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(
                f"Expected a finished training of {self.methods[m]!r} in {str(paths[d])!r} that did not diverge, but there is none"
            )
        self.ranking = rank(values, self.methods, self.measure in LOWER_IS_BETTER)

    def table(self) -> str:
        """Return the ranking for a terminal."""
        names = [printable(method) for method in self.methods]
        width = max(len("method"), *map(len, names))
        columns = [max(6, len(name)) for name in self.data_sets]
        heads = [name.rjust(w) for name, w in zip(self.data_sets, columns, strict=True)]
        lines = [*self._verdict(), "", f"{'method':<{width}}  mean rank  {'  '.join(heads)}"]
        for m in np.argsort(self.ranking.mean_ranks, kind="stable"):
            cells = [number(row[m].mean).rjust(w) for row, w in zip(self.means, columns, strict=True)]
            lines.append(f"{names[m]:<{width}}  {self.ranking.mean_ranks[m]:>9.2f}  {'  '.join(cells)}")
        return "\n".join(map(printable, [*lines, ""]))

    def write(self, output: str | os.PathLike[str]) -> None:
        """Write ``ranking.html``, ``ranking.json``, ``ranking.md``, ``ranking.tex`` and the diagram into a folder."""
        folder = Path(output)
        diagram = pictures.critical_difference_diagram(self.ranking) if self.ranking.critical_difference else None
        context = self._context(diagram)
        table = {
            "measures": ["mean rank", *self.data_sets],
            "rows": context["paper_rows"],
            "caption": context["verdict"][0],
        }
        files: dict[str, str | bytes] = {
            "ranking.html": render("ranking.html", context),
            "ranking.json": json.dumps(six_digits(self.summary()), indent=2),
            "ranking.md": render("table.md", table),
            "ranking.tex": render("table.tex", table),
        }
        if diagram:
            files["critical_difference.png"] = diagram
        if any((folder / name).exists() for name in files) and not _is_ranking(folder / "ranking.json"):
            raise ValueError(
                f"Expected `--output` to name a new folder, or that of a ranking, but {str(folder)!r} holds other files of these "
                "names; choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)

    def summary(self) -> dict[str, Any]:
        """Return all numbers, the content of ``ranking.json``."""
        return {
            "measure": self.measure,
            "methods": self.methods,
            "data_sets": dict(zip(self.data_sets, self.repeats, strict=True)),
            "means": {
                name: {method: mean.mean for method, mean in zip(self.methods, row, strict=True)}
                for name, row in zip(self.data_sets, self.means, strict=True)
            },
            "mean_ranks": dict(zip(self.methods, self.ranking.mean_ranks.tolist(), strict=True)),
            "friedman_p": self.ranking.friedman_p,
            "critical_difference": self.ranking.critical_difference,
            "groups": self.ranking.groups(),
            "wilcoxon": [[a, b, p] for (a, b), p in self.ranking.pairs.items()],
        }

    def _verdict(self) -> list[str]:
        ranking, name = self.ranking, title_of(self.measure)
        best = int(np.argmin(ranking.mean_ranks))
        count = f"{len(self.data_sets)} data sets"
        lines = [f"Best mean rank by {name} on {count}: {self.methods[best]} with {ranking.mean_ranks[best]:.2f}."]
        if ranking.critical_difference is None:
            return [*lines, f"Ranks are tested from {ENOUGH} data sets on."]
        if ranking.friedman_p is not None:
            alike = "differ" if ranking.friedman_p < 0.05 else "are not shown to differ"
            lines.append(f"Friedman's test: the methods {alike} (p = {ranking.friedman_p:.2g}).")
        return [*lines, f"Nemenyi's critical difference of mean ranks at 5%: {ranking.critical_difference:.2f}."]

    def _context(self, diagram: bytes | None) -> dict[str, Any]:
        order = np.argsort(self.ranking.mean_ranks, kind="stable")
        ranks = self.ranking.ranks
        paper_rows = [
            {
                "method": self.methods[m],
                "cells": [
                    {
                        "mean": f"{self.ranking.mean_ranks[m]:.2f}",
                        "sd": "",
                        "best": self.ranking.mean_ranks[m] == self.ranking.mean_ranks.min(),
                    },
                    *(
                        {"mean": number(row[m].mean), "sd": number(row[m].sd), "best": ranks[d, m] == ranks[d].min()}
                        for d, row in enumerate(self.means)
                    ),
                ],
            }
            for m in order
        ]
        pairs = sorted(self.ranking.pairs.items(), key=lambda pair: pair[1])
        return {
            "title": f"{len(self.methods)} methods on {len(self.data_sets)} data sets",
            "about": f"{', '.join(self.methods)}. {date.today()}.",
            "verdict": self._verdict(),
            "data_sets": [f"{name} ({n} repeats)" for name, n in zip(self.data_sets, self.repeats, strict=True)],
            "rows": [
                {
                    "method": self.methods[m],
                    "mean_rank": f"{self.ranking.mean_ranks[m]:.2f}",
                    "cells": [f"{number(row[m].mean)} ({ranks[d, m]:g})" for d, row in enumerate(self.means)],
                }
                for m in order
            ],
            "measure": title_of(self.measure),
            "diagram": base64.b64encode(diagram).decode() if diagram else "",
            "pairs": [{"first": a, "second": b, "p": "<0.0001" if p < 1e-4 else f"{p:.4f}"} for (a, b), p in pairs],
            "paper_rows": paper_rows,
        }


def _names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the names of the folders, or their paths if two have the same name."""
    names = [Path(path).resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(Path(path)) for name, path in zip(names, paths, strict=True)]


def _is_ranking(file: Path) -> bool:
    try:
        return bool({"measure", "mean_ranks"} <= json.loads(file.read_text()).keys())
    except (OSError, ValueError, AttributeError):
        return False
