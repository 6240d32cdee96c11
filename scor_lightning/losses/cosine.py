"""The base of losses that read the scaled cosines of a :class:`~scor_lightning.models.CosineLinear` head."""

from torch import nn

from scor_lightning.losses.base import PerSampleLoss, check_head, loss_name


class CosineLoss(PerSampleLoss):
    """A loss in units of the cosine, which requires the scale of the logits.

    Args:
        scale: The scale s of the logits, > 0. None uses that of the network's head; without a network it is 30, the default
            of the head.

    Raises:
        ValueError: If scale <= 0.
    """

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise ValueError(f"Expected `scale` > 0 but got {scale}")
        self.scale = scale
        self._head_scale = 30.0 if scale is None else scale

    def check_backbone(self, backbone: nn.Module) -> None:
        """Check that the head returns scaled cosines, and adopt its scale."""
        from scor_lightning.models.heads import CosineLinear  # here, because its folder loads torchvision

        scale = check_head(self, backbone, CosineLinear, f"loss/{loss_name(self)}.yaml").scale
        if self.scale not in (None, scale):
            raise ValueError(
                f"Expected the `scale` of {type(self).__name__} to be the {scale} of the network's head but got {self.scale}: leave it out"
            )
        self._head_scale = scale
