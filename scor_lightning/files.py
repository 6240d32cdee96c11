"""Atomic writing of files, and paths as users write them."""

import csv
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any


def expanded(path: str) -> str:
    """Expand ``~`` and environment variables in a path; a shell does not expand ``~`` after ``--option=``.

    Example:
        >>> os.environ["SCRATCH"] = "/scratch"
        >>> expanded("$SCRATCH/runs")
        '/scratch/runs'
    """
    return os.path.expanduser(os.path.expandvars(path))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: if writing fails, the file is unchanged.

    Args:
        path: The file; its folder must exist.
        content: Text, written as UTF-8, or bytes.

    Raises:
        OSError: If the file cannot be written; the message names it.
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


def check_replaceable(
    path: Path,
    option: str,
    own: Callable[[bytes], bool],
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> None:
    """Check, before any work is done, that writing a file does not destroy one of the user's.

    Args:
        path: The file to be written.
        option: The option that names it.
        own: Whether a file that begins with these 4 KiB is an earlier output of the same command.
        inputs: Files that the command reads, which it never overwrites.
        overwrite: Whether to replace any other file.

    Raises:
        ValueError: If the file exists and must not be replaced.
    """
    if path.is_dir():
        raise ValueError(f"{option}: expected a file but {str(path)!r} is a folder")
    if not path.exists():
        return
    if any(Path(given).exists() and path.samefile(given) for given in inputs):
        raise ValueError(f"{option}: expected another file than those that are read but got {str(path)!r}")
    if overwrite:
        return
    with path.open("rb") as file:
        if not own(file.read(4096)):
            raise ValueError(
                f"{option}: expected a new file, or this command's own, but {str(path)!r} is another; name another, or give "
                "`--overwrite true`"
            )


def printable(text: str) -> str:
    r"""Escape the control characters of a text, which a terminal would interpret.

    Example:
        >>> print(printable("red \x1b[31m rose"))
        red \x1b[31m rose
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, the last of which is an ellipsis if it was cut.

    Example:
        >>> shortened("water lily", 6)
        'water…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def six_digits(content: Any) -> Any:
    """Return nested dictionaries and lists with every float rounded to six significant digits.

    Results are computed in float32, which has about seven.

    Example:
        >>> six_digits({"recall": [0.9570000171661377, 1, None]})
        {'recall': [0.957, 1, None]}
    """
    if isinstance(content, float):
        return float(f"{content:.6g}")
    if isinstance(content, Mapping):
        return {name: six_digits(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [six_digits(value) for value in content]
    return content


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    r"""Format rows as CSV, floats with six significant digits.

    Control characters in text are escaped. Text that a spreadsheet would interpret as a formula begins with an apostrophe,
    so that it is shown as text.

    Example:
        >>> csv_text([["=1+1", -1.5]])
        "'=1+1,-1.5\n"
        >>> csv_text([["class", "recall"], ["a, b", 0.5], ["c", None]])
        'class,recall\n"a, b",0.5\nc,\n'
    """
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(safe_cell, six_digits(list(row))) for row in rows)
    return text.getvalue()


def safe_cell(cell: Any) -> Any:
    """Return a cell of a CSV file: text with control characters and formulas escaped, anything else unchanged."""
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
