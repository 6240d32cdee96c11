"""Backbones with timm's interface (`num_classes`, `num_features`, `forward_features`, `head`), and heads."""

from scor_lightning.models.base import Backbone, build_head
from scor_lightning.models.convnet import ConvNet
from scor_lightning.models.convnext import ConvNeXtClassifier
from scor_lightning.models.heads import CosineLinear, ETFHead, MLPHead
from scor_lightning.models.mlp import MLP
from scor_lightning.models.resnet import CifarResNet, PaperResNet
from scor_lightning.models.timm import TimmBackbone
from scor_lightning.models.torchvision import TorchvisionBackbone

__all__ = [
    "MLP",
    "Backbone",
    "CifarResNet",
    "ConvNeXtClassifier",
    "ConvNet",
    "CosineLinear",
    "ETFHead",
    "MLPHead",
    "PaperResNet",
    "TimmBackbone",
    "TorchvisionBackbone",
    "build_head",
]
