"""Files that a command reads are validated, and files that it did not write are left unchanged."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from scor_lightning import ImageClassifier
from scor_lightning.checkpoint import read_checkpoint
from scor_lightning.cli import fit, predict, report, spectrum
from scor_lightning.cli.compare import run as compare
from tests.data.photographs import write_folders
from tests.mistakes import told


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run, and photographs."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_folders(Path("photographs"), {"ant": 6, "bee": 5})
        options = "--config image_folder_scor.yaml --config loss/cross_entropy.yaml --data.root photographs --data.resolution 8"
        backbone = "--model.backbone scor_lightning.models.MLP --model.backbone.hidden [4] --data.val_fraction 0"
        fit.run(f"{options} {backbone} --trainer.max_epochs 1 --trainer.accelerator cpu --data.num_workers 0".split())
    return place / "runs"


@pytest.fixture
def checkpoint(trained, tmp_path, monkeypatch):
    source = next(trained.rglob("best.ckpt"))
    monkeypatch.chdir(tmp_path)
    Path("best.ckpt").write_bytes(source.read_bytes())
    write_folders(Path("photographs"), {"ant": 2})
    return Path("best.ckpt")


def flipped(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    at = largest.header_offset + 200 + largest.file_size // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "nothing")
    return buffer.getvalue()


def poisoned(content: bytes) -> bytes:
    whole = torch.load(io.BytesIO(content), weights_only=True)
    name = next(name for name, value in whole["state_dict"].items() if name.startswith("backbone") and value.ndim == 2)
    whole["state_dict"][name][0, 0] = float("nan")
    return saved(whole)


def without(content: bytes, key: str) -> bytes:
    whole = torch.load(io.BytesIO(content), weights_only=True)
    del whole[key]
    return saved(whole)


WRONG = {
    "empty": lambda content: b"",
    "text": lambda content: b"weights\n",
    "truncated": lambda content: content[: len(content) // 2],
    "one bit flipped": flipped,
    "pickle": lambda content: pickle.dumps({"state_dict": {}}),
    "another archive": lambda content: archive(),
    "a list": lambda content: saved([1, 2]),
    "a tensor": lambda content: saved(torch.zeros(3)),
    "a module": lambda content: saved(torch.nn.Linear(2, 2)),
    "no weights": lambda content: saved({"state_dict": {}}),
    "a state_dict": lambda content: saved(torch.nn.Linear(2, 2).state_dict()),
    "weights that are not finite": poisoned,
    "no data": lambda content: without(content, "data"),
    "no weights at all": lambda content: without(content, "state_dict"),
}


def snapshot() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def refuses(run, line: str, *named: str) -> None:
    """A command ends with one short line that names what is wrong, and the folder is as before."""
    before = snapshot()
    told(run, line, named, limit=240)
    assert snapshot() == before


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_checkpoint_is_refused_in_our_own_words(checkpoint, kind):
    checkpoint.write_bytes(WRONG[kind](checkpoint.read_bytes()))
    refuses(predict.run, "--ckpt_path best.ckpt --images photographs", "--ckpt_path", "best.ckpt")
    with pytest.raises(ValueError, match=r"best\.ckpt|checkpoint"):
        ImageClassifier.load_from_checkpoint(checkpoint)
    if kind not in ("a state_dict", "no data", "no weights at all"):  # of which the spectrum can be shown
        refuses(spectrum.run, "best.ckpt", "CHECKPOINT", "best.ckpt")


def test_a_whole_checkpoint_is_read(checkpoint):
    assert {"state_dict", "data", "loss"} <= read_checkpoint(checkpoint).keys()


@pytest.mark.parametrize("output", ["best.ckpt", "photographs/ant/ant_0001.jpg", "notes.csv", "photographs"])
def test_predictions_never_replace_the_users_files(checkpoint, output):
    Path("notes.csv").write_text("my notes\n")
    refuses(predict.run, f"--ckpt_path best.ckpt --images photographs --output {output}", "--output", output)


def test_an_input_is_not_even_overwritten_on_request(checkpoint):
    command = "--ckpt_path best.ckpt --images photographs --output best.ckpt --overwrite true"
    refuses(predict.run, command, "--output", "best.ckpt")


def test_predictions_replace_their_own_file_and_others_on_request(checkpoint):
    Path("notes.csv").write_text("my notes\n")
    command = "--ckpt_path best.ckpt --images photographs --num_workers 0 --accelerator cpu --output"
    predict.run([*command.split(), "new/folder/mine.csv"])
    predict.run([*command.split(), "new/folder/mine.csv"])
    predict.run([*command.split(), "notes.csv", "--overwrite", "true"])
    assert Path("notes.csv").read_text() == Path("new/folder/mine.csv").read_text()


def test_a_picture_replaces_its_own_file_alone(checkpoint):
    spectrum.run(["best.ckpt"])
    spectrum.run(["best.ckpt"])
    Path("mine.png").write_bytes(Path("photographs/ant/ant_0001.jpg").read_bytes())
    refuses(spectrum.run, "best.ckpt --picture mine.png", "--picture", "mine.png")


@pytest.mark.parametrize("name", ["report.html", "results.csv", "manifest.json", "pictures/mine.png"])
def test_a_comparison_leaves_a_folder_with_other_files_alone(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = Path("mine") / name
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"my": "own"}))
    refuses(compare, "--config compare/digits.yaml --repeats 1 --output mine", "--output", "mine")


def test_a_ranking_leaves_other_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        command = f"--config compare/digits.yaml --repeats 2 --trainer.max_epochs 1 --data.seed {seed} --output {seed}"
        compare(command.split())
    Path("mine").mkdir()
    Path("mine/ranking.html").write_text("my own")
    refuses(report.run, "0 1 --output mine", "--output", "mine")
    report.run(["0", "1", "--output", "ranking"])
    report.run(["0", "1", "--output", "ranking"])
