"""Logit adjustment."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.classification import check_parameter
from scor_lightning.functional.margin import log_prior
from scor_lightning.losses.base import PerSampleLoss


class LogitAdjustmentLoss(PerSampleLoss):
    r"""Remove the class frequencies from what the classifier learns, during training or afterwards.

    With :math:`\pi` the shares of the classes in the training set, the loss is the cross entropy of
    :math:`z + \tau \log \pi`, and predictions use z; or, post hoc, the loss is the cross entropy of z, and
    predictions use :math:`z - \tau \log \pi`.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, https://arxiv.org/abs/2007.07314,
    https://github.com/google-research/google-research/tree/master/logit_adjustment.

    Args:
        tau: Strength; 1 suits a balanced test set.
        post_hoc: Whether to adjust in evaluation instead of in training.
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Example:
        >>> import torch
        >>> loss = LogitAdjustmentLoss(post_hoc=True)
        >>> loss.set_class_counts(torch.tensor([3, 1]))
        >>> loss.adjust_logits(torch.tensor([[1.0, 0.0]])).argmax().item()
        1
    """

    needs_class_counts = True

    def __init__(self, tau: float = 1.0, post_hoc: bool = False, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        check_parameter("tau", tau)
        self.tau = tau
        self.post_hoc = post_hoc
        self._take_counts(class_counts)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy of each sample, ``[B]``, of adjusted logits except in post-hoc mode."""
        if not self.post_hoc:
            logits = logits + self.tau * log_prior(self.counts_of(logits))
        return F.cross_entropy(logits, target, reduction="none")

    def adjust_logits(self, logits: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` used for prediction, adjusted in post-hoc mode."""
        return logits - self.tau * log_prior(self.counts_of(logits)) if self.post_hoc else logits
