"""Results on disk: a manifest, and one file for each finished chunk of trainings."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        """Make the folder for a comparison, or see that it is the one that it holds.

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
                    raise ValueError(
                        f"Expected the configuration of the results in {str(self.path)!r}, with {option} = "
                        f"{before.get(option)}, but got {description.get(option)}; choose another folder with `--output`"
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
            return json.loads((self.path / "manifest.json").read_text())  # type: ignore[no-any-return]
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected a folder of results, with a manifest.json, but got {str(self.path)!r}"
            ) from error

    def add(self, rows: list[Row]) -> None:
        """Write the records of a chunk."""
        repeats, losses = sorted({row["repeat"] for row in rows}), {row["loss"] for row in rows}
        name = f"{repeats[0]:06d}-{repeats[-1]:06d}" + (f"-{losses.pop()}" if len(losses) == 1 else "")
        finite = [{key: _finite(value) for key, value in row.items()} for row in rows]
        write_whole(self.path / "chunks" / f"{name}.json", json.dumps(finite))

    def rows(self) -> list[Row]:
        """Read all records, in the order of the repeats and, within one, of the losses."""
        chunks = [json.loads(path.read_text()) for path in sorted((self.path / "chunks").glob("*.json"))]
        return in_order([row for chunk in chunks for row in chunk], self.manifest()["losses"])


def in_order(rows: Iterable[Row], losses: list[str]) -> list[Row]:
    """Put records into the order of repeat, loss and epoch, each once."""
    unique = {(row["repeat"], losses.index(row["loss"]), row["epoch"]): row for row in rows}
    return [unique[key] for key in sorted(unique)]


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all, whatever happens meanwhile."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no nan
    return [_finite(v) for v in value] if isinstance(value, list) else value
