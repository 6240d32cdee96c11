"""Every mistake on a command line ends it with one line that names the option, and with nothing changed."""

from importlib import import_module
from pathlib import Path

import pytest

from tests.data.photographs import write_folders
from tests.mistakes import told

SHORT = {
    "FIT": "--config digits_scor.yaml",
    "FOLDER": "--config image_folder_scor.yaml --data.root photographs --data.resolution 8 --model.backbone MLP",
    "CMP": "--config compare/digits.yaml",
}
TABLE = Path(__file__).with_name("command_lines.txt")
MISTAKES = [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(Path("photographs"), {"ant": 2, "bee": 1})
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line(place, mistake):
    line, _, named = mistake.partition(" -> ")
    command, *words = line.split()
    options = " ".join(SHORT.get(word, word) for word in words)
    run = import_module(f"scor_lightning.cli.{command.removeprefix('scor-')}").run
    before = sorted(map(str, Path().rglob("*")))
    told(run, options, named.split("; "))
    assert sorted(map(str, Path().rglob("*"))) == before
