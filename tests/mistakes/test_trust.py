"""A checkpoint and the configuration beside it build classes of known packages, and call nothing."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from scor_lightning import ImageClassifier
from scor_lightning.cli import fit, predict, test, validate
from tests.data.photographs import write_folders
from tests.mistakes import told

# Python code that leaves a trace when it is imported, and its possible uses.
MODULE = """
from pathlib import Path
from torch import nn
from scor_lightning.models import MLP

Path("imported").touch()

class Network(MLP):
    pass

class NoNetwork:
    def __init__(self, **kwargs):
        Path("built").touch()

def build(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    Path("called").touch()
    return MLP(num_classes, in_channels, image_size)
"""
# The replacement of the network, and whether `--trust_code true` admits it.
NETWORKS = [
    ("theirs.Network", True),
    ("theirs.NoNetwork", False),
    ("theirs.build", False),
    ("os.system", False),
    ("subprocess.Popen", False),
    ("torch.hub.load", False),
    ("torch.os.system", False),
    ("scor_lightning.models.base.os.system", False),
    ("torch.nn.functional.relu", False),
    ("lightning.pytorch.callbacks.EarlyStopping", False),
    ("builtins.eval", False),
    ("no.such.Network", False),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        options = "--config digits_scor.yaml --model.backbone.hidden [4] --trainer.accelerator cpu"
        fit.run(f"{options} --trainer.max_epochs 1 --data.num_workers 0".split())
    return next(place.rglob("version_0"))


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    Path("modules").mkdir()
    Path("modules/theirs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    write_folders(Path("photographs"), {"ant": 2})
    yield Path("run")
    sys.modules.pop("theirs", None)


def forge_config(run, change):
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def forge_checkpoint(run, change):
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    change({"model": content["hyper_parameters"]})
    torch.save(content, path)
    return path


def traces(*names):
    """What the forged files left behind; a configuration is read from within its folder."""
    return [path for path in Path().rglob("*") if path.name in names]


def network(name):
    def change(content):
        content["model"]["backbone"]["class_path"] = name

    return change


def optimizer(name):
    def change(content):
        content["model"]["optimizer"] = name

    return change


@pytest.mark.parametrize(("name", "admitted"), NETWORKS)
def test_the_configuration_beside_a_checkpoint(run, name, admitted):
    forge_config(run, network(name))
    line = "--ckpt_path run/checkpoints/best.ckpt --trainer.logger false"
    for command in (test.run, validate.run):
        told(command, line, ["--model.backbone", name])
    assert not traces("imported", "built", "called")
    if admitted:
        validate.run(f"{line} --trust_code true".split())
        assert traces("imported")
    else:
        told(validate.run, f"{line} --trust_code true", ["--model.backbone"])
        assert not traces("built", "called")


@pytest.mark.parametrize(("name", "admitted"), NETWORKS)
def test_a_checkpoint(run, name, admitted):
    path = forge_checkpoint(run, network(name))
    told(predict.run, f"--ckpt_path {path} --images photographs", ["--model.backbone", name])
    with pytest.raises(ValueError, match=r"--model\.backbone: "):
        ImageClassifier.load_from_checkpoint(path)
    assert not traces("imported", "built", "called")
    if admitted:
        assert type(ImageClassifier.load_from_checkpoint(path, trust_code=True).backbone).__name__ == "Network"
    else:
        with pytest.raises(ValueError, match=r"--model\.backbone"):
            ImageClassifier.load_from_checkpoint(path, trust_code=True)
        assert not traces("built", "called")


@pytest.mark.parametrize(
    "value",
    [
        *("torch.hub.load", "os.system", "theirs.build", "torch.nn.functional.relu"),
        {"class_path": "theirs.Network"},
        {"class_path": "theirs.build", "init_args": {"num_classes": 3}},
    ],
)
def test_something_else_in_place_of_an_optimizer(run, value):
    name = value if isinstance(value, str) else value["class_path"]
    forge_config(run, optimizer(value))
    told(test.run, "--ckpt_path run/checkpoints/best.ckpt", ["--model.optimizer", name])
    path = forge_checkpoint(run, optimizer(value))
    told(predict.run, f"--ckpt_path {path} --images photographs", ["--model.optimizer", name])
    assert not traces("imported", "built", "called")


def test_classes_anywhere_in_a_configuration(run):
    """In lists, and within the arguments of classes; also where any value is taken as it is."""

    def callbacks(content):
        content["trainer"]["callbacks"] = [{"class_path": "theirs.Network"}]

    def transforms(content):
        content["data"]["init_args"]["train_transforms"] = [{"class_path": "theirs.NoNetwork"}]

    def data(content):
        content["data"] = {"class_path": "theirs.NoNetwork"}

    before = (run / "config.yaml").read_text()
    for change, option in (
        (callbacks, "--trainer.callbacks"),
        (transforms, "--data.train_transforms"),
        (data, "--data"),
    ):
        (run / "config.yaml").write_text(before)
        forge_config(run, change)
        told(validate.run, "--ckpt_path run/checkpoints/best.ckpt", [option, "theirs."])
    assert not traces("imported", "built", "called")


def test_configurations_of_the_command_line_are_not_restricted(run):
    Path("mine.yaml").write_text("model: {backbone: {class_path: theirs.Network, init_args: {hidden: [4]}}}")
    options = "--config digits_scor.yaml --config mine.yaml --trainer.max_epochs 1 --trainer.logger false"
    fit.run(f"{options} --trainer.default_root_dir other".split())
    mine = next(Path("other").rglob("best.ckpt"))
    told(test.run, f"--ckpt_path {mine}", ["--model.backbone", "theirs.Network", "--trust_code true"])
    test.run(f"--ckpt_path {mine} --trust_code true --trainer.logger false".split())
