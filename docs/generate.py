"""Writes the pages that list shipped configurations and methods, from the files themselves."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scor_lightning.configuration import CONFIGS, shipped_configs

KINDS = {
    "Training runs": lambda name: "/" not in name,
    "Protocols": lambda name: name.startswith("protocol/"),
    "Comparisons": lambda name: name.startswith("compare/"),
    "Losses": lambda name: name.startswith("loss/"),
    "Methods": lambda name: name.startswith("method/"),
    "Loggers": lambda name: name.startswith("logger/"),
}


def write_pages(folder: Path) -> None:
    """Write the page of all configurations, and a page for each loss and each method."""
    folder.mkdir(exist_ok=True)
    titles = {name: title(path) for name, path in shipped_configs().items()}
    pages = {"configurations.md": configurations(titles)}
    for name, about in titles.items():
        if name.startswith(("loss/", "method/")):
            pages[f"{name.replace('/', '-').removesuffix('.yaml')}.md"] = method(name, about)
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def title(path: Path) -> str:
    """Return the first line of a configuration, which says what it is."""
    return path.read_text().splitlines()[0].lstrip("# ").rstrip(".")


def configurations(titles: Mapping[str, str]) -> str:
    """Return the page that lists all configurations."""
    lines = [
        "# Configurations",
        "",
        "Every name on this page can follow `--config`. A name is looked up in the working directory first and then among the",
        "shipped files. Overlays (losses, methods, loggers) are applied on top of a training run.",
    ]
    for heading, belongs in KINDS.items():
        lines += ["", f"## {heading}", "", "| name | what it runs |", "|---|---|"]
        for name, about in titles.items():
            if belongs(name):
                page = name.replace("/", "-").removesuffix(".yaml")
                shown = f"[`{name}`]({page}.md)" if name.startswith(("loss/", "method/")) else f"`{name}`"
                lines.append(f"| {shown} | {_linked(about)} |")
    return "\n".join([*lines, ""])


def method(name: str, about: str) -> str:
    """Return the page of a loss or a method: what it is, how to use it, its file, and its classes."""
    path = CONFIGS / name
    comments = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    body = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")).strip()
    source = re.search(r"\s*\(((?=[A-Z])[^()]*https?://[^()]*)\)", comments[0])
    heading = comments[0].replace(source[0], "") if source else comments[0]
    lines = [
        f"# {heading.rstrip('.')}",
        "",
        *(_linked(comment) for comment in comments[1:]),
        *(["", f"Source: {_linked(source[1])}."] if source else []),
        "",
        "```bash",
        f"scor-fit --config digits_scor.yaml --config {name}",
        "```",
        "",
        f"`{name}`:",
        "",
        "```yaml",
        body,
        "```",
    ]
    for kind in dict.fromkeys(_classes(yaml.safe_load(path.read_text()))):
        module, _, own = kind.rpartition(".")
        public = ".".join(module.split(".")[:2])
        lines += ["", "```{eval-rst}", f".. autoclass:: {public}.{own}", "   :noindex:", "   :no-members:", "```"]
    lines += ["", "[All methods with their measured effects](../methods.md)", ""]
    return "\n".join(lines)


def _classes(part: Any) -> list[str]:
    """List the classes of this package that a configuration names."""
    if isinstance(part, str):
        return [part] if re.fullmatch(r"scor_lightning(\.\w+)+\.[A-Z]\w+", part) else []
    if isinstance(part, Mapping):
        part = list(part.values())
    return [name for each in part for name in _classes(each)] if isinstance(part, list) else []


def _linked(text: str) -> str:
    return re.sub(r"https?://[^\s,;)]+[^\s,;).]", lambda found: f"<{found[0]}>", text)
