"""Comparing losses over many paired repeats."""

from scor_lightning.comparison.run import compare

__all__ = ["compare"]
