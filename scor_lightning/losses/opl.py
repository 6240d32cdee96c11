"""Orthogonal Projection Loss (OPL)."""

import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.classification import check_logits, check_parameter, upcast
from scor_lightning.functional.opl import orthogonal_projection_penalty
from scor_lightning.losses.base import Loss
from scor_lightning.losses.distributed import BatchGatherer


class OPLLoss(Loss):
    r"""Add a penalty to cross entropy that pulls features to one direction per class, orthogonal to those of other classes.

    .. math:: L = \mathrm{CE} + \lambda \bigl((1 - s) + \gamma d\bigr)

    with s the mean cosine of the features of two samples of one class, and d the mean absolute cosine of two samples
    of different classes; see :func:`scor_lightning.functional.orthogonal_projection_penalty`. In evaluation the loss is
    only the cross entropy, which does not depend on how a set is divided into batches.

    Source: Ranasinghe et al., "Orthogonal Projection Loss", ICCV 2021, https://arxiv.org/abs/2103.14021,
    https://github.com/kahnchana/opl.

    Args:
        weight: The lambda above, >= 0: 1 for CIFAR-100, 0.1 for ImageNet.
        gamma: Weight of the pairs of different classes, >= 0: 0.5 for CIFAR-100, 2 for ImageNet.
        gather_distributed: Whether several processes pair the samples of all their batches, like one process with the whole
            batch, or each only those of its own batch.

    Raises:
        ValueError: If weight or gamma < 0.

    Example:
        >>> import torch
        >>> loss = OPLLoss()
        >>> target = torch.tensor([0, 0, 1, 1])
        >>> loss.terms(torch.zeros(4, 2), target, features=torch.ones(4, 3))
        {'cross_entropy': tensor(0.6931), 'opl_penalty': tensor(0.5000)}
    """

    needs_features = True
    pairs_samples = True

    def __init__(self, weight: float = 1.0, gamma: float = 0.5, gather_distributed: bool = True) -> None:
        super().__init__()
        check_parameter("weight", weight)
        check_parameter("gamma", gamma)
        self.weight = weight
        self.gamma = gamma
        self.gather_distributed = gather_distributed
        self._gather = BatchGatherer()

    def terms(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``cross_entropy`` and, in training, ``opl_penalty``, weighted by lambda."""
        check_logits(logits)
        if features is None:
            raise ValueError("Expected `features` of shape [B, D] but got None: OPL reads them, call with all three")
        cross_entropy = F.cross_entropy(upcast(logits), target)
        if not self.training:
            return {"cross_entropy": cross_entropy}
        if self.gather_distributed:
            features, target = self._gather(features, target)
        penalty = orthogonal_projection_penalty(features, target, self.gamma)
        return {"cross_entropy": cross_entropy, "opl_penalty": self.weight * penalty}
