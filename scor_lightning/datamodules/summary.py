"""The data summary: the sets, the imbalance, the class counts, and the classes with few images."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from scor_lightning.datamodules.split import SPLITS, Split, SplitName
from scor_lightning.files import printable, shortened

FEW_IMAGES = {"val": 5, "test": 10}  # classes with fewer images in these sets are named in the data summary
SUMMARY_ROWS = 10


def summarize_split(split: Split, shape: tuple[int, int, int], bytes_held: int, notes: Sequence[str]) -> str:
    """Return the data summary.

    Args:
        split: The split.
        shape: Channels, height and width (C, H, W) of the prepared images.
        bytes_held: Size of the decoded images in memory; 0 if they are not held there.
        notes: Lines at the end.
    """
    settings, class_names = split.settings, split.settings.class_names
    split_off = settings.evaluation == "official" and split.resampling_ratio is not None
    evaluation = "test set split off" if split_off else f"evaluation {settings.evaluation}"
    made = f"{settings.imbalance or 'no imbalance added'}, {evaluation}, data seed {settings.seed}"
    name = settings.data.removesuffix("DataModule")
    lines = ["", f"{name}: {len(class_names)} classes, images of {' x '.join(map(str, shape))}; {made}"]
    if bytes_held:
        lines.append(f"The images are decoded once and held in memory: {bytes_held / 1e6:,.0f} MB")
    lines += ["", *_table(class_names, split.counts), ""]
    found = [_small_classes(class_names, split.counts["val"], "val"), *notes]
    return "\n".join([*lines, *(f"{note}\n" for note in found if note)])


def notes_on_classes(split: Split) -> list[str]:
    """Describe the classes of a split whose test results are uncertain or missing, one line each."""
    class_names, counts = split.settings.class_names, split.counts
    found = [_small_classes(class_names, counts["test"], "test"), _missing_classes(class_names, counts)]
    return [note for note in found if note]


def _table(class_names: Sequence[str], counts: Mapping[SplitName, Tensor]) -> list[str]:
    """List the lines of a table of the sets: their sizes, and the first class counts."""
    lines = [f"{'set':<12}{'images':>10}   {'largest class':<26}{'smallest class':<26}{'ratio':>8}"]
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
    return lines


def _missing_classes(class_names: Sequence[str], counts: Mapping[SplitName, Tensor]) -> str:
    """Describe in one line the classes with too few images for every set; empty if there are none."""
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


def _small_classes(class_names: Sequence[str], counts: Tensor, split: Literal["val", "test"]) -> str:
    """Describe in one line the classes with few validation or test images; empty if there are none."""
    small = [c for c in counts.argsort(stable=True).tolist() if 0 < counts[c] < FEW_IMAGES[split]]
    if not small:
        return ""
    named = ", ".join(f"{printable(class_names[c])} ({int(counts[c])})" for c in small[:3])
    more = f" and {len(small) - 3:,} more" if len(small) > 3 else ""
    if split == "val":
        return f"Classes with few validation images: {named}{more}; the choice of the best epoch is noisy"
    return f"Classes with few test images: {named}{more}; their recall is uncertain"
