"""Results on disk: a manifest, and one file per finished chunk of trainings."""

import json
import math
import os
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scor_lightning.comparison.predictions import KEY, Predictions, read_predictions, write_predictions
from scor_lightning.files import write_whole

Row = dict[str, Any]


# The files of a comparison.
_WRITTEN = (
    *("manifest.json", "report.html", "results.csv", "epochs.csv", "summary.json", "table.md", "table.tex"),
    *("chunks", "predictions", "pictures"),
)


class ResultsFolder:
    """A folder to which only complete files are added, so that a process may be killed at any time.

    ``manifest.json`` describes the comparison; ``chunks/*.json`` contain the records and ``predictions/*.npz``, with the
    same names, the predictions.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def begin(self, methods: dict[str, dict[str, str]], about: dict[str, Any]) -> None:
        """Create the folder of a comparison, or check that its methods have not changed; new ones are added.

        Args:
            methods: What the results depend on, by method and option.
            about: Other information for the report; the last call replaces it.

        Raises:
            ValueError: If the folder contains another comparison, or cannot be written.
        """
        before: dict[str, dict[str, str]] = {}
        if any((self.path / "chunks").glob("*.json")):
            if not (self.path / "manifest.json").is_file():
                raise ValueError(
                    f"Expected the manifest.json of the results in {str(self.path)!r} but it is missing; choose another folder "
                    "with `--output`"
                )
            manifest = self.manifest()
            if "identities" not in manifest:
                raise ValueError(
                    f"{str(self.path)!r} has results of version 0.1.0, which `scor-report` can show; choose another "
                    "folder with `--output`"
                )
            before = manifest["identities"]
        elif foreign := [name for name in _WRITTEN if (self.path / name).exists() and not self._is_ours()]:
            raise ValueError(
                f"Expected `--output` to name a new folder, or that of a comparison, but {str(self.path)!r} holds another "
                f"{foreign[0]!r}; choose another folder"
            )
        for name in methods.keys() & before.keys():
            _check_same(name, before[name], methods[name], self.path)
        kept = {name: options for name, options in before.items() if name not in methods}
        manifest = {"methods": list(methods), "identities": methods | kept, **about}
        try:
            (self.path / "chunks").mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "manifest.json", json.dumps(manifest, indent=2))
        except OSError as error:
            raise ValueError(f"Expected a folder to write results into but got {str(self.path)!r}: {error}") from error

    def _is_ours(self) -> bool:
        try:
            return bool({"methods", "identities"} <= json.loads((self.path / "manifest.json").read_text()).keys())
        except (OSError, ValueError, AttributeError):
            return False

    def manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            ValueError: If the folder has no results.
        """
        try:
            manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected a folder of results, with a manifest.json, but got {str(self.path)!r}"
            ) from error
        if "losses" in manifest:  # of version 0.1.0
            manifest["methods"] = manifest.pop("losses")
        return manifest

    def add(self, rows: list[Row]) -> None:
        """Write the records of a chunk.

        Raises:
            OSError: If the disk is full; earlier chunks are unchanged.
        """
        repeats, names = sorted({row["repeat"] for row in rows}), sorted({row["method"] for row in rows})
        which = f"{zlib.crc32(json.dumps(names).encode()):08x}"
        finite = [{key: _finite(value) for key, value in row.items() if key != KEY} for row in rows]
        content = json.dumps({"written": time.time_ns(), "rows": finite})
        name = f"{repeats[0]:06d}-{repeats[-1]:06d}-{which}"
        found = [(row["repeat"], row["method"], row[KEY]) for row in rows if KEY in row]
        if found:
            (self.path / "predictions").mkdir(exist_ok=True)
            write_predictions(self.path / "predictions" / f"{name}.npz", found)
        write_whole(self.path / "chunks" / f"{name}.json", content)  # last, because it marks the chunk as finished

    def rows(self) -> list[Row]:
        """Read all records, ordered by repeat and method; of duplicates, the first written.

        Raises:
            ValueError: If a file is damaged.
        """
        known = self.manifest()
        names = [*known["methods"], *(name for name in known.get("identities", ()) if name not in known["methods"])]
        return in_order((row for _, rows in self._chunks() for row in rows), names)

    def predictions(self) -> dict[tuple[int, str], Predictions]:
        """Read the predictions of the networks of :meth:`rows` by repeat and method.

        Raises:
            ValueError: If a file is damaged.
        """
        found: dict[tuple[int, str], Predictions] = {}
        for name, rows in self._chunks():
            if (path := self.path / "predictions" / f"{name}.npz").is_file():
                finished = {(row["repeat"], row["method"]) for row in rows}
                found |= {(n, method): each for n, method, each in read_predictions(path) if (n, method) in finished}
            else:
                for row in rows:
                    found.pop((row["repeat"], row["method"]), None)  # a network that was trained later
        return found

    def _chunks(self) -> list[tuple[str, list[Row]]]:
        """Read the chunks with their names, the newest first."""
        chunks = []
        for path in (self.path / "chunks").glob("*.json"):
            try:
                content = json.loads(path.read_text())
                written, found = (content["written"], content["rows"]) if isinstance(content, dict) else (0, content)
                rows = [{_NAMES.get(key, key): _with_nan(value) for key, value in row.items()} for row in found]
                chunks.append((written, path.stem, rows))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"Expected a file of results but got {str(path)!r}, which is damaged: {error}. Delete it, and "
                    "`scor-compare` trains its networks again"
                ) from error
        first_last = sorted(chunks, key=lambda chunk: chunk[:2], reverse=True)
        return [(name, rows) for _, name, rows in first_last]


_NAMES = {"loss": "method"}  # of version 0.1.0


def _check_same(name: str, before: dict[str, str], after: dict[str, str], path: Path) -> None:
    for option in dict.fromkeys([*after, *before]):
        if after.get(option) != before.get(option):
            old, new = _where_they_differ(str(before.get(option)), str(after.get(option)))
            raise ValueError(
                f"Expected the method {name!r} of the results in {str(path)!r}, with {option} = {old}, but got {new}; "
                "choose another folder with `--output`, or give the method another name"
            )


def in_order(rows: Iterable[Row], methods: list[str]) -> list[Row]:
    """Sort records by repeat, method and epoch; of duplicates the last one is kept."""
    unique = {(row["repeat"], methods.index(row["method"]), row["epoch"]): row for row in rows}
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
    """Shorten long descriptions, such as those of networks, to where they begin to differ."""
    if max(len(before), len(after)) <= 200:
        return before, after
    alike = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    start = max(0, alike - 40)
    return f"...{before[start : start + 120]}...", f"...{after[start : start + 120]}..."
