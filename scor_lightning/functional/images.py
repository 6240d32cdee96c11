"""Images as numbers."""

from torch import Tensor


def normalize_bytes(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn bytes into the floats that networks are trained on, ``(images / 255 - mean) / std``.

    Args:
        images: uint8 ``[..., C, H, W]``.
        mean: Of each channel, ``[C, 1, 1]``, between 0 and 1; its dtype is that of the result.
        std: Of each channel, ``[C, 1, 1]``, likewise.

    Returns:
        ``[..., C, H, W]`` in the dtype of ``mean``.

    Example:
        >>> import torch
        >>> normalize_bytes(torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.full((1, 1, 1), 0.5), torch.ones(1, 1, 1))
        tensor([[[-0.5000,  0.5000]]])
    """
    return images.to(mean.dtype).mul_(1 / (255 * std)).add_(-mean / std)
