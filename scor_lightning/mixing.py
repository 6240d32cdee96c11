"""Mixed batches: two images blended into one, with a share of each target.

A mixing takes a batch and returns images, two targets and the weight of the first. Random numbers are a function of
(seed, epoch, batch, process), so that a resumed run mixes the same. With several processes, each mixes its own part of a
batch.
"""

from abc import ABC, abstractmethod
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scor_lightning.seeding import Purpose, derived_seed


class Mixed(NamedTuple):
    """A mixed batch.

    Args:
        images: Float ``[B, C, H, W]``.
        target: First target, int64 ``[B]``.
        other: Second target, int64 ``[B]``.
        weight: Weight lambda of the first target, float ``[B]`` in [0, 1]; the second one has 1 - lambda.
    """

    images: Tensor
    target: Tensor
    other: Tensor
    weight: Tensor


class Mixing(ABC):
    """Mixes the images of a batch.

    Args:
        alpha: The share of an image is drawn from Beta(alpha, alpha), > 0; 1 is uniform.

    Attributes:
        needs_partners: Whether the second images are drawn separately, by the data module's ``partner_sampling``.
        needs_class_counts: Whether it reads the class counts.

    Raises:
        ValueError: If alpha <= 0.
    """

    needs_partners: bool = False
    needs_class_counts: bool = False

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha > 0:
            raise ValueError(f"Expected `alpha` > 0 but got {alpha}")
        self.alpha = alpha

    def __repr__(self) -> str:
        """Show the arguments."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def active(self, epoch: int, epochs: int) -> bool:
        """Return whether the batches of an epoch, counted from 0, are mixed."""
        return True

    def __call__(
        self,
        images: Tensor,
        target: Tensor,
        key: tuple[int, ...],
        class_counts: Tensor | None = None,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> Mixed:
        """Mix a batch.

        Args:
            images: Normalized images, float ``[B, C, H, W]``.
            target: Class indices, int64 ``[B]``.
            key: Seed, epoch, batch and process, of which the random numbers are a function.
            class_counts: Training images of each class, unmixed, int64 ``[K]``.
            partners: Images and targets to mix with, of the same shapes; None takes them from the batch.
        """
        random = np.random.default_rng(derived_seed(Purpose.MIXING, *key))
        if partners is None:
            order = torch.from_numpy(random.permutation(len(target))).to(images.device, non_blocking=True)
            partners = images[order], target[order]
        return self.mix(images, target, *partners, random, class_counts)

    def mix_batch(
        self, images: Tensor, target: Tensor, key: tuple[int, int, int, int], epochs: int, class_counts: Tensor | None
    ) -> Mixed:
        """Mix a batch from the loader; partners, if there are any, are its second half.

        Args:
            images: Normalized images, float ``[B, C, H, W]``.
            target: Class indices, int64 ``[B]``.
            key: Seed, epoch, batch and process.
            epochs: Epochs of the training.
            class_counts: As above.
        """
        partners = None
        if self.needs_partners:
            (images, other), (target, other_target) = images.chunk(2), target.chunk(2)
            partners = (other, other_target)
        if not self.active(key[1], epochs):
            return Mixed(images, target, target, images.new_ones(len(target)))
        return self(images, target, key, class_counts, partners)

    @abstractmethod
    def mix(
        self,
        images: Tensor,
        target: Tensor,
        partners: Tensor,
        other: Tensor,
        random: np.random.Generator,
        class_counts: Tensor | None,
    ) -> Mixed:
        """Mix images with their partners; arguments as above, ``other`` being the targets of the partners."""

    def _share(self, random: np.random.Generator) -> float:
        return float(random.beta(self.alpha, self.alpha))


class Mixup(Mixing):
    r"""Blend each image with another one of its batch: :math:`\lambda x_a + (1 - \lambda) x_b`, one lambda per batch.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, https://arxiv.org/abs/1710.09412.

    Args:
        alpha: As of :class:`Mixing`.

    Example:
        >>> mixed = Mixup()(torch.zeros(4, 1, 8, 8), torch.arange(4), key=(0, 0, 0, 0))
        >>> mixed.images.shape, sorted(mixed.other.tolist())
        (torch.Size([4, 1, 8, 8]), [0, 1, 2, 3])
    """

    def mix(
        self,
        images: Tensor,
        target: Tensor,
        partners: Tensor,
        other: Tensor,
        random: np.random.Generator,
        class_counts: Tensor | None,
    ) -> Mixed:
        """Blend the images."""
        share = self._share(random)
        return Mixed(torch.lerp(partners, images, share), target, other, images.new_full((len(target),), share))


class Remix(Mixup):
    """Blend images like :class:`Mixup`, and assign the target to the rarer class if the other one is much larger.

    With n_a / n_b >= kappa and lambda < tau the target is entirely b's; with n_a / n_b <= 1 / kappa and 1 - lambda < tau it is
    entirely a's. So lambda differs between the samples of a batch.

    Source: Chou et al., "Remix: Rebalanced Mixup", ECCV Workshops 2020, https://arxiv.org/abs/2007.03943.

    Args:
        alpha: As of :class:`Mixing`.
        kappa: Ratio of class sizes, >= 1.
        tau: Share of an image, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """

    needs_class_counts = True

    def __init__(self, alpha: float = 1.0, kappa: float = 3.0, tau: float = 0.5) -> None:
        super().__init__(alpha)
        if not kappa >= 1:
            raise ValueError(f"Expected `kappa` >= 1 but got {kappa}")
        if not 0 <= tau <= 1:
            raise ValueError(f"Expected `tau` in [0, 1] but got {tau}")
        self.kappa = kappa
        self.tau = tau

    def mix(
        self,
        images: Tensor,
        target: Tensor,
        partners: Tensor,
        other: Tensor,
        random: np.random.Generator,
        class_counts: Tensor | None,
    ) -> Mixed:
        """Blend the images and choose the weights."""
        mixed = super().mix(images, target, partners, other, random, class_counts)
        assert class_counts is not None  # checked before training
        counts = class_counts.to(images.device, non_blocking=True)
        ratio = counts[target] / counts[other]
        weight = mixed.weight.masked_fill((ratio >= self.kappa) & (mixed.weight < self.tau), 0.0)
        weight = weight.masked_fill((ratio <= 1 / self.kappa) & (1 - mixed.weight < self.tau), 1.0)
        return mixed._replace(weight=weight)


class CutMix(Mixing):
    """Paste a box of another image of the batch into each image; lambda is the exact share of pixels left.

    One box per batch: its sides are those of the image times sqrt(1 - lambda), its centre is uniform, and it is
    clipped at the border.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
    https://arxiv.org/abs/1905.04899.

    Args:
        alpha: As of :class:`Mixing`.
    """

    def mix(
        self,
        images: Tensor,
        target: Tensor,
        partners: Tensor,
        other: Tensor,
        random: np.random.Generator,
        class_counts: Tensor | None,
    ) -> Mixed:
        """Paste the boxes."""
        height, width = images.shape[-2:]
        side = sqrt(1 - self._share(random))
        top, bottom = _interval(height, side, random)
        left, right = _interval(width, side, random)
        images = images.clone()
        images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return Mixed(images, target, other, images.new_full((len(target),), share))


class CMO(CutMix):
    """Paste boxes of images of rare classes into ordinary images, as their background.

    The boxes come from images drawn with replacement so that all classes are equally likely: set ``partner_sampling:
    class_balanced`` of the data module, as ``method/cmo.yaml`` does. A batch is mixed with probability ``probability``, in the
    epochs from ``margin`` + 1 to the last but ``margin`` + 1, counted from 0.

    Source: Park et al., "The Majority Can Help The Minority: Context-rich Minority Oversampling for Long-tailed
    Classification", CVPR 2022, https://arxiv.org/abs/2112.00412, https://github.com/naver-ai/cmo.

    Args:
        alpha: As of :class:`Mixing`.
        probability: Share of the batches that are mixed, in [0, 1].
        margin: Epochs at the beginning and at the end without mixing, >= 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    needs_partners = True
    depends_on_training_length = True

    def __init__(self, alpha: float = 1.0, probability: float = 0.5, margin: int = 3) -> None:
        super().__init__(alpha)
        if not 0 <= probability <= 1:
            raise ValueError(f"Expected `probability` in [0, 1] but got {probability}")
        if margin < 0:
            raise ValueError(f"Expected `margin` >= 0 but got {margin}")
        self.probability = probability
        self.margin = margin

    def active(self, epoch: int, epochs: int) -> bool:
        """Return whether an epoch lies within the margins."""
        return self.margin < epoch < epochs - self.margin

    def mix(
        self,
        images: Tensor,
        target: Tensor,
        partners: Tensor,
        other: Tensor,
        random: np.random.Generator,
        class_counts: Tensor | None,
    ) -> Mixed:
        """Paste the boxes into some of the batches."""
        if random.random() >= self.probability:
            return Mixed(images, target, other, images.new_ones(len(target)))
        return super().mix(images, target, partners, other, random, class_counts)


def check_partners(mixing: Mixing | None, draws_partners: bool, class_counts: Tensor | None) -> None:
    """Check that a data module provides what a mixing requires, and draws partners only if the mixing requires them.

    Args:
        mixing: The mixing; None if there is none.
        draws_partners: Whether the data module draws partners.
        class_counts: Training images of each class, int64 ``[K]``; None if they are not known.

    Raises:
        ValueError: If it does not; the message names the option.
    """
    needed = mixing is not None and mixing.needs_partners
    if needed and not draws_partners:
        raise ValueError(
            f"Expected a data module that draws partners for {type(mixing).__name__}: set `--data.partner_sampling class_balanced`"
        )
    if draws_partners and not needed:
        raise ValueError(
            "Expected no `--data.partner_sampling` without a `--model.mixing` that needs partners, such as CMO"
        )
    if mixing is not None and mixing.needs_class_counts and class_counts is None:
        raise ValueError(f"Expected a data module with class counts for {type(mixing).__name__}")


def _interval(size: int, side: float, random: np.random.Generator) -> tuple[int, int]:
    """Draw an interval of ``range(size)`` of a relative length, clipped at the ends."""
    length, centre = int(size * side), int(random.integers(size))
    return max(0, centre - length // 2), min(size, centre + length // 2)
