"""Comparing losses over many paired repeats."""

from scor_lightning.comparison.report import write_report
from scor_lightning.comparison.run import compare
from scor_lightning.comparison.statistics import summarize

__all__ = ["compare", "summarize", "write_report"]
