"""Methods as overlays: what is compared is what `scor-fit` trains, paired, under both engines."""

import html
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.comparison import sequential, stacked
from scor_lightning.comparison.measures import spectrum_measures
from scor_lightning.comparison.methods import named_methods, read_training, resolve, training_options
from scor_lightning.comparison.plan import Plan, group
from scor_lightning.configuration import shipped_configs
from scor_lightning.metrics import OF_PROBABILITIES
from scor_lightning.models import MLP
from scor_lightning.parser import training_parser

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("methods: {a: loss/focal.yaml, b: {model: {loss: {class_path: FocalLos}}}}", "did you mean FocalLoss?"),
        ("methods: {a: loss/focal.yaml, b: loss/scor.yaml}\nrepeat: 4", "'repeat'; did you mean repeats?"),
    ],
)
def test_a_misspelt_name_in_a_comparison_gets_the_nearest(command, wrong, suggestion):
    Path("mine.yaml").write_text(f"training: digits_scor.yaml\n{wrong}\n")
    status, _, error = command("scor-compare --config mine.yaml")
    assert status == 1
    assert suggestion in error


def test_a_misspelt_class_in_a_file_gets_the_nearest(command):
    Path("mine.yaml").write_text("config: [digits_scor.yaml]\nmodel: {loss: {class_path: FocalLos}}\n")
    status, _, error = command("scor-fit --config mine.yaml")
    assert status == 1
    assert "--model.loss: no class 'FocalLos'; did you mean FocalLoss?" in error


@pytest.mark.parametrize(
    "content",
    [
        "training: digits_scor.yaml\nmethods: [loss/cross_entropy.yaml, mine=loss/scor.yaml]",
        "training: {config: [digits_scor.yaml]}\nmethods: {cross_entropy: {config: loss/cross_entropy.yaml}, mine: loss/scor.yaml}",
    ],
)
def test_the_ways_to_write_a_comparison(command, content):
    Path("mine.yaml").write_text(f"{content}\nrepeats: 1\n")
    status, _, error = command("scor-compare --config mine.yaml --trainer.max_epochs 1 --processes 1")
    assert status == 0, error
    manifest = json.loads(Path("runs/compare/mine-digits/manifest.json").read_text())
    assert manifest["methods"] == ["cross_entropy", "mine"]
    assert "SCoRLoss" in json.dumps(manifest["identities"]["mine"])


BASE = ["digits_scor.yaml", {"data": {"init_args": {"val_fraction": 0.0}}, "trainer": {"accelerator": "cpu"}}]
LOSSES = sorted(name for name in shipped_configs() if name.startswith("loss/"))
OVERLAYS = {Path(name).stem: [name] for name in LOSSES} | {
    "ldam_drw+scor": ["loss/ldam_drw.yaml", "method/scor.yaml"],
    "balanced_softmax+scor": ["loss/balanced_softmax.yaml", "method/scor.yaml"],
}


def plans(methods=None, **options) -> list[Plan]:
    base = [*BASE, {"trainer": {"max_epochs": 3, **options}}]
    trainings = {
        name: read_training(c)
        for name, c in resolve(training_parser(), training_options(base), methods or OVERLAYS).items()
    }
    found = group(trainings, every_epoch=False, spectra=False, predictions=False)
    for plan in found:
        plan.prepare()
    return found


@cache
def shipped() -> list[Plan]:
    return plans(precision="64-true")


ALONE = ("car", "etf", "gcl")  # that are not stacked


def test_methods_that_share_all_but_the_loss_are_stacked():
    by_name = {name: plan for plan in shipped() for name in plan.trainings}
    assert by_name.keys() == OVERLAYS.keys()
    linear, cosine, alone = by_name["cross_entropy"], by_name["ldam"], by_name["car"]
    assert set(cosine.trainings) == {"ldam", "ldam_drw", "ldam_drw+scor"}
    assert set(alone.trainings) == {"car"}
    assert set(linear.trainings) | set(cosine.trainings) | {*ALONE} == set(OVERLAYS)
    assert stacked.why_not(alone) == "the loss keeps state from batch to batch"
    assert all(stacked.why_not(by_name[name]) == "`--model.mixing` is set" for name in ("etf", "gcl"))
    assert stacked.why_not(linear) is None
    assert stacked.why_not(cosine) is None


CHECKED = (
    "cross_entropy",
    "vs",
    "ldam_drw",
    "opl",
    "scor_label_smoothing",
)  # of each kind one; the others exhaustively


@pytest.mark.parametrize(
    "name",
    [
        name if name in CHECKED else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in OVERLAYS
        if name not in ALONE
    ],
)
def test_the_engines_agree_to_1e_8_under_every_overlay(name):
    """After 51 steps in float64; re-weighting begins in the third epoch."""
    plan = next(plan for plan in shipped() if name in plan.trainings)
    rows = stacked.train(plan, [0, 1], CPU, lambda _: None, [name])
    (alone,) = sequential.train(plan, 1, name, CPU, lambda _: None)
    (row,) = (row for row in rows if row["repeat"] == 1)
    assert list(row) == list(alone)
    for key, value in alone.items():
        # Measures of probabilities are sums in float32, in which a rounding may fall the other way.
        close = 1e-7 if key in OF_PROBABILITIES else 1e-8
        expected = pytest.approx(value, abs=close, nan_ok=True) if isinstance(value, float) else value
        assert row[key] == expected, key


def test_every_two_overlays_are_paired():
    """Split, subset, order of the batches, body, and permutations; heads of one kind."""
    drawn = {}
    for plan in shipped():
        repeat = plan.repeat(3)
        sampler = repeat.data.train_dataloader().sampler
        state = repeat.backbone().state_dict()
        for name in plan.trainings:
            generator = getattr(repeat.loss(name), "generator", None)
            drawn[name] = {
                "split": [repeat.data.split(part)[1].tolist() for part in ("train", "test")],
                "order": [draws.positions.tolist() for draws in sampler],
                "body": {key: value.tolist() for key, value in state.items() if key.startswith("body.")},
                "permutation": None if generator is None else torch.randperm(64, generator=generator).tolist(),
                "head": [(key, value.tolist()) for key, value in state.items() if key.startswith("head.")],
            }
    first, *others = drawn.values()
    for other in others:
        assert [other[part] == first[part] for part in ("split", "order", "body")] == [True] * 3
    permutations = [d["permutation"] for d in drawn.values() if d["permutation"] is not None]
    assert len(permutations) >= 4
    assert all(permutation == permutations[0] for permutation in permutations)
    heads = {json.dumps(d["head"]) for d in drawn.values()}
    assert len(heads) == 3  # a linear one, a cosine one and a simplex, each the same in all methods


def test_the_command_in_the_report_trains_the_same_weights(command):
    """Bit for bit, re-weighting and a cosine head included."""
    options = "--trainer.max_epochs 2 --engine sequential --processes 1 --repeats 2"
    methods = "--methods loss/ldam_drw.yaml scor=loss/balanced_softmax.yaml+method/scor.yaml"
    status, _, error = command(f"scor-compare --config digits_scor.yaml {options} {methods} --output out")
    assert status == 0, error
    page = html.unescape(Path("out/report.html").read_text())
    rows = json.loads(next(Path("out/chunks").glob("000001*")).read_text())["rows"]
    (row,) = rows
    seed = re.search(r"1: (\d+)", page[page.index("The seed of each repeat") :])[1]
    line = re.search(rf"^{re.escape(row['method'])}: (OMP_NUM_THREADS=1 )(scor-fit .*)$", page, re.MULTILINE)
    words = shlex.split(line[2].replace("SEED", seed))
    torch.set_num_threads(int(line[1].partition("=")[2]))
    status, _, error = command(words[0], *words[1:], "--trainer.enable_progress_bar", "false")
    assert status == 0, error
    (last,) = Path("runs").glob("*/version_0/checkpoints/last.ckpt")
    spectra = spectrum_measures(ImageClassifier.load_from_checkpoint(last).backbone, spectra=False)
    assert spectra == {name: value for name, value in row.items() if name.startswith("spectrum/")}


def test_options_that_a_method_replaces_are_reported(command):
    line = (
        "scor-compare --config digits_scor.yaml --model.loss.alpha 1e-3 --methods loss/focal.yaml scor=method/scor.yaml"
    )
    status, _, error = command(f"{line} --repeats 1 --trainer.max_epochs 1 --processes 1")
    assert status == 0, error
    assert "focal: the overlay replaces --model.loss.alpha" in error
    assert "scor: the overlay" not in error


def test_an_added_method_trains_alone_and_a_changed_one_is_refused(command):
    base = "scor-compare --config digits_scor.yaml --trainer.max_epochs 1 --processes 1 --output out --repeats 2"
    assert command(f"{base} --methods loss/focal.yaml loss/scor.yaml")[0] == 0
    status, _, error = command(f"{base} --methods loss/focal.yaml loss/scor.yaml loss/ldam_drw.yaml")
    assert status == 0, error
    assert "2 trainings to do" in error
    Path("focal.yaml").write_text(
        "model: {loss: {class_path: scor_lightning.losses.FocalLoss, init_args: {gamma: 1.0}}}"
    )
    status, _, error = command(f"{base} --methods focal.yaml loss/scor.yaml")
    assert status == 1
    assert "Expected the method 'focal' of the results in 'out', with model.loss.gamma = 2.0, but got 1.0" in error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["loss/focal.yaml"], "at least two `--methods`"),
        ({"a": [], "b": "loss/focal.yaml"}, None),
        (["a=loss/focal.yaml", "a=loss/scor.yaml"], "'a' twice"),
    ],
)
def test_methods_are_named(given, message):
    if message is None:
        assert named_methods(given) == {"a": [], "b": ["loss/focal.yaml"]}
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        named_methods(given)


def test_what_a_training_does_besides_is_trained_one_after_another():
    (plan,) = plans({"a": ["loss/focal.yaml"], "b": ["loss/scor.yaml"]}, gradient_clip_val=1.0)
    assert stacked.why_not(plan) == "`--trainer.gradient_clip_val` is set"
    warm = [*BASE, {"model": {"lr_warmup": 2}}]
    trainings = {
        n: read_training(c)
        for n, c in resolve(training_parser(), training_options(warm), {"a": ["loss/focal.yaml"]}).items()
    }
    (plan,) = group(trainings, every_epoch=False, spectra=False, predictions=False)
    plan.prepare()
    assert stacked.why_not(plan) == "`--model.lr_warmup` is set"


def test_a_killed_training_is_resumed_from_its_checkpoint(monkeypatch, tmp_path):
    """To the same numbers as one that was not killed; here an exception kills it, a checkpoint after every step before."""
    (plan,) = plans({"a": ["loss/scor.yaml"]})
    whole = sequential.train(plan, 1, "a", CPU, lambda _: None)
    monkeypatch.setattr(sequential._Unfinished, "_due", lambda self: True)
    done = []

    def until_the_second_epoch(share):
        done.append(share)
        if sum(done) > 0.5:
            raise MemoryError

    with pytest.raises(MemoryError):
        sequential.train(plan, 1, "a", CPU, until_the_second_epoch, tmp_path / "unfinished")
    assert (tmp_path / "unfinished/last.ckpt").is_file()
    steps = []
    resumed = sequential.train(plan, 1, "a", CPU, steps.append, tmp_path / "unfinished")
    assert len(steps) < 40  # of 51
    assert resumed == whole
    assert not (tmp_path / "unfinished").exists()


def test_a_folder_of_version_0_1_0_is_reported_and_not_extended(command):
    configuration = {"data": "DigitsDataModule", "epochs": "5", "losses.scor": "SCoRLoss()"}
    manifest = {
        "configuration": configuration,
        "losses": ["ce", "scor"],
        "baseline": "ce",
        "version": "0.1.0",
        "torch": "2",
    }
    Path("old/chunks").mkdir(parents=True)
    Path("old/manifest.json").write_text(json.dumps(manifest))
    measures = {"accuracy": 0.9, "balanced_accuracy": 0.8, "f1_macro": 0.7, "test_loss": 0.3, "cross_entropy": 0.3}
    about = {"epoch": 5, "reduced": [3], "train_images": 100}
    rows = [{"repeat": n, "loss": name, **about, **measures} for n in range(7) for name in ("ce", "scor")]
    Path("old/chunks/000000-000006.json").write_text(json.dumps(rows))
    status, out, error = command("scor-report old --baseline scor")
    assert status == 0, error
    assert "7 repeats" in out
    assert "Intervals of differences to scor" in out
    assert "losses.scor" in Path("old/report.html").read_text()
    line = "scor-compare --config digits_scor.yaml --methods loss/focal.yaml loss/scor.yaml --repeats 1 --output old"
    status, _, error = command(line)
    assert status == 1
    assert "'old' has results of version 0.1.0, which `scor-report` can show" in error


class Unpaired(MLP):
    """A user's network that draws its head before its body."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ):
        super().__init__(num_classes, in_channels, image_size, hidden=[8])
        self.head = head(8, num_classes)
        self.body[1].reset_parameters()


@pytest.mark.exhaustive
def test_bodies_that_begin_with_other_weights_are_reported(command):
    line = "scor-compare --config digits_scor.yaml --trainer.max_epochs 1 --repeats 1 --processes 1"
    methods = "--methods loss/cross_entropy.yaml loss/ldam.yaml"
    _, _, error = command(f"{line} --model.backbone {__name__}.Unpaired {methods}")
    assert "ldam: the body starts with other weights than that of cross_entropy" in error
    _, _, error = command(f"{line} --model.backbone.hidden [8] {methods} --output other")
    assert "starts with other weights" not in error


def test_a_loss_that_cannot_be_trained_is_found_before_the_first_training(command):
    Path("wrong.yaml").write_text("model: {loss: {class_path: torch.nn.MSELoss}}")
    line = "scor-compare --config digits_scor.yaml --repeats 1 --methods loss/cross_entropy.yaml mse=wrong.yaml"
    status, _, error = command(line)
    assert status == 1
    assert "(the method 'mse')" in error
    assert "trainings to do" not in error
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_cluster_returns_the_rows_of_one_process_although_a_worker_is_killed(command, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    start = partial(subprocess.Popen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dask = [sys.executable, "-m", "distributed.cli"]
    processes = [
        start(
            [*dask[:2], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        )
    ]
    worker = [*dask[:2], "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard"]
    processes += [start([*worker, "--no-nanny"], cwd=tmp_path) for _ in range(2)]
    options = "--config digits_scor.yaml --trainer.max_epochs 2 --engine sequential --processes 1 --repeats 6"
    methods = "--methods loss/focal.yaml loss/ldam_drw.yaml"
    try:
        threading.Timer(12, processes[1].kill).start()
        status, _, error = command(
            f"scor-compare {options} {methods} --output cluster --cluster tcp://127.0.0.1:{port}"
        )
        assert status == 0, error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    command(f"scor-compare {options} {methods} --output here")
    cluster, here = (
        [line.rpartition(",")[0] for line in Path(name, "results.csv").read_text().splitlines()]
        for name in ("cluster", "here")
    )
    assert cluster == here
