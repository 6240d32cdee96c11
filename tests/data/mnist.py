"""Writes a small MNIST in its native IDX format."""

import struct
from pathlib import Path

import numpy as np


def write_mnist(
    root: Path, train_per_class: int = 40, test_per_class: int = 10, label: int | None = None, name: str = "MNIST"
) -> Path:
    """Write ``root/<name>/raw`` with digits that are bright bars at the position of their class.

    ``label`` puts that value into the first training label, whatever class it should be.
    """
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, per_class in (("train", train_per_class), ("t10k", test_per_class)):
        targets = generator.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
        images = generator.integers(0, 60, (len(targets), 28, 28), dtype=np.uint8)
        for image, target in zip(images, targets, strict=True):
            image[2 * target : 2 * target + 4, 4:24] += 150
        if label is not None and split == "train":
            targets[0] = label
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(targets)) + targets.tobytes())
    return root
