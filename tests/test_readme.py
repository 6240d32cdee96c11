import re
import runpy
from pathlib import Path

import scor.data
import scor.losses
import scor.metrics
import scor.models
import scor.training
import torch

from scor_lightning.configuration import CONFIGS, shipped_configs

README = (CONFIGS.parent / "README.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    torch.manual_seed(0)
    for i, example in enumerate(examples):
        Path(f"example{i}.py").write_text(example)
    batch = {"logits": torch.randn(8, 3), "target": torch.randint(3, (8,))}
    assert runpy.run_path("example0.py", init_globals=batch)["value"] > 0
    runpy.run_path("example1.py")
    assert "balanced accuracy" in capsys.readouterr().out


def test_the_tables_name_every_configuration():
    assert set(re.findall(r"^\| `([\w/]+\.yaml)` \|", README, re.MULTILINE)) >= set(shipped_configs())


def test_the_reference_packages_public_names_all_have_their_line():
    table = README.partition("### In place of the package `scor`")[2].partition("\n## ")[0]
    for module in (scor.data, scor.losses, scor.metrics, scor.models, scor.training):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        assert own
        assert [name for name in own if f"`{module.__name__[5:]}.{name}`" not in table] == []
    assert all(name in table for name in ("transform_", "normalTransform", "uniformTransform", "`imagenet.py`"))


def test_pictures_and_files_are_there():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links
    assert all(Path(CONFIGS.parent, link).is_file() for link in links)
