"""The schedules under the import path that configurations of version 0.1.0 name."""

from scor_lightning.optim import CosineLR, Warmup

__all__ = ["CosineLR", "Warmup"]
