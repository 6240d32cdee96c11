import pytest
import torch

from scor_lightning.datamodules import LongTail, MNISTDataModule
from tests.data.mnist import write_mnist


def test_reads_idx_files(tmp_path):
    data = MNISTDataModule(root=str(write_mnist(tmp_path)), imbalance=LongTail(10), val_fraction=0.25)
    data.prepare_data()
    data.setup()
    assert data.class_counts.tolist() == [30, 23, 17, 13, 10, 8, 6, 5, 3, 3]
    images, targets = next(iter(data.test_dataloader()))
    assert (images.shape, images.dtype, targets.dtype) == ((64, 1, 28, 28), torch.uint8, torch.int64)


def test_missing_data_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data.download true.*MNIST/raw"):
        MNISTDataModule(root=str(tmp_path)).prepare_data()


def test_labels_outside_the_classes_are_found_in_setup(tmp_path):
    data = MNISTDataModule(root=str(write_mnist(tmp_path, label=12)))
    with pytest.raises(ValueError, match=r"targets in 0..9 but got 12 in the train data"):
        data.setup()


def test_real_mnist(real_data):
    data = MNISTDataModule(root=str(real_data), imbalance=LongTail(100), val_fraction=0)
    data.prepare_data()
    data.setup()
    assert data.class_counts.tolist() == [5923, 3550, 2128, 1276, 764, 458, 274, 164, 98, 59]
