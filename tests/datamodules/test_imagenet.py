import pytest
import torch
from torchvision.datasets import FakeData
from torchvision.transforms.v2.functional import pil_to_tensor

from scor_lightning.datamodules import ImageNetDataModule, LongTail
from tests.data.photographs import write_folders

CLASSES = {"n01440764": 12, "n01443537": 8, "n01484850": 8}


def test_val_is_the_test_set_and_validation_comes_out_of_the_training_data(tmp_path):
    write_folders(tmp_path / "train", CLASSES, ".JPEG")
    write_folders(tmp_path / "val", dict.fromkeys(CLASSES, 2), ".JPEG")
    data = ImageNetDataModule(str(tmp_path), val_fraction=0.25, resolution=32, num_workers=0, batch_size=4)
    assert data.num_classes == 3
    data.setup()
    assert data.class_names == tuple(CLASSES)
    assert data.class_counts.tolist() == [9, 6, 6]
    assert [len(data.split(split)[1]) for split in ("train", "val", "test")] == [21, 7, 6]
    images, index = data.split("test")
    assert all("/val/" in images.path(i) for i in index.tolist())
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)
    assert next(iter(data.test_dataloader()))[0].shape == (4, 3, 32, 32)


def test_imagenet_lt_is_read_from_its_lists(tmp_path):
    write_folders(tmp_path / "train", CLASSES, ".JPEG")
    write_folders(tmp_path / "val", dict.fromkeys(CLASSES, 2), ".JPEG")
    for name, folder, sizes in (("train", "train", (6, 3, 1)), ("val", "train", (1, 1, 1)), ("test", "val", (2, 2, 2))):
        lines = [
            f"{folder}/{wnid}/{wnid}_{i + 1:04d}.JPEG {c}"
            for c, (wnid, size) in enumerate(zip(CLASSES, sizes, strict=True))
            for i in range(size)
        ]
        (tmp_path / f"ImageNet_LT_{name}.txt").write_text("\n".join(lines))
    lists = {f"{name}_list": str(tmp_path / f"ImageNet_LT_{name}.txt") for name in ("train", "val", "test")}
    data = ImageNetDataModule(str(tmp_path), **lists)
    data.setup()
    assert data.class_counts.tolist() == [6, 3, 1]
    assert [len(data.split(split)[1]) for split in ("val", "test")] == [3, 6]
    assert data.class_names == tuple(CLASSES)


def test_fake_images_stand_in_for_the_files():
    data = ImageNetDataModule(fake=True, batch_size=2, num_workers=0, imbalance=LongTail(100))
    data.setup()
    assert data.num_classes == 1000
    # balanced, except for one class with a thousandth more images
    assert data.class_counts[0] == 1269
    assert data.class_counts[-1] == 12
    assert len(data.split("test")[1]) == 50_000
    images, targets = next(iter(data.test_dataloader()))
    assert targets.tolist() == [0, 1]
    own = FakeData(50_000, (3, 224, 224), random_offset=1_281_167)
    assert data.split("test")[0][torch.tensor([1])][0][0].equal(pil_to_tensor(own[1][0]))
    assert images.shape == (2, 3, 224, 224)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_folder_without_train_or_val_is_refused(tmp_path, missing):
    write_folders(tmp_path / ("val" if missing == "train" else "train"), CLASSES, ".JPEG")
    with pytest.raises(
        FileNotFoundError, match=r"Expected `train` and `val` with one subfolder per class.*--data.root"
    ):
        ImageNetDataModule(str(tmp_path)).setup()


def test_other_classes_in_val_are_refused(tmp_path):
    write_folders(tmp_path / "train", CLASSES, ".JPEG")
    write_folders(tmp_path / "val", {"n01440764": 2, "n01443537": 2, "n09999999": 2}, ".JPEG")
    with pytest.raises(ValueError, match=r"lacks \['n01484850'\] and has \['n09999999'\] besides"):
        ImageNetDataModule(str(tmp_path), val_fraction=0).setup()
