"""Continue the comparisons of the page *Evidence* from their committed rows, over several sessions and machines.

    scor-compare --config compare/mnist_one_class.yaml --repeats 2 --output one_class  # a new folder
    python -m tests.benchmarks.evidence restore docs/evidence/mnist_one_class.csv.gz one_class
    scor-compare --config compare/mnist_one_class.yaml --output one_class  # trains what is missing
    python -m tests.benchmarks.evidence collect one_class docs/evidence/mnist_one_class.csv.gz
    python -m tests.benchmarks.evidence table docs/evidence/mnist_one_class.csv.gz --ratio 0.25
    python -m tests.benchmarks.evidence pairs docs/evidence/mnist_one_class.csv.gz --ratio 0.25

A repeat is a function of its number, so rows of several runs form one comparison. ``restore`` checks it on the repeats that both have:
seed, reduced classes and numbers of images must be equal, and accuracies within `TOLERANCE`. They are not exactly equal, because the
rounding of float32 depends on the size of a stack, increasingly so with longer trainings and larger learning rates. ``table`` and
``pairs`` print the tables of the page for comparisons in which each repeat draws its test images, from rows alone; ``--ratio`` is
``resampling_ratio`` of their summary.json.
"""

import argparse
import csv
import gzip
import io
import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev

from scor_lightning.comparison.results import ResultsFolder, Row
from scor_lightning.comparison.statistics import Statistics
from scor_lightning.comparison.wording import bounds, number, short_verdict
from scor_lightning.files import write_whole

TOLERANCE = 0.02  # three times the largest difference seen, at a learning rate of .01
TEXT = ("method", "engine")
OF_THE_DATA = ("seed", "reduced", "train_images", "test_images", "epoch")


def read_rows(path: Path) -> list[Row]:
    """Read a compressed CSV file of rows."""
    with gzip.open(path, "rt", newline="") as file:
        return [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows to a compressed CSV file, without spectra; equal rows give equal files."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if not name.endswith("/values")]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(v) if isinstance(v := row.get(name), list) else v for name in names})
    write_whole(path, gzip.compress(text.getvalue().encode(), mtime=0))


def complete(rows: list[Row]) -> list[Row]:
    """Return the rows of the repeats in which every method is trained."""
    found: dict[int, set[str]] = {}
    for row in rows:
        found.setdefault(row["repeat"], set()).add(row["method"])
    methods = set().union(*found.values())
    return [row for row in rows if found[row["repeat"]] == methods]


def restore(path: Path, folder: ResultsFolder) -> int:
    """Add rows of a file to a folder that has at least one of its repeats; return their number.

    Raises:
        ValueError: If the folder has none of the repeats, or other results for one.
    """
    found = {(row["repeat"], row["method"]): row for row in folder.rows()}
    rows = read_rows(path)
    shared = [(row, found[key]) for row in rows if (key := (row["repeat"], row["method"])) in found]
    if not shared:
        raise ValueError(f"Expected {folder.path} to have a repeat of {path}, to check that its results agree")
    for old, new in shared:
        differing = [name for name in OF_THE_DATA if old[name] != new[name]]
        if not math.isclose(old["accuracy"], new["accuracy"], abs_tol=TOLERANCE):
            differing.append("accuracy")
        for name in differing:
            where = f"repeat {old['repeat']} of {old['method']}"
            raise ValueError(f"Expected {name} = {old[name]} in {where}, as in {path}, but got {new[name]}")
    missing = [row for row in rows if (row["repeat"], row["method"]) not in found]
    if missing:
        folder.add(missing)
    return len(missing)


SMALLEST, LARGEST = "spectrum/head/sigma_min", "spectrum/head/sigma_max"
CLAIMED = {"accuracy": "accuracy", "macro F1": "f1_macro", "smallest singular value": SMALLEST}
PAIRS = (
    ("scor", "cross_entropy"),
    ("scor", "label_smoothing"),
    ("scor", "focal"),
    ("scor_label_smoothing", "scor"),
    ("scor_label_smoothing", "label_smoothing"),
)


def judged(rows: list[Row], ratio: float) -> Statistics:
    """Return the statistics of rows, relative to the first method; of a tuned one, its first setting."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return Statistics(rows, methods, methods[0], ratio=ratio)


def table(rows: list[Row], ratio: float) -> list[str]:
    """Return the table of means, deviations and differences in balanced accuracy."""
    known = judged(rows, ratio)
    columns = ("balanced_accuracy", "accuracy", "f1_macro", "accuracy_reduced", SMALLEST, LARGEST)
    lines = []
    for method in known.methods:
        mine = [row for row in rows if row["method"] == method]
        cells = [f"{mean(values := [row[name] for row in mine]):.4f} ± {stdev(values):.4f}" for name in columns]
        found = known.differences["balanced_accuracy"].get(method)
        compared = f"{number(found.mean, True)} {bounds(found)}, {short_verdict(found)}" if found else ""
        condition = mean(row[LARGEST] / row[SMALLEST] for row in mine)
        lines.append(" | ".join([f"| `{method}`", cells[0], compared, *cells[1:], f"{condition:.4f} |"]))
    return lines


def pairs(rows: list[Row], ratio: float) -> list[str]:
    """Return the differences that the claims of the paper are about."""
    known = judged(rows, ratio)
    lines = []
    for first, second in PAIRS:
        for title, measure in CLAIMED.items():
            found = known.difference(measure, first, second)
            if found.better_in is not None:
                redraws, images = (bounds(found, which) for which in ("redraws", "new_images"))
                cells = [number(found.mean, True), redraws, "not defined" if images == "-" else images]
                lines.append(" | ".join([f"| `{first}` - `{second}`", title, *cells, f"{found.better_in[0]:.3f} |"]))
    return lines


def _value(name: str, text: str) -> str | float | bool | list[str]:
    if name in TEXT:
        return text
    if name == "diverged":
        return text == "True"
    if name == "reduced":
        names: list[str] = json.loads(text)
        return names
    if text == "":
        return math.nan
    return int(text) if text.isdigit() else float(text)


def main() -> None:
    """Restore or collect rows, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("restore", help="add committed rows to the folder of a comparison")
    one.add_argument("rows", type=Path)
    one.add_argument("folder", type=Path)
    other = actions.add_parser("collect", help="write the complete repeats of a comparison to a file")
    other.add_argument("folder", type=Path)
    other.add_argument("rows", type=Path)
    for action, help in (("table", "print the table of methods"), ("pairs", "print the differences of the claims")):
        printed = actions.add_parser(action, help=help)
        printed.add_argument("rows", type=Path)
        printed.add_argument("--ratio", type=float, required=True, help="test images per training image of the pool")
    given = parser.parse_args()
    if given.action in ("table", "pairs"):
        print(*{"table": table, "pairs": pairs}[given.action](read_rows(given.rows), given.ratio), sep="\n")
        return
    folder = ResultsFolder(given.folder)
    try:
        if given.action == "restore":
            print(f"{restore(given.rows, folder)} rows added to {given.folder}")
        else:
            write_rows(given.rows, rows := complete(folder.rows()))
            print(f"{len(rows)} rows of {len({row['repeat'] for row in rows})} repeats in {given.rows}")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
