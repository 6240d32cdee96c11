from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.losses import LDAMLoss, Loss, loss_terms
from scor_lightning.models import MLP

# jsonargparse 4.49 renamed `instantiate_classes`, which the versions before know
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "loss").glob("*.yaml"))


def test_the_configs_are_there():
    assert len(CONFIGS) == 20


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_builds_a_working_loss(path):
    text = path.read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    assert set(config) <= {"model", "trainer"}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nn.Module)
    loss = parser.instantiate_classes(parser.parse_object({"loss": config["model"]["loss"]})).loss
    if isinstance(loss, Loss):
        loss.set_class_counts(torch.tensor([30, 10, 2]))
    terms = loss_terms(loss, torch.randn(8, 3), torch.randint(3, (8,)), torch.randn(8, 4))
    assert sum(terms.values()).isfinite()
    for callback in config.get("trainer", {}).get("callbacks+", []):
        parser.add_argument("--callback", type=Callback)
        assert parser.instantiate_classes(parser.parse_object({"callback": callback})).callback.start == 0.8


@pytest.mark.parametrize("name", ["ldam", "ldam_drw"])
def test_ldam_comes_with_its_head(name):
    config = yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text())["model"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--head", type=type)
    head = parser.instantiate_classes(parser.parse_object({"head": config["backbone"]["init_args"]["head"]})).head
    ImageClassifier(MLP(3, head=head), LDAMLoss())
