"""Comparing methods over many paired repeats."""

from scor_lightning.comparison.plan import Training
from scor_lightning.comparison.report import write_report
from scor_lightning.comparison.run import compare
from scor_lightning.comparison.statistics import Statistics

__all__ = ["Statistics", "Training", "compare", "write_report"]
