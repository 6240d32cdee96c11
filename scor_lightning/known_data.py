"""The data description of a classifier during training, loading, and evaluation on other data."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from scor_lightning.description import DataDescription
from scor_lightning.functional.classification import checked_counts


class KnownData:
    """The description of the training data of a classifier, and the order of the classes in other data.

    A classifier that was trained on plain loaders, without a description, uses that of the data it is evaluated on until
    the next stage.

    Attributes:
        description: The description of the training data.
    """

    def __init__(self) -> None:
        self.description = DataDescription()
        self._borrowed = False
        self._order: Tensor | None = None  # for each class of the data its index in the classifier; None if equal

    def describe(self, num_classes: int, class_names: Sequence[str] | None, class_counts: Sequence[int] | None) -> None:
        """Set what a user states about data without a description.

        Raises:
            ValueError: If there is not one name or count per class.
        """
        for name, given in (("class_names", class_names), ("class_counts", class_counts)):
            if given is not None and len(given) != num_classes:
                raise ValueError(f"Expected `{name}` of {num_classes} classes but got {len(given)}")
        counts = None if class_counts is None else tuple(checked_counts(class_counts).tolist())
        names = None if class_names is None else tuple(map(str, class_names))
        self.description = replace(self.description, class_names=names, class_counts=counts)

    def restore(self, description: DataDescription) -> None:
        """Set the description from a checkpoint."""
        self.description, self._borrowed = description, False

    def read(self, data: DataDescription, training: bool) -> None:
        """Read the description of the data of a stage, whose classes are matched by name.

        Args:
            data: Their description.
            training: Whether the classifier is trained on the data; an evaluation does not change the description.

        Raises:
            ValueError: If their classes are not those of the classifier.
        """
        if self._borrowed:
            self.restore(DataDescription())
        self._order = self.description.class_order(data.class_names)
        data = data.in_order_of(self.description.class_names)
        if training or self.description.class_counts is None:
            known = {name: value for name, value in vars(data).items() if value is not None}
            self.description = replace(self.description, **known)
            self._borrowed = not training
        elif self.description.reduced_classes is None:  # missing from checkpoints of version 0.1.0
            self.description = replace(self.description, reduced_classes=data.reduced_classes)

    def own_targets(self, target: Tensor) -> Tensor:
        """Return targets of the data, int64 ``[B]``, as the classifier numbers its classes."""
        if self._order is None:
            return target
        self._order = self._order.to(target.device)
        return self._order[target]
