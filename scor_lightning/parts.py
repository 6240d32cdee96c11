"""The two parts of a network: a body that computes features, and a head that maps them to logits."""

from collections.abc import Callable

from torch import Tensor, nn


def head_of(backbone: nn.Module) -> nn.Module | None:
    """Return the module ``head`` of a network; None if it has none."""
    try:
        return backbone.get_submodule("head")
    except AttributeError:
        return None


def features_of(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return the features ``[B, D]`` that the body of a network computes from images ``[B, C, H, W]``."""
    features: Tensor = backbone.forward_features(images)  # type: ignore[operator]
    return features


def split_body(backbone: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of a network without those of its ``head``."""
    return set(backbone.parameters()) - set(backbone.get_submodule("head").parameters())


def reset_of(module: nn.Module) -> Callable[[], None] | None:
    """Return the ``reset_parameters`` of a module, which re-initialises its own weights; None if it has none."""
    reset = getattr(module, "reset_parameters", None)
    return reset if callable(reset) else None


def reset_parameters(network: nn.Module) -> None:
    """Re-initialise all modules of a network that have ``reset_parameters``."""
    for module in network.modules():
        if (reset := reset_of(module)) is not None:
            reset()


def check_parts(backbone: nn.Module, required_by: str) -> None:
    """Check that a network has a separate body and head.

    Args:
        backbone: The network.
        required_by: What requires them, for the message.

    Raises:
        ValueError: If it has no ``forward_features``, or no module ``head``.
    """
    if not hasattr(backbone, "forward_features") or head_of(backbone) is None:
        raise ValueError(
            f"Expected a backbone with `forward_features` and a module `head` for {required_by} but got "
            f"{type(backbone).__name__}"
        )


def set_body_to_evaluation(backbone: nn.Module) -> None:
    """Set the body to evaluation mode, its batch norms included, and the head to training mode."""
    backbone.eval().get_submodule("head").train()
