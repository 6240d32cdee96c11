"""The networks of timm; requires the extra ``pip install 'scor-lightning[timm]'``."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scor_lightning.models.base import Backbone, build_head
from scor_lightning.models.foreign import count_features, load_weights, read_state_dict


class TimmBackbone(Backbone):
    """A network of timm (https://huggingface.co/docs/timm) with a head for the classes of the data.

    The features are the pooled inputs of timm's classifier. Gray images work with every network and its weights: the
    channel is repeated three times. For other numbers of channels, timm changes the first layer. A network with a fixed
    image size is built for the size of the images.

    Args:
        num_classes: Number of classes K.
        in_channels: Channels C of the images.
        image_size: Height and width (H, W) of the images.
        arch: Name in ``timm.list_models()``.
        weights: Initial weights, without the head. None: random. ``"DEFAULT"``: timm's default for the name. A tag such as
            ``"a1_in1k"``: one of ``timm.list_pretrained()``. Otherwise a file with a ``state_dict``. Named weights are
            downloaded into Hugging Face's cache if they are missing.
        head: Builds the classifier from (D, K).

    Raises:
        ImportError: If timm is not installed.
        ValueError: If there is no such architecture (the nearest names are listed), the images are too small for it, or
            the weights cannot be downloaded or do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        arch: str = "resnet50",
        weights: str | None = None,
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError("Expected timm for TimmBackbone; `pip install 'scor-lightning[timm]'`") from error
        known = timm.list_models()
        if arch not in known:
            near = ", ".join(get_close_matches(arch.lower(), known, n=5)) or "those of timm.list_models()"
            raise ValueError(f"Expected `arch` to be a network of timm, say {near}, but got {arch!r}")
        tags = sorted(name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*"))
        named = weights in (["DEFAULT", *tags] if tags else [])
        if weights is not None and not named and not Path(weights).is_file():
            names = ", ".join(["DEFAULT", *tags] if tags else ["None, as timm has none,"])
            raise ValueError(f"Expected `weights` of {arch} to be {names} or a file but there is no {weights!r}")
        name = f"{arch}.{weights}" if weights in tags else arch
        about = partial(timm.get_pretrained_cfg_value, name)
        channels = 3 if in_channels == 1 else in_channels
        options: dict[str, Any] = {"img_size": tuple(image_size)} if about("fixed_input_size") else {}
        self.num_classes = num_classes
        try:
            self.network: nn.Module = timm.create_model(
                name, pretrained=named, num_classes=0, in_chans=channels, **options
            )
        except OSError as error:
            if not named:
                raise
            raise ValueError(
                f"Could not download the weights {weights} of {arch}: {error}; put the file of "
                f"https://huggingface.co/{about('hf_hub_id')}/resolve/main/model.safetensors anywhere and name it as `weights`"
            ) from error
        self.num_features = count_features(self.network, (channels, *image_size), arch)
        if named:
            self.mean, self.std = about("mean"), about("std")
        if weights is not None and not named:
            state = read_state_dict(weights)
            last = about("classifier") or ()
            for key in list(state):
                if key.rpartition(".")[0] in ((last,) if isinstance(last, str) else last):
                    del state[key]
            load_weights(self.network, state, f"{arch} in {weights}")
        self.head = build_head(head, self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of images ``[B, C, H, W]``."""
        features: Tensor = self.network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)
        return features
