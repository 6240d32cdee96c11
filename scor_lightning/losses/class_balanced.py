"""Class-balanced loss."""

from collections.abc import Sequence

from torch import Tensor

from scor_lightning.functional.classification import check_parameter, effective_number_weights, focal_loss
from scor_lightning.losses.base import PerSampleLoss


class ClassBalancedLoss(PerSampleLoss):
    r"""Weight each sample by the inverse of the effective number of samples of its class.

    .. math::
        L = \frac{\sum_i w_{y_i} \ell_i}{\sum_i w_{y_i}}, \qquad w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}

    with :math:`n_c` the training images of class c and :math:`\ell` cross entropy or focal loss. The authors' own code
    divides by B instead, which scales the loss of a batch but does not change the direction of its gradient.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    https://arxiv.org/abs/1901.05555, https://github.com/richardaecn/class-balanced-loss.

    Args:
        beta: In [0, 1]; 0 weights all classes equally, 1 by their inverse frequency.
        gamma: Focusing parameter of the focal loss, >= 0; 0 is cross entropy.
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Raises:
        ValueError: If beta is outside [0, 1] or gamma < 0.

    Example:
        >>> import torch
        >>> loss = ClassBalancedLoss(beta=0.9)
        >>> loss.set_class_counts(torch.tensor([100, 1]))
        >>> loss.class_weights
        tensor([0.1818, 1.8182])
    """

    needs_class_counts = True

    def __init__(self, beta: float = 0.9999, gamma: float = 0.0, class_counts: Sequence[int] | None = None) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"Expected `beta` in [0, 1] but got {beta}")
        check_parameter("gamma", gamma)
        self.beta = beta
        self.gamma = gamma
        self._take_counts(class_counts)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the focal loss of each sample, ``[B]``, which at gamma 0 is cross entropy."""
        return focal_loss(logits, target, self.gamma, reduction="none")

    def set_class_counts(self, counts: Tensor) -> None:
        """Compute the weights from the training images per class, int64 ``[K]`` >= 1."""
        super().set_class_counts(counts)
        self.set_class_weights(effective_number_weights(counts, self.beta))
