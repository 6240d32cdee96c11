"""Writes small photographs and the data sets that are made of them, in their native formats."""

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def photograph(path: Path, c: int, seed: int = 0, size: tuple[int, int] = (40, 48)) -> None:
    """Write a noisy picture whose colour depends on its class; the sizes differ slightly, like those of photographs."""
    generator = np.random.default_rng((c, seed))
    height, width = size[0] + seed % 3, size[1] - seed % 5
    colour = 60 + 140 * np.array([(c >> bit & 1) for bit in range(3)]) + 10 * (c >> 3)
    pixels = colour + generator.integers(-30, 30, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_folders(root: Path, sizes: dict[str, int], suffix: str = ".jpg") -> Path:
    """Write one folder per class with the given number of photographs."""
    for c, (name, size) in enumerate(sizes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(size):
            photograph(root / name / f"{name}_{i + 1:04d}{suffix}", c, i)
    return root


def write_flowers102(root: Path, per_class: tuple[int, int, int] = (2, 1, 1)) -> Path:
    """Write ``root/flowers-102``: numbered photographs, their labels and the three sets as MATLAB files."""
    folder = root / "flowers-102"
    labels = np.concatenate([np.repeat(np.arange(102), n) for n in per_class])
    for i, c in enumerate(labels.tolist(), start=1):
        photograph(folder / "jpg" / f"image_{i:05d}.jpg", c, i)
    ends = np.cumsum([0, *(102 * n for n in per_class)])
    sets = {name: np.arange(ends[k] + 1, ends[k + 1] + 1) for k, name in enumerate(("trnid", "valid", "tstid"))}
    savemat(folder / "imagelabels.mat", {"labels": labels + 1})
    savemat(folder / "setid.mat", sets)
    return root


def write_oxford_pets(root: Path, train_per_class: int = 4, test_per_class: int = 1) -> Path:
    """Write ``root/oxford-iiit-pet``: photographs named after their breed, and the lists of the sets."""
    folder = root / "oxford-iiit-pet"
    for name, first, per_class in (("trainval", 1, train_per_class), ("test", 101, test_per_class)):
        lines = []
        for c in range(37):
            for i in range(first, first + per_class):
                image = f"breed_{c:02d}_{i}"
                photograph(folder / "images" / f"{image}.jpg", c, i)
                lines.append(f"{image} {c + 1} {1 + c % 2} {c // 2 + 1}")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_dtd(root: Path, per_class: int = 2) -> Path:
    """Write ``root/dtd/dtd``: one folder per texture, and the lists of the ten partitions."""
    folder = root / "dtd" / "dtd"
    names = [f"texture{c:02d}" for c in range(47)]
    for c, name in enumerate(names):
        for i in range(3 * per_class):
            photograph(folder / "images" / name / f"{name}_{i:04d}.jpg", c, i)
    (folder / "labels").mkdir()
    for partition in range(1, 11):
        for k, split in enumerate(("train", "val", "test")):
            # Each partition has other images than the previous one.
            numbers = [(k * per_class + i + partition) % (3 * per_class) for i in range(per_class)]
            lines = [f"{name}/{name}_{i:04d}.jpg" for name in names for i in numbers]
            (folder / "labels" / f"{split}{partition}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_stl10(root: Path, train_per_class: int = 6, test_per_class: int = 2) -> Path:
    """Write ``root/stl10_binary``: images column by column, labels from 1, the names and the folds."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, per_class in (("train", train_per_class), ("test", test_per_class)):
        labels = np.repeat(np.arange(1, 11, dtype=np.uint8), per_class)
        images = np.random.default_rng(0).integers(0, 60, (len(labels), 3, 96, 96), dtype=np.uint8)
        images += (labels * 15)[:, None, None, None]
        images.tofile(folder / f"{name}_X.bin")
        labels.tofile(folder / f"{name}_y.bin")
    (folder / "unlabeled_X.bin").write_bytes(b"")
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    (folder / "fold_indices.txt").write_text("0\n")
    return root


def pack(folder: Path, archive: Path) -> Path:
    """Pack a folder as an archive that unpacks to it."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive
