"""The data sets of torchvision, read by torchvision from small files in their own formats."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100, DTD, STL10, FashionMNIST, Flowers102, OxfordIIITPet
from torchvision.datasets.utils import calculate_md5
from torchvision.transforms.v2.functional import pil_to_tensor

from scor_lightning.datamodules import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DTDDataModule,
    FashionMNISTDataModule,
    Flowers102DataModule,
    OxfordPetsDataModule,
    STL10DataModule,
    TorchvisionDataModule,
)
from tests.data.mnist import write_mnist
from tests.data.photographs import pack, write_dtd, write_oxford_pets
from tests.data.published import cifar10, cifar100, flowers102, stl10

# Data module, what writes its files, torchvision's own training and test set, images of each class and split.
SETS = {
    "fashion": (
        FashionMNISTDataModule,
        lambda root, patch: write_mnist(root, name="FashionMNIST"),
        (partial(FashionMNIST, train=True), partial(FashionMNIST, train=False)),
        (36, 4, 10),
    ),
    "cifar10": (
        CIFAR10DataModule,
        cifar10,
        (partial(CIFAR10, train=True), partial(CIFAR10, train=False)),
        (45, 5, 10),
    ),
    "cifar100": (
        partial(CIFAR100DataModule, val_fraction=0.2),
        cifar100,
        (partial(CIFAR100, train=True), partial(CIFAR100, train=False)),
        (4, 1, 2),
    ),
    "stl10": (
        partial(STL10DataModule, resolution=96),
        stl10,
        (partial(STL10, split="train"), partial(STL10, split="test")),
        (5, 1, 2),
    ),
    "flowers102": (
        Flowers102DataModule,
        flowers102,
        (partial(Flowers102, split="train"), partial(Flowers102, split="test")),
        (2, 1, 1),
    ),
    "pets": (
        partial(OxfordPetsDataModule, val_fraction=0.25),
        lambda root, patch: write_oxford_pets(root),
        (partial(OxfordIIITPet, split="trainval"), partial(OxfordIIITPet, split="test")),
        (3, 1, 1),
    ),
    "dtd": (
        partial(DTDDataModule, partition=7),
        lambda root, patch: write_dtd(root),
        (partial(DTD, split="train", partition=7), partial(DTD, split="test", partition=7)),
        (2, 2, 2),
    ),
}


@pytest.mark.parametrize(("module", "write", "own", "counts"), SETS.values(), ids=SETS)
def test_a_data_set_is_what_torchvision_reads(tmp_path, monkeypatch, module, write, own, counts):
    write(tmp_path, monkeypatch.setattr)
    data: TorchvisionDataModule = module(str(tmp_path), num_workers=0, batch_size=16)
    assert data.num_classes == len(data.class_names)
    data.prepare_data()
    data.setup()
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        images, index = data.split(split)
        assert torch.bincount(images.targets[index]).tolist() == [count] * data.num_classes
    for split, open_own in zip(("train", "test"), own, strict=True):
        theirs = open_own(str(tmp_path))
        images, _ = data.split(split)
        assert len(images.targets) == len(theirs)
        for i in range(0, len(theirs), max(len(theirs) // 7, 1)):
            image, target = theirs[i]
            (mine,), (its_target,) = images[torch.tensor([i])]
            assert int(its_target) == target
            # two builds of libjpeg may round differently
            assert (mine.int() - pil_to_tensor(image).int()).abs().max() <= 3
    assert list(data.class_names) == list(getattr(theirs, "classes", data.class_names))
    batch, targets = next(iter(data.train_dataloader()))
    assert (batch.dtype, batch.shape[1:]) == (torch.uint8, (data.in_channels, *data.image_size))
    assert (targets.dtype, len(targets)) == (torch.int64, 16)


@pytest.mark.parametrize(("module", "write", "own", "counts"), SETS.values(), ids=SETS)
def test_missing_data_are_refused_with_the_remedy(tmp_path, module, write, own, counts):
    data = module(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{data.title} was not found in .*--data.download true.*{data.place}"):
        data.prepare_data()


def test_a_damaged_file_is_not_read(tmp_path, monkeypatch):
    cifar10(tmp_path, monkeypatch.setattr)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    with pytest.raises(FileNotFoundError, match="CIFAR-10 was not found in"):
        CIFAR10DataModule(str(tmp_path)).prepare_data()


def test_each_partition_of_dtd_is_read(tmp_path):
    write_dtd(tmp_path)
    paths = []
    for partition in (1, 2, 10):
        data = DTDDataModule(str(tmp_path), partition=partition)
        data.setup()
        images, index = data.split("train")
        paths.append([images.path(i) for i in index.tolist()])
    assert paths[0] != paths[1]
    assert paths[1] != paths[2]
    with pytest.raises(ValueError, match=r"`partition` in 1..10 but got 11"):
        DTDDataModule(partition=11)


def test_the_papers_sizes_are_the_defaults():
    assert STL10DataModule().image_size == Flowers102DataModule().image_size == (224, 224)
    assert CIFAR10DataModule().image_size == (32, 32)
    assert CIFAR10DataModule(resolution=48).image_size == (48, 48)


def publish(server: tuple[Path, str], patch: Callable) -> None:
    """Serve a small CIFAR-10 at the address from which torchvision downloads it."""
    folder, address = server
    cifar10(folder, patch)
    archive = pack(folder / "cifar-10-batches-py", folder / CIFAR10.filename)
    patch(CIFAR10, "url", f"{address}/{archive.name}")
    patch(CIFAR10, "tgz_md5", calculate_md5(archive))


def test_data_are_downloaded_through_the_command(command, monkeypatch, server):
    publish(server, monkeypatch.setattr)
    line = "scor-fit --config cifar10_paper.yaml --model.backbone ConvNet --data.imbalance.factor 0.5"
    status, _, error = command(f"{line} --trainer.max_epochs 1 --data.download true --data.root there")
    assert status == 0, error
    assert Path("there/cifar-10-batches-py/data_batch_5").is_file()
    assert Path("runs/cifar10_paper/version_0/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize("damage", ["sum", "gone"])
def test_a_failed_download_is_reported(command, monkeypatch, server, damage):
    publish(server, monkeypatch.setattr)
    if damage == "sum":
        monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    else:
        (server[0] / CIFAR10.filename).unlink()
    status, _, error = command("scor-fit --config cifar10_paper.yaml --model.backbone ConvNet --data.download true")
    assert status != 0
    assert "Traceback" not in error
    assert "Could not download CIFAR-10 to 'data': " in error
