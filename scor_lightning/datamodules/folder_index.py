"""The images of a folder: listed once, then read from a cache until the folder changes."""

import hashlib
import os
import time
from collections import Counter, defaultdict
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from scor_lightning.datamodules.decode import ImageFiles, image_suffixes
from scor_lightning.files import write_whole

# A folder changed this shortly before it was listed may change again within one tick of the file system's clock.
_TICK_NS = 100_000_000


class FolderIndex(NamedTuple):
    """The images below a folder with one subfolder per class, without hidden ones.

    Args:
        classes: Names of the class folders, sorted.
        paths: Paths of the images relative to it, sorted, bytes ``[N]``.
        targets: Class index of each image, int64 ``[N]``.
        left_out: Descriptions of other files that are not used, with counts.
    """

    classes: tuple[str, ...]
    paths: "npt.NDArray[np.bytes_]"
    targets: "npt.NDArray[np.int64]"
    left_out: tuple[str, ...] = ()


# Folders of file managers, archives and notebooks, in addition to those that begin with a dot.
NO_CLASSES = frozenset(
    (b"@eaDir", b"__MACOSX", b"__pycache__", b"$RECYCLE.BIN", b"System Volume Information", b"lost+found")
)


def cache_folder() -> Path:
    """Return the folder of this package's caches, below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scor_lightning"


def cache_file(kind: str, *key: bytes, folder: str | None = None) -> Path | None:
    """Return the cache file for a key, below a folder or :func:`cache_folder`; None if no cache can be written."""
    place = (cache_folder() if folder is None else Path(folder)) / kind
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return place / f"{hashlib.sha256(bytes(1).join(key)).hexdigest()[:32]}.npz" if os.access(place, os.W_OK) else None


def write_cache(file: Path, **arrays: "npt.NDArray[Any]") -> None:
    """Write a cache file atomically; a full disk is ignored."""
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with suppress(OSError):
        write_whole(file, content.getvalue())


def read_cache(file: Path) -> "dict[str, npt.NDArray[Any]] | None":
    """Read a cache file; None if it does not exist or is damaged."""
    try:
        with np.load(file) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def readable(files: ImageFiles, progress: bool = True) -> Tensor:
    """Return which images can be decoded, bool ``[N]``; the result is cached until a file changes."""
    file = cache_file("readable", os.fsencode(os.path.abspath(files.root)), files.paths.tobytes(), files.state())
    kept = read_cache(file) if file else None
    if kept is not None:
        return torch.from_numpy(kept["readable"])
    found = files.readable(progress)
    if file is not None:
        write_cache(file, readable=found.numpy())
    return found


def nested_classes(paths: npt.NDArray[np.bytes_]) -> list[tuple[str, list[str]]]:
    """List the classes whose images are all in several folders below that of the class, with these folders.

    Args:
        paths: Images relative to the folder of the classes.

    Example:
        >>> nested_classes(np.array([b"old/1.jpg", b"pets/cat/1.jpg", b"pets/dog/1.jpg"]))
        [('pets', ['cat', 'dog'])]
    """
    if not (np.char.count(paths, b"/") > 1).any():
        return []
    below: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        name, *folders, _ = os.fsdecode(path).split("/")
        below[name].add(folders[0] if folders else "")
    return [(name, sorted(found)) for name, found in below.items() if len(found) > 1 and "" not in found]


def index_folder(root: str | os.PathLike[str]) -> FolderIndex:
    """List the images of a folder with one subfolder per class, with any folders below.

    The list is stored in :func:`cache_folder`, never in the user's folder. The folder is listed again when the modification
    time of any folder below ``root`` changes, that is when a file was added, removed or renamed. With several processes,
    one lists and the others wait. Each real file counts once, regardless of links, and folders of file managers and
    archives are not classes.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no subfolders.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"No such folder: {root!r}; name your folder of images with `--data.root FOLDER`")
    file = cache_file("folders", os.fsencode(root))
    if file is None:
        return _list(root)[0]
    with FileLock(file.with_suffix(".lock")):
        index = _read(file, root)
        if index is None:
            began = time.time_ns()
            index, folders, changed = _list(root)
            if changed.max() < began - _TICK_NS:
                classes = np.array([os.fsencode(name) for name in index.classes])
                write_cache(
                    file,
                    folders=folders,
                    changed=changed,
                    classes=classes,
                    paths=index.paths,
                    targets=index.targets,
                    left_out=np.array([os.fsencode(text) for text in index.left_out], dtype=np.bytes_),
                )
        return index


def _read(file: Path, root: str) -> FolderIndex | None:
    kept = read_cache(file)
    if kept is None or "left_out" not in kept:  # missing from caches of earlier versions
        return None
    try:
        for folder, changed in zip(kept["folders"].tolist(), kept["changed"].tolist(), strict=True):
            if os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns != changed:
                return None
    except OSError:  # a folder was deleted
        return None
    left_out = tuple(os.fsdecode(text) for text in kept["left_out"].tolist())
    names = tuple(os.fsdecode(name) for name in kept["classes"].tolist())
    return FolderIndex(names, kept["paths"], kept["targets"], left_out)


def _list(root: str) -> tuple[FolderIndex, "npt.NDArray[np.bytes_]", "npt.NDArray[np.int64]"]:
    listing = _Listing(os.fsencode(root))
    if not listing.classes:
        raise ValueError(f"Expected one subfolder per class in {root!r} but it holds none")
    classes = sorted(listing.classes)
    number = {name: c for c, name in enumerate(classes)}
    paths = sorted(listing.paths)
    targets = np.array([number[path.partition(b"/")[0]] for path in paths], dtype=np.int64)
    names = tuple(os.fsdecode(name) for name in classes)
    index = FolderIndex(names, np.array(paths, dtype=np.bytes_), targets, listing.left_out())
    return index, np.array(listing.folders), np.array(listing.changed, dtype=np.int64)


class _Listing:
    """The images below a folder, each real file once: links are followed last, only to files that are not listed yet."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.classes: list[bytes] = []
        self.folders: list[bytes] = []
        self.changed: list[int] = []
        self.paths: list[bytes] = []
        self._visited: set[tuple[int, int]] = set()
        self._links: list[bytes] = []
        self._other: Counter[str] = Counter()  # files that are not images, by extension
        self._outside = self._twice = self._broken = 0
        self._scan(b".")
        self._follow_links()

    def _scan(self, relative: bytes) -> bool:
        """List a folder and its subfolders; return whether it had not been listed before."""
        place = os.path.join(self.root, relative)
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in self._visited:
            return False
        self._visited.add((about.st_dev, about.st_ino))
        self.folders.append(relative)
        self.changed.append(about.st_mtime_ns)
        top, below = relative == b".", []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(b".") or entry.name in NO_CLASSES:
                    continue
                path = entry.name if top else relative + b"/" + entry.name
                if entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir():
                    below.append(path)
                else:
                    self._add(path)
        for path in below:
            self._scan(path)
        if top:
            self.classes += below
        return True

    def _add(self, path: bytes) -> None:
        suffix = os.path.splitext(os.fsdecode(path))[1].lower()
        if suffix not in image_suffixes():
            self._other[suffix or "without an ending"] += 1
        elif b"/" not in path:
            self._outside += 1
        else:
            self.paths.append(path)

    def _follow_links(self) -> None:
        listed: set[bytes] = set()
        real_root = os.path.realpath(self.root)
        while self._links:
            found, self._links = sorted(self._links), []
            for link in found:
                target = os.path.realpath(os.path.join(self.root, link))
                if os.path.isdir(target):
                    if not self._scan(link):
                        self._twice += 1
                    elif b"/" not in link:
                        self.classes.append(link)
                elif not os.path.isfile(target):
                    self._broken += 1
                else:
                    listed = listed or {os.path.join(real_root, path) for path in self.paths}
                    if target in listed:
                        self._twice += 1
                    else:
                        listed.add(target)
                        self._add(link)

    def left_out(self) -> tuple[str, ...]:
        """Describe the files below the folder that are not images of a class."""
        endings = ", ".join(sorted(self._other)[:5]) + (", ..." if len(self._other) > 5 else "")
        counts = (
            (sum(self._other.values()), f"not an image ({endings})"),
            (self._outside, "beside the class folders"),
            (self._twice, "a link to what is listed already"),
            (self._broken, "a broken link"),
        )
        return tuple(f"{count:,} x {what}" for count, what in counts if count)
