"""Singular values of the weights while they train."""

from collections import defaultdict

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from scor_lightning.functional.spectral import numerical_rank, singular_values, weight_matrix


def weight_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Give the weight matrices of a network by layer: what linear, convolution and attention layers multiply by.

    These are the parameters called ``weight`` or ``..._weight`` with at least two dimensions, a convolution's as
    ``[out, in * prod(kernel)]``.

    Args:
        model: Any network.

    Returns:
        Matrices ``[m, n]`` by the name of their layer.
    """
    return {
        name.removesuffix(".weight"): weight_matrix(parameter.detach())
        for name, parameter in model.named_parameters()
        if name.endswith("weight") and parameter.ndim >= 2
    }


class WeightSpectrum(Callback):
    """Logs rank, largest and smallest singular value of every weight matrix of the backbone after each epoch.

    The tags are ``spectrum/<layer>/rank``, ``.../sigma_max`` and ``.../sigma_min``; every logger of the trainer gets
    them. Matrices of one shape are decomposed together. A matrix that is not finite is left out.

    Raises:
        MisconfigurationException: If the trainer has no logger.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that there is a logger."""
        if stage == "fit" and not trainer.loggers:
            raise MisconfigurationException("Expected a logger for WeightSpectrum but got `--trainer.logger false`")

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decompose the weights and log."""
        if not trainer.is_global_zero:
            return
        by_shape: dict[tuple[int, ...], dict[str, Tensor]] = defaultdict(dict)
        for layer, matrix in weight_matrices(pl_module.backbone).items():  # type: ignore[arg-type]
            if matrix.isfinite().all():
                by_shape[tuple(matrix.shape)][layer] = matrix
        scalars: dict[str, float] = {}
        for (m, n), matrices in by_shape.items():
            batch = torch.stack(list(matrices.values()))
            values = singular_values(batch)
            ranks = numerical_rank(values, (m, n), batch.dtype).tolist()
            for layer, sigma, rank in zip(matrices, values.tolist(), ranks, strict=True):
                scalars |= {
                    f"spectrum/{layer}/rank": rank,
                    f"spectrum/{layer}/sigma_max": sigma[0],
                    f"spectrum/{layer}/sigma_min": sigma[-1],
                }
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
