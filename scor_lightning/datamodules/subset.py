"""An imbalanced subset of any data set."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from scor_lightning.datamodules.imbalance import Imbalance


class ImbalancedSubset(Subset[Any]):
    """A subset of a data set, made by :func:`imbalanced`.

    Attributes:
        indices: Indices of the samples, ascending.
        targets: Their classes, int64 ``[N]``.
        class_counts: Samples of each class, int64 ``[K]``, for losses and samplers.
    """

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int], targets: Tensor, class_counts: Tensor) -> None:
        super().__init__(dataset, indices)
        self.targets = targets
        self.class_counts = class_counts


def imbalanced(dataset: Dataset[Any], imbalance: Imbalance, seed: int = 0) -> ImbalancedSubset:
    """Make a data set imbalanced by keeping a random subset of each class.

    Args:
        dataset: Any data set with ``targets``, one class index per sample, such as torchvision's; with ``classes``, the
            imbalance can refer to classes by name.
        imbalance: The imbalance, such as ``LongTail(100)``.
        seed: Seed of the subset; equal seeds keep equal samples.

    Raises:
        ValueError: If the data set has no ``targets``, or the imbalance does not fit it.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from scor_lightning.datamodules import LongTail
        >>> dataset = TensorDataset(torch.zeros(300, 2))
        >>> dataset.targets = torch.arange(300) % 3
        >>> subset = imbalanced(dataset, LongTail(ratio=4), seed=0)
        >>> subset.class_counts, len(subset)
        (tensor([100,  50,  25]), 175)
    """
    given = getattr(dataset, "targets", None)
    if given is None:
        raise ValueError(
            f"Expected a data set with `targets`, a class index per sample, but got {type(dataset).__name__}; set it, as in "
            "`dataset.targets = labels`"
        )
    targets = torch.as_tensor(given)
    if targets.ndim != 1 or targets.is_floating_point() or len(targets) != len(dataset):  # type: ignore[arg-type]
        raise ValueError(f"Expected `targets` to be a class index per sample but got the shape {tuple(targets.shape)}")
    targets = targets.long()
    names = [str(name) for name in getattr(dataset, "classes", None) or range(int(targets.max()) + 1)]
    kept = imbalance.resolve(names).keep(targets, len(names), seed)
    return ImbalancedSubset(dataset, kept.tolist(), targets[kept], torch.bincount(targets[kept], minlength=len(names)))
