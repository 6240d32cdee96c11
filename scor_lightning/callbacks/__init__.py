"""Callbacks that report on a training, keep it resumable, or change what is trained."""

from scor_lightning.callbacks.backbone_finetuning import BackboneFinetuning
from scor_lightning.callbacks.best_checkpoint import BestCheckpoint
from scor_lightning.callbacks.class_report import ClassReport
from scor_lightning.callbacks.dashboard import Dashboard
from scor_lightning.callbacks.deferred_reweighting import DeferredReweighting
from scor_lightning.callbacks.finite_check import FiniteCheck
from scor_lightning.callbacks.input_report import InputReport
from scor_lightning.callbacks.last_checkpoint import LastCheckpoint
from scor_lightning.callbacks.monitor_check import MonitorCheck
from scor_lightning.callbacks.penalty_share import PenaltyShare
from scor_lightning.callbacks.prediction_writer import PredictionWriter
from scor_lightning.callbacks.tau_normalization import TauNormalization
from scor_lightning.callbacks.temperature_scaling import TemperatureScaling
from scor_lightning.callbacks.weight_spectrum import WeightSpectrum

__all__ = [
    "BackboneFinetuning",
    "BestCheckpoint",
    "ClassReport",
    "Dashboard",
    "DeferredReweighting",
    "FiniteCheck",
    "InputReport",
    "LastCheckpoint",
    "MonitorCheck",
    "PenaltyShare",
    "PredictionWriter",
    "TauNormalization",
    "TemperatureScaling",
    "WeightSpectrum",
]
