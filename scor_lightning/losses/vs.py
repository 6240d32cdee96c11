"""Vector-scaling loss (VS)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.classification import check_parameter
from scor_lightning.functional.margin import log_prior, vs_scale
from scor_lightning.losses.base import PerSampleLoss


class VSLoss(PerSampleLoss):
    r"""Scale and shift the logit of each class by its frequency, in training.

    The loss is the cross entropy of

    .. math:: \frac{z_c}{\Delta_c} + \tau \log \pi_c, \qquad \Delta_c = \Bigl(\frac{n_{\max}}{n_c}\Bigr)^\gamma

    with :math:`n_c` the training images of class c and :math:`\pi_c` their share. The shift acts early in training,
    the scale late. gamma 0 is logit adjustment.

    Source: Kini et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", NeurIPS
    2021, https://arxiv.org/abs/2103.01550, https://github.com/orparask/VS-Loss.

    Args:
        gamma: Strength of the scale, >= 0.
        tau: Strength of the shift.
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Raises:
        ValueError: If gamma < 0.

    Example:
        >>> import torch
        >>> loss = VSLoss(gamma=0.5, tau=0.0)
        >>> loss.set_class_counts(torch.tensor([16, 1]))
        >>> loss(torch.tensor([[0.0, 4.0]]), torch.tensor([0]))  # log(1 + exp(4 / 4))
        tensor(1.3133)
    """

    needs_class_counts = True

    def __init__(self, gamma: float = 0.3, tau: float = 1.0, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        check_parameter("gamma", gamma)
        self.gamma = gamma
        check_parameter("tau", tau)
        self.tau = tau
        self._take_counts(class_counts)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy of each sample, ``[B]``, of scaled and shifted logits."""
        counts = self.counts_of(logits)
        shifted = logits / vs_scale(counts, self.gamma) + self.tau * log_prior(counts)
        return F.cross_entropy(shifted, target, reduction="none")
