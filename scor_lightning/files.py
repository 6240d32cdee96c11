"""Atomic writing of files, and paths as users write them."""

import csv
import os
from collections.abc import Iterable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any


def expanded(path: str) -> str:
    """Replace ``~`` and environment variables in a path, as a shell does, but not behind ``--option=``.

    Example:
        >>> os.environ["SCRATCH"] = "/scratch"
        >>> expanded("$SCRATCH/runs")
        '/scratch/runs'
    """
    return os.path.expanduser(os.path.expandvars(path))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: whatever happens meanwhile, it is complete or unchanged.

    Args:
        path: The file; its folder is there.
        content: Text, written as UTF-8, or bytes.

    Raises:
        OSError: If it cannot be written, with its name.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def printable(text: str) -> str:
    r"""Escape the control characters of a text, which would command a terminal.

    Example:
        >>> print(printable("red \x1b[31m rose"))
        red \x1b[31m rose
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    r"""Format rows as CSV.

    Control characters of texts are escaped. A text that a spreadsheet would take for a formula begins with an apostrophe,
    by which it is shown as text.

    Example:
        >>> csv_text([["=1+1", -1.5]])
        "'=1+1,-1.5\n"
        >>> csv_text([["class", "recall"], ["a, b", 0.5], ["c", None]])
        'class,recall\n"a, b",0.5\nc,\n'
    """
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(_as_text, row) for row in rows)
    return text.getvalue()


def _as_text(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = printable(cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
