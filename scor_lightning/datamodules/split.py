"""The split into training, validation and test set: drawn, written and read."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scor_lightning.datamodules.imbalance import Imbalance, draw_per_class
from scor_lightning.datamodules.part import Part
from scor_lightning.files import write_whole
from scor_lightning.seeding import Purpose, derived_generator

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
Evaluation = Literal["official", "holdout"]


@dataclass(frozen=True)
class SplitSettings:
    """The options with which a data set is split.

    Args:
        data: Name of the data set.
        class_names: Names of the K classes.
        imbalance: Imbalance of the training set, or None.
        evaluation: As of :class:`~scor_lightning.datamodules.ImageDataModule`.
        val_fraction: Share of the training data that becomes the validation set, unless there is one.
        seed: The data seed.
    """

    data: str
    class_names: tuple[str, ...]
    imbalance: Imbalance | None
    evaluation: Evaluation
    val_fraction: float
    seed: int

    @property
    def resolved_imbalance(self) -> Imbalance | None:
        """The imbalance with class indices instead of class names."""
        return self.imbalance and self.imbalance.resolve(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that a split file contains, by name."""
        names = ("data", "imbalance", "evaluation", "val_fraction", "seed")
        return {name: getattr(self, name) for name in names} | {"imbalance": str(self.imbalance)}


@dataclass(frozen=True)
class Split:
    """The images of each set.

    Attributes:
        settings: The options with which it was drawn.
        indices: Indices of the images of each set, int64 ``[n]``, into the part of the data set named by ``sources``.
        sources: Part of the data set by set: a validation set split off the training data has the source ``"train"``.
        counts: Images of each class by set, int64 ``[K]``.
        available: Training images of each class before the imbalance, int64 ``[K]``.
    """

    settings: SplitSettings
    indices: Mapping[SplitName, Tensor]
    sources: Mapping[SplitName, SplitName]
    counts: Mapping[SplitName, Tensor]
    available: Tensor

    @property
    def parts(self) -> list[SplitName]:
        """The parts of the data set to which it refers."""
        return list(dict.fromkeys(self.sources.values()))

    @property
    def resampling_ratio(self) -> float | None:
        """n_test/n_train before the imbalance if the seed determines the test images, otherwise None."""
        if self.sources["test"] != "train":
            return None
        train = len(self.indices["train"]) if self.settings.evaluation == "holdout" else int(self.available.sum())
        return len(self.indices["test"]) / train

    @property
    def reduced_classes(self) -> tuple[int, ...]:
        """The classes that the imbalance reduces."""
        imbalance = self.settings.resolved_imbalance
        if imbalance is None:
            return ()
        return tuple(imbalance.reduced(self.available, self.settings.seed).nonzero().flatten().tolist())


def split_path(file: str | None) -> Path | None:
    """Return the path of a split file.

    Raises:
        ValueError: If it is a folder.
    """
    path = Path(file) if file else None
    if path is not None and path.is_dir():
        raise ValueError(f"Expected `split_file` to name a file but {file!r} is a folder")
    return path


def obtain_split(settings: SplitSettings, path: Path | None, read: Callable[[SplitName], Part | None]) -> Split:
    """Read a split from its file, or draw it, and then write the file.

    Args:
        settings: The options of the split.
        path: The file; None draws the split without writing it.
        read: Returns a part of the data set, or None if there is none. It is called for the parts that the split uses.

    Raises:
        ValueError: If the file belongs to other data or settings, a part is missing, a class has no training
            images, or there is no validation image though ``val_fraction`` asks for some.
    """

    def existing(name: SplitName) -> Part:
        part = read(name)
        if part is None:
            raise ValueError(f"Expected {name} data but {settings.data} has none")
        return part

    if path is not None and path.is_file():
        split = read_split(path, settings, {source: existing(source) for source in split_sources(path)})
    else:
        parts: dict[SplitName, Part | None] = {"train": existing("train")}
        parts["test"] = read("test") if settings.evaluation == "official" else None
        parts["val"] = read("val") if settings.val_fraction else None
        split = draw_split(settings, {name: part.targets for name, part in parts.items() if part is not None})
        if path is not None:
            write_split(split, path, {source: existing(source) for source in split.parts})
    if settings.val_fraction and not len(split.indices["val"]):
        raise ValueError(
            f"Expected a validation image but no class has enough for `val_fraction` = {settings.val_fraction} to "
            f"be one; raise it, or use 0 for no validation set"
        )
    if not split.counts["train"].all():
        missing = settings.class_names[int((split.counts["train"] == 0).nonzero()[0])]
        raise ValueError(
            f"Expected a training image of every class but got none of {missing!r}: leave that class out of the data"
        )
    return split


def draw_split(settings: SplitSettings, targets: Mapping[SplitName, Tensor]) -> Split:
    """Draw the three sets, a pure function of the arguments.

    Args:
        settings: The options of the split.
        targets: Class indices of the data set's own training part, int64 ``[N]``, and of those of its own test and validation
            parts that are used.
    """
    train_targets = targets["train"]
    imbalance, num_classes, seed = settings.resolved_imbalance, len(settings.class_names), settings.seed

    def reduced(index: Tensor) -> Tensor:
        return index if imbalance is None else index[imbalance.keep(train_targets[index], num_classes, seed)]

    def without(index: Tensor, fraction: float, purpose: Purpose) -> tuple[Tensor, Tensor]:
        """Split off a share of each class."""
        sizes = torch.bincount(train_targets[index], minlength=num_classes)
        held_out = draw_per_class(
            train_targets[index], (sizes * fraction).round().long(), derived_generator(purpose, seed)
        )
        kept = torch.ones(len(index), dtype=torch.bool)
        kept[held_out] = False
        return index[kept], index[held_out]

    indices: dict[SplitName, Tensor] = {}
    sources: dict[SplitName, SplitName] = dict.fromkeys(SPLITS, "train")
    train = torch.arange(len(train_targets))
    if settings.evaluation == "holdout":
        train = reduced(train)
        order = train[torch.randperm(len(train), generator=derived_generator(Purpose.HOLDOUT, seed))]
        cut = int(0.8 * len(order))
        train, indices["test"] = order[:cut].sort().values, order[cut:].sort().values
    elif "test" in targets:
        sources["test"], indices["test"] = "test", torch.arange(len(targets["test"]))
    else:
        train, indices["test"] = without(train, 0.2, Purpose.TEST)
    if "val" in targets:
        sources["val"], indices["val"] = "val", torch.arange(len(targets["val"]))
    else:
        train, indices["val"] = without(train, settings.val_fraction, Purpose.VALIDATION)
    indices["train"] = reduced(train) if settings.evaluation == "official" else train
    return _counted(settings, indices, sources, targets)


def _counted(
    settings: SplitSettings,
    indices: Mapping[SplitName, Tensor],
    sources: Mapping[SplitName, SplitName],
    targets: Mapping[SplitName, Tensor],
) -> Split:
    """Return the split with these indices, and count its images."""

    def count(some: Tensor) -> Tensor:
        return torch.bincount(some, minlength=len(settings.class_names))

    available = torch.ones(len(targets["train"]), dtype=torch.bool)
    if settings.evaluation == "official":  # the other sets are split off before the imbalance
        for name in ("val", "test"):
            if sources[name] == "train":
                available[indices[name]] = False
    counts = {name: count(targets[sources[name]][indices[name]]) for name in SPLITS}
    return Split(settings, indices, sources, counts, count(targets["train"][available]))


def write_split(split: Split, path: Path, parts: Mapping[SplitName, Part]) -> None:
    """Write a split to a JSON file, with everything on which it depends.

    Args:
        split: The split.
        path: The file.
        parts: The parts of the data set to which it refers.
    """
    content: dict[str, Any] = {
        "settings": split.settings.to_dict(),
        "from": split.sources,
        "targets": {name: _digest(parts[split.sources[name]].targets) for name in SPLITS},
    }
    content |= {name: split.indices[name].tolist() for name in SPLITS}
    if files := {name: part.file_names for name, part in parts.items() if part.paths is not None}:
        content["files"] = files
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content))


def split_sources(path: Path) -> set[SplitName]:
    """Read the parts of a data set to which the split in a file refers."""
    return set(_content(path)["from"].values())


def read_split(path: Path, settings: SplitSettings, parts: Mapping[SplitName, Part]) -> Split:
    """Read a split.

    Args:
        path: The file.
        settings: The options with which it should have been drawn.
        parts: The parts of the data set to which it refers.

    Raises:
        ValueError: If the file cannot be read, belongs to other settings, data or files, or has an index that is negative,
            too large, repeated or in two sets.
    """
    content, now = _content(path), settings.to_dict()
    for name, before in content.get("settings", {}).items():
        if now[name] != before:
            raise ValueError(
                f"Expected the {name} = {before} that {str(path)!r} was made with but got {now[name]}; "
                f"name another `split_file` for another split"
            )
    for part, before in content.get("files", {}).items():
        _check_files(path, part, before, parts[part].file_names if part in parts else ())
    targets = {name: part.targets for name, part in parts.items()}
    for name in SPLITS:
        source = content["from"][name]
        if _digest(targets[source]) != content["targets"][name]:
            raise ValueError(f"Expected the {source} data that {str(path)!r} was made for but got others")
    indices = {name: torch.tensor(content[name], dtype=torch.int64) for name in SPLITS}
    sources = {name: content["from"][name] for name in SPLITS}
    _check_indices(path, indices, sources, targets)
    return _counted(settings, indices, sources, targets)


def _check_files(path: Path, part: str, before: Sequence[str], now: Sequence[str]) -> None:
    gone, new = set(before) - set(now), set(now) - set(before)
    if gone or new:
        raise ValueError(
            f"Expected the {len(before):,} image files of the {part} data that {str(path)!r} was made for, but {len(gone):,} of them "
            f"are gone and {len(new):,} are new; name another `split_file` for another split"
        )


def _check_indices(
    path: Path,
    indices: Mapping[SplitName, Tensor],
    sources: Mapping[SplitName, SplitName],
    targets: Mapping[SplitName, Tensor],
) -> None:
    for source in set(sources.values()):
        together = torch.cat([indices[name] for name in SPLITS if sources[name] == source])
        if len(together) and (together.min() < 0 or together.max() >= len(targets[source])):
            raise ValueError(f"Expected indices in 0..{len(targets[source]) - 1} of the {source} data in {str(path)!r}")
        if len(set(together.tolist())) < len(together):
            raise ValueError(
                f"Expected every image of the {source} data once in {str(path)!r} but an index comes twice"
            )


def _content(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected the indices of a split in {str(path)!r} but it cannot be read: {error}") from error
    parts = [content.get(key) for key in ("from", "targets")] if isinstance(content, dict) else []
    whole = len(parts) == 2 and all(isinstance(part, dict) and set(SPLITS) <= part.keys() for part in parts)
    if not whole or not set(content["from"].values()) <= set(SPLITS):
        raise ValueError(f"Expected the split of a data set in {str(path)!r} but it holds something else")
    for name in SPLITS:
        index = content.get(name)
        if not isinstance(index, list) or not all(type(i) is int and abs(i) < 2**63 for i in index):
            raise ValueError(f"Expected a list of whole numbers for {name!r} in {str(path)!r}")
    return dict(content)


def _digest(targets: Tensor) -> str:
    return f"{len(targets)} images, {hashlib.sha256(targets.numpy().tobytes()).hexdigest()[:16]}"
