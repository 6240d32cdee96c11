"""Features of a frozen body, and the comparison of heads on them, on two cores.

    python -m tests.benchmarks.features [--images 2600] [--repeats 100]

A folder of JPEG images of 300 x 300 in four classes, MobileNetV3-Large with random weights from a file. Exits with 1 if
features are computed at less than 85 % of the speed of the bare forward pass over decoded batches in the same memory format, or
`compare/image_folder.yaml` takes more than 3 minutes or 3 GiB with computed features.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scor_lightning.datamodules import ImageFolderDataModule
from scor_lightning.features import use_features
from scor_lightning.models import TorchvisionBackbone

SHARES = {"intact": 0.575, "slight": 0.11, "probable": 0.04, "defect": 0.275}
ARCH = "mobilenet_v3_large"


def write_images(folder: Path, count: int) -> None:
    """Write smooth noise, which decodes as fast as photographs."""
    draw = np.random.default_rng(0)
    for name, share in SHARES.items():
        (folder / name).mkdir(parents=True)
        for i in range(round(share * count)):
            small = draw.integers(256, size=(20, 20, 3), dtype=np.uint8)
            Image.fromarray(small).resize((300, 300), Image.Resampling.BICUBIC).save(folder / name / f"{i:05d}.jpg")


def speeds(data: ImageFolderDataModule, network: TorchvisionBackbone) -> tuple[float, float]:
    """Return the images per second of computing the features, and of the bare forward pass.

    Every forward pass is done twice, and the second one is timed, so that both speeds are measured in the same minute: the
    speed of a shared machine may change by a third within a minute.
    """
    forward, again = network.forward_features, []

    def twice(images: torch.Tensor) -> torch.Tensor:
        features = forward(images)
        began = time.perf_counter()
        forward(images)
        again.append((len(images), time.perf_counter() - began))
        return features

    network.forward_features = twice  # type: ignore[method-assign]
    began = time.perf_counter()
    use_features(data, network, torch.device("cpu"))
    seconds = time.perf_counter() - began - sum(taken for _, taken in again)
    network.forward_features = forward  # type: ignore[method-assign]
    images = len(data.source("train")[0].targets)
    bare = 0.0
    while images > 0:  # the first ones belong to the trial of a memory format
        count, taken = again.pop()
        images, bare = images - count, bare + taken
    assert images == 0
    total = len(data.source("train")[0].targets)
    return total / seconds, total / bare


def main() -> None:
    """Measure; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2600)
    parser.add_argument("--repeats", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        write_images(Path("photographs"), given.images)
        torch.manual_seed(0)
        network = TorchvisionBackbone(4, arch=ARCH)
        torch.save(network.network.state_dict(), "weights.pt")
        data = ImageFolderDataModule("photographs", augment=False, cache="cache", batch_size=64)
        data.setup()
        speed, bare = speeds(data, network)
        print(f"features: {speed:.1f} images/s, bare forward {bare:.1f}: {speed / bare:.2f}", flush=True)
        options = "--data.root photographs --data.cache cache --model.backbone.weights weights.pt --output out"
        command = [sys.executable, "-m", "scor_lightning", "compare", "--config", "compare/image_folder.yaml"]
        began = time.perf_counter()
        subprocess.run(
            [*command, "--repeats", str(given.repeats), *options.split()], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - began
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"11 methods x {given.repeats} repeats x 50 epochs: {seconds:.0f} s, {memory:.2f} GiB, report included")
        os.chdir("/")
    sys.exit(speed < 0.85 * bare or seconds > 180 or memory > 3)


if __name__ == "__main__":
    main()
