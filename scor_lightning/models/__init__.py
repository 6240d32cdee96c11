"""Backbones, by timm's convention: `num_classes`, `num_features`, `forward_features`, `head`."""

from scor_lightning.models.convnet import ConvNet
from scor_lightning.models.mlp import MLP

__all__ = ["MLP", "ConvNet"]
