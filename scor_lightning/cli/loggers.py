"""The loggers of a run; options that are not given are derived from the run folder."""

import inspect
import os
import pydoc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

# The package of each logger that is not a dependency; the extra `loggers` installs both.
_PACKAGES: dict[type[Logger], str] = {WandbLogger: "wandb", MLFlowLogger: "mlflow"}
# A placeholder for the run folder, as loggers that write files require a folder.
_RUNS = "runs"


def configured_loggers(configured: Any, runs: Path) -> dict[str, Callable[[Path, str | None], Logger]]:
    """Return by name the functions that build the loggers of a run from its folder and the name of the run to resume.

    Args:
        configured: The option ``--trainer.logger``: None and true mean TensorBoard, false no logger.
        runs: The folder of all experiments.

    Raises:
        ValueError: If a name is not a valid folder name.
        ImportError: If the package of a logger is not installed; the message names the extra.
    """
    if configured in (None, True):
        configured = Namespace(class_path=f"{TensorBoardLogger.__module__}.TensorBoardLogger", init_args=Namespace())
    found = configured if isinstance(configured, list) else [configured] if configured else []
    loggers: dict[str, Callable[[Path, str | None], Logger]] = {}
    for each in found:
        make, kind = _factory(each, runs), _kind(each).__name__
        if make is not None:
            names = (kind, *(f"{kind}_{i}" for i in range(2, len(found) + 1)))
            loggers[next(name for name in names if name not in loggers)] = make
    return loggers


def logger_name(configured: Any) -> str | None:
    """Return the name of the experiment if a logger that writes files sets one."""
    for each in configured if isinstance(configured, list) else [configured]:
        if isinstance(each, Namespace) and issubclass(_kind(each), CSVLogger | TensorBoardLogger):
            name = each.init_args.get("name")
            if name not in (None, "lightning_logs"):
                return str(name)
    return None


def _kind(configured: Namespace) -> Any:
    return pydoc.locate(configured.class_path)


def _factory(configured: Namespace, runs: Path) -> Callable[[Path, str | None], Logger] | None:
    kind = _kind(configured)
    package = next((name for known, name in _PACKAGES.items() if issubclass(kind, known)), None)
    if package is not None and find_spec(package) is None:
        raise ImportError(f"Expected {package} for {kind.__name__}; `pip install 'scor-lightning[loggers]'`")
    parameters = inspect.signature(kind).parameters
    given = {
        name: value
        for name, value in configured.init_args.as_dict().items()
        if (value != parameters[name].default if name in parameters else value is not None)
    }
    given |= vars(configured.get("dict_kwargs") or Namespace())
    if issubclass(kind, CSVLogger | TensorBoardLogger):
        name = str(given.get("name", ""))
        if name in (".", "..") or {"/", os.sep} & set(name):
            raise ValueError(f"Expected a logger's `name` that can be a folder's but got {name!r}")
        if Path(given.get("save_dir", _RUNS)) in (Path(_RUNS), runs):
            given = {name: value for name, value in given.items() if name not in ("save_dir", "name", "version")}
            if issubclass(kind, CSVLogger):
                return None  # the run's own logger writes `metrics.csv`

    def build(folder: Path, resumed: str | None) -> Logger:
        logger: Logger = kind(**{**_defaults(kind, parameters, folder, resumed), **given})
        return logger

    return build


def _defaults(kind: type[Logger], parameters: Any, folder: Path, resumed: str | None) -> dict[str, Any]:
    runs, experiment, version = folder.parents[1], folder.parent.name, folder.name
    number = int(version.removeprefix("version_"))
    if issubclass(kind, TensorBoardLogger):
        return {"save_dir": str(runs), "name": experiment, "version": number, "default_hp_metric": False}
    if issubclass(kind, CSVLogger):
        return {"save_dir": str(runs), "name": experiment, "version": number}
    if issubclass(kind, WandbLogger):
        return {"save_dir": str(folder), "name": f"{experiment}-{version}", "project": experiment, "version": resumed}
    if issubclass(kind, MLFlowLogger):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # required by MLflow 3 without a server
        store = {"save_dir": str((runs / "mlruns").absolute())}
        return {"experiment_name": experiment, "run_name": version, "run_id": resumed, **store}
    return {"save_dir": str(folder)} if "save_dir" in parameters else {}
