"""Several data sets side by side."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scor_lightning.comparison.ranks import rank
from tests.comparison.test_report import NAMES, Text, write_results


def test_ranks_and_tests_are_those_of_autoranks_published_example():
    """The example of its README: six populations of 50 samples; the figures are the output of version 1.3."""
    generator = np.random.RandomState(42)
    means = [0.2, 0.3, 0.5, 0.8, 0.85, 0.9]
    values = np.stack([generator.normal(mean, 0.3, 50).clip(0, 1) for mean in means], axis=1)
    ranking = rank(values, [f"pop_{i}" for i in range(6)])
    assert ranking.mean_ranks == pytest.approx([5.40, 4.71, 3.95, 2.47, 2.29, 2.18])
    assert ranking.friedman_p == pytest.approx(2.3412212612346733e-28)
    assert ranking.critical_difference == pytest.approx(1.066, abs=5e-4)
    groups = [["pop_5", "pop_4", "pop_3"], ["pop_2", "pop_1"], ["pop_1", "pop_0"]]
    assert ranking.groups() == groups


def test_pairs_are_tested_by_wilcoxon_and_corrected_by_holm():
    values = np.random.default_rng(0).normal(size=(9, 3)) + np.array([0, 0.5, 2])
    pairs = rank(values, ["a", "b", "c"]).pairs
    p = {pair: stats.wilcoxon(values[:, i], values[:, j]).pvalue for pair, (i, j) in _PAIRS.items()}
    (least, middle, most) = sorted(p, key=lambda pair: p[pair])
    assert pairs[least] == pytest.approx(min(1, 3 * p[least]))
    assert pairs[middle] == pytest.approx(max(pairs[least], min(1, 2 * p[middle])))
    assert pairs[most] == pytest.approx(max(pairs[middle], p[most]))


_PAIRS = {("a", "b"): (0, 1), ("a", "c"): (0, 2), ("b", "c"): (1, 2)}


def test_equal_methods_share_their_ranks_and_are_never_different():
    ranking = rank(np.full((7, 3), 0.5), ["a", "b", "c"])
    assert ranking.mean_ranks.tolist() == [2.0, 2.0, 2.0]
    assert set(ranking.pairs.values()) == {1.0}
    assert rank(np.array([[1.0, 2.0]]), ["a", "b"], lower_is_better=True).mean_ranks.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("data_sets", [2, 6])
def test_a_command_ranks_several_folders(command, data_sets):
    for i in range(data_sets):
        write_results(f"set{i}", NAMES[:3], 3, seed=i)
    folders = " ".join(f"set{i}" for i in range(data_sets))
    status, out, error = command(f"scor-report {folders} --output ranking")
    assert status == 0, error
    summary = json.loads(Path("ranking/ranking.json").read_text())
    assert list(summary["data_sets"]) == [f"set{i}" for i in range(data_sets)]
    means = np.array([[each[name] for name in NAMES[:3]] for each in summary["means"].values()])
    ranks = stats.rankdata(-means.round(5), axis=1)  # the file holds six significant digits
    assert list(summary["mean_ranks"].values()) == pytest.approx(ranks.mean(axis=0), rel=1e-5)
    page = Text(Path("ranking/ranking.html").read_text())
    assert NAMES[0] in "".join(page.text)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    tested = data_sets == 6
    assert ("Friedman's test" in out) is tested
    assert ("Ranks are tested from 6 data sets on" in out) is not tested
    assert Path("ranking/critical_difference.png").exists() is tested
    assert len(summary["wilcoxon"]) == (3 if tested else 0)
    body = [line for line in Path("ranking/ranking.tex").read_text().splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {1 + data_sets}


def test_folders_that_cannot_be_ranked_are_named(command):
    write_results("one", ["a", "b"], 2)
    write_results("two", ["a", "c"], 2)
    for line, message in (
        ("one two", "Expected the methods a, b of 'one' in 'two' but got a, c"),
        ("one one --margin 0.1", "Expected no `--margin` with several folders"),
        ("one --output elsewhere", "Expected several folders for `--output`"),
        ("one nowhere", "Expected a folder of results"),
    ):
        status, _, error = command(f"scor-report {line}")
        assert status != 0
        assert message in error
    assert not Path("runs").exists()
    assert not Path("elsewhere").exists()
