"""The figures of the page of evidence are those of the rows beside it."""

import csv
import gzip
import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy.stats import rankdata

from scor_lightning.comparison.results import ResultsFolder
from scor_lightning.comparison.statistics import Statistics
from tests.benchmarks.evidence import restore, write_rows

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = {
    "balanced accuracy": "balanced_accuracy",
    "accuracy": "accuracy",
    "macro F1": "f1_macro",
    "accuracy of the reduced class": "accuracy_reduced",
    "smallest singular value": "spectrum/head/sigma_min",
    "largest": "spectrum/head/sigma_max",
}


def table_after(name):
    """Return the header and the lines of the first table that follows a link to rows."""
    page = (DOCS / "evidence.md").read_text().split(f"evidence/{name}")[1]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    return lines[0], lines[2:]


def judged(rows, measures, baseline, ratio):
    """Return the statistics of rows of a file, where each repeat draws its test images."""
    records = [
        {"repeat": int(row["repeat"]), "method": row["method"], "epoch": 5, "reduced": json.loads(row["reduced"])}
        | {measure: float(row[measure]) for measure in measures}
        for row in rows
    ]
    methods = list(dict.fromkeys(record["method"] for record in records))
    return Statistics(records, methods, baseline, "accuracy", ratio=ratio)


def test_the_errors_on_cifar10_lt_are_those_of_the_rows():
    with (DOCS / "evidence" / "cifar10_lt.csv").open() as file:
        rows = list(csv.DictReader(file))
    _, table = table_after("cifar10_lt.csv")
    shown = {cells[0].strip("`"): cells[1:3] for cells in table[: len(rows)]}
    assert shown == {
        row["method"]: [f"{100 * (1 - float(row[column])):.2f}" for column in ("accuracy", "best_test_epoch")]
        for row in rows
    }


@pytest.mark.parametrize(("ratio", "repeats"), [(100, 200), (50, 200), (10, 50)])
def test_the_table_of_long_tailed_mnist_is_that_of_its_rows(ratio, repeats):
    name = f"mnist_long_tail_{ratio}.csv.gz"
    with gzip.open(DOCS / "evidence" / name, "rt") as file:
        rows = list(csv.DictReader(file))
    header, lines = table_after(name)
    methods = {row["method"] for row in rows}
    table = lines[: len(methods) // 2]

    def values(method, measure="balanced_accuracy"):
        found = [
            float(row[measure]) for row in sorted(rows, key=lambda row: int(row["repeat"])) if row["method"] == method
        ]
        assert len(found) == repeats
        return found

    covered = set()
    for cells in table:
        method = cells[0].strip("`")
        regularized = "scor" if method == "cross_entropy" else f"{method}+scor"
        covered |= {method, regularized}
        for title, cell in zip(header, cells, strict=True):
            if title in COLUMNS:
                assert cell == f"{mean(mine := values(method, COLUMNS[title])):.4f} ± {stdev(mine):.4f}"
            elif title == "with SCoR":
                assert cell == f"{mean(mine := values(regularized)):.4f} ± {stdev(mine):.4f}"
            elif title in ("difference", "effect of SCoR") and cell:
                first, second = (method, "cross_entropy") if title == "difference" else (regularized, method)
                shown = re.match(r"[+-]0\.\d{4}", cell)
                assert shown is not None
                assert float(shown[0]) == pytest.approx(mean(values(first)) - mean(values(second)), abs=6e-5)
    assert covered == methods


def test_the_mean_ranks_are_those_of_the_rows():
    means = []
    for ratio in (100, 50, 10):
        with gzip.open(DOCS / "evidence" / f"mnist_long_tail_{ratio}.csv.gz", "rt") as file:
            by_method: dict[str, list[float]] = {}
            for row in csv.DictReader(file):
                by_method.setdefault(row["method"], []).append(float(row["balanced_accuracy"]))
        means.append({method: mean(values) for method, values in by_method.items()})
    methods = list(means[0])
    ranks = [dict(zip(methods, rankdata([-of[method] for method in methods]), strict=True)) for of in means]
    page = (DOCS / "evidence.md").read_text().split("**Mean ranks over the three ratios**")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:3] == "| `"]
    shown = {cells[0].strip("`"): cells[1:] for cells in lines[: len(methods)]}
    assert shown == {
        method: [f"{mean(rank[method] for rank in ranks):.2f}", *(f"{of[method]:.4f}" for of in means)]
        for method in methods
    }


def test_the_claims_of_the_paper_are_judged_by_the_rows():
    measures = {"accuracy": "accuracy", "macro F1": "f1_macro", "smallest singular value": "spectrum/head/sigma_min"}
    known = {}
    for title, name in (("one class", "mnist_one_class"), ("nine classes", "mnist_nine_classes")):
        with gzip.open(DOCS / "evidence" / f"{name}.csv.gz", "rt") as file:
            known[title] = judged(csv.DictReader(file), measures.values(), "cross_entropy", ratio=0.25)

    def shown(interval):
        return "not defined" if interval is None else f"[{interval.low:+.4f}, {interval.high:+.4f}]"

    page = (DOCS / "evidence.md").read_text().split("| A - B |")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    for names, reduced, measure, *cells in lines:
        first, second = re.findall("`(.+?)`", names)
        found = known[reduced].difference(measures[measure], first, second)
        expected = [f"{found.mean:+.4f}", shown(found.redraws), shown(found.new_images), f"{found.better_in[0]:.3f}"]
        assert cells == expected
    assert len(lines) == 30


def test_the_tuned_settings_are_those_that_the_rows_select():
    with gzip.open(DOCS / "evidence" / "mnist_alpha_tuned.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    by_setting: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_setting.setdefault(row["method"], {})[row["repeat"]] = row
    chosen = {
        (method, repeat): max(settings, key=lambda setting: float(by_setting[setting][repeat]["val_balanced_accuracy"]))
        for method in ("cross_entropy", "scor")
        if (settings := [setting for setting in by_setting if setting.split(" [")[0] == method])
        for repeat in by_setting[settings[0]]
    }
    header, lines = table_after("mnist_alpha_tuned.csv.gz")
    for cells in lines[: 2 + len(by_setting)]:
        name = re.findall("`(.+?)`", cells[0])[0]
        mine = list(by_setting.get(name, {}).values())
        if cells[0].endswith("tuned"):
            mine = [by_setting[setting][repeat] for (method, repeat), setting in chosen.items() if method == name]
        else:
            assert int(cells[1]) == list(chosen.values()).count(name)
        assert len(mine) == 150
        for title, cell in zip(header, cells, strict=True):
            if title in COLUMNS:
                values = [float(row[COLUMNS[title]]) for row in mine]
                assert cell == f"{mean(values):.4f} ± {stdev(values):.4f}"
        ratios = [float(row[COLUMNS["largest"]]) / float(row[COLUMNS["smallest singular value"]]) for row in mine]
        assert cells[-1] == f"{mean(ratios):.4f}"

    def shown(difference):
        numbers = (difference.mean, difference.new_images.low, difference.new_images.high)
        return "{} [{}, {}]".format(*(f"{number:+.4f}".replace("0.", ".", 1) for number in numbers))

    page = " ".join(
        (DOCS / "evidence.md").read_text().split("## Alpha, with equal tuning")[1].split("\n## ")[0].split()
    )
    tuned = [by_setting[setting][repeat] | {"method": method} for (method, repeat), setting in chosen.items()]
    measures, ratio = ("balanced_accuracy", "accuracy", "f1_macro"), 0.277785  # of the comparison's summary.json
    found = judged(tuned, measures, "cross_entropy", ratio).differences
    for title, measure in (
        ("balanced accuracy", "balanced_accuracy"),
        ("accuracy", "accuracy"),
        ("macro F1", "f1_macro"),
    ):
        assert f"{title} {shown(found[measure]['scor'])}" in page
    found = judged(rows, measures, "cross_entropy [lr=0.001, weight_decay=0.0]", ratio).differences["accuracy"]
    assert f"{shown(found['scor [alpha=0.0001]'])} with SCoR" in page
    assert f"{shown(found['cross_entropy [lr=0.003, weight_decay=0.0]'])} with the learning rate .003" in page


@pytest.mark.parametrize("name", ["mnist_one_class", "mnist_nine_classes", "solar_cells"])
def test_each_cell_is_the_mean_of_its_rows(name):
    with gzip.open(DOCS / "evidence" / f"{name}.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    header, lines = table_after(f"{name}.csv.gz")
    table = lines[: len({row["method"] for row in rows})]
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


def test_a_comparison_continues_from_committed_rows(tmp_path, command):
    def compared(repeats, folder):
        line = f"scor-compare --config compare/digits.yaml --trainer.max_epochs 1 --repeats {repeats} --output {folder}"
        status, _, error = command(line)
        assert status == 0, error
        return ResultsFolder(folder)

    file = tmp_path / "rows.csv.gz"
    write_rows(file, whole := compared(2, "whole").rows())
    again = compared(1, "again")
    assert restore(file, again) == len(whole) // 2
    assert [(row["repeat"], row["method"], row["seed"]) for row in again.rows()] == [
        (row["repeat"], row["method"], row["seed"]) for row in whole
    ]
    assert len(compared(3, "again").rows()) == len(whole) // 2 * 3
    other = [row | {"seed": row["seed"] + 1} for row in whole]
    write_rows(file, other)
    with pytest.raises(ValueError, match=r"Expected seed = \d+ in repeat 0 of cross_entropy"):
        restore(file, again)
