"""Focal loss and cross entropy weighted by class."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.classification import check_parameter, class_weights, focal_loss
from scor_lightning.losses.base import PerSampleLoss


class FocalLoss(PerSampleLoss):
    r"""Down-weight the cross entropy of samples that are already classified well.

    .. math:: L = \underset{i}{\mathrm{mean}} \; -(1 - p_{y_i})^\gamma \log p_{y_i}

    with p the softmax of the logits. Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017,
    https://arxiv.org/abs/1708.02002, there for one-vs-all probabilities.

    Args:
        gamma: Focusing parameter, >= 0; 0 is cross entropy. The paper's best is 2.
        reduction: ``"mean"`` over the batch; ``"sum"`` is the form of the package ``scor``, in which the batch size
            multiplies the learning rate.

    Raises:
        ValueError: If gamma < 0.

    Example:
        >>> import torch
        >>> FocalLoss(gamma=2.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (1 - 1/2)^2 * log 2
        tensor(0.1733)
    """

    def __init__(self, gamma: float = 2.0, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(reduction)
        check_parameter("gamma", gamma)
        self.gamma = gamma

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the focal loss of each sample, ``[B]``."""
        return focal_loss(logits, target, self.gamma, reduction="none")


class WeightedCrossEntropyLoss(PerSampleLoss):
    r"""Weight the cross entropy of each sample by the inverse frequency of its class.

    .. math:: L = \frac{\sum_i w_{y_i} \ell_i}{\sum_i w_{y_i}}, \qquad w_c \propto \frac{1}{n_c}

    with :math:`n_c` the training images of class c and weights that sum to K.

    Args:
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Example:
        >>> WeightedCrossEntropyLoss(class_counts=[30, 10]).class_weights
        tensor([0.5000, 1.5000])
    """

    needs_class_counts = True

    def __init__(self, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        self._take_counts(class_counts)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy of each sample, ``[B]``."""
        return F.cross_entropy(logits, target, reduction="none")

    def set_class_counts(self, counts: Tensor) -> None:
        """Compute the weights from the training images per class, int64 ``[K]`` >= 1."""
        super().set_class_counts(counts)
        self.set_class_weights(class_weights(counts))
