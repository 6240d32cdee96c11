import pytest
import torch

from scor_lightning.datamodules import DigitsDataModule, ImageDataModule, ImagesInMemory, LongTail, ReduceClasses


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
    before = data._sets
    data.setup("test")
    assert data._sets is before


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
        ({"evaluation": "both"}, "'official' or 'holdout' but got 'both'"),
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
