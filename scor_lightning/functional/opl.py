"""The penalty of Orthogonal Projection Loss (OPL)."""

import torch
from torch import Tensor

from scor_lightning.functional.classification import check_parameter, unit_rows


def orthogonal_projection_penalty(features: Tensor, target: Tensor, gamma: float = 0.5) -> Tensor:
    r"""Measure how far features are from one direction per class, orthogonal to those of other classes.

    With :math:`f` the features scaled to length 1,

    .. math::
        P = (1 - s) + \gamma d, \qquad
        s = \underset{i \ne j,\; y_i = y_j}{\mathrm{mean}} \langle f_i, f_j \rangle, \qquad
        d = \underset{y_i \ne y_j}{\mathrm{mean}} \lvert \langle f_i, f_j \rangle \rvert .

    A mean over no pairs is 0. Source: Ranasinghe et al., "Orthogonal Projection Loss", ICCV 2021,
    https://arxiv.org/abs/2103.14021, https://github.com/kahnchana/opl, whose training scripts have the absolute value
    that its top-level file leaves out.

    Args:
        features: Inputs of the classifier's head, float ``[B, D]``.
        target: Class indices, int64 ``[B]``.
        gamma: Weight of the pairs of different classes, >= 0.

    Returns:
        A scalar >= 0, float32 (float64 for float64 features).

    Raises:
        ValueError: If the features are not 2-D or differ in length from the targets, or gamma < 0.

    Example:
        >>> orthogonal_projection_penalty(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
        tensor(0.)
        >>> orthogonal_projection_penalty(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
        tensor(0.5000)
    """
    if features.ndim != 2 or len(features) != len(target):
        raise ValueError(f"Expected `features` of shape [{len(target)}, D] but got {list(features.shape)}")
    check_parameter("gamma", gamma)
    unit = unit_rows(features)
    with torch.autocast(unit.device.type, enabled=False):
        cosine = unit @ unit.mT
    alike = target[:, None] == target
    same = alike & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
    s = (cosine * same).sum() / same.sum().clamp_min(1)
    d = (cosine.abs() * ~alike).sum() / (~alike).sum().clamp_min(1)
    return 1 - s + gamma * d
