"""Writes a small CIFAR-10 or CIFAR-100 in its native format of pickled batches."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _images(targets: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Return noise with a bright bar at the position of the class, [N, 3072]."""
    images = np.random.default_rng(seed).integers(0, 60, (len(targets), 3, 32, 32), dtype=np.uint8)
    for image, target in zip(images, targets, strict=True):
        image[target % 3, 3 * (target % 10) : 3 * (target % 10) + 3] += np.uint8(100 + 90 * target / classes)
    return images.reshape(len(targets), 3072)


def _write(path: Path, targets: np.ndarray, classes: int, key: str, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"data": _images(targets, classes, seed), key: targets.tolist(), "batch_label": path.name}
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(root: Path, train_per_class: int = 50, test_per_class: int = 10) -> Path:
    """Write ``root/cifar-10-batches-py``: five training batches, a test batch, the names."""
    folder = root / "cifar-10-batches-py"
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(10), train_per_class))
    for i, part in enumerate(np.array_split(targets, 5), start=1):
        _write(folder / f"data_batch_{i}", part, 10, "labels", seed=i)
    _write(folder / "test_batch", np.repeat(np.arange(10), test_per_class), 10, "labels", seed=6)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}, protocol=2))
    return root


def write_cifar100(root: Path, train_per_class: int = 5, test_per_class: int = 2) -> Path:
    """Write ``root/cifar-100-python``: a training file, a test file, the names."""
    folder = root / "cifar-100-python"
    _write(folder / "train", np.repeat(np.arange(100), train_per_class), 100, "fine_labels", seed=1)
    _write(folder / "test", np.repeat(np.arange(100), test_per_class), 100, "fine_labels", seed=2)
    names = {"fine_label_names": [f"kind {c}" for c in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def sums(kind: type[CIFAR10], root: Path) -> dict[str, Any]:
    """Return the attributes with the checksums of these files, which replace torchvision's published ones."""

    def summed(name: str) -> list[str]:
        return [name, calculate_md5(root / kind.base_folder / name)]

    return {
        "train_list": [summed(name) for name, _ in kind.train_list],
        "test_list": [summed(name) for name, _ in kind.test_list],
        "meta": kind.meta | {"md5": summed(kind.meta["filename"])[1]},
    }
