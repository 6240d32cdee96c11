"""The base of losses that add a term to another loss."""

from torch import Tensor, nn

from scor_lightning.losses.base import Evaluated, Loss, check_backbone, evaluate_loss


class LossOverBase(Loss):
    """A base loss plus a further term in training; in evaluation only the base loss.

    Args:
        base: The base loss, of this package or of ``torch.nn``; None is cross entropy.

    Raises:
        ValueError: If the base loss is not a module.
    """

    def __init__(self, base: nn.Module | None) -> None:
        super().__init__()
        if base is not None and not isinstance(base, nn.Module):
            raise ValueError(f"Expected `base` to be a loss, such as FocalLoss(), but got {base!r}")
        self.base = nn.CrossEntropyLoss() if base is None else base

    def evaluate(self, logits: Tensor, target: Tensor, features: Tensor | None = None) -> Evaluated:
        """Evaluate the base loss."""
        return evaluate_loss(self.base, logits, target, features)

    def check_backbone(self, backbone: nn.Module) -> None:
        """Check what the base loss requires."""
        check_backbone(self.base, backbone)

    def set_class_counts(self, counts: Tensor) -> None:
        """Set the training images of each class, int64 ``[K]``, also for the base loss."""
        if isinstance(self.base, Loss):
            self.base.set_class_counts(counts)
        super().set_class_counts(counts)

    def set_class_weights(self, weights: Tensor | None) -> None:
        """Pass the class weights, float ``[K]`` or None, to the base loss."""
        if isinstance(self.base, Loss):
            self.base.set_class_weights(weights)
        else:
            super().set_class_weights(weights)

    def adjust_logits(self, logits: Tensor) -> Tensor:
        """Adjust the logits ``[B, K]`` as the base loss does."""
        return self.base.adjust_logits(logits) if isinstance(self.base, Loss) else logits
