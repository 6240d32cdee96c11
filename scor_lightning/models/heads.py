"""Heads, which map features to logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scor_lightning.functional.classification import unit_rows


class CosineLinear(nn.Module):
    r"""Compute for each class the scaled cosine of the angle between the features and its direction.

    .. math:: z_c = s \, \frac{\langle f, w_c \rangle}{\lVert f \rVert \, \lVert w_c \rVert}

    The head of LDAM (Cao et al., NeurIPS 2019, https://arxiv.org/abs/1906.07413,
    https://github.com/kaidic/LDAM-DRW, where the scale is part of the loss).

    Args:
        in_features: Number of features D.
        out_features: Number of classes K.
        scale: The largest logit s, > 0.

    Raises:
        ValueError: If scale <= 0.

    Example:
        >>> head = CosineLinear(64, 10)
        >>> logits = head(torch.randn(8, 64))  # [8, 10]
        >>> bool((logits.abs() <= 30.001).all())
        True
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"Expected `scale` > 0 but got {scale}")
        if in_features < 1 or out_features < 1:
            raise ValueError(f"Expected `in_features` and `out_features` >= 1 but got {in_features} and {out_features}")
        self.in_features = in_features
        self.out_features = out_features
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise the directions."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(torch.empty_like(self.weight).uniform_(-1, 1), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of features ``[B, D]``."""
        return (self.scale * F.linear(unit_rows(features), unit_rows(self.weight))).to(features.dtype)

    def extra_repr(self) -> str:
        """Show the sizes as ``torch.nn.Linear`` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}"


class ETFHead(nn.Module):
    r"""Compute the cosines between batch-normed features and fixed directions, the vertices of a simplex.

    The directions are the columns of :math:`\sqrt{K/(K-1)} \, P (I - \tfrac1K 1 1^\top)`, an equiangular tight frame, where P has
    random orthonormal columns; they have length 1 and equal angles between each other, and are not trained.

    Source: Yang et al., NeurIPS 2022, https://arxiv.org/abs/2203.09081; for :class:`~scor_lightning.losses.DotRegressionLoss`.

    Args:
        in_features: Number of features D, at least K.
        out_features: Number of classes K, at least 2.

    Raises:
        ValueError: If there are fewer features than classes, or fewer than two classes.

    Example:
        >>> head = ETFHead(64, 10)
        >>> cosines = head(torch.randn(8, 64))  # [8, 10]
        >>> (head.directions @ head.directions.T)[0, 1:3]  # -1 / (K - 1)
        tensor([-0.1111, -0.1111])
    """

    directions: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        if out_features < 2:
            raise ValueError(f"Expected at least 2 classes for ETFHead but got {out_features}")
        if in_features < out_features:
            raise ValueError(
                f"Expected at least as many features as the {out_features} classes for ETFHead but got {in_features}: use a wider "
                "network, or another loss"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.norm = nn.BatchNorm1d(in_features)
        columns, _ = torch.linalg.qr(torch.randn(in_features, out_features, dtype=torch.float64))
        simplex = torch.eye(out_features, dtype=torch.float64) - 1 / out_features
        frame = (out_features / (out_features - 1)) ** 0.5 * columns @ simplex
        self.register_buffer("directions", frame.T.to(torch.get_default_dtype()).contiguous())

    def forward(self, features: Tensor) -> Tensor:
        """Return the cosines ``[B, K]`` of features ``[B, D]``."""
        rows = unit_rows(self.norm(features))
        return F.linear(rows, self.directions.to(rows.dtype)).to(features.dtype)

    def extra_repr(self) -> str:
        """Show the sizes as ``torch.nn.Linear`` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class MLPHead(nn.Sequential):
    """A hidden layer with ReLU before the linear classifier: D-512-K, the SCoR paper's head on ConvNeXt.

    Args:
        in_features: Number of features D.
        out_features: Number of classes K.
        hidden: Width of the hidden layer.

    Raises:
        ValueError: If hidden < 1.

    Example:
        >>> MLPHead(768, 10)(torch.randn(8, 768)).shape
        torch.Size([8, 10])
    """

    def __init__(self, in_features: int, out_features: int, hidden: int = 512) -> None:
        if hidden < 1:
            raise ValueError(f"Expected `hidden` >= 1 but got {hidden}")
        super().__init__(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, out_features))
