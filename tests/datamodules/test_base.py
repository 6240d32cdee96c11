import subprocess
import sys

import pytest
import torch

from scor_lightning.datamodules import DigitsDataModule, ImageDataModule, ImagesInMemory, LongTail, ReduceClasses


class Gray(ImageDataModule):
    """A user's data set of gray images, with mistakes in the attributes below."""

    num_classes = 2
    class_names = ("a", "b")
    in_channels = 1
    native_size = (4, 4)
    mean = (0.0,)
    std = (1.0,)

    def load(self, split):
        images = ImagesInMemory(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 2)
        return None if split == "val" else images


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"native_size": None}, r"`native_size = \(4, 4\)` in Mine, as its images in memory have, but got None"),
        ({"native_size": (8, 8)}, r"`native_size = \(4, 4\)` in Mine.* but got \(8, 8\)"),
        ({"in_channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3}, "`in_channels = 1` in Mine.* but got 3"),
        ({"load": lambda self, split: ImagesInMemory(torch.zeros(20, 4, 4), torch.arange(20) % 2)}, r"\[N, C, H, W\]"),
        (
            {"load": lambda self, split: ImagesInMemory(torch.zeros(20, 1, 4, 4), torch.zeros(20))},
            r"class indices \[N\] .* torch.float32",
        ),
        ({"mean": ImageDataModule.mean}, "with one value for each of 1 channels but got `mean`"),
        (
            {"load": lambda self, split: (torch.zeros(9, 1, 4, 4), torch.zeros(9))},
            r"ImagesInMemory\(images, targets\).*tuple",
        ),
    ],
)
def test_wrong_attributes_of_a_users_data_set_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        type("Mine", (Gray,), wrong)().setup()


@pytest.mark.parametrize("name", ["num_classes", "class_names", "in_channels"])
def test_a_missing_attribute_of_a_users_data_set_is_named(name):
    attributes = {
        key: value for key, value in vars(Gray).items() if key in ("load", "num_classes", "class_names", "in_channels")
    }
    del attributes[name]
    with pytest.raises(ValueError, match=f"class attribute `{name}` of Mine"):
        type("Mine", (ImageDataModule,), attributes)()


def test_classes_with_few_validation_images_are_named():
    data = Gray()
    data.setup()
    assert "Classes with few validation images: a (1), b (1); the choice of the best epoch is noisy" in data.summary()
    data = Gray(val_fraction=0.5)
    data.setup()
    assert "few validation images" not in data.summary()


class Numbered(ImageDataModule):
    """Image i of the training data has the value i in its first pixel and 0 in the second, of the test data 1."""

    num_classes = 4
    class_names = ("a", "b", "c", "d")
    in_channels = 1
    native_size = (1, 2)
    mean = (0.0,)
    std = (1.0,)
    sizes = (60, 60, 60, 60)

    def load(self, split):
        if split == "val":
            return None
        sizes = self.sizes if split == "train" else (8,) * 4
        targets = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
        images = torch.zeros(len(targets), 1, 1, 2, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.arange(len(targets))
        images[:, 0, 0, 1] = split == "test"
        return ImagesInMemory(images, targets)


def ids(loader):
    return [
        (*image.flatten().tolist(), int(c))
        for images, targets in loader
        for image, c in zip(images, targets, strict=True)
    ]


def test_official_splits_first_and_reduces_the_training_set_alone():
    data = Numbered(batch_size=16, imbalance=LongTail(10), val_fraction=0.25)
    data.setup()
    assert data.class_counts.tolist() == [45, 20, 9, 4]
    train, val, test = ids(data.train_dataloader()), ids(data.val_dataloader()), ids(data.test_dataloader())
    assert len(train) == 78
    assert [sum(c == k for *_, c in val) for k in range(4)] == [15] * 4
    assert len(test) == 32
    assert all(source == 1 for _, source, _ in test)
    assert not {i for i, *_ in train} & {i for i, *_ in val}
    assert ids(data.predict_dataloader()) == test


def test_holdout_reduces_first_and_splits_80_to_20():
    data = Numbered(imbalance=ReduceClasses(0.5, classes=[0]), evaluation="holdout", val_fraction=0)
    data.setup()
    train, test = ids(data.train_dataloader()), ids(data.test_dataloader())
    assert (len(train), len(test)) == (168, 42)
    assert sorted(train + test) == sorted(set(train + test))
    assert sum(c == 0 for *_, c in train + test) == 30
    assert all(source == 0 for _, source, _ in test)
    assert data.val_dataloader() == []


def test_data_depend_on_their_own_seed_alone():
    def train(seed, torch_seed):
        torch.manual_seed(torch_seed)
        data = Numbered(imbalance=LongTail(10), seed=seed)
        data.setup()
        return ids(data.train_dataloader())

    assert train(0, 0) == train(0, 1)
    assert sorted(train(0, 0)) != sorted(train(1, 0))


@pytest.mark.parametrize(("sampling", "power"), [("instance", 0), ("square_root", 0.5), ("class_balanced", 1)])
def test_sampling_draws_classes_by_a_power_of_their_size(sampling, power):
    data = Numbered(imbalance=LongTail(10), sampling=sampling, val_fraction=0, batch_size=4)
    data.setup()
    sizes = data.class_counts
    expected = sizes ** (1 - power) / (sizes ** (1 - power)).sum()
    drawn = torch.zeros(4)
    loader = data.train_dataloader()
    for epoch in range(60):
        loader.sampler.set_epoch(epoch)
        labels = [c for *_, c in ids(loader)]
        assert len(labels) == sizes.sum()
        drawn += torch.bincount(torch.tensor(labels), minlength=4)
    assert torch.allclose(drawn / drawn.sum(), expected, atol=0.02)


def test_setup_is_done_once():
    data = DigitsDataModule()
    data.setup("fit")
    before = data.split("train")[1]
    data.setup("test")
    assert data.split("train")[1] is before


def test_digits_are_bytes_with_a_test_set_of_a_fifth():
    data = DigitsDataModule(val_fraction=0, seed=5)
    data.setup()
    images, targets = next(iter(data.train_dataloader()))
    assert (images.dtype, images.shape, targets.dtype) == (torch.uint8, (64, 1, 8, 8), torch.int64)
    assert images.max() == 255
    assert data.class_counts.sum() == 1797 - 359
    assert len(ids(data.test_dataloader())) == 359


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` >= 1 but got 0"),
        ({"val_fraction": 1.0}, r"`val_fraction` in \[0, 1\) but got 1.0"),
        ({"evaluation": "both"}, "one of official, holdout but got 'both'"),
        ({"sampling": "half"}, "instance, square_root, class_balanced but got 'half'"),
        ({"seed": -1}, "`seed` >= 0 but got -1"),
        ({"num_workers": -1}, "`num_workers` >= 0 but got -1"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments)


def test_a_class_without_training_images_is_refused():
    class Missing(Numbered):
        sizes = (60, 0, 60, 60)

    with pytest.raises(ValueError, match="training image of every class but got none of 'b'"):
        Missing().setup()


def test_targets_outside_the_classes_are_refused():
    class Wrong(Numbered):
        num_classes = 3

    with pytest.raises(ValueError, match=r"targets in 0..2 but got 3 in the train data"):
        Wrong().setup()


def test_data_before_setup_are_refused():
    with pytest.raises(RuntimeError, match="setup"):
        DigitsDataModule().train_dataloader()


class Small(Numbered):
    """The same with a validation set of its own."""

    def load(self, split):
        return super().load("test" if split == "val" else split)


def indices(data):
    return {split: data.split(split)[1].tolist() for split in ("train", "val", "test")}


@pytest.mark.parametrize("kind", [Numbered, Small])
@pytest.mark.parametrize("evaluation", ["official", "holdout"])
def test_a_split_is_written_and_read_back(tmp_path, monkeypatch, kind, evaluation):
    file = tmp_path / "folder" / "split.json"
    settings = {"imbalance": LongTail(10), "evaluation": evaluation, "split_file": str(file)}
    first = kind(**settings, seed=3)
    first.setup()
    written = file.read_text()
    again = kind(**settings, seed=3)
    monkeypatch.setattr("scor_lightning.datamodules.split.draw_split", None)  # there is no need to draw
    again.setup()
    assert indices(again) == indices(first)
    assert ids(again.test_dataloader()) == ids(first.test_dataloader())
    assert ids(again.val_dataloader()) == ids(first.val_dataloader())
    assert file.read_text() == written
    assert [path.name for path in file.parent.iterdir()] == ["split.json"]
    other = kind(**settings, seed=4)
    with pytest.raises(ValueError, match=r"Expected the seed = 3 that '.*split.json' was made with but got 4; name"):
        other.setup()
    assert file.read_text() == written


def test_a_split_of_other_data_or_a_broken_one_is_refused(tmp_path):
    file = tmp_path / "split.json"
    Numbered(split_file=str(file)).setup()

    class Numbered2(Numbered):
        sizes = (60, 60, 60, 61)

    Numbered2.__name__ = "Numbered"
    with pytest.raises(ValueError, match=r"Expected the train data that '.*split.json' was made for but got others"):
        Numbered2(split_file=str(file)).setup()
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"Expected the indices of a split in '.*split.json' but it cannot be read"):
        Numbered(split_file=str(file)).setup()


def test_the_summary_fits_a_screen_and_counts_what_the_loaders_give(capsys):
    data = Numbered(imbalance=LongTail(10), val_fraction=0.25)
    data.setup("test")
    assert capsys.readouterr().out == ""
    data.setup("fit")
    shown = capsys.readouterr().out
    assert "Numbered: 4 classes, images of 1 x 1 x 2; LongTail(ratio=10), evaluation official, data seed 0" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}
    assert rows["training"] == ["78", "45", "(a)", "4", "(d)", "11.2"]
    assert rows["test"] == ["32", "8", "(a)", "8", "(a)", "1.0"]
    assert rows["b"] == ["20", "15", "8"]
    many = type("Many", (DigitsDataModule,), {"num_classes": 30, "class_names": tuple(map(str, range(30)))})()
    many.load = lambda split: (
        None if split == "val" else ImagesInMemory(torch.zeros(300, 1, 8, 8, dtype=torch.uint8), torch.arange(300) % 30)
    )
    many.setup("fit")
    shown = capsys.readouterr().out
    assert "... and 20 more" in shown
    assert len(shown.splitlines()) < 24


def test_batches_out_of_memory_need_no_workers_and_others_get_the_free_cores():
    from lightning.fabric.utilities.data import suggested_max_num_workers
    from torchvision.transforms import v2

    data = DigitsDataModule()
    data.setup()
    assert data.train_dataloader().num_workers == data.test_dataloader().num_workers == 0
    turned = DigitsDataModule(train_transforms=[v2.RandomRotation(15)], batch_size=32)
    turned.setup()
    loader = turned.train_dataloader()
    assert loader.num_workers == suggested_max_num_workers(1)
    assert loader.persistent_workers
    assert turned.test_dataloader().num_workers == 0
    batch, _ = next(iter(loader))
    assert (batch.dtype, batch.shape) == (torch.uint8, (32, 1, 8, 8))
    assert DigitsDataModule(num_workers=3).num_workers == 3


def test_a_size_that_the_transform_leaves_open_is_refused():
    from torchvision.transforms import v2

    from scor_lightning.datamodules import Flowers102DataModule

    with pytest.raises(ValueError, match="images of one size but got"):
        Flowers102DataModule(eval_transforms=[v2.Resize(20)])
    assert Flowers102DataModule(eval_transforms=[v2.Resize(20), v2.CenterCrop(16)]).image_size == (16, 16)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import LightningModule, Trainer
from scor_lightning.datamodules import DigitsDataModule, RandomCropAndFlip

class Reader(LightningModule):
    def setup(self, stage):
        self.seen = {"train": [], "test": []}
    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0])
        return sum(p.sum() for p in self.parameters())
    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch[0])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

model = Reader()
model.weight = torch.nn.Parameter(torch.zeros(1))
devices = int(sys.argv[1])
trainer = Trainer(devices=devices, accelerator="cpu", strategy="ddp" if devices > 1 else "auto", max_epochs=1, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
data = DigitsDataModule(batch_size=50, train_transforms=[RandomCropAndFlip(1)])
trainer.fit(model, data)
train = model.seen["train"]
trainer.test(model, data)
torch.save({"train": train, "test": model.seen["test"]}, f"{sys.argv[2]}/{devices}_{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_see_disjoint_shards_whose_union_is_the_set(tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    for devices in (1, 2):
        command = [sys.executable, str(tmp_path / "script.py"), str(devices), str(tmp_path)]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=200)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for batch, part, other in zip(one["train"], first["train"], second["train"], strict=False):
        assert torch.cat([part, other]).equal(batch)  # the same images, augmented alike
    assert len(first["train"]) == len(second["train"]) == len(one["train"]) - 1  # the last is incomplete
    together = torch.cat(first["test"] + second["test"]).flatten(1)
    assert len(together) == 359
    assert sorted(together.tolist()) == sorted(torch.cat(one["test"]).flatten(1).tolist())
