"""Gaussian clouded logit adjustment (GCL)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scor_lightning.functional.classification import check_parameter
from scor_lightning.functional.margin import subtract_margin
from scor_lightning.losses.cosine import CosineLoss


class GCLLoss(CosineLoss):
    r"""Lower the logits of a class by noise that is larger where the class has fewer training images.

    The head gives :math:`z = s \cos \theta` (:class:`scor_lightning.models.CosineLinear`). In training the loss is the cross
    entropy of

    .. math:: z_k - s \, a \, |\epsilon| \, \frac{\log n_{\max} - \log n_k}{\log n_{\max} - \log n_{\min}}
        - s \, m \, [k = y]

    with :math:`\epsilon` for every sample and class from a normal distribution with standard deviation 1/3, clamped to [-1, 1], and
    without noise if all classes have the same size. Features of rare classes thus represent a cloud instead of a point, which
    spreads them in the feature space. There is no noise in evaluation.

    Source: Li et al., "Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment", CVPR 2022,
    https://arxiv.org/abs/2305.11733, https://github.com/Keke921/GCLLoss. ``loss/gcl.yaml`` adds the authors' mixup and second
    stage.

    Args:
        amplitude: Amplitude a of the noise, in units of the cosine, >= 0.
        margin: Margin m at the true class, in units of the cosine, >= 0; .1 in the second stage.
        gamma: The loss of a sample is multiplied by (1 - p)^gamma, p the probability of its class without gradient, >= 0; 1 in the
            second stage.
        scale: The scale s of the logits, > 0; None is that of the network's head, and without a network 30.
        class_counts: Training samples of each class; None leaves them to :meth:`set_class_counts`.

    Raises:
        ValueError: If an argument is out of range, or the network has another head or scale.

    Example:
        >>> loss = GCLLoss(class_counts=[1600, 100]).eval()
        >>> loss(30 * torch.tensor([[0.5, 0.5]]), torch.tensor([0]))  # log 2
        tensor(0.6931)
    """

    needs_class_counts = True
    keeps_state = True  # of the generator

    def __init__(
        self,
        amplitude: float = 0.5,
        margin: float = 0.0,
        gamma: float = 0.0,
        scale: float | None = None,
        class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(scale)
        for name, value in (("amplitude", amplitude), ("margin", margin), ("gamma", gamma)):
            check_parameter(name, value)
        self.amplitude = amplitude
        self.margin = margin
        self.gamma = gamma
        self._take_counts(class_counts)

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, ``[B]``."""
        logs = self.counts_of(logits).to(logits).log()
        if self.training and self.amplitude and logs.max() > logs.min():
            clouds = (logs.max() - logs) / (logs.max() - logs.min())
            noise = (torch.randn_like(logits) / 3).clamp(-1, 1).abs()
            logits = logits - self._head_scale * self.amplitude * noise * clouds
        margins = logits.new_full((logits.shape[1],), self._head_scale * self.margin)
        losses = F.cross_entropy(subtract_margin(logits, target, margins), target, reduction="none")
        return losses * (1 - (-losses.detach()).exp()) ** self.gamma if self.gamma else losses
