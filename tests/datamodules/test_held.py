"""Image files that are decoded once and held in memory."""

import json
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torchvision.transforms import v2

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import ImageFolderDataModule, decode
from scor_lightning.datamodules.decode import read_image
from scor_lightning.mixing import Mixup
from scor_lightning.models import MLP
from scor_lightning.second_stage import SecondStage
from tests.data.photographs import write_folders

SIZES = {"ant": 20, "bee": 10, "cat": 5}


class Collector(LightningModule):
    """Trains nothing, and keeps its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[torch.Tensor] = []
        self.automatic_optimization = False

    def training_step(self, batch, _):
        self.batches.append(batch[0].clone())

    def validation_step(self, batch, _):
        self.batches.append(batch[0].clone())

    test_step = validation_step

    def configure_optimizers(self):
        return None


@pytest.fixture
def reads(monkeypatch):
    """Count how often each image is decoded."""
    counts: Counter[str] = Counter()

    def read(path):
        counts[str(path)] += 1
        return read_image(path)

    monkeypatch.setattr(decode, "read_image", read)
    return counts


def run(root, epochs=3, share=0.25, **options):
    data = ImageFolderDataModule(str(root), **({"resolution": 16, "num_workers": 0, "batch_size": 8} | options))
    data.memory_share = share
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    collector = Collector()
    trainer.fit(collector, data)
    trainer.test(collector, data, verbose=False)
    return collector.batches


def test_a_split_that_is_saved_after_training_names_the_files(tmp_path):
    data = ImageFolderDataModule(str(write_folders(tmp_path / "images", SIZES)), resolution=16, num_workers=0)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(Collector(), data)
    data.save_split(tmp_path / "split.json")
    assert len(json.loads((tmp_path / "split.json").read_text())["files"]["train"]) == 35


def test_a_copy_with_another_seed_names_the_files_in_its_split(tmp_path):
    data = ImageFolderDataModule(str(write_folders(tmp_path / "images", SIZES)), resolution=16).with_seed(1)
    data.setup()
    data.save_split(tmp_path / "split.json")
    assert len(json.loads((tmp_path / "split.json").read_text())["files"]["train"]) == 35


@pytest.mark.parametrize("follow", [True, False])
def test_nothing_is_held_if_features_follow(tmp_path, follow, capsys):
    steps = [v2.Resize((16, 16)), v2.ToDtype(torch.float32)]
    data = ImageFolderDataModule(
        str(write_folders(tmp_path, SIZES)), eval_transforms=steps, augment=False, num_workers=0
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    collector = Collector()
    collector.can_train_on_features = follow
    trainer.fit(collector, data)
    assert ("held in memory" in capsys.readouterr().out) == (not follow)


@pytest.mark.parametrize("mixing", [None, Mixup()])
def test_images_for_a_frozen_body_are_held_if_they_are_mixed(tmp_path, mixing, capsys):
    data = ImageFolderDataModule(
        str(write_folders(tmp_path / "images", SIZES)), resolution=16, augment=False, cache=str(tmp_path / "cache")
    )
    fit_frozen(data, mixing)
    assert ("held in memory" in capsys.readouterr().out) == (mixing is not None)


def fit_frozen(data, mixing):
    network = MLP(num_classes=data.num_classes, in_channels=3, image_size=(16, 16), hidden=[8])
    model = ImageClassifier(network, torch.nn.CrossEntropyLoss(), frozen_body=True, mixing=mixing)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=2, **quiet).fit(model, data)


def test_a_broken_image_for_a_frozen_body_with_mixing_is_named_before_training(tmp_path):
    for name in ("train", "val"):
        write_folders(tmp_path / name, {"ant": 4, "bee": 4})
    path = max((tmp_path / "val").rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-200])
    data = ImageFolderDataModule(str(tmp_path), resolution=16, augment=False, cache=str(tmp_path / "cache"))
    data.memory_share = 0.0
    with pytest.raises(ValueError, match=f"Expected val images that can be read but 1 of 8 cannot.*{path.name}"):
        fit_frozen(data, Mixup())


def test_features_suffice_in_a_second_stage_without_mixing():
    network = MLP(num_classes=3, in_channels=3, image_size=(16, 16), hidden=[8])
    stage = SecondStage(max_epochs=1)
    model = ImageClassifier(network, torch.nn.CrossEntropyLoss(), frozen_body=True, mixing=Mixup(), second_stage=stage)
    assert not model.can_train_on_features
    model.begin_second_stage(1)
    assert model.can_train_on_features


def test_images_that_fit_are_decoded_once_to_the_same_pixels(tmp_path, reads, capsys):
    root = write_folders(tmp_path, SIZES)
    held = run(root)
    assert set(reads.values()) == {1}
    assert len(reads) == 35
    assert "The images are decoded once and held in memory: 0 MB" in capsys.readouterr().out
    reads.clear()
    decoded = run(root, share=0.0)
    assert max(reads.values()) > 1
    assert "held in memory" not in capsys.readouterr().out
    assert len(held) == len(decoded)
    assert all(torch.equal(a, b) for a, b in zip(held, decoded, strict=True))


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"train_transforms": [v2.RandomResizedCrop(16)]}, 3),  # which cuts out of the whole image
        ({"eval_transforms": [v2.Resize((16, 16)), v2.ToDtype(torch.float32)], "augment": False}, 1),
        ({}, 1),  # there is nothing to gain
    ],
)
def test_images_stay_files_where_transforms_need_them_or_one_epoch_reads_them(tmp_path, reads, capsys, options, epochs):
    run(write_folders(tmp_path, SIZES), epochs, **options)
    assert "held in memory" not in capsys.readouterr().out
    assert len(reads) == 35


def test_the_steps_that_both_transforms_share_are_done_in_advance(tmp_path, reads):
    shared = [v2.Resize(20), v2.CenterCrop(16)]
    options = {
        "train_transforms": [*shared, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32)],
        "eval_transforms": [v2.Resize(20), v2.CenterCrop(16), v2.ToDtype(torch.float32)],
    }
    root = write_folders(tmp_path, SIZES)
    held = run(root, **options)
    assert set(reads.values()) == {1}
    assert all(torch.equal(a, b) for a, b in zip(held, run(root, share=0.0, **options), strict=True))
    assert held[0].dtype == torch.float32


def test_an_image_that_cannot_be_read_is_named_before_the_first_step(tmp_path):
    root = write_folders(tmp_path, SIZES)
    (root / "cat" / "cat_0005.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cat_0005\.jpg.*cannot be read"):
        run(root)


@pytest.mark.parametrize("broken", ["val", "test"])
def test_a_broken_evaluation_image_is_named_before_a_training_on_files(tmp_path, broken):
    for name in ("train", "val", "test"):
        write_folders(tmp_path / name, {"ant": 4, "bee": 4})
    path = max((tmp_path / broken).rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=f"Expected {broken} images that can be read but 1 of 8 cannot.*{path.name}.*skip"
    ):
        run(tmp_path, share=0.0)
    run(tmp_path, share=0.0, unreadable="skip")


@pytest.mark.parametrize(
    ("train", "evaluation", "message"),
    [
        ([v2.Resize((8, 8)), v2.ToDtype(torch.float32, scale=True)], [v2.Resize((8, 8))], "one type but got float32"),
        (
            [v2.Resize((8, 8)), v2.ToDtype(torch.float32)],
            [v2.Resize((8, 8)), v2.ToDtype(torch.float32, scale=True)],
            "one range but the largest value is",
        ),
    ],
)
def test_images_prepared_in_two_types_or_ranges_are_refused(tmp_path, train, evaluation, message):
    write_folders(tmp_path, {"ant": 10, "bee": 10})
    with pytest.raises(ValueError, match=message):
        run(tmp_path, train_transforms=train, eval_transforms=evaluation)
