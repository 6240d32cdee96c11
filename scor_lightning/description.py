"""The description of the data that a classifier requires."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DataDescription:
    """The facts about data that training, evaluation, prediction and reports need.

    An :class:`~scor_lightning.datamodules.ImageDataModule` builds it in ``setup``, the classifier holds it, and the
    checkpoint stores it. For data without a description, such as plain loaders, everything is None.

    Args:
        class_names: Names of the K classes, in the order of the targets.
        class_counts: Training images of each class after the imbalance.
        reduced_classes: Indices of the classes that the imbalance reduces; empty if it reduces none.
        image_size: Height and width (H, W) of the network's input.
        mean: Mean of each of the C channels, for images in [0, 1].
        std: Standard deviation of each channel, likewise.
        eval_transform: Preprocessing of evaluation images, as
            :func:`~scor_lightning.datamodules.transforms.describe_transform` writes it; None if it cannot be written down.

    Example:
        >>> data = DataDescription(class_names=("cat", "dog"), class_counts=(30, 2), reduced_classes=(1,))
        >>> data.in_order_of(["dog", "cat"]).class_counts
        (2, 30)
    """

    class_names: tuple[str, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    reduced_classes: tuple[int, ...] | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    eval_transform: list[dict[str, Any]] | None = None

    @property
    def counts(self) -> Tensor | None:
        """Training images of each class, int64 ``[K]``."""
        return None if self.class_counts is None else torch.tensor(self.class_counts, dtype=torch.int64)

    @property
    def reduced(self) -> Tensor | None:
        """Which classes the imbalance reduces, bool ``[K]``."""
        if self.class_counts is None or self.reduced_classes is None:
            return None
        return torch.tensor([c in self.reduced_classes for c in range(len(self.class_counts))])

    def class_order(self, others: tuple[str, ...] | None) -> Tensor | None:
        """Match the classes of other data by name.

        Args:
            others: Names of their classes, in their order; None if they have no names.

        Returns:
            For each class of the others its index here, int64 ``[K]``; None if the order is the same.

        Raises:
            ValueError: If the names differ, or one occurs twice.

        Example:
            >>> DataDescription(class_names=("cat", "dog", "ship")).class_order(("ship", "cat", "dog"))
            tensor([2, 0, 1])
        """
        own = self.class_names
        if own is None or others is None or own == others:
            return None
        if len(set(others)) < len(others):
            repeated = next(name for name in others if others.count(name) > 1)
            raise ValueError(f"Expected different names for all classes but got {repeated!r} more than once")
        if set(own) != set(others):
            missing = [name for name in own if name not in others]
            unknown = [name for name in others if name not in own]
            raise ValueError(
                f"The classes of the data differ from those that the classifier was trained on: missing {_list(missing)}; "
                f"unknown {_list(unknown)}"
            )
        return torch.tensor([own.index(name) for name in others])

    def in_order_of(self, names: tuple[str, ...] | list[str] | None) -> "DataDescription":
        """Return the same description with its classes in another order.

        Args:
            names: Names of the same classes; None keeps the order.
        """
        names = None if names is None else tuple(names)
        order = self.class_order(names)
        if names is None or order is None:
            return self
        place = order.tolist()
        return replace(
            self,
            class_names=names,
            class_counts=None if self.class_counts is None else tuple(self.class_counts[c] for c in place),
            reduced_classes=self.reduced_classes and tuple(sorted(place.index(c) for c in self.reduced_classes)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint that is read with ``weights_only=True``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataDescription":
        """Read what :meth:`to_dict` returned, or what a checkpoint of version 0.1.0 holds."""
        counts = values.get("class_counts")
        names = values.get("class_names")
        if counts is None and names is not None and list(names) == [str(c) for c in range(len(names))]:
            names = None  # numbers, which 0.1.0 gave to classes without names

        def floats(name: str) -> tuple[float, ...] | None:
            value = values.get(name)
            return None if value is None else tuple(torch.as_tensor(value, dtype=torch.float64).flatten().tolist())

        size, reduced = values.get("image_size"), values.get("reduced_classes")
        if size is not None:
            size = (int(size), int(size)) if isinstance(size, int) else tuple(map(int, size))
        return cls(
            class_names=None if names is None else tuple(map(str, names)),
            class_counts=None if counts is None else tuple(int(count) for count in counts),
            reduced_classes=None if reduced is None else tuple(map(int, reduced)),
            image_size=size,
            mean=floats("mean"),
            std=floats("std"),
            eval_transform=values.get("eval_transform"),
        )


def describe_data(data: Any) -> DataDescription:
    """Describe a data module: by its ``description``, or by the attributes of a user's own data module."""
    described = _attributes(data, "description").get("description")
    if isinstance(described, DataDescription):
        return described
    return DataDescription.from_dict(_attributes(data, "class_names", "class_counts", "image_size", "mean", "std"))


def count_features(backbone: nn.Module) -> int | None:
    """Return the ``num_features`` of a network; None if it has none."""
    found = _attributes(backbone, "num_features").get("num_features")
    return found if isinstance(found, int) else None


def count_classes(owner: Any) -> int | None:
    """Return the ``num_classes`` of a data module or a network; None if it has none."""
    return _attributes(owner, "num_classes").get("num_classes")


def agreed_classes(backbone: Any, given: int | None) -> int:
    """Return the number of classes of a network, from its ``num_classes`` or as ``given``.

    Raises:
        ValueError: If neither states it, or the two differ.
    """
    known = count_classes(backbone)
    if given is not None and given < 1:
        raise ValueError(f"Expected `num_classes` >= 1 but got {given}")
    if given is not None and known is not None and given != known:
        raise ValueError(f"Expected `num_classes` to be the backbone's {known} but got {given}")
    count = given or known
    if count is None:
        raise ValueError("Expected `backbone.num_classes`, or `num_classes` to be given")
    return int(count)


def channel_statistics(data: Any, backbone: Any = None) -> DataDescription:
    """Describe the mean and standard deviation alone, which are known before the data are set up.

    They are the arguments of the data module if given, otherwise what a pretrained network expects, otherwise the data
    set's own.
    """
    if _attributes(data, "normalizes").get("normalizes"):
        return DataDescription.from_dict(_attributes(data, "mean", "std"))
    expected = _attributes(backbone, "mean", "std")
    if len(expected) == 2 and all(isinstance(value, tuple | list) for value in expected.values()):
        return DataDescription.from_dict(expected)
    return DataDescription.from_dict(_attributes(data, "mean", "std"))


_ABSENT = object()


def _attributes(owner: Any, *names: str) -> dict[str, Any]:
    found = {name: getattr(owner, name, _ABSENT) for name in names}
    return {name: value for name, value in found.items() if value is not _ABSENT}


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
