"""Image classification on imbalanced data with Stochastic Covariance Regularization, on PyTorch Lightning.

The names below are loaded on first use, so that importing a loss does not import Lightning.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("scor-lightning")

_HOME = {
    "ClassBalancedSampler": "datamodules",
    "ImageClassifier": "classifier",
    "class_weights": "functional",
    "effective_number_weights": "functional",
    "imbalanced": "datamodules",
    "prepare_images": "prediction",
    "weight_spectrum": "spectrum",
}
__all__ = [
    "ClassBalancedSampler",
    "ImageClassifier",
    "__version__",
    "class_weights",
    "effective_number_weights",
    "imbalanced",
    "prepare_images",
    "weight_spectrum",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
