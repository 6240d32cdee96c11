"""Stochastic Covariance Regularization (SCoR)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from scor_lightning.functional.classification import check_parameter
from scor_lightning.functional.scor import scor_penalty
from scor_lightning.losses.base import (
    Loss,
    check_mixing,
    loss_terms,
    mixed_loss_terms,
    needs_features,
)
from scor_lightning.losses.distributed import BatchGatherer, share_generator, world_size
from scor_lightning.losses.over_base import LossOverBase
from scor_lightning.seeding import Purpose, derived_generator


class SCoRLoss(LossOverBase):
    r"""Regularize any classification loss by the covariance of the logits of randomly paired samples.

    .. math:: L = L_{\mathrm{base}} + \alpha \lVert A^\top A' \rVert_F

    where A and A' are the two halves of the randomly permuted logits; see
    :func:`scor_lightning.functional.scor_penalty`. In evaluation the loss is only the base loss, without random
    numbers. The permutations come from a generator of the loss, whose seed is derived from ``torch.initial_seed()`` when
    the loss is built, and whose state is saved with the module, so that a resumed training draws the same permutations.

    Source: Erdem and Tek, "Stochastic Covariance Regularization for Imbalanced Datasets", ICANN 2025,
    https://doi.org/10.1007/978-3-032-04558-4_11; package ``scor`` on PyPI.

    Args:
        base: The loss to regularize, called as ``base(logits, target)`` unless it is a :class:`Loss`; None is
            ``torch.nn.CrossEntropyLoss()``, the paper's SCoR.
        alpha: Weight of the penalty, >= 0. With ``reduction="sum"`` its effect depends on the batch size.
        reduction: ``"sum"`` over the pairs of samples, as in the paper, or their ``"mean"``.
        odd_batch: Treatment of an odd number of samples: ``"drop"`` ignores one; ``"self"`` pairs the batch with itself, as
            in the authors' package.
        gather_distributed: Whether several processes compute the penalty of all their batches together, like one process
            with the whole batch, or each that of its own batch.

    Attributes:
        generator: Generator of the permutations, on the CPU.

    Raises:
        ValueError: If alpha < 0, or an option has another value than those named.

    Example:
        >>> loss = SCoRLoss(nn.CrossEntropyLoss(label_smoothing=0.1), alpha=1e-3)
        >>> terms = loss.terms(torch.randn(8, 10), torch.randint(10, (8,)))
        >>> list(terms)
        ['cross_entropy', 'scor_penalty']
    """

    pairs_samples = True

    def __init__(
        self,
        base: nn.Module | None = None,
        alpha: float = 1e-4,
        reduction: Literal["sum", "mean"] = "sum",
        odd_batch: Literal["drop", "self"] = "drop",
        gather_distributed: bool = True,
    ) -> None:
        super().__init__(base)
        check_parameter("alpha", alpha)
        if reduction not in ("sum", "mean"):
            raise ValueError(f'Expected `reduction` to be "sum" or "mean" but got {reduction!r}')
        if odd_batch not in ("drop", "self"):
            raise ValueError(f'Expected `odd_batch` to be "drop" or "self" but got {odd_batch!r}')
        self.alpha = alpha
        self.reduction = reduction
        self.odd_batch = odd_batch
        self.gather_distributed = gather_distributed
        self.needs_features = needs_features(self.base)
        self.needs_class_counts = isinstance(base, Loss) and base.needs_class_counts
        self.generator = derived_generator(Purpose.PERMUTATION, torch.initial_seed())
        self._gather = BatchGatherer()
        self._shares_generator = False

    def terms(
        self,
        logits: Tensor,
        target: Tensor,
        features: Tensor | None = None,
        *,
        permutation: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms of the base loss and, in training, ``scor_penalty``, weighted by alpha.

        Args:
            logits: Unnormalised scores, float ``[B, K]``.
            target: Class indices, int64 ``[B]``.
            features: Passed to the base loss, float ``[B, D]``.
            permutation: Order of the samples, int64 ``[B]``, instead of one drawn from the generator, which is not possible
                under ``torch.func.vmap`` or in a full graph of ``torch.compile``.
        """
        terms = loss_terms(self.base, logits, target, features)
        return self._with_penalty(terms, logits, permutation)

    def mixed_terms(
        self, logits: Tensor, target: Tensor, other: Tensor, weight: Tensor, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the terms of the base loss on a mixed batch, and the penalty on its logits."""
        return self._with_penalty(mixed_loss_terms(self.base, logits, target, other, weight, features), logits, None)

    def check_mixing(self) -> None:
        """Check the base loss."""
        check_mixing(self.base)

    def _with_penalty(self, terms: dict[str, Tensor], logits: Tensor, permutation: Tensor | None) -> dict[str, Tensor]:
        if not self.training:
            return terms
        if world_size() > 1:
            if not self._shares_generator:
                share_generator(self.generator, logits.device)
                self._shares_generator = True
            if self.gather_distributed:
                (logits,) = self._gather(logits)
        penalty = scor_penalty(
            logits,
            permutation=permutation,
            generator=self.generator,
            reduction=self.reduction,
            odd_batch=self.odd_batch,
        )
        terms["scor_penalty"] = self.alpha * penalty
        return terms

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the generator, for the checkpoint."""
        return {**super().get_extra_state(), "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the state of the generator from a checkpoint."""
        super().set_extra_state(state)
        self.generator.set_state(state["generator"].cpu())
        self._shares_generator = False
