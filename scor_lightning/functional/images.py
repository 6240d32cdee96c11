"""Normalisation of images."""

from torch import Tensor


def normalize_bytes(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise uint8 images to floats, ``(images / 255 - mean) / std``.

    Args:
        images: uint8 ``[..., C, H, W]``.
        mean: Mean of each channel, ``[C, 1, 1]``, between 0 and 1; its dtype is that of the result.
        std: Standard deviation of each channel, ``[C, 1, 1]``.

    Returns:
        ``[..., C, H, W]`` in the dtype of ``mean``.

    Example:
        >>> import torch
        >>> normalize_bytes(torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.full((1, 1, 1), 0.5), torch.ones(1, 1, 1))
        tensor([[[-0.5000,  0.5000]]])
    """
    return images.to(mean.dtype).mul_(1 / (255 * std)).add_(-mean / std)
