"""Benchmarks on a GPU: stacked trainings, SCoR's share of a step, ResNet-50, CIFAR-10-LT.

    python -m tests.benchmarks.gpu --prepare data/gpu              # once, with the data: SCOR_TEST_DATA=...
    python -m tests.benchmarks.gpu --data data/gpu --output gpu.json

The second command requires no connection and takes under nine minutes; besides the repository it reads only the folder
that the first one fills (28 MB, ignored by git). The JSON file is written after each part, so an interrupted run keeps its
results. ``--small`` runs the same code on a CPU in half a minute, without data.

1. ``stacked``: 4,000 trainings of the paper's network by `compare`, four losses on MNIST with one class reduced to 5 %.
2. ``share``: milliseconds of SCoR's penalty, forward and backward, against a step of ResNet-50, at 1,000 and 21,841 classes.
3. ``resnet50``: images per second of ImageNet's ResNet-50 by the Trainer, with and without SCoR, and by the loop of the plain
   PyTorch example, all on images in device memory.
4. ``cifar``: milliseconds per step of CIFAR-10-LT by `scor-fit`: eager and compiled with CUDA graphs, one
   run and four at once.
"""

import argparse
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.benchmark import Timer
from torchvision.models import resnet18, resnet50

from scor_lightning import ImageClassifier
from scor_lightning.comparison import Training, compare
from scor_lightning.datamodules import (
    DigitsDataModule,
    ImageDataModule,
    ImagesInMemory,
    MNISTDataModule,
    ReduceClasses,
)
from scor_lightning.functional import scor_penalty
from scor_lightning.losses import FocalLoss, SCoRLoss
from scor_lightning.models import MLP, TorchvisionBackbone
from tests.benchmarks.cifar10_data import CIFAR10_LT, COPY, unpack_copy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SETTINGS = {
    "32-true": torch.preserve_format,
    "bf16-mixed": torch.channels_last,
}  # memory formats of ResNet-50, by precision


class StepClock(Callback):
    """Measures the time of training steps after the first ones.

    Args:
        skip: Number of steps that are not counted: compilation, warm-up.
        file: File for ``[milliseconds per step, bytes of GPU memory]``; None writes nothing.
    """

    def __init__(self, skip: int = 20, file: str | None = None) -> None:
        self.skip = skip
        self.file = file
        self.milliseconds = float("nan")

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.skip:
            synchronize()
            self.started = time.perf_counter()

    def on_train_end(self, trainer, *_):
        synchronize()
        self.milliseconds = 1e3 * (time.perf_counter() - self.started) / (trainer.global_step - self.skip)
        if self.file is not None:
            Path(self.file).write_text(json.dumps([self.milliseconds, peak_memory()]))


class Noise(ImageDataModule):
    """Random images in memory, of ImageNet's size."""

    num_classes = 1000
    class_names = tuple(map(str, range(1000)))
    in_channels = 3

    def __init__(self, count: int = 2000, side: int = 224, **kwargs: Any) -> None:
        self.native_size = (side, side)
        self.count = count
        super().__init__(**kwargs)

    def load(self, split):
        if split == "val":
            return None
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(256, (self.count, 3, *self.native_size), dtype=torch.uint8, generator=draw)
        return ImagesInMemory(images, torch.arange(self.count) % 1000)


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> int:
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0


def prepare(source: Path, folder: Path) -> None:
    """Copy the data of the benchmark, compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COPY).write_bytes((source / COPY).read_bytes())
    with tarfile.open(folder / "mnist.tar.xz", "w:xz", preset=6) as tar:
        tar.add(source / "MNIST" / "raw", "MNIST/raw")
    print(f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.0f} MB in {folder}")


def unpack(source: Path, folder: Path) -> None:
    """Unpack the data that :func:`prepare` copied."""
    with lzma.open(source / "mnist.tar.xz") as file, tarfile.open(fileobj=file) as tar:
        tar.extractall(folder, filter="data")
    unpack_copy(source, folder)


def stacked(data: Path, small: bool) -> dict[str, Any]:
    """Train four losses on many repeats."""
    methods = {
        "cross_entropy": {},
        "label_smoothing": {"loss": partial(nn.CrossEntropyLoss, label_smoothing=0.1)},
        "focal": {"loss": FocalLoss},
        "scor": {"loss": SCoRLoss},
    }
    options = {"evaluation": "holdout", "val_fraction": 0.0, "imbalance": ReduceClasses(factor=0.05)}
    images = DigitsDataModule(**options) if small else MNISTDataModule(str(data), **options)
    repeats, epochs = (4, 1) if small else (1000, 5)
    training = Training(images, MLP, nn.CrossEntropyLoss, epochs, partial(torch.optim.Adam, fused=True))
    started = time.perf_counter()
    rows = compare(training, methods, repeats, engine="stacked")
    seconds = time.perf_counter() - started
    accuracy = {name: float(np.mean([row["accuracy"] for row in rows if row["method"] == name])) for name in methods}
    return {
        "trainings": len(rows),
        "seconds": seconds,
        "an_hour": 3600 * len(rows) / seconds,
        "accuracy": accuracy,
        "bytes": peak_memory(),
    }


def share(data: Path, small: bool) -> dict[str, Any]:
    """Time the penalty and the step of a network."""
    found = {}
    batch, side, arch = (8, 32, resnet18) if small else (256, 224, resnet50)
    for classes in (1000, 21_841):
        network = arch(num_classes=classes).to(DEVICE, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        images = torch.rand(batch, 3, side, side, device=DEVICE).to(memory_format=torch.channels_last)
        target = torch.randint(classes, (batch,), device=DEVICE)
        logits = torch.randn(batch, classes, device=DEVICE, requires_grad=True)

        def step(network=network, optimizer=optimizer, images=images, target=target) -> None:
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(network(images), target)
            loss.backward()
            optimizer.step()

        def penalty(logits=logits) -> None:
            scor_penalty(logits).backward()

        whole, own = (1e3 * Timer("f()", globals={"f": f}).blocked_autorange().median for f in (step, penalty))
        found[str(classes)] = {"step_ms": whole, "scor_ms": own, "share": own / whole}
    return found


def plain_example(precision: str, batch: int, side: int, steps: int, small: bool) -> float:
    """Return the images per second of the loop of the PyTorch example, on images in device memory."""
    layout = SETTINGS[precision]
    network = (resnet18 if small else resnet50)().to(DEVICE, memory_format=layout).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.rand(batch, 3, side, side, device=DEVICE).to(memory_format=layout)
    target = torch.randint(1000, (batch,), device=DEVICE)
    for step in range(2 * steps):
        if step == steps:
            synchronize()
            started = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = nn.functional.cross_entropy(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    synchronize()
    return steps * batch / (time.perf_counter() - started)


def imagenet(data: Path, small: bool) -> dict[str, Any]:
    """Train ImageNet's ResNet on noise, alternating the plain loop, and cross entropy and SCoR with the Trainer."""
    batch, side, steps, arch = (4, 32, 2, "resnet18") if small else (256, 224, 40, "resnet50")
    images = Noise(max(2000, 5 * batch), side, batch_size=batch, val_fraction=0)
    found: dict[str, Any] = {}
    for precision, layout in SETTINGS.items():
        results = {"plain": plain_example(precision, batch, side, steps, small)}
        for name, loss in (("cross_entropy", nn.CrossEntropyLoss()), ("scor", SCoRLoss())):
            clock = StepClock(skip=steps)
            model = ImageClassifier(
                TorchvisionBackbone(num_classes=1000, arch=arch),
                loss,
                partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
                channels_last=layout == torch.channels_last,
            )
            trainer = Trainer(
                max_steps=2 * steps,
                precision=precision,
                devices=1,
                accelerator=DEVICE.type,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[clock],
            )
            trainer.fit(model, datamodule=images)
            results[name] = 1e3 * batch / clock.milliseconds
        found[precision] = results
    return found


def slices(data: Path, folder: Path, steps: int, count: int, environment: dict[str, str], *options: str) -> list[Any]:
    """Start some runs of CIFAR-10-LT at once; return the milliseconds per step and the bytes of each."""
    processes = []
    for i in range(count):
        run = folder / str(i)
        run.mkdir(parents=True)
        command = f"""fit --config cifar10lt_scor.yaml {CIFAR10_LT} --data.root {data}
            --trainer.max_steps {steps} --trainer.limit_test_batches 1 --trainer.enable_progress_bar false
            --trainer.default_root_dir {run} --trainer.callbacks [] --seed_everything {i}
            --trainer.callbacks+ tests.benchmarks.gpu.StepClock --trainer.callbacks.skip {steps // 2}
            --trainer.callbacks.file {run / "time.json"}"""
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "scor_lightning", *command.split(), *options],
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
            )
        )
    if any([process.wait() for process in processes]):  # noqa: C419  # waits for all
        raise RuntimeError("scor-fit failed; see its output above")
    return [json.loads((folder / str(i) / "time.json").read_text()) for i in range(count)]


def cifar(data: Path, small: bool) -> dict[str, Any]:
    """Time slices of 300 steps of CIFAR-10-LT."""
    steps = 4 if small else 300
    compiled = ("--model.compile", "true")
    ways: dict[str, tuple[Any, ...]] = {"eager": (1, {})}
    if not small:
        ways["eager, four at once"] = (4, {})
        graphs = {"TORCHINDUCTOR_CUDAGRAPHS": "1"}
        ways["compiled with CUDA graphs"] = (1, graphs, *compiled)
        ways["compiled with CUDA graphs, four at once"] = (4, graphs, *compiled)
    found = {}
    for name, (count, environment, *options) in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            results = slices(data, Path(folder), steps, count, environment, *options)
            found[name] = {
                "step_ms": [milliseconds for milliseconds, _ in results],
                "bytes": [size for _, size in results],
                "seconds": time.perf_counter() - started,
            }
            print(name, found[name], flush=True)
    return found


PARTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "share": share,
    "resnet50": imagenet,
    "cifar": cifar,
    "stacked": stacked,
}


def main() -> None:
    """Run the parts and write their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="only fill the folder")
    parser.add_argument("--data", type=Path, default=Path("data/gpu"), help="the folder of --prepare")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="a small scale, without data")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    if given.prepare is not None:
        prepare(Path(os.environ["SCOR_TEST_DATA"]).resolve(), given.prepare)
        return
    results: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU",
        "date": time.strftime("%Y-%m-%d"),
        "small": given.small,
        "versions": {name: version(name) for name in ("torch", "torchvision", "lightning")},
    }
    with tempfile.TemporaryDirectory() as folder:
        if not given.small:
            unpack(given.data, Path(folder))
        for name in given.parts:
            started = time.perf_counter()
            try:
                results[name] = PARTS[name](Path(folder), given.small)
            except Exception as error:  # noqa: BLE001  # the other parts are still measured
                results[name] = {"error": f"{type(error).__name__}: {error}"}
            results[name]["part_seconds"] = time.perf_counter() - started
            given.output.write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps(results[name], indent=1), flush=True)
    sys.exit(any("error" in results[name] for name in given.parts))


if __name__ == "__main__":
    main()
