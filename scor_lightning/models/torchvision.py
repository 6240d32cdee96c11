"""The classification networks of torchvision."""

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from scor_lightning.models.base import Backbone, build_head
from scor_lightning.models.foreign import count_features, load_weights, read_state_dict

# Required by the weights of these two; without it, a network rebuilt for a checkpoint would differ.
_INCEPTION = {"aux_logits": False, "init_weights": True, "transform_input": True}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


class TorchvisionBackbone(Backbone):
    """A classification network of torchvision whose last layer is replaced by a head for the classes of the data.

    The features are the inputs of the replaced layer (for SqueezeNet, which ends in a convolution, the mean over the
    image). Auxiliary heads (GoogLeNet, Inception) are omitted. Gray images work with every network and its weights: the
    channel is repeated three times. A vision transformer is built for the size of the images, and the position embeddings
    of its weights are interpolated.

    Weights are downloaded only if ``weights`` names some, and never for a checkpoint.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels C of the images, 1 or 3.
        image_size: Height and width (H, W) of the images.
        arch: Name in ``torchvision.models``.
        weights: Initial weights, without the head. None: random. ``"DEFAULT"``: torchvision's best weights. A name such as
            ``"IMAGENET1K_V1"``: those weights. Otherwise a file with a ``state_dict``. Named weights are downloaded into
            torch's cache if they are missing.
        head: Builds the classifier from (D, K).
        keep_head: Also use the last layer of the weights, for data with the same classes in the same order, such as
            ImageNet. Ignored without weights.

    Raises:
        ValueError: If there is no such architecture (the nearest names are listed), the images have another number of
            channels or are too small for the network, or the weights cannot be downloaded or do not fit.

    Example:
        >>> network = TorchvisionBackbone(num_classes=10, arch="resnet18")
        >>> network.forward_features(torch.rand(2, 3, 64, 64)).shape, network.num_features
        (torch.Size([2, 512]), 512)
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        arch: str = "resnet50",
        weights: str | None = None,
        head: Callable[[int, int], nn.Module] = nn.Linear,
        keep_head: bool = False,
    ) -> None:
        super().__init__()
        known = models.list_models(module=models)
        if arch not in known:
            near = ", ".join(get_close_matches(arch.lower(), known, n=5, cutoff=0.5) or known)
            raise ValueError(
                f"Expected `arch` to be a classification network of torchvision, say {near}, but got {arch!r}"
            )
        if in_channels not in (1, 3):
            raise ValueError(f"Expected images of 1 or 3 channels for {arch} but got {in_channels}")
        options: dict[str, Any] = _INCEPTION if arch in ("googlenet", "inception_v3") else {}
        if arch.startswith("vit_"):
            if image_size[0] != image_size[1]:
                raise ValueError(f"Expected square images for {arch} but got {tuple(image_size)}")
            options = {"image_size": image_size[0]}
        elif arch.startswith("maxvit_"):
            options = {"input_size": tuple(image_size)}
        self.num_classes = num_classes
        try:
            self.network: nn.Module = models.get_model(arch, weights=None, **options)
        except (AssertionError, ValueError) as error:
            message = f"Expected images of a size that {arch} takes, such as by `--data.resolution`, but got {tuple(image_size)}: {error}"
            raise ValueError(message) from error
        layer = _take_off_last_layer(self.network)
        self.num_features = count_features(self.network, (3, *image_size), arch)
        self.head = build_head(head, self.num_features, num_classes)
        if weights is not None:
            state, source = _read_weights(arch, weights)
            if weights in (sets := models.get_model_weights(arch)).__members__:
                expected = sets[weights].transforms()
                self.mean, self.std = tuple(expected.mean), tuple(expected.std)
            if keep_head:
                last = {k.removeprefix(f"{layer}."): v for k, v in state.items() if k.startswith(f"{layer}.")}
                load_weights(self.head, last, f"the last layer of {arch} in {source} for {num_classes} classes")
            for name in [name for name in state if name.startswith((f"{layer}.", *_AUXILIARY))]:
                del state[name]
            if isinstance(self.network, models.VisionTransformer):
                state = interpolate_embeddings(image_size[0], self.network.patch_size, state)
            load_weights(self.network, state, f"{arch} in {source}")

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of images ``[B, C, H, W]``."""
        features: Tensor = self.network(images.expand(-1, 3, -1, -1))
        return features


def _take_off_last_layer(network: nn.Module) -> str:
    layers: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    # SqueezeNet has no linear layer: it ends in a 1 x 1 convolution, ReLU and the mean over the image.
    layers = layers or [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    network.set_submodule(layers[-1], nn.Identity())
    return layers[-1]


def _read_weights(arch: str, weights: str) -> tuple[dict[str, Tensor], str]:
    sets = models.get_model_weights(arch)
    if weights not in sets.__members__:
        if not Path(weights).is_file():
            names = ", ".join(sets.__members__)
            raise ValueError(f"Expected `weights` of {arch} to be one of {names} or a file but there is no {weights!r}")
        return read_state_dict(weights), weights
    chosen: WeightsEnum = sets[weights]
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(chosen.url).path).name)
    try:
        state = chosen.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise ValueError(
            f"Could not download the weights {weights} of {arch}: {error}; put {chosen.url} into {path}, "
            "or train a network from random weights, as image_folder_small.yaml does"
        ) from error
    # torchvision's DenseNet files use names that Python modules can no longer have.
    for name in list(state):
        state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)] = state.pop(name)
    return state, str(path)
