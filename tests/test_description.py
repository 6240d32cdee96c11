import copy
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks.protocol import as_classifier
from scor_lightning.datamodules import DigitsDataModule, LongTail, ReduceClasses
from scor_lightning.description import DataDescription, describe_data
from scor_lightning.losses import LogitAdjustmentLoss
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


def test_a_users_data_module_is_described_by_its_attributes():
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


def quick(folder, **options):
    return Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 1, "limit_train_batches": 3, **options},
    )  # fmt: skip


def classifier(loss=None):
    return ImageClassifier(MLP(10, image_size=(8, 8)), nn.CrossEntropyLoss() if loss is None else loss)


def test_values_of_any_kind_become_plain_ones(tmp_path):
    own = type("Own", (), {"image_size": 28, "mean": 0.5, "std": np.array([0.25])})()
    assert describe_data(own) == DataDescription(image_size=(28, 28), mean=(0.5,), std=(0.25,))
    torch.save(describe_data(own).to_dict(), tmp_path / "data.pt")
    torch.load(tmp_path / "data.pt", weights_only=True)


def test_another_loss_gets_the_counts_that_the_classifier_was_trained_with(tmp_path):
    trainer, data = quick(tmp_path), DigitsDataModule(imbalance=LongTail(20))
    trainer.fit(first := classifier(), data)
    path = trainer.checkpoint_callback.best_model_path
    adjusted = ImageClassifier.load_from_checkpoint(
        path, backbone=MLP(10, image_size=(8, 8)), loss=LogitAdjustmentLoss(post_hoc=True)
    )
    quick(tmp_path).test(adjusted, DigitsDataModule(), verbose=False)  # balanced data
    assert adjusted.loss.class_counts.equal(data.class_counts)
    # Also where the loss is replaced in the network, and where the checkpoint is loaded after the data are set up.
    first.loss = LogitAdjustmentLoss(post_hoc=True)
    quick(tmp_path).test(first, DigitsDataModule(), verbose=False)
    assert first.loss.class_counts.equal(data.class_counts)
    quick(tmp_path).test(
        late := classifier(LogitAdjustmentLoss(post_hoc=True)), DigitsDataModule(), path, verbose=False
    )
    assert late.loss.class_counts.equal(data.class_counts)


def test_an_evaluation_of_unknown_weights_does_not_tie_them_to_its_data(tmp_path):
    model = classifier()
    for names in ("abcdefghij", "klmnopqrst"):
        data = type("Named", (DigitsDataModule,), {"class_names": tuple(names)})(imbalance=LongTail(3))
        quick(tmp_path).test(model, data, verbose=False)
        assert model.class_names == list(names)
    quick(tmp_path).fit(model, DigitsDataModule())
    assert model.class_names == [str(c) for c in range(10)]


def test_none_reduced_is_not_unknown(tmp_path):
    trainer = quick(tmp_path)
    trainer.fit(model := classifier(), DigitsDataModule())
    assert model.description.reduced_classes == ()
    results = trainer.test(model, DigitsDataModule(imbalance=LongTail(5)), verbose=False)[0]
    assert "test/accuracy_reduced" not in results


def test_a_classifier_is_known_by_its_attributes():
    assert as_classifier(model := classifier()) is model
    assert as_classifier(BoringModel()) is None


def test_a_data_module_goes_to_another_process_without_images_and_trainer(tmp_path):
    data = DigitsDataModule(imbalance=LongTail(5))
    quick(tmp_path).fit(classifier(), data)
    for copied in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert copied.trainer is None
        copied.setup()
        assert copied.class_counts.equal(data.class_counts)
    assert data.with_seed(1).trainer is None


def test_the_arguments_of_a_data_module_are_those_of_all_its_classes():
    class Noisy(DigitsDataModule):
        def __init__(self, *, noise: float = 0.0, **kwargs):
            super().__init__(**kwargs)

    assert Noisy.arguments()[0] == "noise"
    assert {"batch_size", "imbalance", "split_file"} <= set(Noisy.arguments())
