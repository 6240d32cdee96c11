"""The data modules' pipelines against the reference package's, side by side in one run.

    SCOR_TEST_DATA=... python -m tests.benchmarks.input [--rounds 5]

1. 32 x 32 images in memory, crop and flip, one core: `CIFAR10DataModule` with the normalisation that the classifier
   does, against `scor.data.getUnbalancedCIFAR`. Both read the same generated images in CIFAR-10's own format.
2. JPEG files, RandomResizedCrop to 224 and flip, one worker: `ImageNetDataModule` against torchvision's ImageFolder with
   the transforms of the reference's imagenet.py, on 200 files of ImageNet, each read several times per epoch.
3. Opening a folder of 100,000 files for the second time against the first: `ImageFolderDataModule.setup`.

The two of a pair alternate and the ratio is that of the best times, because other programs on the machine slow down
both.
"""

import argparse
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from tests.data.cifar import sums, write_cifar10


def images_a_second(loader, count: int, after: Callable = lambda batch: batch) -> float:
    """Time the first `count` images of a loader, from its first batch on; return images per second."""
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    seen = 0
    for images, _ in batches:
        after(images)
        seen += len(images)
        if seen >= count:
            break
    return seen / (time.perf_counter() - started)


def in_turns(rounds: int, *sides: Callable[[], float]) -> list[float]:
    """Return the best result of each side."""
    figures = [[side() for side in sides] for _ in range(rounds)]
    return [max(column) for column in zip(*figures, strict=True)]


def cifar(rounds: int) -> None:
    """Crop and flip in memory."""
    from scor.data import getUnbalancedCIFAR

    from scor_lightning.datamodules import CIFAR10DataModule

    with tempfile.TemporaryDirectory() as folder:
        root = write_cifar10(Path(folder) / "data", train_per_class=1000, test_per_class=10)
        for name, value in sums(CIFAR10, root).items():
            setattr(CIFAR10, name, value)
        started = os.getcwd()
        os.chdir(folder)  # the reference reads ./data
        reference = getUnbalancedCIFAR(128)[0]
        os.chdir(started)
        data = CIFAR10DataModule(str(root), batch_size=128, val_fraction=0)
        data.setup()
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))

        def normalise(images):
            return images.float().mul_(1 / (255 * std)).add_(-mean / std)

        mine, theirs = in_turns(
            rounds,
            lambda: images_a_second(data.train_dataloader(), 9000, normalise),
            lambda: images_a_second(reference, 4000),
        )
    print(
        f"crop and flip, 32 x 32:  {mine:9,.0f} images/s, reference {theirs:7,.0f}: {mine / theirs:5.1f} x (at least 15)"
    )


def jpeg(rounds: int, sample: Path, workers: int = 1) -> tuple[float, float]:
    """Decode, crop and flip in worker processes; return the images per second of ours and of the reference."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from scor_lightning.datamodules import ImageNetDataModule

    with tempfile.TemporaryDirectory() as folder:
        # Five copies by hard links, so that an epoch is long enough to be measured.
        root = Path(folder)
        with tarfile.open(sample) as tar:
            tar.extractall(root / "sample", filter="data")
        for image in (root / "sample").rglob("*.JPEG"):
            for i in range(6):
                copy = root / ("val" if i == 5 else "train") / image.parent.name / f"{i}_{image.name}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.hardlink_to(image)
        normalize = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
        reference = DataLoader(
            ImageFolder(root / "train", transforms.Compose(steps)), batch_size=50, shuffle=True, num_workers=workers
        )
        data = ImageNetDataModule(str(root), batch_size=50, val_fraction=0, num_workers=workers)
        data.setup()
        mine, theirs = in_turns(
            rounds,
            lambda: images_a_second(data.train_dataloader(), 900),
            lambda: images_a_second(reference, 900),
        )
    return mine, theirs


def folder_of_files(rounds: int) -> None:
    """Open a folder of 100,000 files twice."""
    from scor_lightning.datamodules import ImageFolderDataModule

    firsts, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for c in range(100):
            (Path(folder) / "images" / f"class_{c:03d}").mkdir(parents=True)
            for i in range(1000):
                (Path(folder) / "images" / f"class_{c:03d}" / f"{i:05d}.jpg").touch()
        time.sleep(0.5)
        for i in range(rounds):
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache{i}"
            for times in (firsts, seconds):
                started = time.perf_counter()
                data = ImageFolderDataModule(f"{folder}/images")
                data.load("train")
                times.append(time.perf_counter() - started)
    first, second = min(firsts), min(seconds)
    print(
        f"100,000 files:           first {first * 1e3:6.1f} ms, second {second * 1e3:6.1f} ms: {second / first:5.3f} (at most 0.1)"
    )


def main() -> None:
    """Print the three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cifar(rounds)
    mine, theirs = jpeg(rounds, Path(os.environ["SCOR_TEST_DATA"]).resolve() / "imagenet-sample.tar")
    print(
        f"JPEG to 224 x 224:       {mine:9,.0f} images/s, reference {theirs:7,.0f}: {mine / theirs:5.2f} x (at least 1.6)"
    )
    folder_of_files(rounds)


if __name__ == "__main__":
    main()
