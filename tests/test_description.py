import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import DigitsDataModule, LongTail, ReduceClasses
from scor_lightning.description import DataDescription, describe_data
from scor_lightning.models import MLP

WHOLE = DataDescription(
    class_names=("a", "b", "c"),
    class_counts=(30, 20, 1),
    reduced_classes=(2,),
    image_size=(8, 9),
    mean=(0.5,),
    std=(0.25,),
    eval_transform=[{"class_path": "torchvision.transforms.v2.CenterCrop", "init_args": {"size": [8, 8]}}],
)


@pytest.mark.parametrize("description", [DataDescription(), WHOLE])
def test_it_survives_a_checkpoint(tmp_path, description):
    torch.save(description.to_dict(), tmp_path / "data.pt")
    assert DataDescription.from_dict(torch.load(tmp_path / "data.pt", weights_only=True)) == description


def test_the_order_of_the_classes_changes_all_that_is_said_of_them():
    other = WHOLE.in_order_of(("c", "a", "b"))
    assert (other.class_names, other.class_counts, other.reduced_classes) == (("c", "a", "b"), (1, 30, 20), (0,))
    assert other.in_order_of(WHOLE.class_names) == WHOLE
    assert WHOLE.class_order(other.class_names).tolist() == [2, 0, 1]
    assert WHOLE.in_order_of(None) is WHOLE
    assert WHOLE.reduced.tolist() == [False, False, True]
    assert DataDescription().counts is DataDescription().reduced is None


def test_a_data_module_describes_itself_once_it_is_set_up():
    data = DigitsDataModule(imbalance=ReduceClasses(0.1, [3]))
    assert data.description is None
    data.setup()
    assert data.description.class_counts == tuple(data.class_counts.tolist())
    assert data.description.reduced_classes == (3,)
    assert data.with_seed(1).description is None


def test_somebodys_own_data_module_is_described_by_its_attributes():
    own = type(
        "Own", (), {"class_names": ["x", "y"], "class_counts": torch.tensor([4, 2]), "mean": [0.1], "std": [0.2]}
    )()
    assert describe_data(own) == DataDescription(class_names=("x", "y"), class_counts=(4, 2), mean=(0.1,), std=(0.2,))
    assert describe_data(None) == DataDescription()


@pytest.mark.parametrize("known", [True, False])
def test_a_checkpoint_of_version_0_1_0_is_loaded(tmp_path, known):
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    data = DigitsDataModule(imbalance=LongTail(5))
    trainer.fit(first := ImageClassifier(MLP(10, image_size=(8, 8)), nn.CrossEntropyLoss()), data)
    expected = trainer.test(first, data, ckpt_path="best", verbose=False)[0]
    path = trainer.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["data"] = {
        "class_names": [str(c) for c in range(10)],
        "class_counts": data.class_counts if known else None,
        "image_size": (8, 8) if known else None,
        "eval_transform": [] if known else None,
        "mean": [0.0],
        "std": [1.0],
    }
    torch.save(checkpoint, tmp_path / "old.ckpt")
    model = ImageClassifier.load_from_checkpoint(
        tmp_path / "old.ckpt", backbone=MLP(10, image_size=(8, 8)), loss=nn.CrossEntropyLoss()
    )
    assert model.class_names == [str(c) for c in range(10)]
    assert (model.description.class_names is not None) == known
    # Which classes are reduced follows from the data, as 0.1.0 did not store it.
    assert trainer.test(model, data, verbose=False)[0] == expected
