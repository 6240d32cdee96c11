"""Backbones, by timm's convention: `num_classes`, `num_features`, `forward_features`, `head`; and heads."""

from scor_lightning.models.convnet import ConvNet
from scor_lightning.models.heads import CosineLinear
from scor_lightning.models.mlp import MLP

__all__ = ["MLP", "ConvNet", "CosineLinear"]
