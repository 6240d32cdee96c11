"""Imbalances: functions from labels to the indices of the images to keep."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import inf
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from scor_lightning.seeding import Purpose, derived_generator

Subset = Literal["random", "ldam_drw"]  # how the images of a class are chosen


class Imbalance(ABC):
    """The number of images to keep of each class; immutable and stateless."""

    def resolve(self, class_names: Sequence[str]) -> "Imbalance":
        """Return the same imbalance with class indices instead of class names."""
        return self

    def reduced(self, available: Tensor, seed: int) -> Tensor:
        """Return which classes are reduced, bool ``[K]``: those below the largest size, unless a subclass overrides it.

        Args:
            available: Images of each class before the imbalance, int64 ``[K]``.
            seed: The data seed.
        """
        counts = self.counts(available, seed)
        return counts < counts.max()

    @abstractmethod
    def counts(self, available: Tensor, seed: int) -> Tensor:
        """Return the images to keep of each class, int64 ``[K]``.

        Args:
            available: Available images of each class, int64 ``[K]``.
            seed: The data seed.
        """

    def keep(self, target: Tensor, num_classes: int, seed: int) -> Tensor:
        """Return the images to keep: a random subset of each class.

        Args:
            target: Class indices, int64 ``[N]``.
            num_classes: Number of classes K.
            seed: The data seed.

        Returns:
            Indices into ``target``, ascending, int64.

        Raises:
            ValueError: If a class has fewer images than to keep, or keeps none.
        """
        available = torch.bincount(target, minlength=num_classes)
        wanted = self.counts(available, seed)
        for c, (want, have) in enumerate(zip(wanted.tolist(), available.tolist(), strict=True)):
            if want > have:
                raise ValueError(f"Expected `imbalance` to keep at most the {have} images of class {c} but got {want}")
            if want < 1:
                raise ValueError(
                    f"Expected `imbalance` to leave an image of every class but got none of the {have} of class {c}: make "
                    "it milder"
                )
        return self.draw(target, wanted, seed)

    def draw(self, target: Tensor, counts: Tensor, seed: int) -> Tensor:
        """Draw a subset of each class; arguments and result as of :meth:`keep` and :func:`draw_per_class`."""
        return draw_per_class(target, counts, derived_generator(Purpose.SUBSET, seed))


def draw_per_class(target: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a random subset of each class.

    Args:
        target: Class indices, int64 ``[N]``.
        counts: Samples to draw of each class, int64 ``[K]``, at most those available.
        generator: Random generator. With equal generators, a smaller subset of a class is part of a larger one.

    Returns:
        Indices into ``target``, ascending, int64.

    Example:
        >>> draw_per_class(torch.tensor([0, 1, 1]), torch.tensor([0, 2]), torch.Generator())
        tensor([1, 2])
    """
    sizes = torch.bincount(target, minlength=len(counts)).tolist()
    members_by_class = torch.split(target.argsort(stable=True), sizes)
    drawn = []
    for members, count in zip(members_by_class, counts.tolist(), strict=True):
        drawn.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(drawn).sort().values


def draw_as_ldam_drw(target: Tensor, counts: Tensor) -> Tensor:
    """Return the images of each class that the scripts of LDAM-DRW and its successors keep.

    Each class in turn is shuffled by NumPy's legacy generator, seeded with their default ``rand_number`` of 0, and its first
    images are kept.

    Args:
        target: Class indices, int64 ``[N]``.
        counts: Samples to keep of each class, int64 ``[K]``, at most those available.

    Returns:
        Indices into ``target``, ascending, int64.
    """
    random = np.random.RandomState(0)
    kept = []
    for c, count in enumerate(counts.tolist()):
        members = torch.nonzero(target == c).flatten().numpy()
        random.shuffle(members)
        kept.append(members[:count])
    return torch.from_numpy(np.sort(np.concatenate(kept)))


class _Drawn(Imbalance):
    """An imbalance of the literature, whose subset can be that of the official scripts."""

    subset: Subset

    def __post_init__(self) -> None:
        if self.subset not in get_args(Subset):
            raise ValueError(f"Expected `subset` to be one of {', '.join(get_args(Subset))} but got {self.subset!r}")

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if (name, value) != ("subset", "random")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def draw(self, target: Tensor, counts: Tensor, seed: int) -> Tensor:
        """Draw a subset of each class as ``subset`` specifies."""
        if self.subset == "ldam_drw":
            return draw_as_ldam_drw(target, counts)
        return super().draw(target, counts, seed)


@dataclass(frozen=True)
class ReduceClasses(Imbalance):
    """Reduce some classes to a share of their images, as in the SCoR paper.

    Args:
        factor: Share of its images that a reduced class keeps, in (0, 1], rounded down.
        classes: Class names (strings) or indices (integers); ``"1"`` is a name, ``1`` an index. None draws one class from
            the data seed. In YAML, put quotes around names that YAML reads as another type: ``yes``, ``no``, ``10``, ``1e3``.
        others: Reduce all classes except those named (or the one drawn) instead.

    Raises:
        ValueError: If ``factor`` is outside (0, 1], or ``classes`` is empty, names a class twice, or lists something other
            than names and indices.

    Example:
        >>> ReduceClasses(factor=0.05, classes=[1]).counts(torch.tensor([100, 100, 100]), seed=0)
        tensor([100,   5, 100])
        >>> ReduceClasses(factor=0.1, classes=[1], others=True).counts(torch.tensor([100, 100, 100]), seed=0)
        tensor([ 10, 100,  10])
    """

    factor: float
    # A list with str first, because jsonargparse converts the text "1" in a `Sequence` to a number. YAML reads some
    # unquoted names as the other types, which are refused below.
    classes: list[str | int | bool | float] | None = None
    others: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"Expected `factor` in (0, 1] but got {self.factor}")
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            raise ValueError(
                f"Expected `classes` to name at least one class, each once, but got {list(self.classes)}; None draws one"
            )
        for given in self.classes or ():
            if type(given) not in (str, int):  # a bool is also an int
                raise ValueError(
                    f"Expected `classes` to list names or indices but got {given!r}: put the name in quotes, as YAML reads "
                    "unquoted yes, no, on, off, true, false and 1e3 as other types"
                )

    def resolve(self, class_names: Sequence[str]) -> "ReduceClasses":
        """Return the same imbalance with class indices instead of class names.

        Raises:
            ValueError: If no class has that name (the most similar names are listed), or an index is not in 0..K-1.
        """
        indices: list[Any] | None = None
        if self.classes is not None:
            indices = [_class_index(given, class_names) for given in self.classes]
        return replace(self, classes=indices)

    def reduced(self, available: Tensor, seed: int) -> Tensor:
        """Return which classes are reduced, bool ``[K]``: those named or drawn, or all others; requires :meth:`resolve`."""
        num_classes = len(available)
        if self.classes is None:
            named = torch.randint(num_classes, (1,), generator=derived_generator(Purpose.CLASSES, seed))
        elif all(isinstance(c, int) and 0 <= c < num_classes for c in self.classes):
            named = torch.tensor(self.classes, dtype=torch.int64)
        else:
            raise ValueError(f"Expected `classes` in 0..{num_classes - 1} but got {list(self.classes)}")
        reduced = torch.zeros(num_classes, dtype=torch.bool)
        reduced[named] = True
        return ~reduced if self.others else reduced

    def counts(self, available: Tensor, seed: int) -> Tensor:
        """Return the images to keep of each class, int64 ``[K]``; requires :meth:`resolve`."""
        return torch.where(self.reduced(available, seed), _floor(available.double() * self.factor), available)


@dataclass(frozen=True, repr=False)
class LongTail(_Drawn):
    """Exponentially decreasing class sizes, the long-tailed protocol of the literature.

    ``n_c = int(n_max * ratio ** (-c / (K - 1)))``, after Cao et al., `LDAM <https://github.com/kaidic/LDAM-DRW>`_.
    ``n_max`` is the class size of balanced data; for others the largest for which every class has enough images, so that
    the ratio holds.

    Args:
        ratio: Size of the first class over that of the last, at least 1.
        subset: ``"random"`` draws the images of each class from the data seed; ``"ldam_drw"`` keeps those that the official
            scripts of `LDAM-DRW <https://github.com/kaidic/LDAM-DRW>`_ keep, for every seed, provided that no image is held out
            (``val_fraction=0``).

    Raises:
        ValueError: If ``ratio`` is below 1, or there is no such ``subset``.

    Example:
        >>> LongTail(ratio=100).counts(torch.full((10,), 5000), seed=0)
        tensor([5000, 2997, 1796, 1077,  645,  387,  232,  139,   83,   50])
    """

    ratio: float
    subset: Subset = "random"

    def __post_init__(self) -> None:
        if not 1 <= self.ratio < inf:
            raise ValueError(f"Expected `ratio` >= 1 but got {self.ratio}")
        super().__post_init__()

    def counts(self, available: Tensor, seed: int) -> Tensor:
        """Return the images to keep of each class, int64 ``[K]``."""
        rank = torch.arange(len(available), dtype=torch.float64) / max(len(available) - 1, 1)
        return _largest(available, self.ratio**-rank)


@dataclass(frozen=True, repr=False)
class Step(_Drawn):
    """Large classes first and small classes last, without sizes in between; after Cao et al., LDAM.

    The large classes have the size of balanced data; see :class:`LongTail` for others.

    Args:
        ratio: Size of the large classes over that of the small ones, at least 1.
        fraction: Share of small classes, in [0, 1].
        subset: As of :class:`LongTail`.

    Raises:
        ValueError: If ``ratio`` is below 1, ``fraction`` outside [0, 1], or there is no such ``subset``.

    Example:
        >>> Step(ratio=10).counts(torch.full((4,), 100), seed=0)
        tensor([100, 100,  10,  10])
    """

    ratio: float
    fraction: float = 0.5
    subset: Subset = "random"

    def __post_init__(self) -> None:
        if not 1 <= self.ratio < inf:
            raise ValueError(f"Expected `ratio` >= 1 but got {self.ratio}")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"Expected `fraction` in [0, 1] but got {self.fraction}")
        super().__post_init__()

    def reduced(self, available: Tensor, seed: int) -> Tensor:
        """Return which classes are reduced, bool ``[K]``: the small ones."""
        small = torch.zeros(len(available), dtype=torch.bool)
        small[len(available) - round(self.fraction * len(available)) :] = True
        return small

    def counts(self, available: Tensor, seed: int) -> Tensor:
        """Return the images to keep of each class, int64 ``[K]``."""
        shares = torch.ones(len(available), dtype=torch.float64)
        shares[self.reduced(available, seed)] /= self.ratio
        return _largest(available, shares)


@dataclass(frozen=True)
class ClassCounts(Imbalance):
    """Explicit class sizes.

    Args:
        sizes: Images to keep of each class: K numbers in the order of the classes, or a mapping from class names.

    Raises:
        ValueError: If there are none or one is negative, and when used, if they are not one per class.

    Example:
        >>> ClassCounts(sizes=[3, 1]).keep(torch.tensor([0, 0, 0, 0, 1, 1]), num_classes=2, seed=0).shape
        torch.Size([4])
    """

    sizes: list[int] | dict[str, int]

    def __post_init__(self) -> None:
        sizes = list(self.sizes.values() if isinstance(self.sizes, dict) else self.sizes)
        if not sizes or min(sizes) < 0:
            raise ValueError(f"Expected `sizes` to be class counts >= 0 but got {self.sizes}")

    def resolve(self, class_names: Sequence[str]) -> "ClassCounts":
        """Return the same imbalance with the sizes in the order of the classes."""
        if not isinstance(self.sizes, dict):
            return self
        for name in self.sizes:
            _class_index(name, class_names, "sizes")
        if missing := [name for name in class_names if name not in self.sizes]:
            raise ValueError(f"Expected `sizes` to name every class but got none of {missing[0]!r}")
        return replace(self, sizes=[self.sizes[name] for name in class_names])

    def counts(self, available: Tensor, seed: int) -> Tensor:
        """Return the images to keep of each class, int64 ``[K]``."""
        if hasattr(self.sizes, "keys"):
            raise ValueError("Expected `resolve(class_names)` before sizes by name are used")
        if len(self.sizes) != len(available):
            raise ValueError(f"Expected `sizes` to name {len(available)} class counts but got {len(self.sizes)}")
        return torch.tensor(self.sizes, dtype=torch.int64)


def _class_index(given: Any, class_names: Sequence[str], option: str = "classes") -> int:
    if isinstance(given, int):
        if not 0 <= given < len(class_names):
            named = f'; a class of that name is "{given}", in quotes' if str(given) in class_names else ""
            raise ValueError(f"Expected `classes` in 0..{len(class_names) - 1} but got the index {given}{named}")
        return given
    if given in class_names:
        return class_names.index(given)
    alike = get_close_matches(given, class_names, cutoff=0.5) or list(class_names[:5])
    raise ValueError(f"Expected `{option}` to name a class such as {', '.join(alike)} but got {given!r}")


def _largest(available: Tensor, shares: Tensor) -> Tensor:
    return _floor(_floor((available / shares).min()) * shares)


def _floor(sizes: Tensor) -> Tensor:
    # 5000 * 100**-1 must be 50, not 49 after rounding
    return (sizes + 1e-6).floor().long()
