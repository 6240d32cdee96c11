"""Support for networks of other libraries: counting features, reading and checking weights."""

from typing import Any

import torch
from torch import Tensor, nn


def count_features(network: nn.Module, shape: tuple[int, int, int], arch: str) -> int:
    """Run a network on meta tensors to count its features, and check that the images are large enough for every layer.

    Args:
        network: Maps images to features ``[B, D]``.
        shape: Channels, height and width of the images.
        arch: Name of the network, for the message.

    Returns:
        The number of features D.

    Raises:
        ValueError: If the network does not support the size of the images.
    """

    def see_pixels(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if min(inputs[0].shape[-2:]) < 2:
            raise ValueError(f"one pixel is left for {module}")

    halving = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    handles = [
        module.register_forward_pre_hook(see_pixels)
        for module in network.modules()
        if isinstance(module, halving) and module.stride not in (1, (1, 1))
    ]
    state = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    try:
        with torch.no_grad():
            features = torch.func.functional_call(network.eval(), state, torch.empty(1, *shape, device="meta"))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Expected images of a size that {arch} takes, such as by `--data.resolution`, but got {shape[1:]}: {reason}"
        ) from error
    finally:
        network.train()
        for handle in handles:
            handle.remove()
    return int(features.shape[1])


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Read weights from a file of torch, or one ``.safetensors``.

    Args:
        path: A ``state_dict``, or a checkpoint with one under ``state_dict`` or ``model``, such as those of Lightning, of
            torchvision and of PyTorch's ImageNet example. Of a checkpoint of this package, the weights of the backbone
            are read.

    Raises:
        ValueError: If the file has no weights.
    """
    state: Any
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # a dependency of timm

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a file that torch did not write raises errors of many types
        raise ValueError(
            f"Expected weights in {path!r} but could not read them: {str(error).splitlines()[0]}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"Expected a `state_dict` in {path!r} but found something else")
    for prefix in ("module.", "backbone.network.", "backbone."):
        if any(name.startswith(prefix) for name in state):
            for name in list(state):  # in place, because torch stores the versions of the modules as an attribute
                value = state.pop(name)
                if name.startswith(prefix):
                    state[name.removeprefix(prefix)] = value
            break
    weights: dict[str, Tensor] = state
    return weights


def load_weights(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all weights of a network.

    Args:
        network: The network.
        state: Its ``state_dict``.
        source: Description of the weights and their source, for the message.

    Raises:
        ValueError: If they do not fit the network; the names are listed.
    """
    own = network.state_dict()
    reshaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if not reshaped:  # torch handles what files of its earlier versions lack
        missing, unknown = network.load_state_dict(state, strict=False)
    else:
        missing, unknown = [], sorted(state.keys() - own.keys())
    wrong = {"missing": missing, "unknown": unknown, "of another shape": reshaped}
    if any(wrong.values()):
        lists = (f"{len(v)} {kind}: {', '.join(v[:5])}{' ...' * (len(v) > 5)}" for kind, v in wrong.items() if v)
        raise ValueError(f"Expected the weights of {source} but got {'; '.join(lists)}")
