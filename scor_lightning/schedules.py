"""The schedules under the import path of version 0.1.0."""

from scor_lightning.optim import CosineLR, Warmup

__all__ = ["CosineLR", "Warmup"]
