"""Paired predictions of the same test images, from which the intervals for new images are computed."""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from scor_lightning.comparison.intervals import Crossed, Interval, Values, f1_pseudo_values
from scor_lightning.comparison.predictions import Predictions
from scor_lightning.metrics import class_groups, class_thirds

Found = Mapping[tuple[int, str], Predictions]
GROUPS = ("many", "medium", "few", "head_third", "middle_third", "tail_third")
_PerImage = NDArray[np.float32]


class HeldOutImages:
    """The predictions of a comparison on its test images.

    Args:
        predictions: Predictions by repeat and method.

    Attributes:
        fixed: Whether all repeats have the same test images.
        class_counts: Training images of each class, int64 ``[K]``, by repeat.
    """

    def __init__(self, predictions: Found) -> None:
        self._found = predictions
        sets = list({id(each.test_set): each.test_set for each in predictions.values()}.values())
        self._target = sets[0].target.astype(np.int64) if sets else np.zeros(0, np.int64)
        self.fixed = bool(sets) and all(
            each.index is None and np.array_equal(each.target, sets[0].target) for each in sets
        )
        self.class_counts = {repeat: each.test_set.class_counts for (repeat, _), each in predictions.items()}
        self._crossed: dict[Hashable, Crossed] = {}

    def group(self, name: str, repeats: Sequence[int]) -> list[tuple[int, ...]] | None:
        """Return the classes of a group in each repeat; None if they are not known."""
        if any(repeat not in self.class_counts for repeat in repeats):
            return None
        counts = [torch.from_numpy(self.class_counts[repeat]) for repeat in repeats]
        members = [{**class_groups(each), **class_thirds(each)}.get(name, each < 0) for each in counts]
        return [tuple(each.nonzero().flatten().tolist()) for each in members]

    def recalls(self, method: str) -> Values | None:
        """Return the mean recall of each class on a fixed test set, ``[K]``, NaN for absent classes."""
        rows = [each.predicted for (_, name), each in self._found.items() if name == method]
        if not self.fixed or not rows:
            return None
        classes = len(next(iter(self.class_counts.values())))
        sizes = np.bincount(self._target, minlength=classes)
        right = sum(np.bincount(self._target[row == self._target], minlength=classes) for row in rows)
        with np.errstate(invalid="ignore"):
            return np.asarray(right / sizes / len(rows), np.float64)

    def constant(self, method: str) -> set[int]:
        """Return the repeats in which a method predicted the same class for every test image."""
        return {
            repeat
            for (repeat, name), each in self._found.items()
            if name == method and (each.predicted == each.predicted[0]).all()
        }

    def recall_by_size(self, method: str) -> tuple[Values, Values] | None:
        """Return the recall by class size, with the classes of each repeat sorted by size.

        Returns:
            The training images of the k-th largest class and its recall, means over the repeats, ``[K]``; None without
            predictions.
        """
        sizes, recalls = [], []
        for (repeat, name), each in self._found.items():
            if name == method:
                counts, target = self.class_counts[repeat], each.test_set.target
                support = np.bincount(target, minlength=len(counts))
                right = np.bincount(target[each.predicted == target], minlength=len(counts))
                order = np.argsort(-counts, kind="stable")
                sizes.append(counts[order])
                recalls.append(np.divide(right, support, out=np.full(len(counts), np.nan), where=support > 0)[order])
        if not sizes:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a class without test images in any repeat
            return np.mean(sizes, axis=0), np.nanmean(recalls, axis=0)

    def interval(
        self,
        measure: str,
        method: str,
        other: str,
        repeats: Sequence[int],
        mean: float | None,
        confidence: float,
        classes: Sequence[int] | None = None,
    ) -> Interval | None:
        """Return the interval over repeats and images of a difference in a measure.

        Args:
            measure: Name of the measure.
            method: The method.
            other: The method that it is compared with.
            repeats: The repeats to use.
            mean: The mean difference over these repeats; None computes it.
            confidence: Level, such as .95.
            classes: The classes of a measure of some classes, the same in every repeat.

        Returns:
            The interval; None if the test images differ between repeats, predictions are missing, a class has one test
            image, or the measure is not a mean over images.
        """
        if (
            not self.fixed
            or len(repeats) < 2
            or any((repeat, name) not in self._found for repeat in repeats for name in (method, other))
        ):
            return None
        kind = measure if measure in _PER_IMAGE else "right"
        key = (kind, method, other, tuple(repeats))
        if key not in self._crossed:
            per_image = _PER_IMAGE[kind]
            differences = self._per_image(per_image, method, repeats) - self._per_image(per_image, other, repeats)
            try:
                self._crossed[key] = Crossed(differences, self._target)
            except ValueError:  # a class with one image
                return None
        crossed = self._crossed[key]
        sizes = crossed.sizes.astype(np.float64)
        chosen = np.ones(len(sizes), bool) if classes is None else np.isin(crossed.classes, list(classes))
        if measure in ("accuracy", "accuracy_reduced", *_PER_IMAGE):
            weights = sizes * chosen
        elif measure in ("balanced_accuracy", "recall", *(f"accuracy_{name}" for name in GROUPS)):
            weights = chosen.astype(np.float64)
        else:
            return None
        return crossed.interval(weights / weights.sum(), confidence, mean) if chosen.any() else None

    def _per_image(
        self, compute: Callable[[list[Predictions], NDArray[np.int64]], _PerImage], method: str, repeats: Sequence[int]
    ) -> _PerImage:
        return compute([self._found[repeat, method] for repeat in repeats], self._target)


def _right(found: list[Predictions], target: NDArray[np.int64]) -> _PerImage:
    return np.stack([each.predicted == target for each in found]).astype(np.float32)


def _negative_log_likelihood(found: list[Predictions], target: NDArray[np.int64]) -> _PerImage:
    return -np.stack([each.log_probability for each in found]).astype(np.float32)


def _f1(found: list[Predictions], target: NDArray[np.int64]) -> _PerImage:
    classes = len(found[0].test_set.class_counts)
    return f1_pseudo_values(np.stack([each.predicted for each in found]), target, classes)


_PER_IMAGE = {"right": _right, "cross_entropy": _negative_log_likelihood, "f1_macro": _f1}
