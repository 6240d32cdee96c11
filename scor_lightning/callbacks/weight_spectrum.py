"""Singular values of the weights during training."""

from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from scor_lightning.callbacks.protocol import as_classifier, network_of, state_of
from scor_lightning.callbacks.run_folder import numbered, run_folder
from scor_lightning.files import write_whole
from scor_lightning.loggers import log_histogram
from scor_lightning.metrics import MAX_CLASS_TAGS
from scor_lightning.spectrum import describe_skipped, input_sizes, select_layers, shorten_names, weight_spectrum


class WeightSpectrum(Callback):
    """Logs the singular values of the backbone's weights during training, and writes them to the run folder.

    For each layer it logs ``spectrum/<layer>/rank``, ``sigma_max``, ``sigma_min``, ``condition_number``, ``stable_rank``,
    ``effective_rank`` and ``frobenius_norm`` (see :func:`~scor_lightning.functional.spectral.spectral_measures`); for up
    to 100 classes the norms of the classifier's rows as ``spectrum/<classifier>/row_norm/<class>``; and the duration
    ``spectrum/seconds``. All loggers receive these scalars; TensorBoard and Weights & Biases also a histogram of
    ``log10 sigma`` of each layer. All singular values are in ``spectra/step=<step>.npz`` of the run folder, float64 by
    layer: ``numpy.load(file)["head"]``. At the start of training the callback prints which weights are read (see
    :func:`~scor_lightning.spectrum.weight_spectrum`). Only rank zero computes them.

    Args:
        layers: ``"all"``, ``"classifier"`` or a pattern of layer names such as ``"layer4.*"``.
        every_n_epochs: Epochs between measurements; the end of training is always measured.
        every_n_steps: Optimizer steps between measurements, instead of epochs.
        convolution: ``"kernel"``, the matrix of the kernels, or ``"circular"``, the whole linear map.
        tolerance: Tolerance of the rank: ``"relative"``, that of :func:`torch.linalg.matrix_rank`, or ``"absolute"``, the 1e-7 of
            the SCoR paper.

    Raises:
        ValueError: If an option is out of range, or no layer matches.
        MisconfigurationException: If the trainer has a strategy that shards the weights.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", callbacks=[WeightSpectrum(layers="classifier", every_n_epochs=5)])
    """

    def __init__(
        self,
        layers: str = "all",
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        convolution: Literal["kernel", "circular"] = "kernel",
        tolerance: Literal["relative", "absolute"] = "relative",
    ) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}.items():
            if value is not None and value < 1:
                raise ValueError(f"Expected `{name}` >= 1 but got {value}")
        if convolution not in ("kernel", "circular"):
            raise ValueError(f'Expected `convolution` to be "kernel" or "circular" but got {convolution!r}')
        if tolerance not in ("relative", "absolute"):
            raise ValueError(f'Expected `tolerance` to be "relative" or "absolute" but got {tolerance!r}')
        self.layers = layers
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.convolution = convolution
        self.tolerance = tolerance
        self._folder: Path | None = None
        self._done_at = -1
        self._sizes: dict[str, tuple[int, int]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that each process has the whole weights, and set the folder."""
        if stage != "fit":
            return
        strategy = trainer.strategy
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) or (
            isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3
        ):
            raise MisconfigurationException(
                f"Expected a strategy that leaves the weights whole, such as DDP, for WeightSpectrum but got "
                f"{type(strategy).__name__}; leave the callback out and read the checkpoints with `scor-spectrum`"
            )
        self._folder = None
        if not state_of(trainer).fast_dev_run:
            self._folder = run_folder(trainer) / "spectra"
        self._done_at = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report which weights are read; refuse an unknown layer name and a missing ``forward`` before training."""
        if self.convolution == "circular" and type(pl_module).forward is LightningModule.forward:
            raise ValueError(
                f'Expected a `forward` in {type(pl_module).__name__} for `convolution="circular"`, which finds the sizes of the '
                "layers' inputs with it"
            )
        self._sizes = None
        if self._folder is not None and trainer.global_step == 0:  # a resumed run keeps its files
            self._folder = next(place for place in numbered(self._folder) if not place.exists())
        if self.convolution == "kernel":
            self._announce(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the weights every ``every_n_steps`` steps."""
        if self.convolution == "circular" and self._sizes is None:
            sizes = input_sizes(pl_module, batch[0][:1])
            self._sizes = {name.removeprefix("backbone."): size for name, size in sizes.items()}
            self._announce(pl_module)
        if self.every_n_steps:
            step = trainer.global_step  # unchanged while gradients accumulate
            if step and step % self.every_n_steps == 0:
                self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the weights every ``every_n_epochs`` epochs."""
        if not self.every_n_steps and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the final weights."""
        self._look(trainer, pl_module)

    def _announce(self, pl_module: LightningModule) -> None:
        found = select_layers(network_of(pl_module), self.layers, **self._options(pl_module))
        weights = "1 weight" if len(found.layers) == 1 else f"{len(found.layers)} weights"
        said = [f"WeightSpectrum reads {weights}: {shorten_names(found.layers, 12)}", *describe_skipped(found.skipped)]
        if self._folder is not None:
            said.append(f"All singular values: {self._folder}")
        rank_zero_info("\n".join(said))

    def _options(self, pl_module: LightningModule) -> dict[str, Any]:
        model = as_classifier(pl_module)
        num_classes = None if model is None else model.num_classes
        return {"num_classes": num_classes, "convolution": self.convolution, "sizes": self._sizes}

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._done_at:
            return
        self._done_at = step
        spectrum = weight_spectrum(
            network_of(pl_module), self.layers, tolerance=self.tolerance, **self._options(pl_module)
        )
        scalars = {"spectrum/seconds": spectrum.seconds}
        for name, layer in spectrum.layers.items():
            scalars |= {f"spectrum/{name}/{key}": value for key, value in layer.measures.items() if isfinite(value)}
        if spectrum.row_norms is not None and len(spectrum.row_norms) <= MAX_CLASS_TAGS:
            model = as_classifier(pl_module)
            norms = spectrum.row_norms.tolist()
            names = list(map(str, range(len(norms)))) if model is None else model.class_names
            for name, norm in zip(names, norms, strict=True):
                scalars[f"spectrum/{spectrum.classifier}/row_norm/{name}"] = norm
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
        for name, layer in spectrum.layers.items():
            if (positive := layer.values[layer.values > 0]).numel():
                log_histogram(trainer, f"spectrum/{name}/log10_sigma", positive.log10())
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            values: dict[str, Any] = {name: layer.values.numpy() for name, layer in spectrum.layers.items()}
            content = BytesIO()
            np.savez(content, **values)
            write_whole(self._folder / f"step={step:08d}.npz", content.getvalue())
