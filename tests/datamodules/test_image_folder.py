import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torchvision.transforms import v2

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import ImageDataModule, ImageFolderDataModule, LongTail, ReduceClasses, read_image
from scor_lightning.datamodules.image_folder import read_class_list, read_list
from scor_lightning.models import MLP
from tests.data.photographs import write_folders

SIZES = {"ant": 20, "bee": 10, "cat": 5}


def folder(root: Path, **kwargs) -> ImageFolderDataModule:
    data = ImageFolderDataModule(str(root), **({"resolution": 16, "num_workers": 0, "batch_size": 4} | kwargs))
    data.setup()
    return data


def counts(data: ImageDataModule) -> list[list[int]]:
    return [
        torch.bincount(images.targets[index], minlength=data.num_classes).tolist()
        for images, index in map(data.split, ("train", "val", "test"))
    ]


def files(data: ImageDataModule, split: str) -> set[str]:
    images, index = data.split(split)
    return {images.path(i) for i in index.tolist()}


def test_a_folder_of_classes_is_split_in_three_stratified(tmp_path):
    data = folder(write_folders(tmp_path, SIZES), val_fraction=0.25)
    assert (data.num_classes, data.class_names) == (3, ("ant", "bee", "cat"))
    assert counts(data) == [[12, 6, 3], [4, 2, 1], [4, 2, 1]]
    parts = [files(data, split) for split in ("train", "val", "test")]
    assert len(set.union(*parts)) == 35
    assert files(folder(tmp_path, val_fraction=0.25), "test") == parts[2]
    assert files(folder(tmp_path, val_fraction=0.25, seed=1), "test") != parts[2]


def test_folders_of_sets_are_taken_as_they_are(tmp_path):
    for split, sizes in (("train", SIZES), ("val", {"ant": 1, "bee": 2, "cat": 3}), ("test", dict.fromkeys(SIZES, 4))):
        write_folders(tmp_path / split, sizes)
    assert counts(folder(tmp_path)) == [[20, 10, 5], [1, 2, 3], [4, 4, 4]]
    # the imbalance applies to the training set only
    assert counts(folder(tmp_path, imbalance=LongTail(2))) == [[10, 7, 5], [1, 2, 3], [4, 4, 4]]
    assert counts(folder(tmp_path, val_fraction=0))[1] == [0, 0, 0]
    assert sum(counts(folder(tmp_path, evaluation="holdout"))[2]) == 7  # a fifth of 35


def test_a_missing_set_is_split_off_the_training_data(tmp_path):
    write_folders(tmp_path / "train", SIZES)
    write_folders(tmp_path / "test", dict.fromkeys(SIZES, 3))
    assert counts(folder(tmp_path, val_fraction=0.2)) == [[16, 8, 4], [4, 2, 1], [3, 3, 3]]


def test_classes_are_reduced_by_name(tmp_path):
    write_folders(tmp_path, SIZES)
    data = folder(tmp_path, val_fraction=0.25, imbalance=ReduceClasses(0.5, classes=["bee"]))
    assert counts(data)[0] == [12, 3, 3]
    with pytest.raises(ValueError, match="name a class such as bee but got 'bees'"):
        folder(tmp_path, val_fraction=0.25, imbalance=ReduceClasses(0.5, classes=["bees"]))


def test_images_come_at_one_size_and_only_those_of_the_training_set_vary(tmp_path):
    data = folder(write_folders(tmp_path, SIZES), val_fraction=0.25)
    for loader, size in ((data.train_dataloader(), 21), (data.test_dataloader(), 7)):
        shapes = [(image.dtype, image.shape[1:]) for image, _ in loader]
        assert set(shapes) == {(torch.uint8, (3, 16, 16))}
        assert sum(len(targets) for _, targets in loader) == size
    images, index = data.split("test")
    expected = v2.Resize((16, 16))(read_image(images.path(int(index[0]))))
    assert next(iter(data.test_dataloader()))[0][0].equal(expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path, num_workers):
    write_folders(tmp_path, SIZES)

    def epoch(number, **kwargs):
        loader = folder(tmp_path, val_fraction=0.25, **kwargs).train_dataloader()
        loader.sampler.set_epoch(number)
        order = loader.sampler.order()
        images = torch.cat([images for images, _ in loader])
        return images[order.argsort()]  # in the order of the data

    expected = epoch(3)
    torch.manual_seed(5)
    assert epoch(3, num_workers=num_workers, batch_size=7).equal(expected)
    assert not epoch(4).equal(expected)
    loader = folder(tmp_path, val_fraction=0.25, num_workers=num_workers).train_dataloader()
    first, second = (torch.cat([images for images, _ in loader]).float().mean(0) for _ in range(2))
    assert first.equal(second)  # no state is left behind


def write_lists(root: Path) -> None:
    write_folders(root / "images", SIZES)
    for name, numbers in (("train", range(1, 5)), ("val", range(5, 6)), ("test", range(1, 3))):
        lines = [f"images/{kind}/{kind}_{i:04d}.jpg {c}" for c, kind in enumerate(SIZES) for i in numbers]
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n\n")


def test_lists_name_the_images_of_each_set(tmp_path):
    write_lists(tmp_path)
    lists = {f"{name}_list": str(tmp_path / f"{name}.txt") for name in ("train", "val", "test")}
    data = folder(tmp_path, **lists)
    assert data.class_names == ("ant", "bee", "cat")
    assert counts(data) == [[4] * 3, [1] * 3, [2] * 3]
    assert files(data, "val") == {f"{tmp_path}/images/{kind}/{kind}_0005.jpg" for kind in SIZES}
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 16, 16)
    only = folder(tmp_path, train_list=lists["train_list"], val_fraction=0.34)
    assert counts(only) == [[2] * 3, [1] * 3, [1] * 3]


def test_classes_of_a_list_without_folders_of_their_own_are_numbers(tmp_path):
    write_folders(tmp_path, {"all": 10})
    lines = [f"all/all_{i:04d}.jpg {i % 2}" for i in range(1, 11)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert folder(tmp_path, train_list=str(tmp_path / "list.txt"), val_fraction=0.3).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a.jpg 0\nb.jpg\n",
            r"`path label`, the label a class number from 0 on, in line 2 of '.*list.txt' but got 'b.jpg'",
        ),
        (
            "a.jpg 0\nb.jpg 1\na.jpg 1\n",
            r"each image once in '.*list.txt' but 'a.jpg' with label 0 comes again in line 3, with 1",
        ),
        ("a.jpg x\n", r"line 1 of '.*list.txt' but got 'a.jpg x'"),
        ("a.jpg -1\n", r"line 1 of '.*list.txt' but got 'a.jpg -1'"),
        ("\n", r"images in the list '.*list.txt' but it is empty"),
        (None, r"a list of images but there is no file"),
    ],
)
def test_lists_of_another_form_are_refused(tmp_path, content, message):
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_list(file)


def test_lists_are_read_as_other_programs_write_them(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfan ant.jpg\t0\r\n\r\nb.jpg   1\r\n")
    assert read_list(file) == (["an ant.jpg", "b.jpg"], [0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path label\na.jpg 0\n", r"in line 1 of"),
        (b"a.jpg 0\nb.jpg 1\na.jpg 0\n", r"'a\.jpg' with label 0 comes again in line 3"),
        (b"a.jpg 0\nb.jpg 99999999999\n", r"class number in line 2 of"),
        ("a.jpg 0\ncafé.jpg 1\n".encode("latin-1"), r"UTF-8 in .* but line 2 is none"),
        (b"a.jpg,0\n", r"in line 1 of"),
    ],
)
def test_lists_with_mistakes_are_refused_by_line(tmp_path, content, message):
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_list(file)


@pytest.mark.parametrize("labels", [[1, 2], [0, 2], [0, 999999999]])
def test_labels_that_leave_a_class_out_are_refused(tmp_path, labels):
    write_folders(tmp_path, {"all": 10})
    lines = [f"all/all_{i:04d}.jpg {labels[i % 2]}" for i in range(1, 11)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match=r"Expected labels from 0 to the number of classes minus 1 .* no image has label [01]"
    ):
        folder(tmp_path, train_list=str(tmp_path / "list.txt"))


def test_a_third_column_is_refused_by_its_line(tmp_path):
    write_folders(tmp_path, {"all": 4})
    lines = [f"all/all_{i:04d}.jpg {i % 2}" for i in range(1, 4)]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "all/all_0004.jpg 7 1"]))
    with pytest.raises(FileNotFoundError, match=r"all_0004\.jpg 7' \(line 4\)"):
        folder(tmp_path, train_list=str(tmp_path / "list.txt"))


def test_absolute_paths_are_read_as_meant(tmp_path):
    write_folders(tmp_path / "images", {"ant": 8, "bee": 8})
    lines = [
        f"{tmp_path}/images/{kind}/{kind}_{i:04d}.jpg {c}" for c, kind in enumerate(("ant", "bee")) for i in range(1, 9)
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert folder(tmp_path / "images", train_list=str(tmp_path / "list.txt")).class_names == ("ant", "bee")


def test_images_in_both_training_and_test_set_are_reported(tmp_path):
    write_lists(tmp_path)
    train, test = (tmp_path / f"{name}.txt" for name in ("train", "test"))
    with pytest.warns(UserWarning, match=r"6 images of '.*test.txt' are in '.*train.txt' too, such as 'images/ant/"):
        folder(tmp_path, train_list=str(train), test_list=str(test), val_fraction=0.34)


def test_a_list_whose_images_lie_elsewhere_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a/b.jpg 0\nc/d.jpg 1\n")
    with pytest.raises(FileNotFoundError, match=r"relative to the folder '.*' but there is no file '.*a/b.jpg'"):
        folder(tmp_path, train_list=str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"ant": 9, "bee": 9}, {"ant": 2, "cow": 2}, r"lacks \['bee'\] and has \['cow'\] besides"),
        ({"ant": 9, "bee": 0}, {"ant": 2, "bee": 2}, "a training image of every class but got none of 'bee'"),
        ({"ant": 2, "bee": 2}, {"ant": 2, "bee": 2}, "no class has enough for `val_fraction` = 0.1"),
        ({"ant": 9, "bee": 9}, {"ant": 0, "bee": 0}, "images in the test data of ImageFolderDataModule but got none"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, train, test, message):
    write_folders(tmp_path / "train", train)
    write_folders(tmp_path / "test", test)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)


def break_some(root: Path) -> Path:
    write_folders(root, SIZES)
    (root / "ant" / "ant_0003.jpg").write_bytes(b"")
    whole = (root / "bee" / "bee_0004.jpg").read_bytes()
    (root / "bee" / "bee_0004.jpg").write_bytes(whole[: len(whole) // 2])
    return root


def test_an_image_that_cannot_be_read_is_named_by_the_command(command, tmp_path):
    for image in break_some(tmp_path / "photos").glob("ant/*"):
        image.write_bytes(b"broken")
    line = "scor-fit --config image_folder_scor.yaml --data.root photos --data.resolution 32 --data.val_fraction 0.25"
    for workers in (0, 1):
        status, _, error = command(f"{line} --model.backbone ConvNet --data.num_workers {workers}")
        assert status != 0
        assert "Traceback" not in error
        last = error.strip().splitlines()[-1]
        assert last.startswith("scor-fit: error: Expected an image but 'photos/ant/")
        assert "--data.unreadable skip" in last


def test_images_that_cannot_be_read_are_left_out_and_counted_by_option(tmp_path, capsys):
    break_some(tmp_path)
    data = folder(tmp_path, unreadable="skip", val_fraction=0.25)
    assert "Left out 2 of 35 images that cannot be read, such as" in capsys.readouterr().out
    assert [sum(sizes) for sizes in zip(*counts(data), strict=True)] == [19, 9, 5]
    assert sum(len(targets) for _, targets in data.train_dataloader()) == sum(counts(data)[0])
    again = folder(tmp_path, unreadable="skip", val_fraction=0.25)
    assert counts(again) == counts(data)
    assert "Reading every image" not in capsys.readouterr().err  # remembered
    (tmp_path / "cat" / "cat_0001.jpg").write_bytes(b"")  # a file that has changed is read again
    changed = folder(tmp_path, unreadable="skip", val_fraction=0.25)
    assert [sum(sizes) for sizes in zip(*counts(changed), strict=True)] == [19, 9, 4]


def test_a_folder_of_which_nothing_can_be_read_is_refused(tmp_path):
    for image in write_folders(tmp_path, {"ant": 3, "bee": 2}).rglob("*.jpg"):
        image.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of 5 can be read"):
        folder(tmp_path, unreadable="skip")


def test_arguments_outside_their_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'error' or 'skip' but got 'ignore'"):
        ImageFolderDataModule(str(tmp_path), unreadable="ignore")
    with pytest.raises(ValueError, match="Expected `train_list` beside"):
        ImageFolderDataModule(str(tmp_path), val_list="list.txt")
    with pytest.raises(
        FileNotFoundError, match=r"No such folder: .*; name your folder of images with `--data.root FOLDER`"
    ):
        ImageFolderDataModule(str(tmp_path / "nowhere")).setup()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_real_cifar_images_have_the_long_tail_of_the_literature(real_data, tmp_path_factory):
    import tarfile

    root = tmp_path_factory.mktemp("cifar")
    with tarfile.open(real_data / "cifar10-jpeg.tar.xz") as tar:
        tar.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # from 3.11.4 on
    for imbalance, total, tail in (
        (LongTail(100), 12_406, 50),
        (LongTail(50), 13_996, 100),
        (LongTail(10), 20_431, 500),
    ):
        data = folder(root, resolution=None, imbalance=imbalance, val_fraction=0)
        assert int(data.class_counts.sum()) == total
        assert int(data.class_counts[-1]) == tail
    assert data.class_names[0] == "airplane"
    data = folder(root, resolution=32, imbalance=LongTail(100), val_fraction=0, batch_size=128)
    assert data.class_counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert next(iter(data.train_dataloader()))[0].shape == (128, 3, 32, 32)


def write_list(file: Path, numbers: dict[str, int], images: range, folder: str = "images") -> str:
    lines = [f"{folder}/{kind}/{kind}_{i:04d}.jpg {c}" for kind, c in numbers.items() for i in images]
    file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.mark.parametrize("names", [("ant", "bee", "cat"), ("2", "0", "1")])
def test_lists_that_number_the_classes_differently_are_matched_by_name(tmp_path, names):
    a, b, c = names
    write_folders(tmp_path / "images", dict.fromkeys(names, 8))
    train = write_list(tmp_path / "train.txt", {a: 0, b: 1, c: 2}, range(1, 5))
    val = write_list(tmp_path / "val.txt", {c: 0, a: 1, b: 2}, range(5, 7))
    test = write_list(tmp_path / "test.txt", {b: 0, c: 1, a: 2}, range(7, 9))
    data = folder(tmp_path, train_list=train, val_list=val, test_list=test)
    for split in ("train", "val", "test"):
        source, index = data.split(split)
        for i in index.tolist():
            assert data.class_names[source.targets[i]] == Path(source.path(i)).parent.name


@pytest.mark.parametrize(
    "numbers",
    [
        {"bee": 0, "ant": 1},
        {"ant": 0, "cat": 1},
        {"ant": 0, "bee": 1, "dog": 2, "cat": 3},
        {"cat": 0, "dog": 1},
        {"dog": 0, "bee": 1},
        {"ant": 0, "bee": 1, "dog": 2},
    ],
)
def test_lists_that_contradict_each_other_are_refused(tmp_path, numbers):
    write_folders(tmp_path / "images", dict.fromkeys(["ant", "bee", "cat", "dog"], 8))
    train = write_list(tmp_path / "train.txt", {"ant": 0, "bee": 1, "cat": 2}, range(1, 7))
    test = write_list(tmp_path / "test.txt", numbers, range(7, 9))
    with pytest.raises(
        ValueError, match=r"'.*test.txt' and '.*train.txt' number the classes differently: '\w+' is class \d in"
    ):
        folder(tmp_path, train_list=train, test_list=test)


def test_lists_whose_folders_name_no_class_are_taken_as_they_are(tmp_path):
    write_folders(tmp_path / "images", SIZES)
    write_folders(tmp_path / "other", {"all": 6})
    train = write_list(tmp_path / "train.txt", {"ant": 0, "bee": 1, "cat": 2}, range(1, 5))
    lines = [f"other/all/all_{i:04d}.jpg {i % 3}" for i in range(1, 7)]
    (tmp_path / "test.txt").write_text("\n".join(lines))
    data = folder(tmp_path, train_list=train, test_list=str(tmp_path / "test.txt"), val_fraction=0)
    assert data.split("test")[0].targets.tolist() == [1, 2, 0, 1, 2, 0]


def test_a_list_of_some_classes_is_taken_as_it_is(tmp_path):
    write_folders(tmp_path / "images", dict.fromkeys(["ant", "bee", "cat"], 8))
    train = write_list(tmp_path / "train.txt", {"ant": 0, "bee": 1, "cat": 2}, range(1, 7))
    for some in ({"bee": 1, "cat": 2}, {"cat": 2}):
        test = write_list(tmp_path / "test.txt", some, range(7, 9))
        data = folder(tmp_path, train_list=train, test_list=test)
        assert set(data.split("test")[0].targets.tolist()) == set(some.values())


def test_a_folder_of_class_folders_beside_a_class_is_named(tmp_path):
    write_folders(tmp_path / "pets", {"cat": 9, "dog": 9})
    write_folders(tmp_path, {"new": 9})
    write_folders(tmp_path / "by year", {"2024": 4})
    data = folder(tmp_path)
    assert data.class_names == ("by year", "new", "pets")
    note = f"The class 'pets' has no images but 2 folders of them, such as 'cat'; if these are the classes, name {tmp_path / 'pets'}"
    assert data.notes()[0].startswith(note)
    assert note in data.summary()
    assert "no images but" not in folder(tmp_path / "pets").summary()


@pytest.mark.parametrize("shown", [True, False])
def test_files_are_checked_with_a_progress_bar_only_where_the_run_has_one(tmp_path, monkeypatch, capfd, shown):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = folder(write_folders(tmp_path / "images", {"ant": 12, "bee": 12}))
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=shown
    )
    trainer.fit(ImageClassifier(MLP(2, in_channels=3, image_size=(16, 16)), nn.CrossEntropyLoss()), data)
    assert ("Checking" in capfd.readouterr().err) == shown


@pytest.mark.parametrize(("images", "missing"), [(1, " (no val or test image)"), (3, " (no val image)"), (10, None)])
def test_a_class_with_too_few_images_for_every_set_is_named_in_one_line(tmp_path, images, missing):
    data = folder(write_folders(tmp_path, {"ant": 20, "bee": 20, "cat": images}))
    notes = data.notes()
    assert notes[0].startswith("Classes with few test images: ")
    assert notes[0].endswith("; their recall is uncertain")
    assert (missing is None) == (len(notes) == 1)
    if missing is not None:
        assert f"cat{missing}; their recall there is not measured" in notes[1]
    assert all(note in data.summary() for note in notes)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Valid", "Test"), ("training", "dev", "testing"), ("TRAIN", "validation", "test")],
)
def test_the_three_sets_go_by_their_usual_names(tmp_path, train, val, test):
    for name, sizes in ((train, SIZES), (val, dict.fromkeys(SIZES, 1)), (test, dict.fromkeys(SIZES, 2))):
        write_folders(tmp_path / name, sizes)
    assert counts(folder(tmp_path)) == [[20, 10, 5], [1, 1, 1], [2, 2, 2]]


def test_a_class_may_be_called_train(tmp_path):
    data = folder(write_folders(tmp_path, {"bus": 12, "train": 8}))
    assert data.class_names == ("bus", "train")


def test_folders_that_may_be_sets_or_classes_are_refused(tmp_path):
    write_folders(tmp_path / "train", SIZES)
    write_folders(tmp_path, {"cats": 3})
    with pytest.raises(ValueError, match=r"--data\.root: .*'train' with folders in it, and 'cats' with images"):
        folder(tmp_path)


def test_two_folders_of_one_set_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        write_folders(tmp_path / name, SIZES)
    with pytest.raises(
        ValueError, match=r"--data\.root: expected one folder of val images in .* but got 'val' and 'valid'"
    ):
        folder(tmp_path)


def test_the_summary_lists_what_is_left_out(tmp_path):
    root = write_folders(tmp_path, SIZES)
    (root / "ant" / "notes.txt").touch()
    (root / "cover.jpg").touch()
    assert "left out 1 x not an image (.txt), 1 x beside the class folders" in folder(root).summary()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("delete", "1 of them are gone and 0 are new"),
        ("add", "0 of them are gone and 1 are new"),
        ("both", "1 of them are gone and 1 are new"),
    ],
)
def test_a_split_of_other_files_is_refused_with_their_number(tmp_path, change, said):
    root = write_folders(tmp_path / "images", SIZES)
    options = {"split_file": str(tmp_path / "split.json")}
    before = [files(folder(root, **options), name) for name in ("train", "val", "test")]
    assert [files(folder(root, **options), name) for name in ("train", "val", "test")] == before
    if change in ("delete", "both"):
        (root / "bee" / "bee_0003.jpg").unlink()
    if change in ("add", "both"):
        (root / "bee" / "bee_0000.jpg").write_bytes((root / "bee" / "bee_0001.jpg").read_bytes())
    with pytest.raises(ValueError, match=said):
        folder(root, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda split: split["train"].__setitem__(0, -1), "indices in 0..34"),
        (lambda split: split["train"].__setitem__(0, 99999999999), "indices in 0..34"),
        (lambda split: split["train"].__setitem__(0, 10**30), "whole numbers"),
        (lambda split: split["train"].__setitem__(0, split["train"][1]), "comes twice"),
        (lambda split: split["test"].__setitem__(0, split["train"][1]), "comes twice"),
        (lambda split: split["train"].__setitem__(0, "1"), "whole numbers"),
        (lambda split: split.pop("val"), "whole numbers"),
        (lambda split: split.pop("from"), "something else"),
        (lambda split: split["from"].__setitem__("train", "nowhere"), "something else"),
    ],
)
def test_a_damaged_split_is_refused(tmp_path, change, said):
    root = write_folders(tmp_path / "images", SIZES)
    file = tmp_path / "split.json"
    folder(root, split_file=str(file))
    split = json.loads(file.read_text())
    change(split)
    file.write_text(json.dumps(split))
    with pytest.raises(ValueError, match=said):
        folder(root, split_file=str(file))


def test_a_label_that_contradicts_its_folder_is_refused_unless_the_classes_are_named(tmp_path):
    write_folders(tmp_path / "images", {"ant": 12, "bee": 12})
    train = Path(write_list(tmp_path / "train.txt", {"ant": 0, "bee": 1}, range(1, 13)))
    lines = train.read_text().splitlines()
    lines[3] = lines[3].replace(" 0", " 1")
    train.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"has label 1 \(line 4 of .*train.txt.*have 0; .*--data.class_list"):
        folder(tmp_path, train_list=str(train))
    (tmp_path / "classes.txt").write_text("hornet\nwasp\n")
    data = folder(tmp_path, train_list=str(train), class_list=str(tmp_path / "classes.txt"))
    assert data.class_names == ("hornet", "wasp")
    assert sorted(data.split("train")[0].targets.tolist()) == [0] * 11 + [1] * 13


def test_a_list_of_classes_vouches_for_lists_that_are_numbered_differently(tmp_path):
    write_folders(tmp_path / "images", {"ant": 9, "bee": 9, "cat": 9})
    train = write_list(tmp_path / "train.txt", {"ant": 0, "bee": 1, "cat": 2}, range(1, 7))
    test = write_list(tmp_path / "test.txt", {"ant": 0, "bee": 0, "cat": 2}, range(7, 9))
    with pytest.raises(ValueError, match=r"number the classes differently.*--data.class_list"):
        folder(tmp_path, train_list=train, test_list=test)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    data = folder(tmp_path, train_list=train, test_list=test, class_list=str(tmp_path / "classes.txt"), val_fraction=0)
    assert data.split("test")[0].targets.tolist() == [0, 0, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [("ant\n\nbee\n", "line 2 .*an empty line"), ("ant\nant\n", "line 2 .*'ant' again"), ("", "empty")],
)
def test_a_list_of_classes_with_a_mistake_is_refused(tmp_path, content, message):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_class_list(tmp_path / "classes.txt")
