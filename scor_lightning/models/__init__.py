"""Backbones and heads."""

from scor_lightning.models.heads import CosineLinear

__all__ = ["CosineLinear"]
