"""The shipped configurations: their names, their list, and the name that they give to an experiment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
# Inside the package when installed from a wheel, beside it when installed with `pip install -e`.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
OVERLAYS = ("logger", "loss", "method")  # folders of files that change a configuration and are none themselves


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    return {path.relative_to(CONFIGS).as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}


def list_configs(wanted: Callable[[str], bool]) -> list[str]:
    """Return a line for each shipped configuration whose name is wanted: the name, and what it is."""
    titles = {name: path.read_text().splitlines()[0] for name, path in shipped_configs().items() if wanted(name)}
    return [f"  {name:<36}{title.lstrip('# ').split(' (')[0].rstrip('.')}" for name, title in titles.items()]


def find_config(name: str) -> str:
    """Find a configuration in the working directory, then among those shipped.

    Raises:
        ValueError: If it is in neither; the shipped ones are listed.
    """
    if Path(name).is_file():
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise ValueError(f"Expected `--config` to name a file or one of {', '.join(shipped)} but got {name!r}")


def check_configs(paths: Sequence[Any]) -> None:
    """Check that configuration files can be combined: the first is not an overlay, and one overlay alone sets the loss.

    Raises:
        ValueError: If they cannot.
    """
    first, *later = map(str, paths)
    if Path(first).parent.name in OVERLAYS:
        overlay = "/".join(Path(first).parts[-2:])
        raise ValueError(f"Expected an overlay on top of a configuration: `--config NAME.yaml --config {overlay}`")
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


def _model(path: str) -> dict[str, Any]:
    """Return the options of the classifier that a configuration sets."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError):  # which the parser reports
        return {}
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else {}


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

    The first file gives the name, and an overlay out of a folder ``loss`` takes the place of its loss:
    ``digits_scor.yaml`` is ``digits_scor``; with ``loss/focal.yaml`` it is ``digits_focal``. The name of an overlay out of a
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
            name = f"{name.removesuffix('_scor')}_{path.stem}"
        elif path.parent.name == "method" and not name.endswith(f"_{path.stem}"):
            name = f"{name}_{path.stem}"
    return name
