"""Dot-regression loss, for a classifier fixed to a simplex."""

from torch import Tensor, nn

from scor_lightning.losses.base import PerSampleLoss, check_head


class DotRegressionLoss(PerSampleLoss):
    r"""Pull the features of a sample towards the fixed direction of its class, without pushing them from others.

    The head (:class:`scor_lightning.models.ETFHead`) gives the cosines :math:`z_k = m_k^\top h` between normalised features and
    the vertices of a simplex, to which classifier and features converge on balanced data. The loss of a sample is

    .. math:: \tfrac12 \frac{(m_y^\top h - \lVert m_y \rVert \lVert h \rVert)^2}{\lVert h \rVert} = \tfrac12 (z_y - 1)^2 .

    Cross entropy also pushes the features of a class away from all other directions, most of them those of large classes, which
    a fixed simplex does not need. The cosines are not probabilities: a run shows no likelihood and no calibration.

    Source: Yang et al., "Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a Learnable Classifier at the End of
    Deep Neural Network?", NeurIPS 2022, https://arxiv.org/abs/2203.09081.

    Raises:
        ValueError: If the network has another head.

    Example:
        >>> import torch
        >>> DotRegressionLoss()(torch.tensor([[0.0, -0.5]]), torch.tensor([0]))
        tensor(0.5000)
    """

    gives_probabilities = False

    def check_backbone(self, backbone: nn.Module) -> None:
        """Check that the head is a fixed simplex."""
        from scor_lightning.models.heads import ETFHead  # here, because its folder loads torchvision

        check_head(self, backbone, ETFHead, "loss/etf.yaml")

    def sample_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return half the squared distance of each sample's cosine from 1, ``[B]``."""
        own: Tensor = logits.gather(1, target[:, None]).squeeze(1)
        return (own - 1).square() / 2
