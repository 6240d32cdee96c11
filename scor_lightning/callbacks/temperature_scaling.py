"""Temperature scaling: one number, fitted after training, that calibrates the probabilities."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from scor_lightning.callbacks.protocol import AfterTraining
from scor_lightning.losses.base import gives_probabilities

BOUNDS = (-3.0, 3.0)  # bounds of the logarithm of the temperature


class TemperatureScaling(AfterTraining):
    r"""Divide the logits by one temperature, fitted on the validation set after training.

    .. math:: T = \arg\min_T \; -\sum_i \frac{\pi_{y_i}}{\hat\pi_{y_i}} \log \mathrm{softmax}(z_i / T)_{y_i}

    with :math:`\pi` the class frequencies of the test set and :math:`\hat\pi` those of the validation set: a temperature fitted
    on imbalanced data does not transfer to balanced data. Predicted classes do not change, only their probabilities;
    ``scor-predict`` and ONNX models use it. Only the class frequencies of the test set are read.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.

    Raises:
        ValueError: Before training, if there is no validation set, or the loss does not train probabilities.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[TemperatureScaling()])
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there is a validation set."""
        if not gives_probabilities(pl_module.loss):  # type: ignore[arg-type]
            raise ValueError(
                "Expected a loss that trains probabilities for a temperature but got "
                f"{type(pl_module.loss).__name__}, whose scores are none"
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is None or not data.val_dataloader():
            raise ValueError(
                "Expected a validation set to fit a temperature on but there is none; raise `--data.val_fraction`"
            )

    @torch.no_grad()
    def finish(self, trainer: pl.Trainer, pl_module: Any, datamodule: Any) -> dict[str, float]:
        """Fit the temperature; return ``{"temperature": T}``."""
        from scipy.optimize import minimize_scalar

        pl_module.fitted.pop("temperature", None)
        logits, target = _evaluate(pl_module, datamodule.val_dataloader())
        classes = logits.shape[1]
        prior = torch.zeros(classes, device=target.device)
        for _, each in datamodule.test_dataloader():
            prior += torch.bincount(pl_module.own_targets(each.to(target.device)), minlength=classes)
        prior = trainer.strategy.reduce(prior, reduce_op="sum")
        support = torch.bincount(target, minlength=classes).float()
        support = trainer.strategy.reduce(support, reduce_op="sum")
        weight = (prior / support)[target].double()

        def risk(log_temperature: float) -> float:
            losses = F.cross_entropy(
                logits.double() / float(torch.tensor(log_temperature).exp()), target, reduction="none"
            )
            return float(trainer.strategy.reduce((weight * losses).sum(), reduce_op="sum"))

        found = minimize_scalar(risk, bounds=BOUNDS, method="bounded", options={"xatol": 1e-5})
        return {"temperature": float(torch.tensor(found.x, dtype=torch.float64).exp())}


def _evaluate(module: Any, loader: Any) -> tuple[Tensor, Tensor]:
    """Return the logits for prediction ``[N, K]`` and the targets ``[N]`` of this process."""
    training, device = module.training, module.device
    module.eval()
    parts = [(module(images.to(device)), module.own_targets(target.to(device))) for images, target in loader]
    module.train(training)
    return torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])
