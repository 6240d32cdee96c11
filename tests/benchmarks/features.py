"""Features of a frozen body, and the comparison of heads on them, on two cores.

    python -m tests.benchmarks.features [--images 2600] [--repeats 100]

A folder of JPEG images of 300 x 300 in four classes, MobileNetV3-Large with random weights from a file. Exits with 1 where
features are computed at less than 85 % of the speed of the bare forward pass over decoded batches in the same memory format, or
`compare/image_folder.yaml` takes more than 3 minutes or 3 GiB once they are there.
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
from scor_lightning.datamodules.folder_index import read_cache
from scor_lightning.features import use_features
from scor_lightning.functional.images import normalize_bytes
from scor_lightning.models import TorchvisionBackbone

SHARES = {"intact": 0.575, "slight": 0.11, "probable": 0.04, "defect": 0.275}
ARCH = "mobilenet_v3_large"


def write_images(folder: Path, count: int) -> None:
    """Write smooth noise, which decodes as photographs do."""
    draw = np.random.default_rng(0)
    for name, share in SHARES.items():
        (folder / name).mkdir(parents=True)
        for i in range(round(share * count)):
            small = draw.integers(256, size=(20, 20, 3), dtype=np.uint8)
            Image.fromarray(small).resize((300, 300), Image.Resampling.BICUBIC).save(folder / name / f"{i:05d}.jpg")


@torch.no_grad()
def bare_forward(data: ImageFolderDataModule, network: TorchvisionBackbone, images: int) -> float:
    """Return images a second of the forward pass over decoded batches, in the faster of both memory formats."""
    _, loader = data.source("train")
    batches = [
        batch for batch, _ in zip((batch for batch, _ in loader), range(images // data.batch_size), strict=False)
    ]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    best = 0.0
    for layout in (torch.contiguous_format, torch.channels_last):
        network.eval().to(memory_format=layout)
        prepared = [normalize_bytes(batch, mean, std).contiguous(memory_format=layout) for batch in batches]
        network.forward_features(prepared[0])
        began = time.perf_counter()
        for batch in prepared:
            network.forward_features(batch)
        best = max(best, sum(map(len, prepared)) / (time.perf_counter() - began))
    network.to(memory_format=torch.contiguous_format)
    return best


def main() -> None:
    """Measure; exit with 1 where a target is missed."""
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
        bare = bare_forward(data, network, 640)
        began = time.perf_counter()
        use_features(data, network, torch.device("cpu"))
        speed = given.images / (time.perf_counter() - began)
        assert read_cache(data.features["train"]) is not None
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
