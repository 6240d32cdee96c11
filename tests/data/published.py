"""Small data sets with their checksums, which torchvision verifies as usual."""

from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100, STL10, Flowers102
from torchvision.datasets.utils import calculate_md5

from tests.data.cifar import sums, write_cifar10, write_cifar100
from tests.data.photographs import write_flowers102, write_stl10


def cifar10(root: Path, patch: Callable) -> None:
    """Write CIFAR-10; ``patch(object, name, value)`` replaces the published checksums."""
    write_cifar10(root)
    for name, value in sums(CIFAR10, root).items():
        patch(CIFAR10, name, value)


def cifar100(root: Path, patch: Callable) -> None:
    """Write CIFAR-100."""
    write_cifar100(root)
    for name, value in sums(CIFAR100, root).items():
        patch(CIFAR100, name, value)


def stl10(root: Path, patch: Callable) -> None:
    """Write STL-10."""
    write_stl10(root)
    for name in ("train_list", "test_list"):
        patch(STL10, name, [[file, calculate_md5(root / "stl10_binary" / file)] for file, _ in getattr(STL10, name)])


def flowers102(root: Path, patch: Callable) -> None:
    """Write Flowers102."""
    folder = write_flowers102(root) / "flowers-102"
    kept = {
        kind: (name, calculate_md5(folder / name))
        for kind, (name, _) in Flowers102._file_dict.items()
        if (folder / name).is_file()
    }
    patch(Flowers102, "_file_dict", Flowers102._file_dict | kept)
