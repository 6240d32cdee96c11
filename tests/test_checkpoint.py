import multiprocessing
import os
import resource

import pytest
import torch

from scor_lightning.checkpoint import AtomicCheckpointIO, is_whole, newest_whole


def write(folder, value, name="last.ckpt"):
    AtomicCheckpointIO().save_checkpoint({"value": torch.full((100_000,), value)}, folder / name)


def value(path):
    return torch.load(path, weights_only=True)["value"][0].item()


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept(tmp_path, monkeypatch, links):
    if not links:  # as on FAT
        monkeypatch.setattr(os, "link", lambda *paths: os.stat("no such file"))
    for i in range(3):
        write(tmp_path / "run", i)
    write(tmp_path / "run", 7, "best.ckpt")
    write(tmp_path / "run", 8, "best.ckpt")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "last.previous.ckpt",
    ]
    assert value(tmp_path / "run/last.ckpt") == 2
    assert value(tmp_path / "run/last.previous.ckpt") == 1
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "run/best.ckpt")["value"][0] == 8


@pytest.mark.parametrize("damage", ["cut", "emptied", "zeroed"])
def test_a_damaged_file_is_recognised_and_the_one_before_taken(tmp_path, damage):
    write(tmp_path, 1)
    write(tmp_path, 2)
    last = tmp_path / "last.ckpt"
    assert newest_whole(tmp_path) == last
    content = last.read_bytes()
    last.write_bytes(
        {
            "cut": content[:-4096],
            "emptied": b"",
            "zeroed": content[:200_000] + bytes(4096) + content[204_096:],  # blocks that never reached the disk
        }[damage]
    )
    assert not is_whole(last)
    assert newest_whole(tmp_path) == tmp_path / "last.previous.ckpt"
    (tmp_path / "last.previous.ckpt").unlink()
    assert newest_whole(tmp_path) is None


def fill(folder, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # a write beyond fails, as on a full disk
    try:
        write(folder, 3)
    except OSError as error:
        queue.put(str(error))


def test_a_full_disk_leaves_the_last_good_one(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=fill, args=(tmp_path, queue))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert "last.ckpt' but got: [Errno 27] File too large" in queue.get()
    assert value(tmp_path / "last.ckpt") == 2
    assert value(tmp_path / "last.previous.ckpt") == 1
    assert len(os.listdir(tmp_path)) == 2
