"""The split into training, validation and test set: drawn, written, read and summarised."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scor_lightning.datamodules.imbalance import Imbalance, draw_per_class
from scor_lightning.files import printable, shortened, write_whole
from scor_lightning.seeding import Purpose, derived_generator

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
FEW_IMAGES = {"val": 5, "test": 10}  # classes with fewer images in these sets are named in the data summary
Evaluation = Literal["official", "holdout"]
SUMMARY_ROWS = 10


@dataclass(frozen=True)
class Split:
    """The images of each set.

    Attributes:
        indices: Indices of the images of each set, int64 ``[n]``, into the part of the data set named by ``sources``.
        sources: Part of the data set by set: a validation set split off the training data has the source ``"train"``.
        available: Images of each class before the imbalance, int64 ``[K]``.
    """

    indices: Mapping[SplitName, Tensor]
    sources: Mapping[SplitName, SplitName]
    available: Tensor


def draw_split(
    train_targets: Tensor,
    test_targets: Tensor | None,
    val_targets: Tensor | None,
    num_classes: int,
    *,
    imbalance: Imbalance | None,
    evaluation: Evaluation,
    val_fraction: float,
    seed: int,
) -> Split:
    """Draw the three sets, a pure function of the arguments.

    Args:
        train_targets: Class indices of the data set's own training part, int64 ``[N]``.
        test_targets: Those of its own test part; None if it has none or it is not used.
        val_targets: Those of its own validation part, or None.
        num_classes: Number of classes K.
        imbalance: Imbalance of the training set, with class indices instead of names.
        evaluation: As of :class:`~scor_lightning.datamodules.ImageDataModule`.
        val_fraction: Share of the training data that becomes the validation set.
        seed: The data seed.
    """

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
    if evaluation == "holdout":
        train = reduced(train)
        order = train[torch.randperm(len(train), generator=derived_generator(Purpose.HOLDOUT, seed))]
        cut = int(0.8 * len(order))
        train, indices["test"] = order[:cut].sort().values, order[cut:].sort().values
    elif test_targets is not None:
        sources["test"], indices["test"] = "test", torch.arange(len(test_targets))
    else:
        train, indices["test"] = without(train, 0.2, Purpose.TEST)
    if val_targets is not None:
        sources["val"], indices["val"] = "val", torch.arange(len(val_targets))
    else:
        train, indices["val"] = without(train, val_fraction, Purpose.VALIDATION)
    available = _available(train_targets, num_classes, evaluation, indices, sources)
    indices["train"] = reduced(train) if evaluation == "official" else train
    return Split(indices, sources, available)


def _available(
    train_targets: Tensor,
    num_classes: int,
    evaluation: Evaluation,
    indices: Mapping[SplitName, Tensor],
    sources: Mapping[SplitName, SplitName],
) -> Tensor:
    """Count the training images of each class before the imbalance."""
    available = torch.ones(len(train_targets), dtype=torch.bool)
    if evaluation == "official":  # the other sets are split off before the imbalance
        for name in ("val", "test"):
            if sources[name] == "train":
                available[indices[name]] = False
    return torch.bincount(train_targets[available], minlength=num_classes)


def write_split(
    split: Split,
    path: Path,
    settings: Mapping[str, Any],
    targets: Mapping[SplitName, Tensor],
    files: Mapping[SplitName, Sequence[str]],
) -> None:
    """Write a split to a JSON file, with everything on which it depends.

    Args:
        split: The split.
        path: The file.
        settings: The options with which it was drawn.
        targets: Class indices of the parts to which it refers.
        files: Names of the image files, in their order, of the parts that are files.
    """
    content: dict[str, Any] = {
        "settings": settings,
        "from": split.sources,
        "targets": {name: _digest(targets[split.sources[name]]) for name in SPLITS},
    }
    content |= {name: split.indices[name].tolist() for name in SPLITS}
    if files:
        content["files"] = {name: list(files[name]) for name in files}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content))


def split_sources(path: Path) -> set[SplitName]:
    """Read the parts of a data set to which the split in a file refers."""
    return set(_content(path)["from"].values())


def read_split(
    path: Path,
    settings: Mapping[str, Any],
    targets: Mapping[SplitName, Tensor],
    num_classes: int,
    evaluation: Evaluation,
    files: Mapping[SplitName, Sequence[str]],
) -> Split:
    """Read a split; arguments as of :func:`write_split`.

    Raises:
        ValueError: If the file cannot be read, belongs to other settings, data or files, or has an index that is negative,
            too large, repeated or in two sets.
    """
    content = _content(path)
    for name, before in content.get("settings", {}).items():
        if settings[name] != before:
            raise ValueError(
                f"Expected the {name} = {before} that {str(path)!r} was made with but got {settings[name]}; "
                f"name another `split_file` for another split"
            )
    for part, before in content.get("files", {}).items():
        _check_files(path, part, before, files.get(part, ()))
    for name in SPLITS:
        source = content["from"][name]
        if _digest(targets[source]) != content["targets"][name]:
            raise ValueError(f"Expected the {source} data that {str(path)!r} was made for but got others")
    indices = {name: torch.tensor(content[name], dtype=torch.int64) for name in SPLITS}
    sources = {name: content["from"][name] for name in SPLITS}
    _check_indices(path, indices, sources, targets)
    return Split(indices, sources, _available(targets["train"], num_classes, evaluation, indices, sources))


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


def missing_classes(class_names: Sequence[str], counts: Mapping[SplitName, Tensor]) -> str:
    """Describe in one line the classes with too few images for every set; empty if there are none.

    Args:
        class_names: Names of the K classes.
        counts: Images of each class by set, int64 ``[K]``.
    """
    missing = {
        c: [name for name in SPLITS if counts[name].any() and not counts[name][c]] for c in range(len(class_names))
    }
    short = [f"{printable(class_names[c])} (no {' or '.join(sets)} image)" for c, sets in missing.items() if sets]
    if not short:
        return ""
    more = f" and {len(short) - 3:,} more" if len(short) > 3 else ""
    return (
        f"Classes with too few images for every set: {', '.join(short[:3])}{more}; their recall there is not measured"
    )


def small_classes(class_names: Sequence[str], counts: Tensor, split: Literal["val", "test"]) -> str:
    """Describe in one line the classes with few validation or test images; empty if there are none.

    Args:
        class_names: Names of the K classes.
        counts: Images of each class in that set, int64 ``[K]``.
        split: The set.
    """
    small = [c for c in counts.argsort(stable=True).tolist() if 0 < counts[c] < FEW_IMAGES[split]]
    if not small:
        return ""
    named = ", ".join(f"{printable(class_names[c])} ({int(counts[c])})" for c in small[:3])
    more = f" and {len(small) - 3:,} more" if len(small) > 3 else ""
    if split == "val":
        return f"Classes with few validation images: {named}{more}; the choice of the best epoch is noisy"
    return f"Classes with few test images: {named}{more}; their recall is uncertain"


def summarize_split(title: str, class_names: Sequence[str], counts: Mapping[SplitName, Tensor]) -> str:
    """Return a table of the sets: their sizes, and the first class counts.

    Args:
        title: The first line.
        class_names: Names of the K classes.
        counts: Images of each class by set, int64 ``[K]``.
    """
    lines = ["", title, ""]
    lines.append(f"{'set':<12}{'images':>10}   {'largest class':<26}{'smallest class':<26}{'ratio':>8}")
    for name, heading in zip(SPLITS, ("training", "validation", "test"), strict=True):
        sizes = counts[name]
        if not sizes.any():
            continue
        most, least = int(sizes.argmax()), int(sizes.argmin())
        ratio = f"{sizes[most] / sizes[least]:.1f}" if sizes[least] else "-"
        ends = [f"{sizes[c]:,} ({shortened(class_names[c], 14)})" for c in (most, least)]
        lines.append(f"{heading:<12}{sizes.sum():>10,}   {ends[0]:<26}{ends[1]:<26}{ratio:>8}")
    shown = min(len(class_names), SUMMARY_ROWS)
    width = max(len("class"), *(len(class_name) for class_name in class_names[:shown]))
    lines += ["", f"{'class':<{width}}  {'training':>10}{'validation':>12}{'test':>10}"]
    for c in range(shown):
        row = [f"{counts[name][c]:,}" for name in SPLITS]
        lines.append(f"{class_names[c]:<{width}}  {row[0]:>10}{row[1]:>12}{row[2]:>10}")
    if shown < len(class_names):
        lines.append(f"... and {len(class_names) - shown:,} more")
    return "\n".join([*lines, ""])
