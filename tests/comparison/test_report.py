"""The report of a comparison: its page, its tables, and the choices that it shows."""

import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from scor_lightning.comparison.epochs import epoch_choices
from scor_lightning.comparison.predictions import HeldOut, Predictions
from scor_lightning.comparison.report import Report, write_report
from scor_lightning.comparison.results import ResultsFolder
from scor_lightning.comparison.tuning import select, trials

NAMES = [
    "<script>alert(1)</script>",
    "=1+1",
    "a_b & 50% $x^2$ #{}~\\",
    "bell\x07 \x1b[31mred",
    "|pipe|*bold*",
    "_hidden",
]


def write_results(
    folder, methods, repeats, classes=3, images=60, about=None, epochs=(5,), seed=0, constant=(), diverged=()
):
    """Write results as a comparison does, with predictions of one test set."""
    generator = np.random.default_rng(seed)
    target = np.arange(images) % classes
    counts = np.geomspace(500, 5, classes).astype(int)
    kept = HeldOut(target, None, counts)
    names = [f"class {c}" for c in range(classes)]
    results = ResultsFolder(folder)
    results.begin(
        {method: {"model.loss": f"Loss({i})", "trainer.max_epochs": "5"} for i, method in enumerate(methods)},
        {"baseline": methods[0], "version": "0.2.0", "torch": "2", "class_names": names, "resampling_ratio": None}
        | (about or {}),
    )
    rows = []
    for r in range(repeats):
        level = generator.normal(0.7, 0.02)
        for i, method in enumerate(methods):
            for epoch in epochs:
                chance = level + 0.02 * i + 0.002 * epoch - 0.1 * np.arange(classes)[target] / classes
                guess = np.where(generator.random(images) < chance, target, generator.integers(0, classes, images))
                guess = np.zeros_like(guess) if method in constant else guess
                recalls = np.array([(guess[target == c] == c).mean() for c in range(classes)])
                row = {"repeat": r, "method": method, "epoch": epoch, "engine": "stacked", "threads": 1}
                row |= {"reduced": [names[-1]], "train_images": 999, "test_images": images, "seed": r}
                row |= {"accuracy": (guess == target).mean(), "balanced_accuracy": recalls.mean()}
                row |= {"worst_class_recall": recalls.min(), "f1_macro": recalls.mean() - 0.01}
                row |= {"accuracy_reduced": recalls[-1], "cross_entropy": 0.5 + generator.normal(0, 0.01)}
                row |= {"spectrum/head/sigma_min": 1.0 + generator.normal(0, 0.1) - 0.1 * i}
                row |= {"spectrum/head/sigma_max": 3.0, "spectrum/head/rank": 3.0}
                row |= {"val_balanced_accuracy": float(recalls.mean() + generator.normal(0, 0.05))}
                row |= {"diverged": method in diverged, "train_seconds": 1.0 + i}
                rows.append(row)
            rows[-1]["predictions"] = Predictions(
                guess.astype(np.uint8), np.log(generator.uniform(0.2, 1, images)).astype(np.float16), kept
            )
    results.add(rows)
    return results


class Text(HTMLParser):
    """Collects the text and the tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_names_are_shown_as_text_everywhere(tmp_path):
    write_results(tmp_path, NAMES, repeats=7, about={"options": [], "overlays": {name: [] for name in NAMES}})
    report = write_report(tmp_path)
    page = Text((tmp_path / "report.html").read_text())
    assert not [tag for tag, _ in page.tags if tag == "script"]
    text = "".join(page.text)
    for name in NAMES[:3]:
        assert name in text
    for path in ("report.html", "table.md", "table.tex", "results.csv"):
        assert not {"\x07", "\x1b"} & set((tmp_path / path).read_text())
    assert r"bell\x07 \x1b[31mred" in text
    assert "\x1b" not in report.table()
    with (tmp_path / "results.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)][1] == "'=1+1"
    tex = (tmp_path / "table.tex").read_text()
    assert r"a\_b \& 50\% \$x\textasciicircum{}2\$ \#\{\}\textasciitilde{}\textbackslash{}" in tex
    assert r"\textless{}script\textgreater{}" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + len(NAMES)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(report.statistics.headline())}
    markdown = (tmp_path / "table.md").read_text().splitlines()[: 2 + len(NAMES)]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in markdown} == {2 + len(report.statistics.headline())}


def test_the_page_is_self_contained_and_shows_what_the_repeats_support(tmp_path):
    for repeats, pictures, omitted in ((1, 1, 3), (2, 2, 3), (6, 4, 1), (20, 5, 0)):
        folder = tmp_path / str(repeats)
        write_results(folder, ["ce", "scor"], repeats)
        write_report(folder)
        page = (folder / "report.html").read_text()
        sources = [attrs for tag, attrs in Text(page).tags if "src" in attrs or "href" in attrs]
        assert len(sources) == pictures
        assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in sources)
        assert page.count("Omitted: it requires at least") == omitted
        assert len(list((folder / "pictures").iterdir())) == pictures


def test_notes_and_constant_predictions_appear_in_the_report(tmp_path):
    note = "Classes with few test images: c (2); their recall is uncertain"
    methods = ["ce", "scor", "focal", "ldam"]
    about = {"notes": [note]}
    write_results(tmp_path, methods, 3, about=about, constant=("ce", "focal", "ldam"), diverged=("ldam",))
    report = write_report(tmp_path)
    page = html.unescape((tmp_path / "report.html").read_text())
    same = "Predicted the same class for every test image: ce (3 of 3 repeats), focal (3 of 3 repeats)."
    for line in (f"{note}.", same):
        assert line in report.table()
        assert line in page


def test_unfinished_and_other_methods_are_named(tmp_path):
    results = write_results(tmp_path, ["ce", "scor", "focal", "ldam"], 6)
    extra = [row | {"repeat": 6} for row in results.rows() if row["repeat"] == 0 and row["method"] != "scor"]
    results.add(extra)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"methods": ["ce", "scor", "focal"]}))
    report = write_report(tmp_path)
    assert "Unfinished, and not ranked: scor (6 of 7) repeats." in report.table()
    assert "The folder has results of other methods: ldam; `--methods` reports them too." in report.table()
    assert "ldam" not in (tmp_path / "results.csv").read_text()
    assert report.statistics.best in ("ce", "focal")


def test_the_verdict_is_the_same_everywhere(tmp_path):
    write_results(tmp_path, ["ce", "scor", "focal"], 12, images=600)
    report = write_report(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    page = html.unescape((tmp_path / "report.html").read_text())
    first = summary["verdict"][0]
    assert first.startswith(f"Best balanced accuracy: {summary['best']} with ")
    assert "Against the baseline ce: " in first
    assert first in report.table()
    assert first in page
    for line in [*summary["verdict"], summary["coverage"]]:
        assert line in page
        assert line in report.table()
    assert summary["coverage"].startswith("The intervals cover new test images")
    found = summary["measures"]["balanced_accuracy"]["focal"]["difference"]
    assert found["new_images"]["kind"] == "crossed"
    assert found["redraws"]["low"] < found["mean"] < found["redraws"]["high"]
    assert set(summary["recalls"]) == {"class 0", "class 1", "class 2"}
    assert summary["recalls"]["class 0"]["focal"]["difference"][0] == pytest.approx(
        summary["recalls"]["class 0"]["focal"]["mean"] - summary["recalls"]["class 0"]["ce"]["mean"], abs=2e-6
    )


def test_the_choice_of_the_epoch_is_shown(tmp_path):
    write_results(tmp_path, ["ce", "scor"], 5, epochs=(1, 2, 3))
    report = write_report(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())["epochs"]
    rows = [row for row in report.rows if row["method"] == "scor"]
    by_repeat = [[row for row in rows if row["repeat"] == r] for r in range(5)]
    last = np.array([each[-1]["balanced_accuracy"] for each in by_repeat])
    best = np.array([max(row["balanced_accuracy"] for row in each) for each in by_repeat])
    by_validation = [each[np.argmax([row["val_balanced_accuracy"] for row in each])] for each in by_repeat]
    assert summary["scor"]["last"]["mean"] == pytest.approx(last.mean())
    assert summary["scor"]["test"]["mean"] == pytest.approx(best.mean())
    assert summary["scor"]["validation"]["mean"] == pytest.approx(
        np.mean([row["balanced_accuracy"] for row in by_validation])
    )
    assert summary["scor"]["gain_from_test_selection"][0] == pytest.approx((best - last).mean())
    assert "gain from test selection" in (tmp_path / "report.html").read_text()
    without = [{key: value for key, value in row.items() if key != "val_balanced_accuracy"} for row in report.rows]
    assert epoch_choices(without, ["ce"], "accuracy")["ce"].validation is None


def test_each_repeat_selects_its_setting_on_the_validation_set():
    tried = {"ce": {"ce [lr=1]": "lr=1", "ce [lr=2]": "lr=2"}, "scor": {"scor [a=1]": "a=1", "scor [a=2]": "a=2"}}
    validation = {"ce [lr=1]": [0.5, 0.5, 0.7], "ce [lr=2]": [0.6, 0.5, 0.5], "scor [a=1]": [0.9, 0.9, 0.9]}
    validation["scor [a=2]"] = [np.nan, np.nan, 0.95]
    test = {"ce [lr=1]": [0.1, 0.2, 0.3], "ce [lr=2]": [0.4, 0.5, 0.6]}
    test |= {"scor [a=1]": [0.7, 0.7, 0.7], "scor [a=2]": [np.nan, np.nan, 0.8]}
    rows = [
        {
            "repeat": r,
            "method": trial,
            "epoch": 1,
            "val_balanced_accuracy": validation[trial][r],
            "accuracy": test[trial][r],
        }
        for r in range(3)
        for trial in validation
    ]
    rows = [row for row in rows if (row["repeat"], row["method"]) != (2, "scor [a=1]")]  # not finished yet
    chosen, _, tunings = select(rows, {}, tried, "accuracy")
    assert [(row["repeat"], row["accuracy"]) for row in chosen if row["method"] == "ce"] == [
        (0, 0.4),
        (1, 0.2),
        (2, 0.3),
    ]
    assert [(row["repeat"], row["accuracy"]) for row in chosen if row["method"] == "scor"] == [(0, 0.7), (1, 0.7)]
    assert tunings["ce"].selected == {"lr=1": 2, "lr=2": 1}
    assert tunings["ce"].gain.mean == pytest.approx(np.mean([0.15, -0.15, -0.15]))


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({"sc0r": {"model.a": [1]}}, "`--tune` to name one of ce, scor but got 'sc0r'"),
        ({"scor": {}}, "options and their values in `--tune` for 'scor'"),
        ({"scor": {"model.a": 3}}, "a list of values for model.a of 'scor'"),
        ({"scor": {"model.a": []}}, "a list of values for model.a of 'scor'"),
        ({"scor": {"model.a": [1, 2]}}, "but got 2 for 'scor' and 1 for 'ce'; give 'ce' 2 settings in `--tune`"),
        ({"scor": {"model.a": [1, 2], "model.b": [1, 2]}, "ce": {"c": [1, 2, 3]}}, "got 4 for 'scor' and 3 for 'ce'"),
    ],
)
def test_unequal_tuning_is_refused(grids, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trials({"ce": [], "scor": []}, grids)


TUNE = '{"cross_entropy": {"model.optimizer.init_args.lr": [0.003, 0.01]}, "scor": {"model.loss.init_args.alpha": [1e-5, 1e-2]}}'
DIGITS = (
    "--config digits_scor.yaml --trainer.max_epochs 2 --processes 1 --methods loss/cross_entropy.yaml loss/scor.yaml"
)


@pytest.mark.exhaustive
def test_a_tuned_comparison_trains_each_setting_and_reports_the_selected_one(command):
    line = ["scor-compare", *DIGITS.split(), "--repeats", "2", "--output", "out", "--tune", TUNE]
    status, out, error = command(*line)
    assert status == 0, error
    assert "4 methods x 2 repeats: 8 trainings" in error
    assert re.search(r"^  cross_entropy +0\.\d{4}", out, re.MULTILINE)
    assert "[lr=" not in out
    summary = json.loads(Path("out/summary.json").read_text())
    with open("out/results.csv") as file:
        rows = list(csv.DictReader(file))
    for method, setting in (("cross_entropy", "lr"), ("scor", "alpha")):
        best = []
        for repeat in "01":
            mine = [r for r in rows if r["repeat"] == repeat and r["method"].startswith(f"{method} [{setting}=")]
            assert len(mine) == 2
            best.append(max(mine, key=lambda row: float(row["val_balanced_accuracy"]))["accuracy"])
        mean = summary["measures"]["accuracy"][method]["mean"]
        assert mean == pytest.approx(np.mean([float(value) for value in best]))
        assert sum(summary["tuning"][method]["selected"].values()) == 2
    page = html.unescape(Path("out/report.html").read_text())
    assert "cross_entropy [lr=0.01]: scor-fit --config digits_scor.yaml" in page
    changes = page.split("what it changes")[1].split("</table>")[0]  # all settings, not those of the first trial
    assert "loss/scor.yaml<br>" in changes
    assert "alpha: one of 1e-05, 0.01<br>" in changes
    assert '{"model"' not in changes
    assert re.search("<td>model.optimizer.*lr</td><td>one of 0.003, 0.01</td>", page)
    status, _, error = command(*line, "--data.val_fraction", "0")
    assert status != 0
    assert "Expected a validation set to select settings on, for `--tune`" in error


def test_a_report_takes_another_measure_and_margin(command):
    write_results("out", ["ce", "scor"], 6)
    status, out, _ = command("scor-report out --measure accuracy --margin 0.5")
    assert status == 0
    assert out.startswith("\nBest accuracy: ")
    assert "equal in practice" in out
    for options, message in (
        ("--measure f1", "Expected `--measure` to be one of"),
        ("--margin -1", "Expected `--margin` >= 0 but got -1"),
        ("--baseline nobody", "Expected `--baseline` to be one of ce, scor but got 'nobody'"),
    ):
        before = Path("out/report.html").read_bytes()
        status, _, error = command(f"scor-report out {options}")
        assert status != 0
        assert message in error
        assert Path("out/report.html").read_bytes() == before


def test_a_folder_without_a_finished_training_has_no_report(tmp_path):
    ResultsFolder(tmp_path).begin({"a": {}, "b": {}}, {"baseline": "a"})
    with pytest.raises(ValueError, match="Expected a finished training"):
        Report(tmp_path)
