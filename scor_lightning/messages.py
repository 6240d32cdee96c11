"""The parser's errors as one line, which spells options as on the command line and suggests the nearest name."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from inspect import signature
from typing import Any

_NESTED = re.compile(r'Parser key "([^"]*)"(?: element (\d+))?:\s*')
_TYPE = re.compile(r"(?:Expected|expected) (?:a|an) <class '([\w.]+)'>")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Expected a path but .*|Given value type: .*|"
    r"Given value: \w*(Namespace|NestedArg)\(.*|"
)
_TYPES = {"str": "a text", "int": "an int", "float": "a float", "bool": "true or false", "NoneType": "null"}


def explain(message: str, options: Iterable[str] = (), classes: Iterable[type] = ()) -> str:
    r"""Turn an error of jsonargparse into one line.

    Args:
        message: What jsonargparse says.
        options: The options that the command has, to suggest one of them.
        classes: The classes that may be meant, to suggest one of them or of their options.

    Example:
        >>> explain("Parser key \"data\":\n  Parser key \"batch_size\":\n    Expected a <class 'int'>. Got value: ten")
        "--data.batch_size: expected an int but got 'ten'"
        >>> explain("unrecognized arguments: --trainer.max_epoch 1", ["--trainer.max_epochs"])
        'no option --trainer.max_epoch; did you mean --trainer.max_epochs?'
    """
    path = [key for key, _ in _NESTED.findall(message)]
    option = "--" + ".".join(part for part in ".".join(path).split(".") if part != "init_args") if path else ""
    lines = [line.strip().removeprefix("- ") for line in _NESTED.sub("", message).splitlines()]
    lines = [line for line in lines if not _NOISE.fullmatch(line)]
    lines = [line for line in lines if line != "Expected a <class 'NoneType'>"] or lines
    text = " ".join(lines)
    classes = list(classes)
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        given = found[1].partition("=")[0]
        if not given.startswith("-"):
            return f"no option {given!r}: an option begins with `--`"
        return f"no option {given}{nearest(given, options)}"
    if found := re.search(r"Option '([^']*)' is not accepted", text):
        names = {name for kind in classes for name in _arguments(kind)}
        before = f"{option}." if option else "--"
        return f"no option {before}{found[1]}{nearest(found[1], names, before)}"
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        return f"{option}: no class {found[1]!r}{nearest(found[1], {kind.__name__ for kind in classes})}"
    if kinds := list(dict.fromkeys(_TYPE.findall(text))):
        given_value = re.search(r"(?:Got value|Given value): (.*?)(?= Expected|$)", text)
        known = [_TYPES.get(kind, kind) for kind in kinds if kind != "NoneType" or len(kinds) == 1]
        got = f" but got {given_value[1].strip()[:60]!r}" if given_value else ""
        return f"{option}: expected {' or '.join(known)}{got}".removeprefix(": ")
    return f"{option}: {text}" if option else text


def nearest(name: str, known: Iterable[str], before: str = "") -> str:
    """Return a question that suggests the nearest of the known names; empty if none is near.

    Example:
        >>> nearest("FocalLos", ["FocalLoss", "OPLLoss"])
        '; did you mean FocalLoss?'
    """
    near = get_close_matches(name, sorted(set(known)), n=1, cutoff=0.7)
    return f"; did you mean {before}{near[0]}?" if near else ""


def _arguments(kind: type) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        init: Any = vars(base).get("__init__")
        if init is not None and base is not object:
            try:
                found += [name for name in signature(init).parameters if name not in ("self", "args", "kwargs")]
            except (TypeError, ValueError):
                continue
    return found
