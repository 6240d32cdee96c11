"""`scor-compare` on a folder of small JPEG files: its defaults against all numbers of processes and loader workers.

    SCOR_TEST_DATA=... python -m tests.benchmarks.compare_folder [--rounds 1]

The folder has 1,800 JPEG files of CIFAR-10; two losses are compared over two repeats of a small convolutional network.
Each setting is the whole command, from the start of Python to the report.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import product
from pathlib import Path

OPTIONS = ["--config", "image_folder_scor.yaml", "--methods", "loss/cross_entropy.yaml", "loss/scor.yaml"]
OPTIONS += ["--repeats", "2", "--trainer.max_epochs", "3", "--model.backbone", "scor_lightning.models.ConvNet"]
OPTIONS += ["--data.evaluation", "holdout", "--data.resolution", "32"]


def make_folder(root: Path, per_class: int = 180) -> None:
    """Unpack the first JPEG files of each class."""
    taken: dict[str, int] = {}
    with tarfile.open(Path(os.environ["SCOR_TEST_DATA"]) / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            split, name, file = ("", "", *Path(member.name).parts)[-3:]
            if member.isfile() and split == "train" and taken.get(name, 0) < per_class:
                taken[name] = taken.get(name, 0) + 1
                content = archive.extractfile(member)
                assert content is not None
                (root / name).mkdir(parents=True, exist_ok=True)
                (root / name / file).write_bytes(content.read())


def seconds(root: Path, *options: str) -> float:
    """Return the seconds of the command with some options."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scor_lightning", "compare", *OPTIONS, "--data.root", str(root), *options]
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - started


def main() -> None:
    """Print the seconds of each setting; exit with 1 if the defaults take more than 1.2 times the best."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    settings = {"defaults": []}
    for processes, workers in product((1, 2), (0, 1, 2)):
        options = ["--processes", str(processes), "--data.num_workers", str(workers)]
        settings[f"{processes} processes, {workers} workers"] = options
    least = dict.fromkeys(settings, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder))
        for _ in range(given.rounds):
            for name, options in settings.items():
                least[name] = min(least[name], seconds(Path(folder), *options))
                print(f"{name}: {least[name]:.1f} s", flush=True)
    ratio = least["defaults"] / min(least.values())
    print(f"defaults / best: {ratio:.2f} (at most 1.2)")
    sys.exit(ratio > 1.2)


if __name__ == "__main__":
    main()
