"""Margins, shifts and scales of logits that favour rare classes."""

from torch import Tensor


def ldam_margins(counts: Tensor, max_margin: float = 0.5) -> Tensor:
    r"""Compute a margin for each class, wider for rarer classes, :math:`m_c \propto n_c^{-1/4}`, with the largest equal to `max_margin`.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019,
    https://arxiv.org/abs/1906.07413, https://github.com/kaidic/LDAM-DRW.

    Args:
        counts: Training samples per class, int64 ``[K]`` >= 1.
        max_margin: Margin of the rarest class, in units of the cosine, >= 0.

    Returns:
        Margins, float32 ``[K]``.

    Example:
        >>> import torch
        >>> ldam_margins(torch.tensor([1600, 100]))
        tensor([0.2500, 0.5000])
    """
    root = counts.float().pow(-0.25)
    return root * (max_margin / root.max())


def subtract_margin(logits: Tensor, target: Tensor, margins: Tensor) -> Tensor:
    """Subtract from each sample's logit of its own class the margin of that class.

    Args:
        logits: Unnormalised scores, float ``[B, K]``.
        target: Class indices, int64 ``[B]``.
        margins: Margins in units of the logits, float ``[K]``.

    Returns:
        Logits, float ``[B, K]``.

    Example:
        >>> import torch
        >>> subtract_margin(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0.25, 0.5]))
        tensor([[ 0.0000, -0.5000]])
    """
    return logits.scatter_add(1, target[:, None], -margins[target][:, None].to(logits.dtype))


def log_prior(counts: Tensor) -> Tensor:
    """Return the logarithm of each class's share of the training set, float32 ``[K]``, from counts >= 1.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, https://arxiv.org/abs/2007.07314,
    https://github.com/google-research/google-research/tree/master/logit_adjustment.

    Example:
        >>> import torch
        >>> log_prior(torch.tensor([3, 1])).exp()
        tensor([0.7500, 0.2500])
    """
    return (counts.float() / counts.sum()).log()


def vs_scale(counts: Tensor, gamma: float = 0.3) -> Tensor:
    r"""Return the divisor of each class's logit in vector scaling, :math:`\Delta_c = (n_{\max} / n_c)^\gamma`.

    Source: Kini et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", NeurIPS
    2021, https://arxiv.org/abs/2103.01550, https://github.com/orparask/VS-Loss. The paper multiplies by the inverse.

    Args:
        counts: Training samples per class, int64 ``[K]`` >= 1.
        gamma: Strength, >= 0; 0 disables scaling.

    Returns:
        Divisors >= 1, float32 ``[K]``.

    Example:
        >>> import torch
        >>> vs_scale(torch.tensor([16, 1]), gamma=0.5)
        tensor([1., 4.])
    """
    return (counts.max() / counts.float()).pow(gamma)
