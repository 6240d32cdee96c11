import hashlib

import pytest
from sklearn.datasets import _lfw

from scor_lightning.datamodules import LFWDataModule
from tests.data.photographs import pack, write_folders

PEOPLE = {"Ada_Smith": 10, "Bob_Jones": 5, "Cyd_Brown": 4, "Dot_White": 1}


def test_people_with_few_photographs_are_left_out_and_nothing_is_deleted(tmp_path):
    write_folders(tmp_path, PEOPLE)
    before = sorted(tmp_path.rglob("*"))
    data = LFWDataModule(str(tmp_path), val_fraction=0.25, resolution=16, num_workers=0, batch_size=4)
    data.prepare_data()
    assert (data.num_classes, data.class_names) == (2, ("Ada_Smith", "Bob_Jones"))
    data.setup()
    assert data.class_counts.tolist() == [6, 3]
    images, index = data.split("test")
    assert sorted(images.path(i).split("/")[-2] for i in index.tolist()) == ["Ada_Smith", "Ada_Smith", "Bob_Jones"]
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 16, 16)
    assert LFWDataModule(str(tmp_path), min_images=1).num_classes == 4
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=r"at least `min_images` = 11 photographs in .* but the most are 10"):
        LFWDataModule(str(tmp_path), min_images=11).setup()
    with pytest.raises(ValueError, match="`min_images` >= 1 but got 0"):
        LFWDataModule(str(tmp_path), min_images=0)


def test_scikit_learn_downloads_what_is_not_there(tmp_path, monkeypatch, server):
    served, address = server
    pack(write_folders(served / "lfw_funneled", PEOPLE), served / "lfw-funneled.tgz")
    for pairs in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):  # it downloads the lists of pairs besides
        (served / pairs).write_text("0\n")

    def remote(meta):
        checksum = hashlib.sha256((served / meta.filename).read_bytes()).hexdigest()
        return meta._replace(url=f"{address}/{meta.filename}", checksum=checksum)

    monkeypatch.setattr(_lfw, "FUNNELED_ARCHIVE", remote(_lfw.FUNNELED_ARCHIVE))
    monkeypatch.setattr(_lfw, "TARGETS", tuple(map(remote, _lfw.TARGETS)))
    data = LFWDataModule(str(tmp_path / "data"), download=True)
    assert data.num_classes == 2  # the command line asks for it before anything is prepared
    assert len(list((tmp_path / "data" / "lfw_home" / "lfw_funneled" / "Ada_Smith").iterdir())) == 10
    again = LFWDataModule(str(tmp_path / "data"))
    again.prepare_data()
    assert again.class_names == ("Ada_Smith", "Bob_Jones")


def test_missing_data_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'. Download them with `--data.download true`"):
        LFWDataModule(str(tmp_path / "nowhere")).prepare_data()
