"""The shipped configurations: names, titles, and the name of an experiment."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scor_lightning.messages import nearest

_PACKAGE = Path(__file__).parent
# Inside the package when installed from a wheel, beside it when installed with `pip install -e`.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
_YAML_VALUES = 100_000  # limit of what a configuration may expand to; aliases multiply
OVERLAYS = ("logger", "loss", "method")  # folders of files that change a configuration


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    return {path.relative_to(CONFIGS).as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}


def list_configs(wanted: Callable[[str], bool]) -> list[str]:
    """Return one line per shipped configuration whose name is wanted: name and title."""
    titles = {name: path.read_text().splitlines()[0] for name, path in shipped_configs().items() if wanted(name)}
    return [f"  {name:<36}{title.lstrip('# ').split(' (')[0].rstrip('.')}" for name, title in titles.items()]


def find_config(name: str, beside: Path | None = None) -> str:
    """Find a configuration in the working directory, then in a folder, then among those shipped.

    Args:
        name: Path, or name of a shipped configuration.
        beside: A second folder to search.

    Raises:
        ValueError: If it is not found; the message suggests the nearest shipped name.
    """
    if Path(name).is_file():
        return name
    if beside is not None and (beside / name).is_file():
        return str(beside / name)
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise ValueError(
        f"--config: no file or shipped configuration {name!r}"
        f"{nearest(name, shipped) or '; the command without options lists them'}"
    )


def check_configs(paths: Sequence[Any]) -> None:
    """Check that configuration files can be combined: the first is not an overlay, and one overlay alone sets the loss.

    Raises:
        ValueError: If they cannot.
    """
    first, *later = map(str, paths)
    if Path(first).parent.name in OVERLAYS:
        overlay = "/".join(Path(first).parts[-2:])
        raise ValueError(f"Expected an overlay on top of a configuration: `--config NAME.yaml --config {overlay}`")
    for path in map(str, paths):
        if (
            Path(path).is_file()
            and isinstance(content := read_yaml(path), dict)
            and {"methods", "training"} & content.keys()
        ):
            raise ValueError(f"--config: {path!r} is a comparison; run it with `scor-compare --config {path}`")
    models = {path: _model(path) for path in later}
    losses = {path: loss for path, model in models.items() if (loss := _loss_class(model)) is not None}
    if len(set(losses.values())) > 1:
        raise ValueError(
            f"Expected one overlay that sets `model.loss` but got {' and '.join(losses)}; SCoR over a loss is "
            "`--config method/scor.yaml`"
        )
    for option in ("mixing", "second_stage"):
        setting = [path for path, model in models.items() if model.get(option) is not None]
        if len(set(setting)) > 1:
            raise ValueError(f"Expected one overlay that sets `model.{option}` but got {' and '.join(setting)}")


def split_includes(path: str, within: tuple[Path, ...] = ()) -> tuple[list[str], str]:
    """Split a configuration file into the files that it begins with, named by its ``config``, and its own options.

    Args:
        path: The file.
        within: Files that include it.

    Returns:
        The paths of the included files, and the text of the file without ``config``, empty if there is nothing else.

    Raises:
        ValueError: If ``config`` is not a list of configurations, or a file includes itself.

    Example:
        >>> from pathlib import Path
        >>> files, text = split_includes(str(CONFIGS / "cifar10lt_scor.yaml"))
        >>> [Path(file).name for file in files], "cao2019" in text
        (['cao2019.yaml'], False)
    """
    import yaml

    root, text = _parsed(path)
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ValueError(f"--config: expected options and their values in {path!r} but got a {root.id}")
    pairs = root.value if root is not None else []
    given = next(((key, value) for key, value in pairs if key.value == "config"), None)
    if given is None:
        return [], text
    key, value = given
    listed = value.value if isinstance(value, yaml.SequenceNode) else [value]
    if not all(isinstance(name, yaml.ScalarNode) for name in listed):
        raise ValueError(
            f"Expected `config` in {path!r} to be a list of configurations, such as [protocol/cao2019.yaml]"
        )
    files = [find_config(name.value, Path(path).parent) for name in listed]
    for file in files:
        if Path(file).resolve() in (*within, Path(path).resolve()):
            raise ValueError(f"Expected {file!r} not to include itself by its `config`")
    rest = text[: key.start_mark.index] + text[value.end_mark.index :]
    return files, rest if yaml.safe_load(rest) is not None else ""


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file.

    Args:
        path: A UTF-8 file.

    Returns:
        The content as plain values; None for an empty file.

    Raises:
        ValueError: If the file is not YAML, has a key twice in one mapping, contains itself, or expands to more than
            100,000 values; the message names the line.
    """
    import yaml

    return yaml.safe_load(_parsed(path)[1])


def _parsed(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Return the checked root node of a YAML file, and its text."""
    import yaml

    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_nodes(root)
    except UnicodeDecodeError as error:
        raise ValueError(f"--config: expected a text in UTF-8 but {name!r} is none") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where = "" if mark is None else f" in line {mark.line + 1}"
        raise ValueError(f"--config: expected YAML but {name!r} has an error{where}: {problem}") from error
        _check_nodes(root)
    except RecursionError as error:
        raise ValueError(f"--config: {name!r} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"--config: {name!r} {error}") from error
    return root, text


def _check_nodes(root: Any) -> None:
    """Check a YAML document for duplicate keys and for the size that its aliases expand to."""
    import yaml

    count = 0

    def check(node: Any, above: tuple[Any, ...]) -> None:
        nonlocal count
        count += 1
        if count > _YAML_VALUES:
            raise ValueError(f"expands to more than {_YAML_VALUES:,} values")
        if any(node is each for each in above):
            raise ValueError(f"contains itself, by the alias in line {node.start_mark.line + 1}")
        if isinstance(node, yaml.SequenceNode):
            for value in node.value:
                check(value, (*above, node))
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode):
                    if key.value in lines:
                        raise ValueError(f"has the key {key.value!r} twice, in lines {lines[key.value]} and {line}")
                    lines[key.value] = line
                check(value, (*above, node))

    if root is not None:
        check(root, ())


def _model(path: str) -> dict[str, Any]:
    """Return the options of the classifier that a configuration and its included files set."""
    import yaml

    if not Path(path).is_file():  # options as JSON
        return {}
    files, text = split_includes(path)
    content = yaml.safe_load(text)
    model = content.get("model") if isinstance(content, dict) else None
    included: dict[str, Any] = {}
    for file in files:
        included |= _model(file)
    return included | (model if isinstance(model, dict) else {})


def _loss_class(model: dict[str, Any]) -> str | None:
    """Return the import path of the loss that the options of a classifier name; None if they name none."""
    loss = model.get("loss")
    if isinstance(loss, dict):
        loss = loss.get("class_path")
    if not isinstance(loss, str):
        return None
    return loss if "." in loss else f"scor_lightning.losses.{loss}"


def experiment_name(paths: Sequence[Any]) -> str:
    """Name a run after its configuration files.

    The first file gives the name; an overlay from a folder ``loss`` replaces the name of its loss:
    ``digits_scor.yaml`` is ``digits_scor``; with ``loss/focal.yaml`` it is ``digits_focal``. The name of an overlay from a
    folder ``method`` is appended. The order of the overlays does not matter.

    Example:
        >>> experiment_name(["configs/digits_scor.yaml", "configs/loss/focal.yaml"])
        'digits_focal'
        >>> experiment_name(["digits_scor.yaml", "method/scor.yaml", "loss/focal.yaml"])
        'digits_focal_scor'
    """
    first = Path(str(paths[0])).absolute() if paths else Path("run")
    name = first.stem
    if first.name == "config.yaml" and first.parent.name.startswith("version_"):  # that of a run
        name = first.parents[1].name
    overlays = sorted((Path(str(path)) for path in paths[1:]), key=lambda path: path.parent.name)  # loss, then method
    for path in overlays:
        if path.parent.name == "loss":
            name = f"{re.sub('_scor(?=-|$)', '', name)}_{path.stem}"
        elif path.parent.name == "method" and not name.endswith(f"_{path.stem}"):
            name = f"{name}_{path.stem}"
    return name


def data_name(data: Any) -> str:
    """Name data after their class or, for an image folder, after the folder.

    Args:
        data: The class of the data module and its arguments, ``class_path`` and ``init_args``.
    """
    name: str = data.class_path.rpartition(".")[2].removesuffix("DataModule").lower()
    return Path(data.init_args.root).resolve().name if name == "imagefolder" else name
