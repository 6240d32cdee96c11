"""Label-distribution-aware margin loss (LDAM)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.classification import check_parameter
from scor_lightning.functional.margin import ldam_margins, subtract_margin
from scor_lightning.losses.cosine import CosineLoss


class LDAMLoss(CosineLoss):
    r"""Enforce a wider margin for classes with fewer training images.

    The head gives :math:`z = s \cos \theta` (:class:`scor_lightning.models.CosineLinear`). The loss is the cross
    entropy of the logits from which, at the true class, the margin is subtracted:

    .. math:: z_y - s \, m_y, \qquad m_c = n_c^{-1/4} \, \frac{m_{\max}}{\max_k n_k^{-1/4}} .

    The scale is part of the network's head, so that probabilities do not require the loss; in the authors' code it is part
    of the loss. A network with another head is refused: on a linear head LDAM is worse than cross entropy.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019,
    https://arxiv.org/abs/1906.07413, https://github.com/kaidic/LDAM-DRW. The paper adds deferred re-weighting:
    :class:`scor_lightning.callbacks.DeferredReweighting`.

    Args:
        max_margin: Margin of the rarest class, in units of the cosine, >= 0.
        scale: The scale s of the logits, > 0, for a plain training loop. None uses that of the network's head; without a
            network it is 30, the default of the head.
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Raises:
        ValueError: If max_margin < 0 or scale <= 0, or the network has another head or scale.

    Example:
        >>> import torch
        >>> loss = LDAMLoss()
        >>> loss.set_class_counts(torch.tensor([1600, 100]))
        >>> loss(30 * torch.tensor([[0.5, 0.5]]), torch.tensor([0]))  # log(1 + exp(30 * 0.25))
        tensor(7.5006)
    """

    needs_class_counts = True

    def __init__(
        self, max_margin: float = 0.5, scale: float | None = None, class_counts: Sequence[int] | None = None
    ) -> None:
        super().__init__(scale)
        check_parameter("max_margin", max_margin)
        self.max_margin = max_margin
        self._take_counts(class_counts)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy of each sample with its margin, ``[B]``."""
        margins = self._head_scale * ldam_margins(self.counts_of(logits), self.max_margin)
        return F.cross_entropy(subtract_margin(logits, target, margins), target, reduction="none")
