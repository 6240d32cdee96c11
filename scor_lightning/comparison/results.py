"""Results on disk: a manifest, and one file for each finished chunk of trainings."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scor_lightning.files import write_whole

Row = dict[str, Any]


class ResultsFolder:
    """A folder that only ever grows by whole files, so that a process may be killed at any moment.

    ``manifest.json`` describes what is compared; ``chunks/*.json`` hold the records.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def begin(self, description: dict[str, str], about: dict[str, Any]) -> None:
        """Create the folder of a comparison, or check that it holds the same comparison.

        Args:
            description: What the results depend on, by option.
            about: What else the report wants to know; the latest stands.

        Raises:
            ValueError: If the folder holds another comparison, or cannot be written.
        """
        if (self.path / "manifest.json").is_file():
            before = self.manifest()["configuration"]
            for option in dict.fromkeys([*description, *before]):
                if description.get(option) != before.get(option):
                    old, new = _where_they_differ(str(before.get(option)), str(description.get(option)))
                    raise ValueError(
                        f"Expected the configuration of the results in {str(self.path)!r}, with {option} = {old}, "
                        f"but got {new}; choose another folder with `--output`"
                    )
        elif any((self.path / "chunks").glob("*.json")):
            raise ValueError(
                f"Expected the manifest.json of the results in {str(self.path)!r} but it is gone; choose another folder "
                "with `--output`"
            )
        try:
            (self.path / "chunks").mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "manifest.json", json.dumps({"configuration": description, **about}, indent=2))
        except OSError as error:
            raise ValueError(f"Expected a folder to write results into but got {str(self.path)!r}: {error}") from error

    def manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            ValueError: If the folder holds no results.
        """
        try:
            manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
            return manifest
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected a folder of results, with a manifest.json, but got {str(self.path)!r}"
            ) from error

    def add(self, rows: list[Row]) -> None:
        """Write the records of a chunk.

        Raises:
            OSError: If there is no room for them; what was written before is as it was.
        """
        repeats, losses = sorted({row["repeat"] for row in rows}), {row["loss"] for row in rows}
        name = f"{repeats[0]:06d}-{repeats[-1]:06d}" + (f"-{quote(losses.pop(), safe='')}" if len(losses) == 1 else "")
        finite = [{key: _finite(value) for key, value in row.items()} for row in rows]
        write_whole(self.path / "chunks" / f"{name}.json", json.dumps(finite))

    def rows(self) -> list[Row]:
        """Read all records, in the order of the repeats and, within one, of the losses.

        Raises:
            ValueError: If a file is damaged.
        """
        rows = []
        for path in sorted((self.path / "chunks").glob("*.json")):
            try:
                rows += [{key: _with_nan(value) for key, value in row.items()} for row in json.loads(path.read_text())]
            except ValueError as error:
                raise ValueError(
                    f"Expected a file of results but got {str(path)!r}, which is damaged: {error}. Delete it, and "
                    "`scor-compare` trains its networks again"
                ) from error
        return in_order(rows, self.manifest()["losses"])


def in_order(rows: Iterable[Row], losses: list[str]) -> list[Row]:
    """Sort records by repeat, loss and epoch, without duplicates."""
    unique = {(row["repeat"], losses.index(row["loss"]), row["epoch"]): row for row in rows}
    return [unique[key] for key in sorted(unique)]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no nan
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _with_nan(value: Any) -> Any:
    if value is None:
        return math.nan
    return [_with_nan(v) for v in value] if isinstance(value, list) else value


def _where_they_differ(before: str, after: str) -> tuple[str, str]:
    """Cut long descriptions, such as those of networks, to where they begin to differ."""
    if max(len(before), len(after)) <= 200:
        return before, after
    alike = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    start = max(0, alike - 40)
    return f"...{before[start : start + 120]}...", f"...{after[start : start + 120]}..."
