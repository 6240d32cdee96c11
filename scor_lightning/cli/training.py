"""From a command line to data, classifier and trainer: LightningCLI with this package's parser."""

import copy
import inspect
import pydoc
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from scor_lightning import stages
from scor_lightning.callbacks import BestCheckpoint
from scor_lightning.callbacks.automatic import callbacks_of_a_run
from scor_lightning.callbacks.best_checkpoint import BEST, name_without_folders
from scor_lightning.callbacks.protocol import AfterTraining, state_of
from scor_lightning.callbacks.run_folder import RunFolder
from scor_lightning.checkpoint import AVERAGE, FINAL, LAST, is_whole, read_run_checkpoint
from scor_lightning.classifier import ImageClassifier
from scor_lightning.cli.errors import leave_process_group, option_value
from scor_lightning.cli.loggers import configured_loggers, logger_name
from scor_lightning.cli.resume import resume_newest_run
from scor_lightning.configuration import data_name, experiment_name, read_yaml
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.files import expanded
from scor_lightning.parser import LINKED, RANDOM_BODY, OneLineErrorParser, has_random_body, training_parser
from scor_lightning.trust import only_known_classes

SHARDED = ("fsdp", "deepspeed", "modelparallel")
RESERVED = tuple(Path(name).stem for name in (BEST, LAST, AVERAGE, FINAL))


class ScorCLI(LightningCLI):
    """Builds an :class:`ImageDataModule`, an :class:`ImageClassifier` and a Trainer, without running anything.

    Args:
        argv: The options of the command line.
        evaluation: Whether a checkpoint is evaluated, without a new run folder, instead of starting or resuming a run.

    Attributes:
        datamodule: The data.
        model: The classifier.
        trainer: The trainer.
    """

    def __init__(self, argv: list[str], evaluation: bool = False) -> None:
        self.evaluation = evaluation
        super().__init__(
            ImageClassifier,
            ImageDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,  # RunFolder writes it
            args=argv,
            run=False,
        )

    @classmethod
    def of_checkpoint(cls, argv: list[str]) -> "ScorCLI":
        """Build what evaluates a checkpoint from the configuration of its run, unless the command line names another."""
        if not any(option_value(argv, *names) is not None for names in (("--config", "-c"), ("--help", "-h"))):
            given = option_value(argv, "--ckpt_path")
            if given is None:
                raise ValueError("Expected `--ckpt_path FILE`, the checkpoint to evaluate")
            checkpoint = expanded(given)
            if not Path(checkpoint).is_file():
                raise ValueError(f"Expected `--ckpt_path` to name a checkpoint but there is no file {checkpoint!r}")
            folder = Path(checkpoint).parent.parent  # the folder of the run, or of its second stage
            own = next(
                (place / "config.yaml" for place in (folder, folder.parent) if (place / "config.yaml").is_file()), None
            )
            if own is None:
                read_run_checkpoint(checkpoint)  # if it is none, that is the mistake
                own = folder / "config.yaml"
                raise ValueError(f"Expected the run's configuration in {str(own)!r}; name another with `--config FILE`")
            _check_classes(own, (option_value(argv, "--trust_code") or "false").lower() == "true")
            argv = ["--config", str(own), *argv]
        return cls(argv, evaluation=True)

    def setup_parser(self, *_: Any) -> None:
        """Use the parser of this package."""
        self.parser: OneLineErrorParser = training_parser()
        if self.evaluation:
            self.parser.add_argument(
                "--trust_code",
                type=bool,
                default=False,
                help="Whether the run's own config.yaml may name classes of any package.",
            )

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, without Lightning's warning that ``args`` and a command line are given."""
        self.config = parser.parse_args(args)

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint to start from or to evaluate; None without one."""
        return cast("str | None", self.config.ckpt_path)

    def before_instantiate_classes(self) -> None:
        """Check the options that do not require data; set loggers, checkpoints and automatic callbacks."""
        config = self.config
        _check_trainer(config.trainer)
        backbone = config.model.backbone.class_path
        taken = inspect.signature(cast(Callable[..., Any], pydoc.locate(backbone))).parameters
        if missing := set(LINKED) - set(taken):
            raise ValueError(
                f"Expected {backbone} to take {', '.join(LINKED)} from the data, but it lacks {sorted(missing)}"
            )
        if not self.evaluation and config.ckpt_path is None and has_random_body(config):
            rank_zero_warn(RANDOM_BODY)
        if self.evaluation and config.ckpt_path is None:
            raise ValueError("Expected `--ckpt_path FILE`, the checkpoint to evaluate")
        if config.data.init_args.get("val_fraction") == 0 or config.trainer.limit_val_batches == 0:
            _expect_no_validation(config.checkpoint)
        self.run_folder = None if self.evaluation else self._run_folder()
        config.trainer.logger = False  # the loggers of a run are built when its folder is created
        if config.ckpt_path is not None:
            _check_checkpoint(config.ckpt_path, config.weights_only is False)
            weights = taken.get("weights")
            if weights is not None and weights.default is None:
                config.model.backbone.init_args.weights = None  # do not download weights that the checkpoint replaces
        if config.trainer.enable_model_summary is None:
            # Lightning's table mostly lists metrics; `fit` prints one line.
            config.trainer.enable_model_summary = False
        self.trainer_defaults = {"callbacks": callbacks_of_a_run(config.trainer)}

    def _run_folder(self) -> RunFolder:
        """Choose the run folder, for ``--ckpt_path last`` that of the newest run, and its loggers."""
        config = self.config
        content = self.parser.dump(config, skip_none=False)
        runs = Path(config.trainer.default_root_dir or ".") / "runs"
        loggers = configured_loggers(config.trainer.logger, runs)
        experiment = runs / (logger_name(config.trainer.logger) or self._run_name())
        if config.ckpt_path != "last":
            return RunFolder(experiment, content, loggers)
        checkpoint = resume_newest_run(self.parser, config, experiment)
        config.ckpt_path = str(checkpoint)
        return RunFolder(experiment, content, loggers, resumed=checkpoint.parents[1])

    def _run_name(self) -> str:
        """Name the run after its configurations and, if its data replace those of the first one, after its data."""
        paths = self.config.config or []
        name, data = experiment_name(paths), data_name(self.config.data)
        with suppress(ValueError):  # the first file need not be complete
            first = self.parser.parse_args(["--config", str(paths[0])]) if paths else self.config
            if first.data.class_path != self.config.data.class_path and not name.endswith(f"-{data}"):
                return f"{name}-{data}"
        return name

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; under SLURM without Lightning's own requeueing.

        It would save in mid-step, requeue the job, and leave a checkpoint from which every later run in the folder starts.
        """
        if SLURMEnvironment.detect() and not self.config_init.trainer.plugins:
            kwargs["plugins"] = SLURMEnvironment(auto_requeue=False)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except TypeError as error:  # raised by Lightning for a value of the wrong type
            raise ValueError(f"--trainer: {error}") from error
        if self.run_folder is not None:
            state_of(trainer).callbacks.insert(0, self.run_folder)  # first, as the others write into it
        own = self.config_init.checkpoint, self.config_init.last_checkpoint
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

    def fit(self) -> None:
        """Train; if that fails, the processes that were started for it end too."""
        processes, batch_size = self.trainer.world_size, self.datamodule.batch_size
        if batch_size % processes:  # before any of them is started
            raise ValueError(
                f"Expected `--data.batch_size`, the total over all processes, to be a multiple of their number "
                f"{processes} but got {batch_size}"
            )
        rank_zero_info(_describe_network(self.model.backbone))
        try:
            stages.fit(
                self.trainer,
                self.model,
                self.datamodule,
                ckpt_path=self.ckpt_path,
                weights_only=self.config.weights_only,
                between=self._test_first_stage,
            )
        except Exception:
            if self.trainer.strategy.launcher is not None:
                self.trainer.strategy.launcher.kill(signal.SIGTERM)
            raise

    def _finish(self, best: str | None, final: Path) -> str:
        """Fit the values that are fitted after training to the best checkpoint, and save the result beside it."""
        if best is not None:
            self.model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        stages.finish(self.trainer, self.model.to(self.trainer.strategy.root_device), self.datamodule)
        self.trainer.save_checkpoint(final, weights_only=True)
        return str(final)

    def _test_first_stage(self) -> None:
        """Test the best checkpoint of the first stage; the second one begins with the last weights."""
        if state_of(self.trainer).fast_dev_run:
            return
        last = {name: copy.deepcopy(value) for name, value in self.model.state_dict().items()}
        tested: BestCheckpoint = self.config_init.checkpoint
        self.trainer.test(self.model, self.datamodule, ckpt_path=tested.best_model_path or None, verbose=False)
        self.model.load_state_dict(last)

    def test_best(self) -> None:
        """Test the best checkpoint and print where the results are.

        The best checkpoint is that of the run's own monitor, regardless of other checkpoint callbacks; without validation it
        is the last one. With stochastic weight averaging it is the average.
        """
        trainer, callbacks = self.trainer, state_of(self.trainer).callbacks
        own: BestCheckpoint = self.config_init.checkpoint
        # A run shorter than an epoch has no checkpoint; the weights in memory are tested.
        tested = own.best_model_path or None
        average = Path(str(own.dirpath), AVERAGE)
        if any(isinstance(c, StochasticWeightAveraging) for c in callbacks) and average.is_file():
            tested = str(average)
        if any(isinstance(callback, AfterTraining) for callback in callbacks):
            tested = self._finish(tested, Path(str(own.dirpath), FINAL))
        # After `fit`, Lightning's averaging would restore the weights that were averaged instead of the average in the file.
        averaging = (WeightAveraging, StochasticWeightAveraging)
        state_of(trainer).callbacks = [c for c in callbacks if not isinstance(c, averaging)]
        trainer.test(self.model, self.datamodule, ckpt_path=tested, verbose=False)
        if self.run_folder is not None:
            self.run_folder.release()
        folder = trainer.log_dir  # read by every process, because Lightning broadcasts it
        if trainer.is_global_zero and folder:
            print(f"Run folder: {folder}")
            if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
                print(f"Dashboard:  tensorboard --logdir {Path(folder).parents[1]}")
        leave_process_group()


def _describe_network(network: nn.Module) -> str:
    """Return one line with the number of parameters of a network."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, requires_grad in sizes if requires_grad)
    part = "" if trained == total else f", {trained:,} of them trained"
    return f"{type(network).__name__}: {total:,} parameters{part}"


def _check_classes(config: Path, trust_code: bool) -> None:
    """Check that the configuration beside a checkpoint names only classes of known packages."""
    with only_known_classes(read_yaml(config), str(config), trust_code):
        training_parser().parse_args(["--config", str(config)])


def _check_trainer(trainer: Namespace) -> None:
    """Refuse options of Lightning's Trainer that this package does not support."""
    if trainer.overfit_batches:
        raise ValueError("Expected no `--trainer.overfit_batches`; limit the data by `--trainer.limit_train_batches`")
    if trainer.accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ValueError(
            f"--trainer.accelerator: expected one of this machine but it has no {trainer.accelerator!r}; leave the option out"
        )
    strategy = str(trainer.strategy.class_path if isinstance(trainer.strategy, Namespace) else trainer.strategy)
    if any(name in strategy.lower() for name in SHARDED):
        raise ValueError(
            f"Expected a strategy that leaves every process the whole network, such as `ddp`, but got {strategy}: "
            "the networks here fit on one device, and checkpoints and weight spectra need whole weights"
        )


def _expect_no_validation(checkpoint: Namespace) -> None:
    """Make the last checkpoint the best one."""
    if checkpoint.save_top_k not in (-1, 0, 1):
        raise ValueError(
            f"Expected `--checkpoint.save_top_k` -1, 0 or 1 without a validation set but got "
            f"{checkpoint.save_top_k}: raise `--data.val_fraction`"
        )
    if (checkpoint.monitor or "").startswith("val/"):
        checkpoint.monitor = None


def _check_checkpoint(path: str, trusted: bool) -> None:
    if trusted:  # `--weights_only false` admits more than data
        if not is_whole(path):
            raise ValueError(f"--ckpt_path: expected a whole checkpoint but {path!r} is none")
        return
    read_run_checkpoint(path)
