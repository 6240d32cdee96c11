import os
import time
from pathlib import Path

import pytest

from scor_lightning.datamodules import folder_index
from scor_lightning.datamodules.folder_index import cache_folder, index_folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a folder of two classes that has not changed for a while, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("b/2.JPG", "b/deep/1.png", "a/x.jpeg", "a/.hidden.jpg", "a/notes.txt", ".git/y.jpg", "c.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    age(tmp_path / "images")
    return tmp_path / "images"


def age(folder: Path) -> None:
    """Make a folder and those below appear to have last changed ten seconds ago."""
    then = time.time_ns() - 10 * 10**9
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        os.utime(path, ns=(then, then))


def listed(monkeypatch) -> list[str]:
    """Record every listing."""
    listings = []
    real = folder_index._list
    monkeypatch.setattr(folder_index, "_list", lambda root: listings.append(root) or real(root))
    return listings


def contents(folder):
    index = index_folder(folder)
    return index.classes, [path.decode() for path in index.paths.tolist()], index.targets.tolist()


EXPECTED = (("a", "b"), ["a/x.jpeg", "b/2.JPG", "b/deep/1.png"], [0, 1, 1])


def test_a_folder_is_listed_once_and_the_users_folder_left_alone(folder, monkeypatch):
    before = sorted(folder.rglob("*"))
    listings = listed(monkeypatch)
    assert contents(folder) == EXPECTED
    assert contents(folder) == EXPECTED
    assert contents(os.path.relpath(folder)) == EXPECTED
    assert len(listings) == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("change", ["add", "remove", "rename", "deep", "class"])
def test_a_changed_folder_is_listed_again(folder, change):
    assert contents(folder) == EXPECTED
    if change == "add":
        (folder / "a" / "new.png").touch()
    elif change == "remove":
        (folder / "b" / "2.JPG").unlink()
    elif change == "rename":
        (folder / "a" / "x.jpeg").rename(folder / "a" / "z.jpeg")
    elif change == "deep":
        (folder / "b" / "deep" / "0.png").touch()
    else:
        (folder / "c").mkdir()
    assert contents(folder) != EXPECTED


def test_a_folder_that_changed_just_now_is_not_trusted(folder, monkeypatch):
    listings = listed(monkeypatch)
    (folder / "a" / "new.png").touch()
    contents(folder)
    contents(folder)
    assert len(listings) == 2


def test_a_cache_that_is_broken_or_cannot_be_written_costs_a_listing_and_nothing_else(folder, monkeypatch):
    contents(folder)
    (file,) = (cache_folder() / "folders").glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert contents(folder) == EXPECTED
    blocked = folder.parent / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert contents(folder) == EXPECTED


def test_what_is_no_folder_of_classes_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such folder: '.*nowhere'"):
        index_folder(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "image.jpg").touch()
    with pytest.raises(ValueError, match=r"Expected one subfolder per class in '.*flat' but it holds none"):
        index_folder(tmp_path / "flat")


def test_each_real_file_counts_once_whatever_links_lead_to_it(folder):
    (folder / "a" / "up").symlink_to(folder)  # a circle
    (folder / "a" / "again.jpg").symlink_to(folder / "b" / "2.JPG")
    (folder / "also_b").symlink_to(folder / "b")
    (folder / "a" / "gone.png").symlink_to(folder / "nowhere.png")
    index = index_folder(folder)
    assert contents(folder) == EXPECTED
    assert index.left_out == (
        "1 x not an image (.txt)",
        "1 x beside the class folders",
        "3 x a link to what is listed already",
        "1 x a broken link",
    )
    assert index_folder(folder).left_out == index.left_out


def test_links_to_images_elsewhere_are_images(folder, tmp_path):
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "1.png").touch()
    (tmp_path / "store" / "deep" / "2.png").touch()
    (folder / "a" / "one.png").symlink_to(tmp_path / "store" / "1.png")
    (folder / "c").symlink_to(tmp_path / "store" / "deep")
    assert contents(folder) == (
        ("a", "b", "c"),
        ["a/one.png", "a/x.jpeg", "b/2.JPG", "b/deep/1.png", "c/2.png"],
        [0, 0, 1, 1, 2],
    )


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN"])
def test_what_programs_leave_behind_is_no_class_and_no_image(folder, name):
    for place in (folder / name, folder / "a" / name):
        place.mkdir()
        (place / "x.jpg").touch()
    assert contents(folder) == EXPECTED


def test_names_that_are_not_utf8_are_listed(folder):
    with open(os.fsencode(folder / "a") + b"/caf\xe9.jpg", "wb"):
        pass
    with open(os.fsencode(folder / "a") + b"/notes.\xe9", "wb"):
        pass
    age(folder)
    for _ in range(2):  # the second time out of the cache
        index = index_folder(folder)
        assert b"a/caf\xe9.jpg" in index.paths.tolist()
        assert "2 x not an image" in index.left_out[0]


def test_every_format_that_is_decoded_is_listed(folder):
    for suffix in (".gif", ".jfif", ".avif", ".jpe", ".WEBP", ".tga"):
        (folder / "a" / f"image{suffix}").touch()
    assert len(index_folder(folder).paths) == 3 + 6
