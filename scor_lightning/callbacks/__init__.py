"""Callbacks that show what training does to the classes and to the weights, and one that changes the weights of a loss."""

from scor_lightning.callbacks.backbone_finetuning import BackboneFinetuning
from scor_lightning.callbacks.class_report import ClassReport
from scor_lightning.callbacks.dashboard import Dashboard
from scor_lightning.callbacks.deferred_reweighting import DeferredReweighting
from scor_lightning.callbacks.penalty_share import PenaltyShare
from scor_lightning.callbacks.prediction_writer import PredictionWriter
from scor_lightning.callbacks.weight_spectrum import WeightSpectrum

__all__ = [
    "BackboneFinetuning",
    "ClassReport",
    "Dashboard",
    "DeferredReweighting",
    "PenaltyShare",
    "PredictionWriter",
    "WeightSpectrum",
]
