"""The help of a parser in one line per option, grouped in sections."""

import re
import shutil
import types
from argparse import Action
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

_HIDDEN = ("help", "print_shtab")
_BASIC = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false", type(None): "null"}


def describe_options(actions: Iterable[Action], description: str | None, classes: dict[str, list[str]]) -> str:
    """Return the help of some options.

    Args:
        actions: The options, as argparse actions.
        description: The text above them.
        classes: Names of the classes that each option accepts.
    """
    width = min(120, max(80, shutil.get_terminal_size((120, 24)).columns))
    sections: dict[str, list[str]] = {}
    for action in actions:
        option = next((name for name in reversed(action.option_strings) if name.startswith("--")), "")
        option = option.removesuffix("+")
        # The options of a group that read a whole file or show the help of a class.
        hidden = "Show the help for" in str(action.help) or action.help == "Path to a configuration file."
        if not option or hidden or option.removeprefix("--") in _HIDDEN:
            continue
        section = option.removeprefix("--").partition(".")[0] if "." in option else ""
        sections.setdefault(section, []).append(_line(option, action, width))
        if names := classes.get(option.removeprefix("--")):
            sections[section] += _wrapped(names, width)
    lines = [description, ""] if description else []
    for section, options in sections.items():
        lines += [*([f"{section}:"] if section else []), *options, ""]
    return "\n".join(lines)


def _line(option: str, action: Action, width: int) -> str:
    kind = _kind(getattr(action, "_typehint", None) or action.type)
    about = first_sentence(str(action.help or ""))
    default = action.default
    if isinstance(default, str | int | float | bool) and default != "==SUPPRESS==":
        about += f" ({str(default).lower() if isinstance(default, bool) else default})"
    line = f"  {f'{option} {kind}'.strip():<44} {about}"
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _wrapped(names: list[str], width: int) -> list[str]:
    lines = [" " * 6]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > width:
            lines.append(" " * 6)
        lines[-1] += f"{name}, "
    return [line.rstrip(", ") for line in lines]


def _kind(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        kinds = list(dict.fromkeys(_kind(each) for each in get_args(hint)))
        return "|".join(kind for kind in kinds if kind) if len("|".join(kinds)) <= 20 else kinds[0]
    if origin is Literal:
        return "|".join(map(str, get_args(hint))) if len(get_args(hint)) <= 4 else "TEXT"
    if hint in _BASIC:
        return _BASIC[hint]
    if origin in (list, tuple) or "Sequence" in str(origin) or "Iterable" in str(origin):
        return "LIST"
    return "" if hint is None else "MAPPING" if origin is dict else "CLASS"


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring or a help, without its markup and its source.

    Example:
        >>> first_sentence("Digits in ``K`` classes, `LeCun 1998 <http://x>`_. More: :class:`~a.B`.")
        'Digits in K classes'
    """
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    text = re.sub(r",?\s*\(?`[^`<]*<[^>]*>`_\)?", "", text)
    return (
        re.split(r"(?<=[\w)])[.;](?:\s|$)|\n\n|\nDefault:", text, maxsplit=1)[0].replace("\n", " ").replace("%%", "%")
    )
