"""The README and the site: examples run, links lead somewhere, lists are complete."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import scor.data
import scor.losses
import scor.metrics
import scor.models
import scor.training
from PIL import Image

from scor_lightning.configuration import CONFIGS, shipped_configs
from tests.data.mnist import write_mnist

ROOT = CONFIGS.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
EXAMPLES = [
    (name, i, example)
    for name, text in TEXTS.items()
    for i, example in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]
GENERATED = {"docs/generated"}


@pytest.mark.parametrize(("name", "number", "example"), EXAMPLES, ids=[f"{name} {i}" for name, i, _ in EXAMPLES])
def test_the_examples_run(tmp_path, name, number, example):
    (tmp_path / "example.py").write_text(example)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_a_data_set_of_torchvision_is_added_by_the_lines_of_the_guide(tmp_path):
    example = next(each for name, _, each in EXAMPLES if name == "CONTRIBUTING.md")
    assert len(example.splitlines()) <= 30
    (tmp_path / "traffic_signs.py").write_text(example)
    names = runpy.run_path(str(tmp_path / "traffic_signs.py"))
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for c in range(43):
        folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{c:05d}"
        folder.mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (20 + i, 30), (c, 0, 0)).save(folder / f"{i}.ppm")
    tests = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    tests.mkdir(parents=True)
    for c in range(43):
        Image.new("RGB", (25, 30), (c, 0, 0)).save(tests / f"{c:05d}.ppm")
        rows.append(f"{c:05d}.ppm;25;30;0;0;1;1;{c}")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows))
    data = names["GTSRBDataModule"](root=str(tmp_path), resolution=8, val_fraction=0.2)
    data.prepare_data()
    data.setup()
    assert data.class_counts.tolist() == [4] * 43
    images, target = next(iter(data.test_dataloader()))
    assert images.shape[1:] == (3, 8, 8)
    assert images[:, 0, 0, 0].tolist() == target.tolist()


def test_a_data_set_in_a_users_own_file_is_trained_on_by_the_lines_of_the_guide(command, monkeypatch):
    example = next(each for name, _, each in EXAMPLES if name == "docs/data.md")
    Path("kmnist.py").write_text(example)
    monkeypatch.syspath_prepend(Path.cwd())
    write_mnist(Path("data"), name="KMNIST")
    (line,) = re.findall(r"^PYTHONPATH=. (scor-fit .*?)\n```", TEXTS["docs/data.md"], re.DOTALL | re.MULTILINE)
    line = line.replace("\\\n", "").replace("--data.download true", "").replace("ratio 20", "ratio 2")
    status, out, error = command(f"{line} --trainer.max_epochs 1")
    assert status == 0, error
    assert "KMNIST: 10 classes, images of 1 x 28 x 28; LongTail(ratio=2" in out


def test_the_comparison_of_the_guide_runs(command):
    (content,) = re.findall(r"```yaml\n(.*?)```", TEXTS["docs/comparing.md"], re.DOTALL)
    Path("my_comparison.yaml").write_text(content.replace("max_epochs: 10", "max_epochs: 1"))
    status, out, error = command("scor-compare --config my_comparison.yaml --repeats 1 --processes 1")
    assert status == 0, error
    assert all(name in out for name in ("cross_entropy", "ldam_scor", "focal_5"))


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    place = ROOT / Path(name).parent
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", TEXTS[name]):
        target = (place / link).resolve()
        assert target.exists() or target.parent.relative_to(ROOT).as_posix() in GENERATED, link


@pytest.mark.parametrize("name", TEXTS)
def test_commands_name_shipped_configurations(name):
    for block in re.findall(r"```bash\n(.*?)```", TEXTS[name], re.DOTALL):
        for given in re.findall(r"--config ([\w/]+\.yaml)", block):
            assert given in shipped_configs(), given


def test_every_loss_and_method_has_its_line():
    listed = set(re.findall(r"^\| \[`((?:loss|method)/\w+\.yaml)`\]", TEXTS["docs/methods.md"], re.MULTILINE))
    overlays = {name for name in shipped_configs() if name.startswith(("loss/", "method/"))}
    assert listed == overlays - {"method/scor.yaml"}


def test_the_reference_packages_public_names_all_have_their_line():
    table = TEXTS["docs/from_scor.md"]
    for module in (scor.data, scor.losses, scor.metrics, scor.models, scor.training):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        assert own
        assert [name for name in own if f"`{module.__name__[5:]}.{name}`" not in table] == []
    assert all(name in table for name in ("transform_", "normalTransform", "uniformTransform", "`imagenet.py`"))


def test_the_readme_is_short_and_names_the_two_commands():
    readme = TEXTS["README.md"]
    assert len(readme.splitlines()) <= 150
    assert len(re.findall(r"^pip install .* && ", readme, re.MULTILINE)) == 2
