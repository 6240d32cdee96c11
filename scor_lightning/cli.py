"""The command line: LightningCLI with this package's data, links, checkpoints and last words."""

import inspect
import json
import pydoc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Number
from pathlib import Path
from typing import Any, NoReturn, cast

from jsonargparse import Namespace, _typehints, dict_to_namespace
from jsonargparse.typing import register_type
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    StochasticWeightAveraging,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

import scor_lightning.losses
import scor_lightning.models  # noqa: F401  (classes that are imported go by their short names in YAML)
from scor_lightning.callbacks import (
    BestCheckpoint,
    ClassReport,
    Dashboard,
    InputReport,
    LastCheckpoint,
    PredictionWriter,
)
from scor_lightning.callbacks.best_checkpoint import BEST, name_without_folders
from scor_lightning.checkpoint import AVERAGE, LAST, is_whole, newest_whole
from scor_lightning.classifier import ImageClassifier
from scor_lightning.datamodules import ImageDataModule

# torchvision's rotations take a number of degrees; a configuration with one has to be written and read back.
register_type(Number, serializer=float, deserializer=float)
SHARDED = ("fsdp", "deepspeed", "modelparallel")
RESERVED = tuple(Path(name).stem for name in (BEST, LAST, AVERAGE))
# What a run is resumed with: the options that say what is trained and which epoch is the best...
EXPERIMENT = ("data", "model", "seed_everything", "trainer.", "checkpoint.")
# ...but not where data and first weights lie, and how fast it goes...
DETAILS = (
    *("data.root", "data.download", "data.num_workers"),
    *("model.backbone.weights", "model.compile", "model.channels_last", "checkpoint.verbose"),
)
# ...nor on which devices it runs, what it shows, and when it stops for the time being.
UNRELATED = tuple(
    f"trainer.{name}"
    for name in (
        *("accelerator", "devices", "num_nodes", "strategy", "benchmark", "deterministic", "inference_mode"),
        *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "profiler", "detect_anomaly"),
        *("default_root_dir", "num_sanity_val_steps", "max_time", "enable_autolog_hparams", "model_registry"),
    )
)
LINKED = ("num_classes", "in_channels", "image_size")  # what a backbone learns from the data


class OneLineErrorParser(LightningArgumentParser):
    """Reports an error without the pages of usage that jsonargparse prints before it; see also :func:`_own_defaults`."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse; a class that replaces another one starts from its own defaults."""
        with _own_defaults():
            return super().parse_args(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the command; its console script prints the message."""
        raise ValueError(message) from ex


@contextmanager
def _own_defaults() -> Iterator[None]:
    """Let a class that replaces another one start from its own defaults, in a file as well as on the command line.

    jsonargparse keeps the options of the replaced class whose names and types fit the new one, so that a loss whose
    ``alpha`` is 0.25 would get SCoR's. It calls this one function for every replacement.
    """
    keep = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, replaced: Any, new: Any) -> None:
        if not replaced or replaced["class_path"] == new["class_path"]:
            return
        old_class, new_class = pydoc.locate(replaced["class_path"]), pydoc.locate(new["class_path"])
        if old_class is None or old_class is not new_class:  # a class may have several import paths
            replaced.pop("init_args", None)
            replaced.pop("dict_kwargs", None)

    _typehints.discard_init_args_on_class_path_change = discard
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = keep


class ScorCLI(LightningCLI):
    """Trains an :class:`ImageClassifier` on an :class:`ImageDataModule` into a run folder, and tests it."""

    def __init__(self) -> None:
        super().__init__(
            ImageClassifier,
            ImageDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_class=OneLineErrorParser,
            auto_configure_optimizers=False,
            trainer_defaults={"callbacks": [ClassReport(), Dashboard(), InputReport()]},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the backbone learn from the data, and add the checkpoints."""
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.backbone.init_args.{name}", apply_on="instantiate")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")

    def _parse_ckpt_path(self) -> None:
        """Read weights alone from a checkpoint; the configuration comes from YAML and the command line."""

    def before_instantiate_classes(self) -> None:
        """Name the run folder, find the checkpoint, and choose the checkpoints to write."""
        config = self.config[self.subcommand]
        backbone = config.model.backbone.class_path
        taken = inspect.signature(cast(Callable[..., Any], pydoc.locate(backbone))).parameters
        if missing := set(LINKED) - set(taken):
            raise ValueError(
                f"Expected {backbone} to take {', '.join(LINKED)} from the data, but it lacks {sorted(missing)}"
            )
        if self.subcommand != "fit":
            if config.ckpt_path is None:
                raise ValueError("Expected `--ckpt_path FILE`, the checkpoint to evaluate")
            config.trainer.logger = False
            self.save_config_callback = None
        elif config.trainer.logger in (None, True):
            folder = Path(config.trainer.default_root_dir or ".") / "runs"
            logger = {"save_dir": str(folder), "name": experiment_name(config.config or [])}
            config.trainer.logger = dict_to_namespace(
                {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": logger | {"default_hp_metric": False},
                }
            )
        if config.data.init_args.get("val_fraction") == 0 or config.trainer.limit_val_batches == 0:
            if self.subcommand == "validate":
                raise ValueError("Expected a validation set but got `--data.val_fraction 0`; see `scor-test`")
            if config.checkpoint.save_top_k not in (-1, 0, 1):
                raise ValueError(
                    f"Expected `--checkpoint.save_top_k` -1, 0 or 1 without a validation set but got "
                    f"{config.checkpoint.save_top_k}: raise `--data.val_fraction`"
                )
            if (config.checkpoint.monitor or "").startswith("val/"):
                config.checkpoint.monitor = None
        if config.ckpt_path == "last" and self.subcommand == "fit":
            config.ckpt_path = self._continue_newest_run(config.trainer.logger)
        if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
            raise ValueError(f"Expected `--ckpt_path` to name a checkpoint but there is no file {config.ckpt_path!r}")
        if config.ckpt_path is not None and not is_whole(config.ckpt_path):
            raise ValueError(f"Expected `--ckpt_path` to name a whole checkpoint but {config.ckpt_path!r} is none")
        weights = taken.get("weights")
        if config.ckpt_path is not None and weights is not None and weights.default is None:
            config.model.backbone.init_args.weights = None  # nothing is downloaded that the checkpoint replaces
        for kind in (ClassReport, Dashboard):  # where the configuration has one of its own
            if kind.__name__ in str(config.trainer.callbacks):
                self.trainer_defaults["callbacks"] = [
                    callback for callback in self.trainer_defaults["callbacks"] if not isinstance(callback, kind)
                ]
        if config.trainer.enable_progress_bar is not False and "ProgressBar" not in str(config.trainer.callbacks):
            # Not at every step: for a small network drawing takes as long as the step.
            self.trainer_defaults["callbacks"].append(TQDMProgressBar(refresh_rate=10))
        if config.trainer.overfit_batches:
            raise ValueError(
                "Expected no `--trainer.overfit_batches`; limit the data by `--trainer.limit_train_batches`"
            )
        strategy = str(getattr(config.trainer.strategy, "class_path", config.trainer.strategy))
        if any(name in strategy.lower() for name in SHARDED):
            raise ValueError(
                f"Expected a strategy that leaves every process the whole network, such as `ddp`, but got {strategy}: "
                "the networks here fit on one device, and checkpoints and weight spectra need whole weights"
            )

    def _continue_newest_run(self, logger: Any) -> str:
        if not getattr(logger, "class_path", "").endswith("TensorBoardLogger"):
            raise ValueError("Expected a TensorBoardLogger for `--ckpt_path last`; name the checkpoint's file instead")
        experiment = Path(logger.init_args.save_dir) / logger.init_args.name
        runs = {
            int(path.parts[-3].removeprefix("version_")): path.parent
            for path in experiment.glob("version_*/checkpoints/last*.ckpt")
            if path.parts[-3].removeprefix("version_").isdecimal()
        }
        if not runs:
            raise ValueError(f"Expected a run to go on with in {str(experiment)!r} but there is none with a checkpoint")
        folder = runs[max(runs)]
        self._refuse_another_experiment(folder.parent / "config.yaml")
        checkpoint = newest_whole(folder)
        if checkpoint is None:
            raise ValueError(f"Expected a whole checkpoint to go on with in {str(folder)!r} but the files are damaged")
        if checkpoint.name != LAST:
            rank_zero_warn(
                f"{str(folder / LAST)!r} is missing or damaged: going on from the one before, {checkpoint.name}"
            )
        logger.init_args.version = max(runs)
        self.save_config_callback = None  # the run keeps the configuration that it began with
        return str(checkpoint)

    def _refuse_another_experiment(self, saved: Path) -> None:
        if not saved.is_file():
            raise ValueError(f"Expected the newest run's configuration in {str(saved)!r} but there is no such file")
        parser = self._parser("fit")

        def written(config: Namespace) -> dict[str, Any]:
            """Return the options as `config.yaml` has them."""
            return _flat(json.loads(parser.dump(config, format="json", skip_none=False, skip_validation=True)))

        now, before = written(self.config["fit"]), written(parser.parse_path(str(saved)))
        for key in sorted({*now, *before}):
            old, new = before.get(key), now.get(key)
            if old == new or not key.startswith(EXPERIMENT) or key in DETAILS or key.startswith(UNRELATED):
                continue
            but = ""
            if key in ("trainer.max_epochs", "trainer.max_steps") and _is_longer(old, new):
                dependent = _depending_on_length(self.config["fit"])
                if not dependent:
                    continue
                but = f", and {' and '.join(dependent)} depends on the length of the training"
            raise ValueError(
                f"`--{key}` was {_brief(old)} in the run to resume, {str(saved.parent)!r}, but is now {_brief(new)}{but}: leave it "
                "as it was, or start a new run with `--ckpt_path FILE` or without a checkpoint"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; under SLURM without Lightning's own requeueing.

        That would save in mid-step, requeue the job, and leave a checkpoint that every later run in the folder starts from.
        """
        if SLURMEnvironment.detect() and not self._get(self.config_init, "trainer.plugins"):
            kwargs["plugins"] = SLURMEnvironment(auto_requeue=False)
        trainer = super().instantiate_trainer(**kwargs)
        own = self._get(self.config_init, "checkpoint"), self._get(self.config_init, "last_checkpoint")
        for checkpoint in trainer.checkpoint_callbacks:
            if not isinstance(checkpoint, ModelCheckpoint):
                continue
            name_without_folders(checkpoint)
            taken = isinstance(checkpoint, BestCheckpoint) or checkpoint.save_last or checkpoint.filename in RESERVED
            if checkpoint not in own and checkpoint.dirpath is None and taken:
                raise ValueError(
                    f"Expected a `dirpath`, or another `filename` and no `save_last`, for the {type(checkpoint).__name__} among "
                    f"`--trainer.callbacks`: the run writes {', '.join(f'{name}.ckpt' for name in RESERVED)} itself"
                )
        return trainer

    def before_fit(self) -> None:
        """Refuse a number of processes that does not fit, before any of them is started."""
        processes, batch_size = self.trainer.world_size, self.datamodule.batch_size
        if batch_size % processes:
            raise ValueError(
                f"Expected `--data.batch_size`, the total over all processes, to be a multiple of their number "
                f"{processes} but got {batch_size}"
            )

    def fit(self, **kwargs: Any) -> None:
        """Train; where that fails, the processes that were started for it end too."""
        try:
            self.trainer.fit(**kwargs)
        except Exception:
            if self.trainer.strategy.launcher is not None:
                self.trainer.strategy.launcher.kill(signal.SIGTERM)
            raise

    def after_fit(self) -> None:
        """Test the best checkpoint and print where to look.

        The best checkpoint is that of the run's own monitor, whatever else writes checkpoints; without a validation it is
        the last one. With stochastic weight averaging it is the average.
        """
        trainer = self.trainer
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        own: BestCheckpoint = self._get(self.config_init, "checkpoint")
        # A run that is shorter than an epoch leaves no checkpoint; its weights are those in memory.
        tested = own.best_model_path or None
        average = Path(str(own.dirpath), AVERAGE)
        if any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks) and average.is_file():  # type: ignore[attr-defined]
            tested = str(average)
        # After `fit`, Lightning's averaging would put the weights that it averaged back over the average in the file.
        averaging = (WeightAveraging, StochasticWeightAveraging)
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, averaging)]  # type: ignore[attr-defined]
        trainer.test(self.model, self.datamodule, ckpt_path=tested, verbose=False)
        folder = trainer.log_dir  # asked for by every process: Lightning broadcasts it
        if trainer.is_global_zero and folder:
            print(f"Run folder: {folder}")
            if isinstance(trainer.logger, TensorBoardLogger):
                print(f"Dashboard:  tensorboard --logdir {Path(folder).parents[1]}")

    def validate(self, **kwargs: Any) -> None:
        """Validate; the class report stands in for Lightning's table."""
        self.trainer.validate(**{**kwargs, "verbose": False})

    def test(self, **kwargs: Any) -> None:
        """Test; the class report stands in for Lightning's table, and writes beside the checkpoint."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ClassReport) and callback.folder is None:
                callback.folder = Path(kwargs["ckpt_path"]).with_suffix(".test")
        self.trainer.test(**{**kwargs, "verbose": False})

    def predict(self, **kwargs: Any) -> None:
        """Write the predictions beside the checkpoint."""
        writer = PredictionWriter(Path(kwargs["ckpt_path"]).with_suffix(".predictions.csv"))
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(**{**kwargs, "return_predictions": False})


def _is_longer(before: int | None, now: int | None) -> bool:
    """Compare ``max_epochs`` or ``max_steps``, of which None and -1 set no end."""
    return now in (None, -1) or (before not in (None, -1) and now > before)


def _depending_on_length(config: Namespace) -> list[str]:
    """Name the schedule and the callbacks whose effect changes with the length of the training."""
    parts = [config.model.get("lr_scheduler"), *(config.trainer.callbacks or [])]
    kinds = [pydoc.locate(part.class_path) for part in parts if part is not None]
    return [
        kind.__name__  # type: ignore[attr-defined]
        for kind in kinds
        if getattr(kind, "depends_on_training_length", False)
        or (isinstance(kind, type) and issubclass(kind, StochasticWeightAveraging))
    ]


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested options as on the command line; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".removeprefix(".")
        flat |= _flat(value, key) if isinstance(value, dict) else {key: value}
    return flat


def _brief(value: Any) -> str:
    """Write the value of an option in a few words; of objects to build, the calls that build them."""
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value))}]"
    if isinstance(value, dict) and "class_path" in value:
        given = ", ".join(f"{name}={_brief(argument)}" for name, argument in value.get("init_args", {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({given})"
    return str(value)


def experiment_name(configs: list[Any]) -> str:
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
    name, *_ = [Path(str(path)).stem for path in configs] or ["run"]
    overlays = sorted((Path(str(path)) for path in configs[1:]), key=lambda path: path.parent.name)  # loss, then method
    for path in overlays:
        if path.parent.name == "loss":
            name = f"{name.removesuffix('_scor')}_{path.stem}"
        elif path.parent.name == "method" and not name.endswith(f"_{path.stem}"):
            name = f"{name}_{path.stem}"
    return name
