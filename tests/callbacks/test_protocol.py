"""How callbacks find the parts of any LightningModule."""

import pytest
from lightning.pytorch import LightningModule
from torch import nn

from scor_lightning.callbacks.protocol import network_of


class Aliased(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        self.backbone = self.model


class Delegating(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    @property
    def backbone(self) -> nn.Module:
        return self.model


@pytest.mark.parametrize("kind", [Aliased, Delegating])
def test_the_backbone_is_found_under_a_second_name_and_as_a_property(kind):
    network = nn.Linear(2, 2)
    assert network_of(kind(network)) is network


def test_a_module_without_a_backbone_is_the_network_itself():
    module = LightningModule()
    assert network_of(module) is module
