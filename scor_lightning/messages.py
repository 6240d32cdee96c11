"""The parser's errors as one line, which spells options as on the command line and suggests the nearest name."""

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import isabstract, signature
from pathlib import Path
from typing import Any

_NESTED = re.compile(r'Parser key "([^"]*)"(?: element (\d+))?:\s*')
_TYPE = re.compile(r"(?:Expected|expected) (?:a|an) (?:<class '([\w.]+)'>|((?:typing|collections)[\w.]+)(?!\[)\b)")
_LITERAL = re.compile(r"Expected a typing\.Literal\[([^]]*)\]")
_VALUE = re.compile(r"\s*(?:Got value|Given value): (.*?)(?= Expected a| Not a valid| Type | G(?:ot|iven) value:|$)")
# Words that mean nothing to a user who does not know the parser.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Expected a path but .*|"
    r"Given value type: .*|Subclass types expect one of:|(?:a class path|a dict) .*|"
)
_OTHER_COMMANDS = {
    **dict.fromkeys(("methods", "repeats", "baseline", "measure", "margin", "tune", "every_epoch"), "scor-compare"),
    **dict.fromkeys(("images", "all_classes"), "scor-predict"),
}
_USUAL = {  # names in other programs
    "epochs": "--trainer.max_epochs",
    "learning_rate": "--model.optimizer.lr",
    "seed": "--seed_everything",
}
_TYPES = {
    "str": "a text",
    "int": "an int",
    "float": "a float",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "collections.abc.Sequence": "a list",
    "collections.abc.Iterable": "a list",
    "dict": "a mapping",
    "collections.abc.Mapping": "a mapping",
    "torch.Tensor": "a list of numbers",
}


def explain(message: str, options: Iterable[str] = (), classes: Iterable[type] = ()) -> str:
    r"""Turn an error of jsonargparse into one line.

    Args:
        message: The error message of jsonargparse.
        options: The options of the command, for suggestions.
        classes: The classes that the option accepts, for suggestions of their names and options.

    Example:
        >>> explain("Parser key \"data\":\n  Parser key \"batch_size\":\n    Expected a <class 'int'>. Got value: ten")
        "--data.batch_size: expected an int but got 'ten'"
        >>> explain("unrecognized arguments: --trainer.max_epoch 1", ["--trainer.max_epochs"])
        'no option --trainer.max_epoch; did you mean --trainer.max_epochs?'
        >>> explain("Parser key \"mode\":\n  Expected a typing.Literal['min', 'max']. Got value: up")
        "--mode: expected one of min, max but got 'up'"
        >>> explain("Parser key \"data\":\n  - the following arguments are required: root")
        '--data.root is required'
    """
    option = option_of(message)
    lines = [line.strip().removeprefix("- ") for line in _NESTED.sub("", message).splitlines()]
    lines = [line for line in lines if not _NOISE.fullmatch(line)]
    text = " ".join(line for line in lines if line != "Expected a <class 'NoneType'>") or " ".join(lines)
    values = [_given(value) for value in _VALUE.findall(text)]
    values = [value for value in values if "(" not in value]  # without values of the parser's own classes
    text = _VALUE.sub("", text).strip()
    # Another member of a union, such as a list of callbacks for a single one, failed because the value is no list.
    text = re.sub(r"(?<=.) (?:Not a valid subclass of|Type [\w.]+\[.* expects a function) .*", "", text)
    got = f" but got {_shown(values[-1])}" if values else ""
    classes = list(classes)
    # The parser of an inner class has already worded the message.
    if found := re.match(r"(?:no option )?--\w+", text):
        inner = found[0].removeprefix("no option ")
        return text.replace(inner, f"{option}.{inner[2:]}") if option else text
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _unknown_option(found[1].partition("=")[0], options)
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        return _unknown_option(f"--{found[1]}.{found[2]}", options)
    if found := re.search(r"Option '([^']*)' is not accepted", text):
        return _unknown_argument(option, found[1], classes)
    if found := re.search(r"the following arguments are required: (.*)", text):
        options = set(options)
        names = [f"{option}.{name}" if option else name for name in found[1].split(", ")]
        names = [f"--{name}" if f"--{name}" in options else name for name in names]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} required"
    if found := re.search(r"argument (\S+): expected (?:at least )?one argument", text):
        return f"{found[1].rpartition('/')[2]}: expected a value but got none"
    if found := re.search(r"Expected a dot import path string: (\S+)|module '([\w.]+)' has no attribute '(\w+)'", text):
        name = found[1] or found[3]
        own = sys.modules.get(found[2] or "")
        return f"{option}: no class {name!r}{nearest(name, vars(own) if own else (kind.__name__ for kind in classes))}"
    if found := re.search(r"Problem with given class_path ('[^']*'):\s*(No module named .*)", text):
        return f"{option}: no class {found[1]}: {found[2]}{_python_path(found[2])}"
    if re.match(r"Not a valid subclass of|Type .* expects a function", text):
        return f"{option}: expected a class{_such_as(classes)}{got}"
    if literals := _LITERAL.findall(text):
        allowed = dict.fromkeys(choice.strip("' ") for literal in literals for choice in literal.split(","))
        return f"{option}: expected one of {', '.join(allowed)}{got}"
    if kinds := list(dict.fromkeys(one or other for one, other in _TYPE.findall(text))):
        known = [_TYPES.get(kind, kind) for kind in kinds if kind != "NoneType" or len(kinds) == 1]
        return f"{option}: expected {' or '.join(dict.fromkeys(known))}{got}".removeprefix(": ")
    return f"{option}: {text}" if option else text


def _python_path(error: str) -> str:
    """Return how to import the missing module of an error from the working directory; empty if it is not there."""
    module = error.removeprefix("No module named ").strip("'").partition(".")[0]
    here = Path(f"{module}.py").is_file() or Path(module).is_dir()
    return "; begin the command with `PYTHONPATH=.` to import from this folder" if here else ""


def nearest(name: str, known: Iterable[str], before: str = "") -> str:
    """Return a suggestion of the nearest known name; empty if none is near.

    Example:
        >>> nearest("FocalLos", ["FocalLoss", "OPLLoss"])
        '; did you mean FocalLoss?'
    """
    near = get_close_matches(name, sorted(set(known) - {name}), n=1, cutoff=0.66)
    return f"; did you mean {before}{near[0]}?" if near else ""


def option_of(message: str) -> str:
    """Return the option that an error refers to, spelled as on the command line; empty if it names none."""
    path = ".".join(key for key, _ in _NESTED.findall(message)).split(".")
    path = [part for part in path if part != "init_args"]
    if path[0] == "config" and len(path) > 1:  # of a file
        path = path[1:]
    return f"--{'.'.join(path)}" if path != [""] else ""


def _given(value: str) -> str:
    nested = re.fullmatch(r"NestedArg\(key='[^']*', val='?(.*?)'?\)", value)
    return nested[1] if nested else value


def _shown(value: str) -> str:
    return "null" if value == "None" else repr(value.strip()[:60])


def _such_as(classes: list[type]) -> str:
    own = sorted(kind.__name__ for kind in classes if kind.__module__.startswith("scor_lightning."))
    return f" such as {own[-1]}" if own else ""


def _unknown_option(given: str, options: Iterable[str]) -> str:
    if not given.startswith("-"):
        return f"no option {given!r}: an option begins with `--`"
    options = {option for option in options if not option.endswith((".help", "+"))}
    place, _, name = given.rpartition(".")
    beside = {option.rpartition(".")[2] for option in options if place and option.rpartition(".")[0] == place}
    if beside:
        return f"no option {given}{nearest(name, beside, f'{place}.')}"
    if (bare := given.removeprefix("--")) in _OTHER_COMMANDS:
        return f"no option {given}, which is one of {_OTHER_COMMANDS[bare]}"
    if bare in _USUAL:
        return f"no option {given}; did you mean {_USUAL[bare]}?"
    first, dot, rest = bare.partition(".")
    by_last = {option.rpartition(".")[2]: option for option in sorted(options, reverse=True)}
    if first in by_last:  # without what is in front of it, such as `--optimizer.lr`
        return f"no option {given}; did you mean {by_last[first]}{dot}{rest}?"
    return f"no option {given}{nearest(given, options) or _nearest_last(bare, by_last)}"


def _nearest_last(name: str, by_last: Mapping[str, str]) -> str:
    near = get_close_matches(name, sorted(by_last), n=1, cutoff=0.66)
    return f"; did you mean {by_last[near[0]]}?" if near else ""


def _unknown_argument(option: str, name: str, classes: list[type]) -> str:
    names = {argument for kind in classes for argument in _arguments(kind)}
    before = f"{option}." if option else "--"
    if name in names:
        takers = [
            kind for kind in classes if name in _arguments(kind) and kind.__module__.startswith("scor_lightning.")
        ]
        named = sorted(kind.__name__ for kind in takers if not isabstract(kind))
        others = f"; {' and '.join(named)} {'has' if len(named) == 1 else 'have'} it" if 0 < len(named) <= 3 else ""
        return f"no option {before}{name} of this class{others}"
    return f"no option {before}{name}{nearest(name, names, before)}"


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
