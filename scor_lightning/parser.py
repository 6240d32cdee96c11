"""The parser of a training run, used by every command that trains or evaluates."""

import json
import operator
import pydoc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import reduce
from inspect import Parameter, isabstract, signature
from numbers import Number
from pathlib import Path
from typing import Any, NoReturn, get_args

import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, _typehints
from jsonargparse._actions import ActionConfigFile
from jsonargparse._paths import Path as ConfigPath
from jsonargparse.typing import register_type
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

import scor_lightning.callbacks
import scor_lightning.datamodules
import scor_lightning.losses
import scor_lightning.mixing
import scor_lightning.models  # imported classes can be given by their short names in YAML
import scor_lightning.schedules
from scor_lightning.callbacks import BestCheckpoint, LastCheckpoint
from scor_lightning.classifier import ImageClassifier
from scor_lightning.configuration import check_configs, find_config, split_includes
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.files import expanded
from scor_lightning.help import describe_options
from scor_lightning.losses import Loss
from scor_lightning.losses.over_base import LossOverBase
from scor_lightning.messages import explain, option_of
from scor_lightning.mixing import Mixing
from scor_lightning.models import Backbone


def _numbers(values: Any) -> torch.Tensor:
    if not isinstance(values, list):
        raise TypeError(f"Expected a list of numbers but got {values!r}")
    return torch.tensor(values, dtype=torch.float32)


# Class weights of a plain `torch.nn` loss.
register_type(torch.Tensor, serializer=torch.Tensor.tolist, deserializer=_numbers, fail_already_registered=False)
# A device, such as that of Lightning's averages of weights.
register_type(torch.device, serializer=str, deserializer=torch.device, fail_already_registered=False)
# The degrees of torchvision's rotations; a configuration with them has to be written and read back.
register_type(Number, serializer=float, deserializer=float)
# Some defaults of Lightning's callbacks are members of string enumerations.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
PATHS = (
    *("root", "train_list", "val_list", "test_list", "class_list", "split_file"),
    *("weights", "folder", "output", "ckpt_path", "default_root_dir", "dirpath", "save_dir", "dir"),
)
RANDOM_BODY = (
    "The frozen body has random weights, so the head learns from random features: set `--model.backbone.weights`, or train the whole network "
    "with `--model.frozen_body false`"
)
LINKED = ("num_classes", "in_channels", "image_size")  # arguments of a backbone that the data provide


class OneLineErrorParser(LightningArgumentParser):
    """Reports an error in one line, without usage; see also :func:`_own_defaults`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse; a class that replaces another one starts from its own defaults."""
        given = args[0] if args else kwargs.get("args")
        for argument in given if isinstance(given, list) else sys.argv[1:]:
            option = argument.partition("=")[0].replace(".init_args", "")
            if option in [f"--model.backbone.{name}" for name in LINKED]:
                raise ValueError(f"{option}: not an option, as the network takes it from the data")
        try:
            with _own_defaults():
                config: Namespace = super().parse_args(*args, **kwargs)
        except _ParserError as error:  # from this parser, or from the parser of an inner class
            message = str(error)
            classes = classes_for(option_of(message).removeprefix("--"))
            raise ValueError(explain(message, self._options(), classes)) from error
        _expand_paths(config)
        _check_nulls(config)
        if "trainer" in config:
            _check_values(config)
        return config

    def _options(self) -> list[str]:
        """List the options, with usual ones of classes that are known only when they are configured."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        if "--data" in options:
            options += [f"--data.{name}" for name in (*ImageDataModule.arguments(), "root")]
        return [*options, *(["--model.optimizer.lr"] if "--model.optimizer" in options else [])]

    def format_help(self, formatter: Any = None) -> str:
        """Return the help, one line per option."""
        takes = {option.removeprefix("--").removesuffix("+") for option in self._option_string_actions}
        names = {option: _names_for(option) for option in takes}
        return describe_options(self._actions, self.description, names) + _MORE_HELP * ("model" in takes)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the parsing; :meth:`parse_args` words the message."""
        raise _ParserError(message) from ex


_MORE_HELP = """
Options of a class:    --model.loss.help SCoRLoss, --model.backbone.help MLP, --data.help ImageFolderDataModule
All options, set:      --print_config
"""


def _names_for(option: str) -> list[str]:
    """List the short names of this package's classes that an option accepts."""
    option = "model.loss" if option.rpartition(".")[2] == "base" else option
    expected = {
        "data": ImageDataModule,
        "model.backbone": Backbone,
        "model.loss": Loss,
        "model.mixing": Mixing,
        "model.regularizer": LossOverBase,
        "trainer.callbacks": Callback,
    }
    if option not in expected:
        return []
    kinds = [kind for kind in classes_for(option) if issubclass(kind, expected[option]) and not isabstract(kind)]
    return sorted(kind.__name__ for kind in kinds if kind.__module__.startswith("scor_lightning."))


class _ParserError(ValueError):
    """An error message of jsonargparse."""


def classes_for(option: str) -> list[type]:
    """List the classes that an option accepts."""
    known = {
        "data": (scor_lightning.datamodules,),
        "imbalance": (scor_lightning.datamodules,),  # of the data
        "model.backbone": (scor_lightning.models,),
        "model.loss": (scor_lightning.losses, torch.nn),
        "model.regularizer": (scor_lightning.losses,),
        "model.optimizer": (torch.optim,),
        "model.lr_scheduler": (scor_lightning.schedules, torch.optim.lr_scheduler),
        "model.mixing": (scor_lightning.mixing,),
        "trainer.logger": (lightning.pytorch.loggers,),
        "trainer.callbacks": (scor_lightning.callbacks, lightning.pytorch.callbacks),
    }
    own = {
        "trainer": Trainer,
        "model": ImageClassifier,
        "checkpoint": BestCheckpoint,
        "last_checkpoint": LastCheckpoint,
    }
    modules = next((found for name, found in known.items() if option.startswith(name)), ())
    kinds = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    if option == "model.loss":
        kinds = [kind for kind in kinds if kind.__name__.endswith("Loss")]
    return kinds or [kind for name, kind in own.items() if option.startswith(name)]


class ConfigFile(ActionConfigFile):
    """An option that applies a configuration file, the user's own or a shipped one, on top of the previous ones.

    A file that begins with ``config: [protocol/cao2019.yaml]`` is applied on top of the files that it lists. jsonargparse's
    own inclusion neither resolves shipped names nor checks what is combined.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Find the file, check that it can follow the previous ones, and read it."""
        if not values.lstrip().startswith("{"):  # the options themselves, as JSON
            values = find_config(expanded(values))
            check_configs([*("options" if path is None else path for path in cfg.get(self.dest) or []), values])
            self._apply(parser, cfg, values)
        else:
            self.apply_config(parser, cfg, self.dest, values)

    def _apply(self, parser: Any, cfg: Any, path: str, within: tuple[Path, ...] = ()) -> None:
        files, text = split_includes(path, within)
        if not files:
            self.apply_config(parser, cfg, self.dest, path)
            return
        for file in files:
            self._apply(parser, cfg, file, (*within, Path(path).resolve()))
            cfg[self.dest].pop()  # a run is named after the files on the command line
        self.apply_config(parser, cfg, self.dest, text or "{}")
        cfg[self.dest][-1] = ConfigPath(path, mode="fr")


def _check_values(config: Namespace) -> None:
    """Refuse values of a valid type that would be ignored or would train nothing."""
    trainer = config.trainer
    for option in ("limit_train_batches", "max_epochs", "max_steps"):
        if getattr(trainer, option) == 0:
            raise ValueError(f"--trainer.{option}: expected more than 0, with which nothing is trained")
    least = {"gradient_clip_val": 0, "check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "log_every_n_steps": 0}
    for option, bound in least.items():
        if (value := getattr(trainer, option)) is not None and value < bound:
            raise ValueError(f"--trainer.{option}: expected at least {bound} but got {value}")
    if trainer.min_epochs is not None and trainer.min_epochs > (trainer.max_epochs or -1) >= 1:
        raise ValueError(
            f"--trainer.min_epochs: expected at most `--trainer.max_epochs` {trainer.max_epochs} but got {trainer.min_epochs}"
        )
    if type(config.seed_everything) is int and not 0 <= config.seed_everything < 2**32:
        raise ValueError(f"--seed_everything: expected 0 to {2**32 - 1} but got {config.seed_everything}")
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    for callback in callbacks:
        name = str(callback.class_path).rpartition(".")[2] if isinstance(callback, Namespace) else ""
        if name in ("BaseFinetuning", "ProgressBar", "SpikeDetection"):
            raise ValueError(f"--trainer.callbacks: {name} is a base class; name your own class that extends it")
        if name in ("LearningRateFinder", "BatchSizeFinder"):
            raise ValueError(
                f"--trainer.callbacks: {name} cannot search here, as the learning rate belongs to `--model.optimizer` and the "
                "batch size to `--data`; compare values with scor-compare --tune"
            )


def has_random_body(config: Namespace) -> bool:
    """Return whether a configuration freezes a network of this package with random weights."""
    backbone = config.model.backbone
    own = backbone.class_path.startswith("scor_lightning.")
    return bool(config.model.frozen_body and own and backbone.init_args.get("weights") is None)


def _check_nulls(options: Any, path: str = "-") -> None:
    """Refuse null for arguments with another default whose type excludes None; the parser accepts it for all."""
    if isinstance(options, list):
        for each in options:
            _check_nulls(each, path)
    if not isinstance(options, Namespace):
        return
    kind = {"--model": ImageClassifier, "--trainer": Trainer}.get(path) or _imported(options.get("class_path") or "")
    arguments = options.get("init_args", options) if isinstance(kind, type) else options
    for name, value in vars(arguments).items() if isinstance(arguments, Namespace) else ():
        inner = path if name in ("init_args", "dict_kwargs") else f"{path}{'-' if path == '-' else '.'}{name}"
        if value is not None:
            _check_nulls(value, inner)
        elif isinstance(kind, type) and not _admits_null(kind, name):
            raise ValueError(f"{inner}: expected a value but got null; leave the option out for the default")


def _imported(class_path: str) -> object:
    """Return a class that the parser has already imported."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _admits_null(kind: type, name: str) -> bool:
    for base in kind.__mro__:
        parameter = signature(base).parameters.get(name) if "__init__" in vars(base) else None
        if parameter is not None and parameter.kind is not Parameter.VAR_KEYWORD:
            annotation = str(parameter.annotation)
            typed = (
                parameter.annotation is not Parameter.empty
                and "None" not in annotation
                and "Optional" not in annotation
            )
            return not typed or parameter.default in (None, Parameter.empty)
    return True


def _expand_paths(options: Any) -> None:
    """Expand ``~`` and environment variables in all path options."""
    for part in options if isinstance(options, list) else [options]:
        if isinstance(part, Namespace):
            for name, value in vars(part).items():
                if name in PATHS and isinstance(value, str):
                    setattr(part, name, expanded(value))
                else:
                    _expand_paths(value)


@contextmanager
def _own_defaults() -> Iterator[None]:
    """Make a class that replaces another one start from its own defaults, in a file and on the command line.

    jsonargparse keeps the options of the replaced class whose names and types fit the new one, so that a focal loss would
    inherit SCoR's ``alpha``. It calls this function for every replacement. A data module that replaces one of
    its base classes keeps the options: the user's own CIFAR-10 stays long-tailed.
    """
    keep = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, replaced: Any, new: Any) -> None:
        if not replaced or replaced["class_path"] == new["class_path"]:
            return
        old_class, new_class = pydoc.locate(replaced["class_path"]), pydoc.locate(new["class_path"])
        if old_class is new_class is not None:  # a class may have several import paths
            return
        both: list[Any] = [old_class, new_class]
        if all(isinstance(each, type) and issubclass(each, LightningDataModule) for each in both) and issubclass(
            *both[::-1]
        ):
            keep(parser_or_action, replaced, new)  # type: ignore[no-untyped-call]
        else:
            replaced.pop("init_args", None)
            replaced.pop("dict_kwargs", None)

    find = _typehints.resolve_class_path_by_name

    def own_first(cls: type | tuple[type], name: str) -> str:
        """Find a class by its short name; this package's classes take precedence, then those of torch."""
        try:
            return find(cls, name)
        except ValueError as error:
            candidates = str(error).rpartition(": ")[2].rstrip(".").split(", ")
            for package in ("scor_lightning.", "torch."):
                own = [path for path in candidates if path.startswith(package)]
                if len(own) == 1:
                    return own[0]
            raise

    _typehints.discard_init_args_on_class_path_change = discard
    _typehints.resolve_class_path_by_name = own_first
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = keep
        _typehints.resolve_class_path_by_name = find


def training_parser() -> OneLineErrorParser:
    """Build the parser of a training run: trainer, classifier, data, checkpoints, and the links between them."""
    parser = OneLineErrorParser(description="Train or evaluate a classifier of imbalanced images.")
    parser.add_argument("-c", "--config", action=ConfigFile, help="A configuration or an overlay; later ones override.")
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="Seed of the weights, of dropout and of SCoR's permutations; true draws one.",
    )
    parser.add_lightning_class_args(Trainer, "trainer")
    _integers_first(parser)
    parser.add_lightning_class_args(ImageClassifier, "model")
    parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)
    for name in LINKED:
        parser.link_arguments(f"data.{name}", f"model.backbone.init_args.{name}", apply_on="instantiate")
    parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
    parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="A checkpoint; for scor-fit also `last`, to resume a run."
    )
    parser.add_argument(
        "--weights_only", type=bool | None, default=None, help="As of Trainer: whether to load nothing but data."
    )
    return parser


def _integers_first(parser: Any) -> None:
    """Read ``--trainer.limit_train_batches 1`` as one batch, not as 1.0, which is all of them.

    ``typing`` caches unions regardless of their order, so Lightning's ``Union[int, float]`` may be another module's
    ``Union[float, int]``, of which the parser uses the first type that fits.
    """
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if int in kinds and float in kinds:
            action._typehint = reduce(operator.or_, sorted(kinds, key=lambda kind: kind is not int))


def flat_options(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the options of a configuration as ``config.yaml`` has them, named as on the command line; lists stay whole."""
    return _flat(json.loads(parser.dump(config, format="json", skip_none=False, skip_validation=True)))


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".removeprefix(".")
        flat |= _flat(value, key) if isinstance(value, dict) else {key: value}
    return flat
