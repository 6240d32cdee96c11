"""Frozen bodies in a comparison: their features are computed once, and the heads are trained on them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from scor_lightning.comparison.plan import Training
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.features import FeatureHead, body_key, use_features
from scor_lightning.parts import check_parts
from scor_lightning.seeding import seeded


@dataclass(frozen=True)
class _Heads:
    """Builds the heads of a network with a frozen body."""

    backbone: Callable[..., nn.Module]
    template: nn.Module = field(compare=False, repr=False)
    num_features: int
    body: str

    def __call__(self, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> FeatureHead:
        return FeatureHead(copy.deepcopy(self.template), self.num_features, num_classes, self.body)


def on_features(
    trainings: Mapping[str, Training], device: Callable[[Training], torch.device]
) -> tuple[dict[str, Training], list[str]]:
    """Replace the trainings of frozen bodies by those of their heads on features.

    A body with random weights, which differ between repeats, is left unchanged, as are trainings that augment or mix images.

    Args:
        trainings: Trainings by name.
        device: Returns the device of a training.

    Returns:
        The trainings by name, and the names of those whose frozen body has random weights.

    Raises:
        ValueError: If a network has no body and head, or a feature is not finite.
    """
    known: dict[tuple[int, str], ImageDataModule] = {}
    replaced, random = dict(trainings), []
    for name, training in trainings.items():
        if training.classifier.get("frozen_body"):
            networks, data = _built(training)
            if body_key(networks[0]) != body_key(networks[1]):
                random.append(name)
            elif not _mixes(training):
                replaced[name] = _on_features(training, networks[0], data, device(training), known)
    return replaced, random


def _mixes(training: Training) -> bool:
    stage = training.classifier.get("second_stage")
    return training.classifier.get("mixing") is not None or (stage is not None and stage.build().mixing is not None)


def _built(training: Training) -> tuple[list[nn.Module], ImageDataModule]:
    """Build the network of a training with two seeds, and its data."""
    training.data.prepare_data()
    data = training.data.with_seed(training.data.seed)
    data.setup()
    built = []
    for seed in (training.seed, training.seed + 1):
        with seeded(seed):
            backbone = training.backbone(
                num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size
            )
        check_parts(backbone, "`frozen_body`")
        built.append(backbone)
    return built, data


def _on_features(
    training: Training,
    network: nn.Module,
    data: ImageDataModule,
    device: torch.device,
    known: dict[tuple[int, str], ImageDataModule],
) -> Training:
    key = body_key(network)
    place = (id(training.data), key)
    if place not in known:
        if not use_features(data, network, device, str(training.trainer.get("precision", "32-true"))):
            return training
        known[place] = copy.copy(training.data)
        known[place].use_features(data.features, data.features_computed)
    size = known[place].num_features(data.sources()[0])
    heads = _Heads(training.backbone, network.get_submodule("head"), size, key[:16])
    left_out = ("frozen_body", "channels_last", "compile")
    classifier = {option: value for option, value in training.classifier.items() if option not in left_out}
    return replace(training, data=known[place], backbone=heads, classifier=classifier)
