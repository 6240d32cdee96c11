"""Methods as overlays: what is compared is what `scor-fit` trains, paired, under both engines."""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch

from scor_lightning import ImageClassifier
from scor_lightning.comparison import sequential, stacked
from scor_lightning.comparison.measures import spectrum_measures
from scor_lightning.comparison.methods import named_methods, read_training, resolve, training_options
from scor_lightning.comparison.plan import Plan, group
from scor_lightning.configuration import shipped_configs

CPU = torch.device("cpu")
BASE = ["digits_scor.yaml", {"data": {"init_args": {"val_fraction": 0.0}}, "trainer": {"accelerator": "cpu"}}]
LOSSES = sorted(name for name in shipped_configs() if name.startswith("loss/"))
OVERLAYS = {Path(name).stem: [name] for name in LOSSES} | {
    "ldam_drw+scor": ["loss/ldam_drw.yaml", "method/scor.yaml"],
    "balanced_softmax+scor": ["loss/balanced_softmax.yaml", "method/scor.yaml"],
}


def plans(methods=None, **options) -> list[Plan]:
    base = [*BASE, {"trainer": {"max_epochs": 3, **options}}]
    trainings = {name: read_training(c) for name, c in resolve(training_options(base), methods or OVERLAYS).items()}
    found = group(trainings, every_epoch=False, spectra=False)
    for plan in found:
        plan.prepare()
    return found


@cache
def shipped() -> list[Plan]:
    return plans(precision="64-true")


def test_methods_that_share_all_but_the_loss_are_stacked():
    linear, cosine = shipped()
    assert set(cosine.trainings) == {"ldam", "ldam_drw", "ldam_drw+scor"}
    assert set(linear.trainings) | set(cosine.trainings) == set(OVERLAYS)
    assert stacked.why_not(linear) is None
    assert stacked.why_not(cosine) is None


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_engines_agree_to_1e_8_under_every_overlay(name):
    """After 51 steps in float64; re-weighting begins in the third epoch."""
    plan = next(plan for plan in shipped() if name in plan.trainings)
    rows = stacked.train(plan, [0, 1], CPU, lambda _: None, [name])
    (alone,) = sequential.train(plan, 1, name, CPU, lambda _: None)
    (row,) = (row for row in rows if row["repeat"] == 1)
    assert list(row) == list(alone)
    for key, value in alone.items():
        expected = pytest.approx(value, abs=1e-8, nan_ok=True) if isinstance(value, float) else value
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
                "head": (sorted(state), state["head.weight"].tolist()),
            }
    first, *others = drawn.values()
    for other in others:
        assert [other[part] == first[part] for part in ("split", "order", "body")] == [True] * 3
    permutations = [d["permutation"] for d in drawn.values() if d["permutation"] is not None]
    assert len(permutations) >= 4
    assert all(permutation == permutations[0] for permutation in permutations)
    heads = {json.dumps(d["head"]) for d in drawn.values()}
    assert len(heads) == 2  # a linear one and a cosine one, each the same in all methods


def test_the_command_in_the_report_trains_the_same_weights(command):
    """Bit for bit, re-weighting and a cosine head included."""
    options = "--trainer.max_epochs 2 --engine sequential --processes 1 --repeats 2"
    methods = "--methods loss/ldam_drw.yaml scor=loss/balanced_softmax.yaml+method/scor.yaml"
    status, _, error = command(f"scor-compare --config digits_scor.yaml {options} {methods} --output out")
    assert status == 0, error
    page = Path("out/report.html").read_text().replace("&#x27;", "'")
    rows = json.loads(next(Path("out/chunks").glob("000001*")).read_text())["rows"]
    (row,) = rows
    seed = re.search(r"1: (\d+)", page[page.index("SEED of each repeat") :])[1]
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
    trainings = {n: read_training(c) for n, c in resolve(training_options(warm), {"a": ["loss/focal.yaml"]}).items()}
    (plan,) = group(trainings, every_epoch=False, spectra=False)
    plan.prepare()
    assert stacked.why_not(plan) == "`--model.lr_warmup` is set"
