"""``--ckpt_path last``: find the newest run of an experiment and check that its options have not changed."""

import pydoc
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from scor_lightning.checkpoint import LAST, newest_whole
from scor_lightning.parser import flat_options

# The options that must not change on resume: those that define what is trained and which epoch is the best...
EXPERIMENT = ("data", "model", "seed_everything", "trainer.", "checkpoint.")
# ...but not the location of data and initial weights, and what only affects speed...
DETAILS = (
    *("data.root", "data.download", "data.num_workers"),
    *("model.backbone.weights", "model.compile", "model.channels_last", "checkpoint.verbose"),
)
# ...nor the devices, what is displayed, and when the run stops for now.
UNRELATED = tuple(
    f"trainer.{name}"
    for name in (
        *("accelerator", "devices", "num_nodes", "strategy", "benchmark", "deterministic", "inference_mode"),
        *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "profiler", "detect_anomaly"),
        *("default_root_dir", "num_sanity_val_steps", "max_time", "enable_autolog_hparams", "model_registry"),
    )
)


def resume_newest_run(parser: ArgumentParser, config: Namespace, experiment: Path) -> Path:
    """Return the checkpoint to resume the newest run of an experiment from.

    Args:
        parser: Parser for the run's configuration.
        config: The current configuration.
        experiment: The folder of the runs.

    Raises:
        ValueError: If there is no run, its checkpoints are damaged, or its configuration differs.
    """
    runs = {
        int(path.parts[-3].removeprefix("version_")): path.parent
        for path in experiment.glob("version_*/checkpoints/last*.ckpt")
        if path.parts[-3].removeprefix("version_").isdecimal()
    }
    if not runs:
        raise ValueError(f"Expected a run to resume in {str(experiment)!r} but none there has a checkpoint")
    folder = runs[max(runs)]
    _refuse_another_experiment(parser, config, folder.parent / "config.yaml")
    checkpoint = newest_whole(folder)
    if checkpoint is None:
        raise ValueError(f"Expected a whole checkpoint to resume from in {str(folder)!r} but the files are damaged")
    if checkpoint.name != LAST:
        rank_zero_warn(f"{str(folder / LAST)!r} is missing or damaged: resuming from the previous {checkpoint.name}")
    return checkpoint


def _refuse_another_experiment(parser: ArgumentParser, config: Namespace, saved: Path) -> None:
    if not saved.is_file():
        raise ValueError(f"Expected the newest run's configuration in {str(saved)!r} but there is no such file")

    now, before = flat_options(parser, config), flat_options(parser, parser.parse_path(str(saved)))
    for key in sorted({*now, *before}):
        old, new = before.get(key), now.get(key)
        if old == new or not key.startswith(EXPERIMENT) or key in DETAILS or key.startswith(UNRELATED):
            continue
        but = ""
        if key in ("trainer.max_epochs", "trainer.max_steps") and _is_longer(old, new):
            dependent = _depending_on_length(config)
            if not dependent:
                continue
            but = f", and {' and '.join(dependent)} depends on the length of the training"
        raise ValueError(
            f"`--{key}` was {_brief(old)} in the run to resume, {str(saved.parent)!r}, but is now {_brief(new)}{but}: leave it "
            "as it was, or start a new run with `--ckpt_path FILE` or without a checkpoint"
        )


def _is_longer(before: int | None, now: int | None) -> bool:
    """Compare ``max_epochs`` or ``max_steps``; None and -1 mean no limit."""
    return now in (None, -1) or (before not in (None, -1) and now > before)


def _depending_on_length(config: Namespace) -> list[str]:
    """Name the schedule and the callbacks whose effect changes with the length of the training."""
    parts = [config.model.get("lr_scheduler"), config.model.get("mixing"), *(config.trainer.callbacks or [])]
    kinds = [pydoc.locate(part.class_path) for part in parts if part is not None]
    deferred = ["`--data.sampling_start`"] if config.data.init_args.get("sampling_start") else []
    return deferred + [
        kind.__name__  # type: ignore[attr-defined]
        for kind in kinds
        if getattr(kind, "depends_on_training_length", False)
        or (isinstance(kind, type) and issubclass(kind, StochasticWeightAveraging))
    ]


def _brief(value: Any) -> str:
    """Return a short text for the value of an option; objects are shown as the calls that build them."""
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value))}]"
    if isinstance(value, dict) and "class_path" in value:
        given = ", ".join(f"{name}={_brief(argument)}" for name, argument in value.get("init_args", {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({given})"
    return str(value)
