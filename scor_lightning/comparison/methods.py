"""From configurations to trainings: a method is a list of overlays over the configuration of a training."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from torch import nn

from scor_lightning.callbacks import ClassReport, Dashboard, InputReport, WeightSpectrum
from scor_lightning.classifier import ImageClassifier
from scor_lightning.comparison.plan import Built, Training
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.losses.base import regularize
from scor_lightning.mixing import Mixing
from scor_lightning.parser import LINKED, OneLineErrorParser, flat_options, training_parser
from scor_lightning.second_stage import SecondStage

Overlay = str | Mapping[str, Any]
# What a comparison leaves out of a training: it shows or stores what the comparison measures itself.
OBSERVERS = (ClassReport, Dashboard, InputReport, WeightSpectrum, LearningRateMonitor, ModelCheckpoint, ProgressBar)
# Options of the trainer that a comparison sets itself.
_OWN_TRAINER_OPTIONS = (
    *("max_epochs", "logger", "callbacks", "devices", "num_nodes", "default_root_dir", "enable_checkpointing"),
    *("enable_progress_bar", "enable_model_summary", "num_sanity_val_steps", "fast_dev_run"),
)
# Options that say where and how fast, not what is trained.
_NOT_IDENTITY = (
    *("data.root", "data.download", "data.num_workers", "model.compile", "model.channels_last", "ckpt_path"),
    *(f"trainer.{name}" for name in _OWN_TRAINER_OPTIONS if name not in ("max_epochs", "callbacks")),
    *("trainer.accelerator", "trainer.strategy", "trainer.benchmark", "trainer.log_every_n_steps", "weights_only"),
)


def named_methods(given: Any) -> dict[str, list[Overlay]]:
    """Normalise the methods of a command line or a file to lists of overlays by name.

    Args:
        given: A mapping of names to an overlay or a list of them; or a list of ``[NAME=]OVERLAY[+OVERLAY...]``. An overlay
            is a file or, in a mapping, the options themselves.

    Raises:
        ValueError: If there are fewer than two methods, or two of one name.

    Example:
        >>> named_methods(["loss/ldam.yaml", "loss/balanced_softmax.yaml+method/scor.yaml", "ls=loss/label_smoothing.yaml"])
        {'ldam': ['loss/ldam.yaml'], 'balanced_softmax+scor': ['loss/balanced_softmax.yaml', 'method/scor.yaml'], 'ls': ['loss/label_smoothing.yaml']}
    """
    methods: dict[str, list[Overlay]] = {}
    for name, overlays in _pairs(given):
        if name in methods:
            raise ValueError(
                f"Expected methods of different names but got {name!r} twice: name one by NAME={name}.yaml"
            )
        methods[name] = overlays
    if len(methods) < 2:
        raise ValueError(f"Expected at least two `--methods` to compare but got {list(methods)}")
    return methods


def _pairs(given: Any) -> Iterator[tuple[str, list[Overlay]]]:
    if isinstance(given, Mapping):
        for name, overlays in given.items():
            yield str(name), [] if overlays is None else list(overlays) if isinstance(overlays, list) else [overlays]
        return
    for each in given or ():
        if isinstance(each, Mapping) or str(each).lstrip().startswith("{"):  # the mapping of a file
            yield from _pairs(each if isinstance(each, Mapping) else json.loads(each))
            continue
        name, equals, files = str(each).rpartition("=")
        overlays = files.split("+")
        yield name if equals else "+".join(Path(file).stem for file in overlays), list(overlays)


def training_options(training: Overlay | Sequence[Overlay]) -> list[str]:
    """Write a training, a file or a list of files and options, as the options of a command line."""
    parts = [training] if isinstance(training, str | Mapping) else list(training)
    words: list[str] = []
    for part in parts:
        if isinstance(part, Mapping) and "config" in part:  # files, under the options beside them
            files = part["config"]
            words += training_options(files if isinstance(files, list) else [files])
            part = {name: value for name, value in part.items() if name != "config"}
        if part:
            words += ["--config", part if isinstance(part, str) else json.dumps(part)]
    return words


def resolve(
    parser: OneLineErrorParser, options: Sequence[str], methods: Mapping[str, Sequence[Overlay]]
) -> dict[str, Namespace]:
    """Resolve the configuration of each method: what ``scor-fit`` trains with these options and overlays.

    Raises:
        ValueError: If a configuration is wrong; the message names the method.
    """
    resolved = {}
    for name, overlays in methods.items():
        try:
            resolved[name] = parser.parse_args([*options, *training_options(list(overlays))])
        except (ValueError, TypeError) as error:
            told = re.sub("^--config: no file", "--methods: no file", str(error))
            raise ValueError(f"{told} (the method {name!r})") from error
    return resolved


def read_training(config: Namespace) -> Training:
    """Describe the training of a resolved configuration."""
    model, trainer = config.model, config.trainer
    others = {name: value for name, value in vars(model).items() if name not in _BUILT}
    defaults = _parts_parser().get_defaults()
    return Training(
        data=_data(_text(config.data)),
        backbone=_Backbone(_text(model.backbone)),
        loss=_Loss(_text(model.loss), _text(model.regularizer)),
        epochs=trainer.max_epochs if trainer.max_epochs is not None else 1000,
        optimizer=_Part("optimizer", _text(model.optimizer)),
        lr_scheduler=None if model.lr_scheduler is None else _Part("lr_scheduler", _text(model.lr_scheduler)),
        seed=config.seed_everything,
        classifier={name: value for name, value in others.items() if value != defaults.get(f"model.{name}")}
        | ({} if model.mixing is None else {"mixing": _Mixing(_text(model.mixing))})
        | (
            {}
            if model.second_stage is None
            else {"second_stage": _SecondStage(_text(model.second_stage), _text(model.regularizer))}
        ),
        trainer={
            name: value
            for name, value in vars(trainer).items()
            if name not in _OWN_TRAINER_OPTIONS and value != defaults.get(f"trainer.{name}")
        },
        callbacks=tuple(
            make for each in trainer.callbacks or () if not isinstance((make := _Callback(_text(each)))(), OBSERVERS)
        ),
        configuration=identity(config),
    )


def identity(config: Namespace) -> dict[str, str]:
    """Return by option what the results of a configuration depend on."""
    flat = flat_options(training_parser(), config)
    return {
        name: str(value)
        for name, value in flat.items()
        if value is not None and name not in _NOT_IDENTITY and not name.startswith(_SHOWN)
    }


_SHOWN = ("checkpoint.", "last_checkpoint.", "config")
_BUILT = ("backbone", "loss", "optimizer", "lr_scheduler", "regularizer", "mixing", "second_stage")


@cache
def _parts_parser() -> OneLineErrorParser:
    """Build a parser that instantiates parts of a training, of the types that the training has."""
    parser = OneLineErrorParser()
    for kind, name in ((ImageClassifier, "model"), (Trainer, "trainer")):
        parser.add_class_arguments(kind, name, instantiate=False, fail_untyped=False, sub_configs=True)
    parser.add_subclass_arguments(ImageDataModule, "data", fail_untyped=False, required=False)
    return parser


def _text(part: Namespace | None) -> str:
    """Write a part of a configuration so that equal parts have equal texts, and another process can read it."""
    return json.dumps(None if part is None else part.as_dict(), sort_keys=True, default=str)


def _instantiate(group: str, **parts: Any) -> Any:
    options = {name: value for name, value in parts.items() if value is not None}
    built = _parts_parser().instantiate(Namespace(**{group: Namespace(**options)}))
    return built[group]


def _read(text: str) -> Any:
    from jsonargparse import dict_to_namespace

    value = json.loads(text)
    return None if value is None else dict_to_namespace(value)


@cache
def _data(text: str) -> ImageDataModule:
    """Build data; the same module for the same options, so that its images are read once."""
    data: ImageDataModule = _parts_parser().instantiate(Namespace(data=_read(text))).data
    return data


@dataclass(frozen=True)
class _Part:
    name: str
    text: str

    def __call__(self, argument: Any) -> Any:
        return _instantiate("model", **{self.name: _read(self.text)})[self.name](argument)


@dataclass(frozen=True)
class _Backbone:
    text: str

    def __call__(self, **linked: Any) -> nn.Module:
        part = _read(self.text)
        for name in LINKED:
            part.init_args[name] = linked[name]
        network: nn.Module = _instantiate("model", backbone=part).backbone
        return network


@dataclass(frozen=True)
class _Loss:
    text: str
    regularizer: str

    def __call__(self) -> nn.Module:
        parts = _instantiate("model", loss=_read(self.text), regularizer=_read(self.regularizer))
        loss: nn.Module = parts.loss
        make: Callable[[nn.Module], nn.Module] | None = parts.get("regularizer")
        return loss if make is None else regularize(loss, make)


@dataclass(frozen=True)
class _Mixing(Built):
    text: str

    def build(self) -> Mixing:
        mixing: Mixing = _instantiate("model", mixing=_read(self.text)).mixing
        return mixing


@dataclass(frozen=True)
class _SecondStage(Built):
    text: str
    regularizer: str

    @property
    def max_epochs(self) -> int:
        return int(json.loads(self.text)["max_epochs"])

    def build(self) -> SecondStage:
        parts = _instantiate("model", second_stage=_read(self.text), regularizer=_read(self.regularizer))
        stage: SecondStage = parts.second_stage
        make: Callable[[nn.Module], nn.Module] | None = parts.get("regularizer")
        return stage if make is None or stage.loss is None else replace(stage, loss=regularize(stage.loss, make))


@dataclass(frozen=True)
class _Callback:
    text: str

    def __call__(self) -> Callback:
        callback: Callback = _instantiate("trainer", callbacks=[_read(self.text)]).callbacks[0]
        return callback


def built_methods(training: Training, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Training]:
    """Apply methods that are built in Python: by name, what takes the place of which part of a training.

    Raises:
        ValueError: If there are fewer than two methods, or one replaces what a training does not have.
    """
    if len(methods) < 2:
        raise ValueError(f"Expected at least two methods to compare but got {list(methods)}")
    trainings = {}
    for name, parts in methods.items():
        try:
            trainings[name] = replace(training, **parts)
        except TypeError as error:
            raise ValueError(
                f"Expected parts of a Training for the method {name!r} but got {', '.join(parts)}"
            ) from error
    return trainings
