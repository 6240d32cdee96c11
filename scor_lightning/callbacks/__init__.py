"""Callbacks."""

from scor_lightning.callbacks.deferred_reweighting import DeferredReweighting
from scor_lightning.callbacks.penalty_share import PenaltyShare

__all__ = ["DeferredReweighting", "PenaltyShare"]
