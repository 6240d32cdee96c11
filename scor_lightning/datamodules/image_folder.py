"""A folder of images."""

import os
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from scor_lightning.datamodules.base import ImageDataModule
from scor_lightning.datamodules.decode import ImageFiles, image_suffixes
from scor_lightning.datamodules.folder_index import NO_CLASSES, index_folder, nested_classes, readable
from scor_lightning.datamodules.split import SplitName
from scor_lightning.datamodules.transforms import paper_augmentation
from scor_lightning.files import printable

# Names of the folders of the three sets, in any capitalisation.
SET_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_STRAY = 0.1  # share of labels that contradict their folders up to which they are considered mistakes
REMEDY = "; `--data.unreadable skip` leaves such images out"


class ImageFolderDataModule(ImageDataModule):
    """A folder of images with one subfolder per class, or lists of images.

    ``root`` contains either the class folders, or ``train`` (``training``) and, if present, ``val`` (``valid``,
    ``validation``, ``dev``) and ``test`` (``testing``) with class folders, in any capitalisation. Instead of folders, each
    set can be given by a list file with lines ``path label``, the path relative to ``root`` and the label in 0..K-1, as
    ImageNet-LT, Places-LT and iNaturalist are published. A missing validation set is split off the training data by
    ``val_fraction``, a missing test set is a fifth of them, both stratified.

    Images of any format that torchvision or Pillow reads are converted to RGB in their Exif orientation. The list of images
    is cached in the user's cache folder, never among the images, and updated when files are added or removed.

    Args:
        root: The folder.
        train_list: List file of the training images, instead of folders.
        val_list: List file of the validation images.
        test_list: List file of the test images.
        class_list: Text file with the names of the K classes, one per line in the order of the labels of the lists. Without it
            the classes are named after the folders of the images, and labels that contradict them, or another list, are refused.
        unreadable: ``"error"`` stops at an image that cannot be read and names it. ``"skip"`` decodes every image once
            at the start, leaves out those that fail and prints their number; the result is cached until the size or time of a
            file changes.
        **kwargs: Arguments of :class:`~scor_lightning.datamodules.ImageDataModule`. Images are resized to 224 x 224 unless
            ``resolution`` is given, and augmented as in the SCoR paper.

    Raises:
        FileNotFoundError: If a folder or a list does not exist.
        ValueError: If the folders of training, validation and test data name different classes, a list has a line that is
            not ``path label``, or another argument is out of range.
    """

    in_channels = 3

    def __init__(
        self,
        root: str,
        train_list: str | None = None,
        val_list: str | None = None,
        test_list: str | None = None,
        class_list: str | None = None,
        unreadable: Literal["error", "skip"] = "error",
        **kwargs: Any,
    ) -> None:
        if unreadable not in ("error", "skip"):
            raise ValueError(f"Expected `unreadable` to be 'error' or 'skip' but got {unreadable!r}")
        for name, given in (("val_list", val_list), ("test_list", test_list), ("class_list", class_list)):
            if given and not train_list:
                raise ValueError(f"Expected `train_list` beside `{name}` but got None")
        super().__init__(**kwargs)
        self.root = root
        self.train_list = train_list
        self.val_list = val_list
        self.test_list = test_list
        self.class_list = class_list
        self.unreadable = unreadable
        self._left_out: dict[str, tuple[str, ...]] = {}  # descriptions by folder

    @cached_property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes K, read from the folders or the training list."""
        return len(self.class_names)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders; with lists, those of the images' folders if each class has a separate one."""
        if not self.train_list:
            return index_folder(self._folder("train") or self.root).classes
        if self.class_list:
            return read_class_list(self.class_list)
        paths, targets = read_list(self.train_list)
        self._check_labels(self.train_list, paths, targets)
        return self._folders_by_class or tuple(map(str, range(max(targets) + 1)))

    @staticmethod
    def _check_labels(listed: str, paths: list[str], targets: list[int]) -> None:
        """Check that a training list has images of every class 0..K-1, and that its labels agree with the folders."""
        labels = set(targets)
        if stray := _stray_label(paths, targets):
            path, label, usual = stray
            raise ValueError(
                f"--data.train_list: {path!r} has label {label} ({_line_of(listed, path)} of {listed!r}) but the images of its "
                f"folder have {usual}; correct it, or name the classes by `--data.class_list`"
            )
        if max(labels) != len(labels) - 1:
            missing = next(c for c in range(len(labels)) if c not in labels)
            raise ValueError(
                f"Expected labels from 0 to the number of classes minus 1 in {listed!r} but no image has label {missing} and one has "
                f"{max(labels)}; renumber the classes"
            )

    @cached_property
    def _folders_by_class(self) -> tuple[str, ...] | None:
        """Names of the folders of the training list's images; None unless each class has a separate one."""
        folders = _class_folders(*read_list(str(self.train_list)))
        return tuple(folders[c] for c in range(len(folders))) if folders and max(folders) < len(folders) else None

    def _folder(self, split: SplitName) -> str | None:
        return self._sets.get(split)

    @cached_property
    def _sets(self) -> dict[SplitName, str]:
        """Folders of the three sets under any of their usual names; empty if the root contains the class folders."""
        if not os.path.isdir(self.root):
            return {}
        folders = [
            entry.name
            for entry in os.scandir(self.root)
            if entry.is_dir() and not entry.name.startswith(".") and os.fsencode(entry.name) not in NO_CLASSES
        ]
        named: dict[SplitName, list[str]] = {
            split: sorted(name for name in folders if name.lower() in names) for split, names in SET_NAMES.items()
        }
        # A folder `train` without subfolders is a class of that name.
        if not any(
            any(entry.is_dir() for entry in os.scandir(os.path.join(self.root, name))) for name in named["train"]
        ):
            return {}
        for split, found in named.items():
            if len(found) > 1:
                raise ValueError(
                    f"--data.root: expected one folder of {split} images in {self.root!r} but got {' and '.join(map(repr, found))}"
                )
        sets: dict[SplitName, str] = {split: found[0] for split, found in named.items() if found}
        others = [
            name for name in sorted(set(folders) - set(sets.values())) if _holds_images(os.path.join(self.root, name))
        ]
        if others:
            raise ValueError(
                f"--data.root: {self.root!r} holds {sets['train']!r} with folders in it, and {others[0]!r} with images. Are they "
                f"sets of images, or classes? Move the others elsewhere if {sets['train']!r} is the training set, and the "
                "folders below it up if it is a class"
            )
        return {split: os.path.join(self.root, name) for split, name in sets.items()}

    def summary(self) -> str:
        """Return the data summary, with the files that are not used; requires :meth:`setup`."""
        lines = [f"{printable(folder)}: left out {', '.join(out)}" for folder, out in self._left_out.items() if out]
        return "\n".join([super().summary(), *lines])

    def notes(self) -> list[str]:
        """Describe the classes whose test results are uncertain, and those that may be folders of classes; one line each."""
        part = self.part("train")
        nested = [] if self.train_list or part is None or part.paths is None else nested_classes(part.paths)
        if not nested:
            return super().notes()
        name, below = nested[0]
        found = f"The class {printable(name)!r} has no images but {len(below)} folders of them, such as {printable(below[0])!r}"
        more = f", and {len(nested) - 1:,} classes more" if len(nested) > 1 else ""
        remedy = f"if these are the classes, name {printable(os.path.join(self.root, name))} as `--data.root`"
        return [f"{found}{more}; {remedy}", *super().notes()]

    def load(self, split: SplitName) -> ImageFiles | None:
        """List the images of a split."""
        listed = {"train": self.train_list, "val": self.val_list, "test": self.test_list}[split]
        if self.train_list:
            if listed is None:
                return None
            paths, targets = read_list(listed)
            if split != "train":
                targets = self._numbered_as_in_training(listed, paths, targets)
            if split != "train" and (shared := set(paths).intersection(read_list(self.train_list)[0])):
                rank_zero_warn(
                    f"{len(shared):,} images of {listed!r} are in {self.train_list!r} too, such as {min(shared)!r}: results on "
                    "them do not show how well new images are classified."
                )
            files = ImageFiles(paths, torch.tensor(targets), self.root, REMEDY)
            for i in range(len(files)):
                if not os.path.isfile(files.path(i)):
                    raise FileNotFoundError(
                        f"Expected the paths of {listed!r} to be relative to the folder {self.root!r} but there is no file "
                        f"{files.path(i)!r} ({_line_of(listed, paths[i])})"
                    )
        else:
            folder = self._folder(split)
            if split == "train" and folder is None:
                folder = self.root
            if folder is None:
                return None
            index = index_folder(folder)
            if index.classes != self.class_names:
                one, other = (
                    sorted(set(index.classes) - set(self.class_names)),
                    sorted(set(self.class_names) - set(index.classes)),
                )
                raise ValueError(
                    f"Expected {folder!r} to hold the classes of the training data but it lacks {other[:5]} and has "
                    f"{one[:5]} besides; a class without images there requires an empty folder"
                )
            self._left_out[folder] = index.left_out
            files = ImageFiles(index.paths, torch.from_numpy(index.targets), folder, REMEDY)
        return self._without_unreadable(files) if self.unreadable == "skip" else files

    def _numbered_as_in_training(self, listed: str, paths: list[str], targets: list[int]) -> list[int]:
        """Match the classes of a list with those of the training list by the names of the images' folders."""
        if self.class_list:
            return targets
        number = {name: c for c, name in enumerate(self._folders_by_class or ())}
        folders = [Path(path).parent.name for path in paths]
        theirs = _class_folders(paths, targets)
        if len(theirs) > 1 and number and set(theirs.values()) == number.keys():
            return [number[folder] for folder in folders]
        for folder, target in zip(folders, targets, strict=True):
            # A folder that is not a class is ignored, unless all classes of the list have separate folders.
            if number and number.get(folder, -1 if len(theirs) > 1 else target) != target:
                known = f"class {number[folder]}" if folder in number else "no class"
                raise ValueError(
                    f"{listed!r} and {self.train_list!r} number the classes differently: {folder!r} is class {target} in the "
                    f"first but {known} in the second; number them alike, or name the classes by `--data.class_list`"
                )
        return targets

    def _without_unreadable(self, files: ImageFiles) -> ImageFiles:
        kept = readable(files)
        if left_out := int((~kept).sum()):
            first = files.path(int((~kept).nonzero()[0]))
            if left_out == len(files):
                raise ValueError(
                    f"Expected images in {files.root!r} but none of {len(files):,} can be read, such as {first!r}"
                )
            print(f"Left out {left_out:,} of {len(files):,} images that cannot be read, such as {printable(first)}")
        return files.of(kept)

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the SCoR paper's transform for photographs."""
        return paper_augmentation(size)


def _holds_images(folder: str) -> bool:
    return any(Path(name).suffix.lower() in image_suffixes() for _, _, files in os.walk(folder) for name in files)


def _class_folders(paths: list[str], targets: list[int]) -> dict[int, str]:
    """Return the folder of the images of each class; empty unless each class has a separate one."""
    folders: dict[int, set[str]] = defaultdict(set)
    for path, target in zip(paths, targets, strict=True):
        folders[target].add(Path(path).parent.name)
    names = {c: next(iter(found)) for c, found in folders.items() if len(found) == 1}
    return names if len(names) == len(folders) == len(set(names.values())) and all(names.values()) else {}


def _stray_label(paths: list[str], targets: list[int]) -> tuple[str, int, int] | None:
    """Find an image whose label contradicts its folder: path, label, and that of the folder's other images.

    Folders are considered classes if nearly all images of each have the same label, different from other folders'.
    """
    by_folder: dict[str, Counter[int]] = defaultdict(Counter)
    for path, target in zip(paths, targets, strict=True):
        by_folder[str(Path(path).parent)][target] += 1
    usual = {folder: counts.most_common(1)[0] for folder, counts in by_folder.items()}
    agreeing = sum(count for _, count in usual.values())
    if len({label for label, _ in usual.values()}) < len(usual) or not (1 - _STRAY) * len(paths) <= agreeing < len(
        paths
    ):
        return None
    rows = ((path, target, usual[str(Path(path).parent)][0]) for path, target in zip(paths, targets, strict=True))
    return next(row for row in rows if row[1] != row[2])


def _line_of(listed: str | os.PathLike[str], path: str) -> str:
    lines = Path(listed).read_text(encoding="utf-8-sig").splitlines()
    return next((f"line {n}" for n, line in enumerate(lines, start=1) if line.strip().startswith(path)), "a line")


def read_class_list(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the names of classes, one per line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8 text, or a line is empty or occurs twice; the message names the line.
    """
    names: dict[str, int] = {}
    for number, line in enumerate(_lines(file, "names of classes"), start=1):
        name = line.strip()
        if not name or name in names:
            got = f"{name!r} again, after line {names[name]}" if name else "an empty line"
            raise ValueError(f"Expected one name of a class in line {number} of {os.fspath(file)!r} but got {got}")
        names[name] = number
    if not names:
        raise ValueError(f"Expected names of classes in {os.fspath(file)!r} but it is empty")
    return tuple(names)


def _lines(file: str | os.PathLike[str], content: str) -> list[str]:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"Expected {content} but there is no file {os.fspath(file)!r}")
    try:
        return Path(file).read_text(encoding="utf-8-sig").rstrip("\n").splitlines()
    except UnicodeDecodeError as error:
        line_number = Path(file).read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(
            f"Expected text in UTF-8 in {os.fspath(file)!r} but line {line_number} is none; save it in that encoding"
        ) from error


def read_list(file: str | os.PathLike[str]) -> tuple[list[str], list[int]]:
    """Read a list file of lines ``path label``, with a space or a tab between them.

    A byte-order mark, blank lines and the line endings of any system are accepted.

    Args:
        file: The file.

    Returns:
        The paths, and the labels >= 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or not UTF-8 text, a line has another form, or an image is listed twice; the message names
            the line.
    """
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(file, "a list of images"), start=1):
        if not line.strip():
            continue
        path, *label = line.strip().rsplit(maxsplit=1)
        if not label or not label[0].isdecimal():
            raise ValueError(
                f"Expected `path label`, the label a class number from 0 on, in line {number} of {os.fspath(file)!r} but "
                f"got {line[:80]!r}"
            )
        if path in labels:
            raise ValueError(
                f"Expected each image once in {os.fspath(file)!r} but {path!r} with label {labels[path]} comes again in line "
                f"{number}, with {label[0]}"
            )
        if len(label[0]) > 9:
            raise ValueError(f"Expected a class number in line {number} of {os.fspath(file)!r} but got {label[0][:40]}")
        labels[path] = int(label[0])
    if not labels:
        raise ValueError(f"Expected images in the list {os.fspath(file)!r} but it is empty")
    return list(labels), list(labels.values())
