"""The figures of the page of evidence are those of the rows beside it."""

import csv
import gzip
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = {
    "balanced accuracy": "balanced_accuracy",
    "accuracy": "accuracy",
    "macro F1": "f1_macro",
    "accuracy of the reduced class": "accuracy_reduced",
    "smallest singular value": "spectrum/head/sigma_min",
    "largest": "spectrum/head/sigma_max",
}


@pytest.mark.parametrize("name", ["mnist_one_class", "mnist_nine_classes", "solar_cells"])
def test_each_cell_is_the_mean_of_its_rows(name):
    with gzip.open(DOCS / "evidence" / f"{name}.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    page = (DOCS / "evidence.md").read_text().split(f"evidence/{name}.csv.gz")[1]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    header, table = lines[0], lines[2 : 2 + len({row["method"] for row in rows})]
    assert {cells[0].strip("`") for cells in table} == {row["method"] for row in rows}
    for cells in table:
        mine = [row for row in rows if row["method"] == cells[0].strip("`")]
        for title, cell in zip(header, cells, strict=True):
            if title in COLUMNS:
                values = [float(row[COLUMNS[title]]) for row in mine]
                assert cell == f"{mean(values):.4f} ± {stdev(values):.4f}"
            elif title == "condition number":
                ratios = [
                    float(row[COLUMNS["largest"]]) / float(row[COLUMNS["smallest singular value"]]) for row in mine
                ]
                assert cell == f"{mean(ratios):.4f}"
            elif title == "difference" and cell:
                first = [float(row["balanced_accuracy"]) for row in mine]
                base = [float(row["balanced_accuracy"]) for row in rows if row["method"] == "cross_entropy"]
                shown = re.match(r"[+-]0\.\d{4}", cell)
                assert shown is not None
                assert float(shown[0]) == pytest.approx(mean(first) - mean(base), abs=6e-5)
