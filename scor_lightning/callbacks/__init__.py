"""Callbacks that show what training does to the classes and to the weights."""

from scor_lightning.callbacks.class_report import ClassReport
from scor_lightning.callbacks.prediction_writer import PredictionWriter
from scor_lightning.callbacks.weight_spectrum import WeightSpectrum

__all__ = ["ClassReport", "PredictionWriter", "WeightSpectrum"]
