"""Comparing methods over many paired repeats."""

from scor_lightning.comparison.plan import Training
from scor_lightning.comparison.report import write_report
from scor_lightning.comparison.run import compare
from scor_lightning.comparison.statistics import summarize

__all__ = ["Training", "compare", "summarize", "write_report"]
