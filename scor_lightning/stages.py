"""The stages of a training: a second fit in the same run."""

from collections.abc import Callable
from copy import deepcopy

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)

from scor_lightning.callbacks import LastCheckpoint
from scor_lightning.callbacks.protocol import AfterTraining, state_of
from scor_lightning.checkpoint import read_stage
from scor_lightning.classifier import ImageClassifier
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.second_stage import SecondStage

_UNSUITED = (WeightAveraging, StochasticWeightAveraging, BackboneFinetuning)


def fit(
    trainer: Trainer,
    model: ImageClassifier,
    datamodule: LightningDataModule,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
    between: Callable[[], None] | None = None,
) -> None:
    """Train a classifier, with its second stage if it has one, and resume in the stage of a checkpoint.

    Epochs and steps are counted from the beginning of the first stage; optimizer and schedule of the second stage are new.
    ``last.ckpt`` belongs to the current stage; the best checkpoints of the second stage are in the folder ``stage_2``.

    Args:
        trainer: The trainer; its ``max_epochs`` are those of the first stage.
        model: The classifier.
        datamodule: The data.
        ckpt_path: A checkpoint to resume from; None starts from the beginning.
        weights_only: As of ``Trainer.fit``.
        between: Function that is called after the first stage, before the network is changed.

    Raises:
        ValueError: If the second stage cannot be run with this trainer or data module.

    Example:
        .. code-block:: python

            model = ImageClassifier(backbone, loss, second_stage=SecondStage(max_epochs=10, sampling="class_balanced"))
            fit(Trainer(max_epochs=90), model, data)
    """
    if model.second_stage is None:
        trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
        return
    _check(trainer, model, datamodule)
    states = {id(callback): deepcopy(callback.state_dict()) for callback in state_of(trainer).callbacks}
    first_epoch = None if ckpt_path is None else read_stage(ckpt_path)
    if first_epoch is None:
        trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
        ckpt_path, first_epoch = None, trainer.current_epoch
        if between is not None:
            between()
        for callback in state_of(trainer).callbacks:
            if id(callback) in states and not isinstance(callback, LastCheckpoint):
                here = {"dirpath": callback.dirpath} if isinstance(callback, ModelCheckpoint) else {}
                callback.load_state_dict(states[id(callback)] | here)
    if trainer.is_global_zero:
        print(f"\nSecond stage: {model.second_stage.max_epochs} epochs from epoch {first_epoch}", flush=True)
    model.begin_second_stage(first_epoch)
    _sample(trainer, datamodule, model.second_stage)
    trainer.fit_loop.max_epochs = first_epoch + model.second_stage.max_epochs
    if state_of(trainer).fast_dev_run:
        trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = first_epoch + 1, -1
    trainer.should_stop = False
    trainer.fit(model, datamodule, ckpt_path=ckpt_path, weights_only=weights_only)


def finish(trainer: Trainer, model: ImageClassifier, datamodule: LightningDataModule) -> dict[str, float]:
    """Fit the values that are fitted after training, such as tau by :class:`~scor_lightning.callbacks.TauNormalization`.

    Args:
        trainer: The trainer of the finished training; its callbacks define what is fitted.
        model: The classifier, changed in place.
        datamodule: The data, set up.

    Returns:
        The fitted values by name, also stored in ``model.fitted``.
    """
    for callback in state_of(trainer).callbacks:
        if isinstance(callback, AfterTraining):
            model.fitted |= callback.finish(trainer, model, datamodule)
    return model.fitted


def _check(trainer: Trainer, model: ImageClassifier, datamodule: LightningDataModule) -> None:
    assert model.second_stage is not None  # checked by the caller
    limited = trainer.max_steps != -1 and not state_of(trainer).fast_dev_run
    if limited or any(isinstance(callback, Timer) for callback in state_of(trainer).callbacks):
        raise ValueError(
            "Expected no `--trainer.max_steps` and no `--trainer.max_time` with a second stage, which begins after the last of "
            "`--trainer.max_epochs`"
        )
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ValueError(f"Expected `--trainer.max_epochs` >= 1 before a second stage but got {trainer.max_epochs}")
    unsuited = [type(callback).__name__ for callback in state_of(trainer).callbacks if isinstance(callback, _UNSUITED)]
    if unsuited:
        raise ValueError(f"Expected no {unsuited[0]} with a second stage, which freezes parts of the network itself")
    if model.second_stage.sampling is None or isinstance(datamodule, ImageDataModule):
        return
    raise ValueError(
        f"Expected an ImageDataModule for `second_stage.sampling` but got {type(datamodule).__name__}, which samples itself"
    )


def _sample(trainer: Trainer, datamodule: LightningDataModule, stage: SecondStage) -> None:
    """Set the sampling of the training images to that of the stage."""
    if isinstance(datamodule, ImageDataModule):
        if stage.sampling is not None:
            datamodule.sampling = stage.sampling
            datamodule.sampling_start = 0.0
        needs_partners = stage.mixing is not None and stage.mixing.needs_partners
        datamodule.partner_sampling = "class_balanced" if needs_partners else None
    trainer.fit_loop._combined_loader = None  # otherwise Lightning keeps the loader of the first stage
