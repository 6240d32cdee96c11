"""Label-aware smoothing (LAS)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scor_lightning.losses.base import PerSampleLoss


class LabelAwareSmoothingLoss(PerSampleLoss):
    r"""Smooth the labels of large classes more than those of small ones.

    .. math:: -(1 - \epsilon_y) \log p_y - \frac{\epsilon_y}{K} \sum_k \log p_k, \qquad
        \epsilon_y = \epsilon_\text{tail} + (\epsilon_\text{head} - \epsilon_\text{tail})
        \sin\left(\frac{\pi}{2} \, \frac{n_y - n_\min}{n_\max - n_\min}\right)

    Source: Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021, https://arxiv.org/abs/2104.00466,
    https://github.com/dvlab-research/MiSLAS, which uses it in the second stage: ``method/mislas.yaml``.

    Args:
        head: Smoothing of the largest class, in [0, 1); .3 on CIFAR-10-LT, .4 on CIFAR-100-LT. If all classes have the same
            size, it applies to all.
        tail: Smoothing of the smallest class, in [0, 1); 0 on CIFAR-10-LT, .1 on CIFAR-100-LT.
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> loss = LabelAwareSmoothingLoss()
        >>> loss.set_class_counts(torch.tensor([100, 50, 10]))
        >>> loss.smoothing()
        tensor([0.3000, 0.1928, 0.0000])
    """

    needs_class_counts = True

    def __init__(self, head: float = 0.3, tail: float = 0.0, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        for name, value in (("head", head), ("tail", tail)):
            if not 0 <= value < 1:
                raise ValueError(f"Expected `{name}` in [0, 1) but got {value}")
        self.head = head
        self.tail = tail
        self._take_counts(class_counts)

    def smoothing(self) -> Tensor:
        """Return the smoothing of each class, float32 ``[K]``."""
        assert self.class_counts is not None  # checked by the caller
        counts = self.class_counts.float()
        span = counts.max() - counts.min()
        size = torch.where(span > 0, (counts - counts.min()) / span.clamp(min=1), 1)
        return self.tail + (self.head - self.tail) * torch.sin(torch.pi / 2 * size)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, ``[B]``."""
        self.counts_of(logits)
        log_probability = F.log_softmax(logits, dim=1)
        smoothing = self.smoothing().to(logits)[target]
        right = log_probability.gather(1, target[:, None]).squeeze(1)
        return -(1 - smoothing) * right - smoothing * log_probability.mean(dim=1)
