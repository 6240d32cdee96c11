"""Which images a folder holds: listed once, and then read from a cache as long as the folder does not change."""

import hashlib
import os
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from torchvision.datasets.folder import IMG_EXTENSIONS

from scor_lightning.files import write_whole

# A folder that changed so shortly before it was listed may change again within one tick of the file system's clock.
_TICK_NS = 100_000_000


class FolderIndex(NamedTuple):
    """The images below a folder that holds a folder a class, hidden ones left out.

    Args:
        classes: Names of the folders in it, sorted.
        paths: Paths of the images relative to it, sorted, bytes ``[N]``.
        targets: The class of each, int64 ``[N]``.
    """

    classes: tuple[str, ...]
    paths: "npt.NDArray[np.bytes_]"
    targets: "npt.NDArray[np.int64]"


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
    """Write a cache file whole or not at all; a full disk is no error."""
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with suppress(OSError):
        write_whole(file, content.getvalue())


def read_cache(file: Path) -> "dict[str, npt.NDArray[Any]] | None":
    """Read a cache file; None where there is none or it is not whole."""
    try:
        with np.load(file) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def index_folder(root: str | os.PathLike[str]) -> FolderIndex:
    """List the images of a folder that holds a folder a class, with any folders below.

    The list is kept in :func:`cache_folder`, never in the user's folder. It is listed anew when the time of change of
    any folder below ``root`` is another, that is when a file was added, removed or renamed. Of several processes one
    lists and the others wait.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no folder.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"Expected a folder of images but there is no folder {root!r}")
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
                    file, folders=folders, changed=changed, classes=classes, paths=index.paths, targets=index.targets
                )
        return index


def _read(file: Path, root: str) -> FolderIndex | None:
    kept = read_cache(file)
    if kept is None:
        return None
    try:
        for folder, changed in zip(kept["folders"].tolist(), kept["changed"].tolist(), strict=True):
            if os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns != changed:
                return None
    except OSError:  # a folder is gone
        return None
    return FolderIndex(tuple(os.fsdecode(name) for name in kept["classes"].tolist()), kept["paths"], kept["targets"])


def _list(root: str) -> tuple[FolderIndex, "npt.NDArray[np.bytes_]", "npt.NDArray[np.int64]"]:
    folders, changed, paths = [], [], []
    for folder, below, files in os.walk(os.fsencode(root), followlinks=True):
        changed.append(os.stat(folder).st_mtime_ns)
        below[:] = sorted(name for name in below if not name.startswith(b"."))
        relative = os.path.relpath(folder, os.fsencode(root))
        folders.append(relative)
        if relative == b".":
            classes = tuple(os.fsdecode(name) for name in below)
        else:
            paths += [
                relative + b"/" + name
                for name in sorted(files)
                if os.fsdecode(name).lower().endswith(IMG_EXTENSIONS) and not name.startswith(b".")
            ]
    if not classes:
        raise ValueError(f"Expected a folder a class in {root!r} but it holds no folder")
    paths.sort()
    number = {os.fsencode(name): c for c, name in enumerate(classes)}
    targets = np.array([number[path.partition(b"/")[0]] for path in paths], dtype=np.int64)
    index = FolderIndex(classes, np.array(paths, dtype=np.bytes_), targets)
    return index, np.array(folders), np.array(changed, dtype=np.int64)
