"""Pure tensor mathematics, without state."""

from scor_lightning.functional.classification import (
    class_balanced_weights,
    class_weights,
    effective_number_weights,
    focal_loss,
    reduce_samples,
)
from scor_lightning.functional.images import normalize_bytes
from scor_lightning.functional.margin import ldam_margins, log_prior, subtract_margin, vs_scale
from scor_lightning.functional.opl import orthogonal_projection_penalty
from scor_lightning.functional.scor import scor_penalty

__all__ = [
    "class_balanced_weights",
    "class_weights",
    "effective_number_weights",
    "focal_loss",
    "ldam_margins",
    "log_prior",
    "normalize_bytes",
    "orthogonal_projection_penalty",
    "reduce_samples",
    "scor_penalty",
    "subtract_margin",
    "vs_scale",
]
