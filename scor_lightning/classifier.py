"""The one LightningModule: any backbone, any loss, any optimizer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import Self

from scor_lightning.callbacks.automatic import callbacks_of_a_classifier
from scor_lightning.callbacks.finite_check import check_before_saving
from scor_lightning.callbacks.protocol import state_of
from scor_lightning.checkpoint import (
    building_from,
    check_checkpoint,
    describe_checkpoint,
    drop_functions,
    replace_state_of_other_loss,
    save_arguments,
)
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.description import DataDescription, agreed_classes, channel_statistics, count_classes, describe_data
from scor_lightning.evaluation import Evaluation
from scor_lightning.export import export_onnx
from scor_lightning.features import use_features
from scor_lightning.known_data import KnownData
from scor_lightning.losses.base import (
    Loss,
    check_backbone,
    check_mixing,
    evaluate_loss,
    gives_probabilities,
    logits_and_features,
    loss_terms,
    mixed_loss_terms,
    needs_features,
    regularize,
    warn_of_few_pairs,
)
from scor_lightning.metrics import known_groups
from scor_lightning.mixing import Mixed, Mixing, check_partners
from scor_lightning.models.base import batch_norm_explained
from scor_lightning.models.normalization import Normalization
from scor_lightning.optim import Recipe, check_sharpness_aware, sharpness_aware
from scor_lightning.parts import check_parts, set_body_to_evaluation, split_body
from scor_lightning.second_stage import SecondStage
from scor_lightning.seeding import StepSeed

T = TypeVar("T")


class ImageClassifier(LightningModule):
    """Trains and evaluates a backbone under a loss.

    A batch is ``(images, target)`` with images ``[B, C, H, W]`` and targets int64 ``[B]``. uint8 images are scaled to
    [0, 1] and normalised on the device with the data module's ``mean`` and ``std``; float images are used as they
    are. The :class:`~scor_lightning.description.DataDescription` of the trainer's data module is kept in the checkpoint.

    It logs ``train/loss`` and each term of the loss as ``train/<term>``; for ``val`` and ``test`` the loss, the metrics
    of :func:`~scor_lightning.metrics.classification_metrics`, the recalls of up to 100 classes as
    ``<split>/recall/<class>``, and ``<split>/accuracy_many``, ``_medium``, ``_few`` and ``_reduced`` over the classes with
    many, medium and few training images and over those that the imbalance reduces; under SCoR also
    ``train/scor_share``, by :class:`~scor_lightning.callbacks.PenaltyShare`.

    Args:
        backbone: Network with ``num_classes`` that maps images to logits. If the loss reads features, it also needs
            ``forward_features``, which returns them as ``[B, D]``, and ``head``, which maps them to logits.
        loss: A :class:`~scor_lightning.losses.Loss` or a plain ``torch.nn`` loss of logits and targets.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule from the optimizer. ``ReduceLROnPlateau`` follows ``val/loss``, or its own
            ``monitor`` if it has one.
        num_classes: Number of classes K, for a backbone without ``num_classes``.
        lr_interval: Unit of the schedule: it advances every epoch or every step of the optimizer.
        lr_warmup: Number n of epochs or steps, by ``lr_interval``, of linear warm-up: the learning rate is multiplied by
            1/n, 2/n, ..., 1.
        body_lr_factor: Learning rate of the backbone without its head, as a multiple of the optimizer's, > 0.
        decay_norms_and_biases: False excludes norms and biases, all parameters of one dimension, from weight decay.
        channels_last: Use the channels-last memory format, which is faster for convolutions on recent GPUs.
        compile: Compile the network with ``torch.compile`` at its first batch.
        shot_thresholds: (few, many): classes with fewer training images than the first number are few-shot, those with
            more than the second are many-shot.
        regularizer: Wraps ``loss``, for example :class:`~scor_lightning.losses.SCoRLoss` with its other arguments bound. It
            replaces a loss of its own class and keeps the base of that loss.
        mixing: Mixes the images and targets of training batches, for example :class:`~scor_lightning.mixing.Mixup`. The
            loss is then that of :func:`~scor_lightning.losses.base.mixed_loss_terms`; class counts are those of the unmixed data.
        second_stage: A second training of the same network, run by :func:`scor_lightning.stages.fit` and by the commands.
        sam_rho: Radius rho of sharpness-aware minimisation, > 0, see :func:`~scor_lightning.optim.sharpness_aware`; None
            disables it. On CIFAR-10-LT .1 with cross entropy, .5 with deferred re-weighting, .8 with LDAM-DRW.
        class_names: Names of the K classes, for a data module without them.
        class_counts: Training images of each class, for a data module without them.
        frozen_body: Train the head alone. The body has no gradient and stays in evaluation mode, its batch norms included. Where
            training images are neither augmented (``data.augment`` false) nor mixed, its features are computed once, see
            :func:`~scor_lightning.features.use_features`. A batch may then also be features, float ``[B, D]``.

    Raises:
        ValueError: If the number of classes is unknown, the loss reads features that the backbone does not return, or
            an argument is out of range.
        FloatingPointError: If the training loss or a weight becomes non-finite; no checkpoint is written after that.

    Example:
        >>> from scor_lightning.losses import SCoRLoss
        >>> from scor_lightning.models import MLP
        >>> model = ImageClassifier(MLP(num_classes=10), SCoRLoss(alpha=1e-4))
        >>> model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        num_classes: int | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_warmup: int = 0,
        body_lr_factor: float = 1.0,
        decay_norms_and_biases: bool = True,
        channels_last: bool = False,
        compile: bool = False,
        shot_thresholds: tuple[int, int] = (20, 100),
        regularizer: Callable[[nn.Module], nn.Module] | None = None,
        mixing: Mixing | None = None,
        second_stage: SecondStage | None = None,
        sam_rho: float | None = None,
        class_names: Sequence[str] | None = None,
        class_counts: Sequence[int] | None = None,
        frozen_body: bool = False,
    ) -> None:
        super().__init__()
        _check_module("backbone", backbone, such_as="MLP(num_classes=10)")
        _check_module("loss", loss, such_as="torch.nn.CrossEntropyLoss()")
        # Functions must not be copied with the module or the hyperparameters: those of the command line refer to its whole
        # configuration, with the data and the trainer.
        optimizer, lr_scheduler = _function(optimizer), lr_scheduler and _function(lr_scheduler)
        regularizer = regularizer and _function(regularizer)
        save_arguments(self)
        recipe = Recipe(optimizer, lr_scheduler, lr_interval, lr_warmup, body_lr_factor, decay_norms_and_biases)
        if regularizer is not None:
            loss = regularize(loss, regularizer)
            second_stage = second_stage and second_stage.regularized(regularizer)
        self.num_classes = agreed_classes(backbone, num_classes)
        self._configure_network(backbone, loss, channels_last, compile, frozen_body)
        self._configure_training(recipe, mixing, second_stage, sam_rho)
        self._configure_evaluation(shot_thresholds, class_names, class_counts)

    def _configure_network(
        self, backbone: nn.Module, loss: nn.Module, channels_last: bool, compile: bool, frozen_body: bool
    ) -> None:
        check_backbone(loss, backbone)
        # Before the loss, which receives the class counts after an average of the weights has copied the module: the
        # buffers of the average are exchanged in order.
        self.normalize = Normalization()
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.backbone = backbone.to(memory_format=self.memory_format)
        self.frozen_body = frozen_body
        if frozen_body:
            check_parts(backbone, "`frozen_body`")
            for parameter in split_body(backbone):
                parameter.requires_grad_(False)
            set_body_to_evaluation(backbone)
        self.loss = loss
        self._needs_features = needs_features(loss)
        self._compiled_run = torch.compile(self._run) if compile else None

    def _configure_training(
        self, recipe: Recipe, mixing: Mixing | None, second_stage: SecondStage | None, sam_rho: float | None
    ) -> None:
        recipe.check_backbone(self.backbone)
        if mixing is not None:
            check_mixing(self.loss)
        if sam_rho is not None and not sam_rho > 0:
            raise ValueError(f"Expected `sam_rho` > 0 but got {sam_rho}")
        if second_stage is not None:
            second_stage.check_backbone(self.backbone)
            second_stage.check_loss(self.loss, self.backbone)
        self.recipe = recipe
        self.mixing = mixing
        self.second_stage = second_stage
        self.second_stage_from: int | None = None  # its first epoch, once it has begun
        self.sam_rho = sam_rho
        self._in_second_pass = False
        self._terms: dict[str, Tensor] = {}  # of the last step
        self._seed = torch.initial_seed()
        self._seed_step = StepSeed()

    def _configure_evaluation(
        self, shot_thresholds: tuple[int, int], class_names: Sequence[str] | None, class_counts: Sequence[int] | None
    ) -> None:
        if not 1 <= shot_thresholds[0] <= shot_thresholds[1]:
            raise ValueError(f"Expected `shot_thresholds` 1 <= few <= many but got {tuple(shot_thresholds)}")
        self.shot_thresholds = shot_thresholds
        self.val_evaluation = Evaluation("val", self.num_classes)
        self.test_evaluation = Evaluation("test", self.num_classes)
        self.class_results: dict[str, dict[str, Tensor]] = {}  # of each split: recall, precision, f1 and support, [K]
        self.known_data = KnownData()
        self.known_data.describe(self.num_classes, class_names, class_counts)
        self.fitted: dict[str, float] = {}  # after training, by callbacks such as TauNormalization

    @property
    def stage(self) -> int:
        """The stage of the training, 1 or 2."""
        return 1 if self.second_stage_from is None else 2

    @property
    def _current_recipe(self) -> Recipe | SecondStage:
        return self.recipe if self.second_stage is None or self.stage == 1 else self.second_stage

    @property
    def can_train_on_features(self) -> bool:
        """Whether the features of a frozen body can replace images that are not augmented; mixing needs the images."""
        later = None if self.second_stage is None else self.second_stage.mixing
        return self.frozen_body and self.mixing is None and later is None

    def begin_second_stage(self, first_epoch: int) -> None:
        """Change the network, the loss and the mixing to those of the second stage.

        Args:
            first_epoch: Its first epoch; epochs are counted from the beginning of the first stage.

        Raises:
            ValueError: If the classifier has no second stage.
        """
        stage = self.second_stage
        if stage is None:
            raise ValueError("Expected `second_stage=...` for a checkpoint of a second stage but got none")
        if self.second_stage_from is not None:
            return
        self.second_stage_from = first_epoch
        self.mixing = stage.mixing
        stage.apply(self.backbone, self._seed)
        if stage.loss is not None:
            self.loss = stage.loss.to(self.device)
            self._needs_features = needs_features(self.loss)
        check_backbone(self.loss, self.backbone)  # the scale of the head may have changed
        self._pass_counts_to_loss()
        if self.training:
            stage.set_modes(self.backbone)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen body stays in evaluation mode, and the second stage sets the mode of frozen batch norms."""
        super().train(mode)
        if mode and self.frozen_body:
            set_body_to_evaluation(self.backbone)
        if mode and self.second_stage is not None and self.second_stage_from is not None:
            self.second_stage.set_modes(self.backbone)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` for prediction from images ``[B, C, H, W]``, uint8 or normalised floats."""
        return self.adjusted(self._logits_and_features(images)[0])

    def adjusted(self, logits: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` for prediction from those of the network."""
        if isinstance(self.loss, Loss):
            logits = self.loss.adjust_logits(logits)
        return logits / self.fitted["temperature"] if "temperature" in self.fitted else logits

    def _logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._compiled_run is None:
            return self._run(images)
        logits, features = self._compiled_run(images)
        # Copies: the next call overwrites the outputs of a CUDA graph, and an evaluation collects those of many batches.
        return logits.clone(), None if features is None else features.clone()

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.frozen_body and images.ndim == 2:
            return self.backbone.get_submodule("head")(images), images
        images = self.normalize(images).to(memory_format=self.memory_format)
        return logits_and_features(self.backbone, images, self._needs_features)

    @property
    def description(self) -> DataDescription:
        """Description of the training data; all None before the data are known."""
        return self.known_data.description

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes, or their numbers if they have no names."""
        return list(self.description.class_names or map(str, range(self.num_classes)))

    @property
    def class_counts(self) -> Tensor | None:
        """Training images of each class, int64 ``[K]``; None if they are not known."""
        return self.description.counts

    @property
    def class_groups(self) -> dict[str, Tensor]:
        """Members of the groups ``many``, ``medium``, ``few`` and ``reduced``, bool ``[K]``, those that are known."""
        return known_groups(self.description, self.shot_thresholds)

    def setup(self, stage: str) -> None:
        """Read the data description; pass the class counts to the loss."""
        data = state_of(self.trainer).datamodule
        if (known := count_classes(data)) not in (None, self.num_classes):
            raise ValueError(f"The data have {known} classes but the backbone has {self.num_classes}")
        described = describe_data(data)
        if stage == "fit":
            expected = channel_statistics(data, self.backbone)
            described = replace(described, mean=expected.mean, std=expected.std)
        self.known_data.read(described, training=stage == "fit")
        self.normalize.set(self.description.mean, self.description.std)
        # An evaluation does not change what the classifier was trained on.
        if stage == "fit" or (isinstance(self.loss, Loss) and self.loss.class_counts is None):
            self._pass_counts_to_loss()

    def _pass_counts_to_loss(self) -> None:
        if isinstance(self.loss, Loss) and self.description.counts is not None:
            self.loss.set_class_counts(self.description.counts)

    def own_targets(self, target: Tensor) -> Tensor:
        """Return targets of the data, int64 ``[B]``, as the classifier numbers its classes.

        The numbers differ if the data list the classes of a checkpoint in another order: classes are matched by name.
        """
        return self.known_data.own_targets(target)

    def on_validation_start(self) -> None:
        """Match the classes of the data with those of a checkpoint loaded after :meth:`setup`."""
        if self.trainer.state.fn != "fit":
            self.setup("validate")

    def on_test_start(self) -> None:
        """Match the classes of the data with those of a checkpoint loaded after :meth:`setup`."""
        self.setup("test")

    def on_predict_start(self) -> None:
        """Match the classes of the data with those of a checkpoint loaded after :meth:`setup`."""
        self.setup("predict")

    def on_fit_start(self) -> None:
        """Read the data description again after a checkpoint was loaded."""
        self.setup("fit")
        data = state_of(self.trainer).datamodule
        if self.can_train_on_features and isinstance(data, ImageDataModule):
            use_features(data, self.backbone, self.trainer.strategy.root_device, self.trainer.precision)
        draws_partners = isinstance(data, ImageDataModule) and data.partner_sampling is not None
        check_partners(self.mixing, draws_partners, self.class_counts)
        if self.sam_rho is not None:
            check_sharpness_aware(self.trainer.precision, self.trainer.accumulate_grad_batches)
        batch_size = data.batch_size if isinstance(data, ImageDataModule) else None
        warn_of_few_pairs(self.loss, self.trainer.accumulate_grad_batches, batch_size)

    def on_train_start(self) -> None:
        """Set the length of a schedule over the whole training.

        Not earlier: Lightning counts the steps by setting up the loader, which then no longer accepts the position in the
        epoch that a checkpoint stores.
        """
        trainer = self.trainer
        self._current_recipe.set_length(
            self.lr_schedulers(), trainer.max_epochs, lambda: trainer.estimated_stepping_batches
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout a function of seed, process and step, so that a resumed run draws the same numbers."""
        self._seed_step(self.current_epoch, batch_idx, self.global_rank, self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        """Return ``loss``, a scalar, and ``terms``, its named parts."""
        images, target = batch[0], self.own_targets(batch[1])
        mixed = None if self.mixing is None else self._mix(self.mixing, images, target, batch_idx)
        with batch_norm_explained():
            logits, features = self._logits_and_features(images if mixed is None else mixed.images)
        if mixed is None:
            terms = loss_terms(self.loss, logits, target, features)
        else:
            terms = mixed_loss_terms(self.loss, logits, mixed.target, mixed.other, mixed.weight, features)
        loss = reduce(add, terms.values())
        if not self._in_second_pass:
            self._log_training(loss, terms)
            self._terms = {name: value.detach() for name, value in terms.items()}
        return {"loss": loss, "terms": self._terms}

    def _log_training(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        # The Trainer keeps only some steps, and for a small network `log` costs as much as a step.
        if (self.global_step + 1) % max(state_of(self.trainer).log_every_n_steps, 1):
            return
        self.log_dict({"train/loss": loss, **{f"train/{name}": term for name, term in terms.items()}}, sync_dist=True)
        self._log_stage()
        # With `prog_bar=True`, Lightning would read the value at every step, and the host would wait for the device.
        self.trainer.progress_bar_metrics["train/loss"] = float(loss.detach())

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step the optimizer with the gradient at the weights or, with ``sam_rho``, at the sharpest weights nearby."""
        if self.sam_rho is not None and optimizer_closure is not None:
            optimizer_closure = sharpness_aware(optimizer_closure, optimizer, self.sam_rho, self, self._second_pass)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    @contextmanager
    def _second_pass(self) -> Iterator[None]:
        self._in_second_pass = True  # nothing is logged, and the terms are those of the first pass
        self._seed_step.again(self.device)  # the same dropout
        try:
            yield
        finally:
            self._in_second_pass = False

    def _mix(self, mixing: Mixing, images: Tensor, target: Tensor, batch_idx: int) -> Mixed:
        key = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        epochs = self.trainer.max_epochs or 0
        return mixing.mix_batch(self.normalize(images), target, key, epochs, self.class_counts)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the metrics with a validation batch."""
        self._evaluate(self.val_evaluation, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics with a test batch; return the ``logits`` ``[B, K]`` used for prediction and the ``target`` ``[B]``."""
        return self._evaluate(self.test_evaluation, batch)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """Return the class probabilities ``[B, K]`` of a batch of images, with or without targets."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        logits: Tensor = self(images)
        return logits.softmax(dim=-1)

    def _evaluate(self, evaluation: Evaluation, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        target = self.own_targets(batch[1])
        logits, features = self._logits_and_features(batch[0])
        adjusted = self.adjusted(logits)
        evaluation.update(evaluate_loss(self.loss, logits, target, features), adjusted, target)
        return {"logits": adjusted, "target": target}

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self.val_evaluation.reset()

    def on_test_epoch_start(self) -> None:
        """Reset the metrics."""
        self.test_evaluation.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the results of the validation batches."""
        self._log_evaluation(self.val_evaluation)

    def on_test_epoch_end(self) -> None:
        """Log the results of the test batches."""
        self._log_evaluation(self.test_evaluation)

    def _log_evaluation(self, evaluation: Evaluation) -> None:
        values, self.class_results[evaluation.split] = evaluation.compute(
            self.class_names, self.class_groups, self.class_counts, gives_probabilities(self.loss)
        )
        on_bar = f"{evaluation.split}/balanced_accuracy"
        self.log(on_bar, values.pop(on_bar), prog_bar=True, sync_dist=True)
        self.log_dict(values, sync_dist=True)
        self._log_stage()

    def _log_stage(self) -> None:
        if self.second_stage is not None:
            self.log("stage", float(self.stage), sync_dist=True)
            self.trainer.progress_bar_metrics["stage"] = float(self.stage)

    def configure_callbacks(self) -> list[Callback]:
        """Add the callbacks that check monitored metrics, losses and weights, and that log SCoR's share of the loss.

        Called before the callbacks are set up: an average of the weights copies the module with its buffers.
        """
        if self.trainer.state.fn == "fit" or self.description.mean is None:
            known = channel_statistics(state_of(self.trainer).datamodule, self.backbone)
            self.normalize.set(known.mean, known.std)
        return callbacks_of_a_classifier(state_of(self.trainer).callbacks)

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the schedule if there is one."""
        val_every = 1 if self._trainer is None else self.trainer.check_val_every_n_epoch
        return self._current_recipe.configure(self, self.backbone, val_every)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the data description, the classes of the losses and the groups of the convolutions."""
        check_before_saving(self.trainer, self)
        checkpoint["data"] = {**self.description.to_dict(), "num_classes": self.num_classes}
        checkpoint["fitted"] = self.fitted
        if self.second_stage_from is not None:
            checkpoint["second_stage_from"] = self.second_stage_from
        describe_checkpoint(checkpoint, self, self.loss)
        drop_functions(checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust_code: bool = False, **kwargs: Any) -> Self:
        """Build the classifier of a checkpoint.

        A checkpoint of ``scor-fit`` contains how backbone and loss are built, so that nothing else is needed. Those built in
        Python have to be passed: ``load_from_checkpoint(path, backbone=..., loss=...)``.

        Args:
            checkpoint_path: The file.
            *args: As of ``LightningModule.load_from_checkpoint``.
            trust_code: Whether the file may name classes of any package, rather than those of
                :data:`scor_lightning.trust.PACKAGES` alone. Importing a module runs its code.
            **kwargs: As of ``LightningModule.load_from_checkpoint``; all else is passed to :class:`ImageClassifier`.

        Raises:
            ValueError: If backbone and loss are neither in the file nor passed, the weights do not fit them, or the file
                names a class that is not allowed.
        """
        kwargs.setdefault("weights_only", True)
        if "loss" in kwargs:  # this loss is used as it is, without the run's regularizer
            kwargs.setdefault("regularizer", None)
        with building_from(checkpoint_path, kwargs["weights_only"], trust_code):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def to_onnx(self, file_path: Any = None, input_sample: Tensor | None = None, **kwargs: Any) -> Any:
        """Write the classifier as an ONNX model: uint8 images ``[B, C, H, W]`` in, probabilities float32 ``[B, K]`` out.

        Scaling, normalisation, softmax and the loss's adjustment of the logits are part of the model; resizing is not. B is
        dynamic. The metadata contain as JSON ``class_names``, and as ``preprocessing`` the transforms of torchvision's ``v2`` that
        prepare an image, null if they are unknown; :func:`scor_lightning.prepare_images` applies them. Requires ``pip install 'scor-lightning[onnx]'``.

        Args:
            file_path: File to write.
            input_sample: Two images to trace the network with; required if the classifier has no data description.
            **kwargs: As of ``torch.onnx.export``.

        Returns:
            The ``torch.onnx.ONNXProgram``.

        Raises:
            ValueError: If the image size is unknown and no sample is given.
            ImportError: If the packages for ONNX are not installed.

        Example:
            .. code-block:: python

                ImageClassifier.load_from_checkpoint("best.ckpt").to_onnx("classifier.onnx")
        """
        if input_sample is None:
            if self.description.image_size is None:
                raise ValueError("Expected `input_sample`, images to trace with, as this classifier knows no data")
            shape = (2, len(self.normalize.mean), *self.description.image_size)
            input_sample = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        return export_onnx(
            self,
            lambda images: self.adjusted(self._run(images)[0]),
            input_sample,
            {"class_names": self.class_names, "preprocessing": self.description.eval_transform},
            file_path,
            **kwargs,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the data description; a loss of another class than the checkpoint's starts from its own state.

        Raises:
            ValueError: If the checkpoint does not belong to this class and backbone.
        """
        self.fitted = dict(checkpoint.get("fitted", {}))
        if "second_stage_from" in checkpoint:
            self.begin_second_stage(checkpoint["second_stage_from"])
        check_checkpoint(checkpoint, self.backbone, self.num_classes)
        self.known_data.restore(DataDescription.from_dict(checkpoint["data"]))
        self.normalize.set(self.description.mean, self.description.std)
        self._pass_counts_to_loss()
        replace_state_of_other_loss(checkpoint, self.loss)


def _check_module(name: str, part: object, such_as: str) -> None:
    if not isinstance(part, nn.Module):
        got = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
        raise ValueError(f"Expected `{name}` to be a module, such as {such_as}, but got {got}")  # noqa: TRY004  (one kind of error for arguments)


def _function(make: Callable[[Any], T]) -> Callable[[Any], T]:
    return lambda argument: make(argument)
