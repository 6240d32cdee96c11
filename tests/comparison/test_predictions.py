import csv
import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score
from torch import nn

from scor_lightning.comparison import Training, compare
from scor_lightning.comparison.predictions import HeldOut, Predictions, read_predictions, write_predictions
from scor_lightning.comparison.results import ResultsFolder
from scor_lightning.datamodules import DigitsDataModule, LongTail, ReduceClasses
from scor_lightning.losses import LogitAdjustmentLoss
from scor_lightning.models import MLP
from tests.comparison.test_intervals import crossed_by_definition

METHODS = {"cross_entropy": {}, "adjusted": {"loss": lambda: LogitAdjustmentLoss(post_hoc=True)}}


def network(**options):
    return MLP(**options, hidden=[16])


@pytest.mark.parametrize("engine", ["stacked", "sequential"])
@pytest.mark.parametrize("evaluation", ["official", "holdout"])
@pytest.mark.exhaustive
def test_rows_can_be_computed_from_the_archive_alone(tmp_path, engine, evaluation):
    data = DigitsDataModule(imbalance=ReduceClasses(0.1), evaluation=evaluation)
    training = Training(data, network, nn.CrossEntropyLoss, epochs=2)
    rows = compare(training, METHODS, repeats=2, output=str(tmp_path), engine=engine, every_epoch=True)
    last = {(row["repeat"], row["method"]): row for row in rows if row["epoch"] == 2}
    targets = data.part("train").targets.numpy()
    seen = set()
    for path in (tmp_path / "predictions").glob("*.npz"):
        archive = np.load(path)  # as anybody would read it, by the docstring
        ends, set_ends = archive["end"].tolist(), archive["set_end"].tolist()
        sets = dict(zip(archive["set_repeat"].tolist(), zip([0, *set_ends[:-1]], set_ends, strict=True), strict=True))
        for i, (repeat, method) in enumerate(zip(archive["repeat"].tolist(), archive["method"].tolist(), strict=True)):
            part = slice(ends[i - 1] if i else 0, ends[i])
            test_set = slice(*sets.get(repeat, sets.get(-1)))
            predicted, target = archive["predicted"][part], archive["target"][test_set]
            row = last[repeat, method]
            seen.add((repeat, method))
            assert row["test_images"] == len(target)
            assert row["accuracy"] == pytest.approx(accuracy_score(target, predicted))
            recalls = recall_score(target, predicted, average=None, labels=np.unique(target))
            assert row["balanced_accuracy"] == pytest.approx(recalls.mean())
            assert row["worst_class_recall"] == pytest.approx(recalls.min())
            assert row["f1_macro"] == pytest.approx(f1_score(target, predicted, average="macro"))
            probability = np.exp(archive["log_probability"][part].astype(float))
            assert row["cross_entropy"] == pytest.approx(
                log_loss(np.ones(len(target)), np.stack([1 - probability, probability], 1), labels=[0, 1]), rel=1e-3
            )
            if evaluation == "holdout":
                np.testing.assert_array_equal(targets[archive["index"][test_set]], target)
            else:
                assert archive["set_repeat"].tolist() == [-1]
                assert "index" not in archive
    assert seen == last.keys()


def test_the_intervals_of_the_report_can_be_recomputed_from_its_files(tmp_path):
    """From results.csv and the archives alone, by the formula, as another program would."""
    data = DigitsDataModule(imbalance=ReduceClasses(0.1))
    training = Training(data, network, nn.CrossEntropyLoss, epochs=2)
    compare(training, METHODS, repeats=5, output=str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    predicted, target = {}, None
    for path in (tmp_path / "predictions").glob("*.npz"):
        archive = np.load(path)
        starts = [0, *archive["end"][:-1]]
        for repeat, method, start, end in zip(
            archive["repeat"], archive["method"], starts, archive["end"], strict=True
        ):
            predicted[int(repeat), str(method)] = archive["predicted"][start:end]
        target = archive["target"]
    with (tmp_path / "results.csv").open() as file:
        rows = {(int(row["repeat"]), row["method"]): row for row in csv.DictReader(file)}
    assert rows.keys() == predicted.keys()
    right = {m: np.stack([predicted[r, m] == target for r in range(5)]).astype(float) for m in METHODS}
    d = right["adjusted"] - right["cross_entropy"]
    found = summary["measures"]["balanced_accuracy"]["adjusted"]["difference"]
    low, high = crossed_by_definition(d, target, dict.fromkeys(range(10), 0.1), 0.95)
    assert found["new_images"]["kind"] == "crossed"
    assert (found["new_images"]["low"], found["new_images"]["high"]) == pytest.approx((low, high), rel=1e-5)
    values = [
        float(rows[r, "adjusted"]["balanced_accuracy"]) - float(rows[r, "cross_entropy"]["balanced_accuracy"])
        for r in range(5)
    ]
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    digits = {"abs": 4e-6}  # the files hold six significant ones
    assert (found["redraws"]["low"], found["redraws"]["high"]) == pytest.approx(expected, **digits)
    assert found["p"] == pytest.approx(stats.wilcoxon(np.round(values, 5)).pvalue, rel=1e-5)
    by_class = {}
    for r in range(5):
        row = rows[r, "adjusted"]
        difference = float(row["accuracy_reduced"]) - float(rows[r, "cross_entropy"]["accuracy_reduced"])
        by_class.setdefault(row["reduced"], []).append(difference)
    means = [np.mean(each) for each in by_class.values()]
    found = summary["measures"]["accuracy_reduced"]["adjusted"]["difference"]
    half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
    ends = np.mean(means) - half, np.mean(means) + half
    assert (found["redraws"]["low"], found["redraws"]["high"]) == pytest.approx(ends, **digits)


def test_both_engines_predict_the_same_and_methods_share_their_test_images(tmp_path):
    data = DigitsDataModule(imbalance=LongTail(20), evaluation="holdout")
    training = Training(data, network, nn.CrossEntropyLoss, epochs=2, trainer={"precision": "64-true"})
    found = []
    for engine in ("stacked", "sequential"):
        compare(training, METHODS, repeats=2, output=str(tmp_path / engine), engine=engine)
        found.append(ResultsFolder(tmp_path / engine).predictions())
    assert found[0].keys() == found[1].keys()
    for key, one in found[0].items():
        np.testing.assert_array_equal(one.predicted, found[1][key].predicted)
        np.testing.assert_allclose(one.log_probability, found[1][key].log_probability, rtol=1e-3)
        np.testing.assert_array_equal(one.test_set.index, found[1][key].test_set.index)
        np.testing.assert_array_equal(one.test_set.class_counts, found[1][key].test_set.class_counts)
    assert not np.array_equal(found[0][0, "adjusted"].test_set.index, found[0][1, "adjusted"].test_set.index)


def test_without_predictions_nothing_is_kept(tmp_path):
    training = Training(DigitsDataModule(), network, nn.CrossEntropyLoss, epochs=1)
    rows = compare(training, METHODS, repeats=1, output=str(tmp_path), predictions=False)
    assert not (tmp_path / "predictions").exists()
    assert ResultsFolder(tmp_path).predictions() == {}
    assert all(not isinstance(value, Predictions) for row in rows for value in row.values())


def archive(path):
    kept = HeldOut(np.array([3, 1, 2]), None, np.array([5, 4, 3, 2]))
    one = Predictions(np.array([3, 1, 1], np.uint8), np.array([-0.5, -1, -9], np.float16), kept)
    write_predictions(path, [(4, "scor", one), (4, "cross entropy", one)])
    return one


def test_the_archive_holds_what_was_written(tmp_path):
    one = archive(tmp_path / "a.npz")
    for (number, _, read), name in zip(read_predictions(tmp_path / "a.npz"), ("scor", "cross entropy"), strict=True):
        assert (number, name) == (4, name)
        np.testing.assert_array_equal(read.predicted, one.predicted)
        np.testing.assert_array_equal(read.log_probability, one.log_probability)
        np.testing.assert_array_equal(read.test_set.target, one.test_set.target)
        np.testing.assert_array_equal(read.test_set.class_counts, one.test_set.class_counts)


@pytest.mark.parametrize("damage", ["cut", "text", "flip"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    archive(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    if damage == "flip":
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(64)
    (tmp_path / "a.npz").write_bytes({"cut": content[:-40], "text": b"hello"}.get(damage, content))
    with pytest.raises(ValueError, match=r"a.npz', which is damaged"):
        list(read_predictions(tmp_path / "a.npz"))
