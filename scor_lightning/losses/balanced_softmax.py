"""Balanced softmax loss."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.margin import log_prior
from scor_lightning.losses.base import PerSampleLoss


class BalancedSoftmaxLoss(PerSampleLoss):
    r"""Train with the class frequencies inside the softmax; predict from the plain logits.

    .. math:: L = \underset{i}{\mathrm{mean}} \; -\log \frac{n_{y_i} e^{z_{i y_i}}}{\sum_c n_c e^{z_{ic}}}

    with :math:`n_c` the training images of class c. Logit adjustment at tau 1 is the same loss.

    Source: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020,
    https://arxiv.org/abs/2007.10740, https://github.com/jiawei-ren/BalancedMetaSoftmax-Classification.

    Args:
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Example:
        >>> import torch
        >>> loss = BalancedSoftmaxLoss(class_counts=[3, 1])
        >>> loss(torch.zeros(1, 2), torch.tensor([1]))  # log 4
        tensor(1.3863)
    """

    needs_class_counts = True

    def __init__(self, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        self._take_counts(class_counts)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy of each sample under the balanced softmax, ``[B]``."""
        return F.cross_entropy(logits + log_prior(self.counts_of(logits)), target, reduction="none")
