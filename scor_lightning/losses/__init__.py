"""Losses with one signature: `loss(logits, target, features=None)`."""

from scor_lightning.losses.balanced_softmax import BalancedSoftmaxLoss
from scor_lightning.losses.base import Loss, PerSampleLoss, loss_name, loss_terms
from scor_lightning.losses.class_balanced import ClassBalancedLoss
from scor_lightning.losses.classification import FocalLoss, WeightedCrossEntropyLoss
from scor_lightning.losses.confusion_aware import ConfusionAwareLoss
from scor_lightning.losses.dot_regression import DotRegressionLoss
from scor_lightning.losses.gaussian_clouded import GCLLoss
from scor_lightning.losses.label_aware_smoothing import LabelAwareSmoothingLoss
from scor_lightning.losses.ldam import LDAMLoss
from scor_lightning.losses.logit_adjustment import LogitAdjustmentLoss
from scor_lightning.losses.opl import OPLLoss
from scor_lightning.losses.scor import SCoRLoss
from scor_lightning.losses.vs import VSLoss

__all__ = [
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "ConfusionAwareLoss",
    "DotRegressionLoss",
    "FocalLoss",
    "GCLLoss",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustmentLoss",
    "Loss",
    "OPLLoss",
    "PerSampleLoss",
    "SCoRLoss",
    "VSLoss",
    "WeightedCrossEntropyLoss",
    "loss_name",
    "loss_terms",
]
