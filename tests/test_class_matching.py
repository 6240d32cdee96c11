"""Classes of a checkpoint and of data are matched by their names."""

import csv
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import DigitsDataModule, ImageFolderDataModule, ImagesInMemory, LongTail
from scor_lightning.description import DataDescription
from scor_lightning.losses import BalancedSoftmaxLoss, LogitAdjustmentLoss
from scor_lightning.models import MLP
from tests.data.photographs import write_folders

ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


class Reordered(DigitsDataModule):
    """The digits with their classes in another order, under their own names."""

    class_names = tuple(f"digit {ORDER[c]}" for c in range(10))

    def load(self, split):
        data = super().load(split)
        if data is None:
            return None
        place = torch.tensor(ORDER).argsort()
        return ImagesInMemory(data.images, place[data.targets])


class Named(DigitsDataModule):
    """The digits under names."""

    class_names = tuple(f"digit {c}" for c in range(10))


class Others(DigitsDataModule):
    """Ten classes, one of which has another name."""

    class_names = (*(f"digit {c}" for c in range(9)), "letter")


def trainer(folder, **options):
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 6, **options},
    )  # fmt: skip


def model(loss=None):
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss() if loss is None else loss
    return ImageClassifier(MLP(10, image_size=(8, 8), hidden=[32]), loss, lambda p: torch.optim.Adam(p, lr=1e-2))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, BalancedSoftmaxLoss, lambda: LogitAdjustmentLoss(post_hoc=True)])
def test_data_in_another_order_are_evaluated_alike(tmp_path, loss):
    fit, data = trainer(tmp_path), Named(imbalance=LongTail(5))
    fit.fit(first := model(loss()), data)
    path = fit.checkpoint_callback.best_model_path
    expected = fit.test(first, data, verbose=False)[0]
    probabilities = torch.cat(fit.predict(first, data))
    for build in (
        lambda: (model(loss()), path),
        lambda: (ImageClassifier.load_from_checkpoint(path, backbone=model().backbone, loss=loss()), None),
        lambda: (first, None),
    ):
        classifier, checkpoint = build()
        again = trainer(tmp_path).test(classifier, Reordered(), ckpt_path=checkpoint, verbose=False)[0]
        assert again["test/accuracy"] > 0.8
        for name, value in expected.items():
            if "accuracy_" not in name or "top5" in name:  # the groups follow from the imbalance
                assert again[name] == pytest.approx(value, abs=1e-5), name
        predicted = torch.cat(trainer(tmp_path).predict(classifier, Reordered(), ckpt_path=checkpoint))
        torch.testing.assert_close(predicted, probabilities)  # in the order of the classifier, whose names they have
        assert classifier.class_names == [f"digit {c}" for c in range(10)]


def test_a_training_is_continued_on_data_in_another_order(tmp_path):
    fit, data = trainer(tmp_path / "first", max_epochs=2), Named(imbalance=LongTail(5))
    fit.fit(model(BalancedSoftmaxLoss()), data)
    second, other = model(BalancedSoftmaxLoss()), Reordered()
    go_on = trainer(tmp_path / "second", max_epochs=3)
    go_on.fit(second, other, ckpt_path=fit.checkpoint_callback.best_model_path)
    assert second.class_counts.tolist() == other.class_counts[torch.tensor(ORDER).argsort()].tolist()
    assert second.loss.class_counts.equal(second.class_counts)
    assert go_on.test(second, Named(), verbose=False)[0]["test/accuracy"] > 0.85


def test_data_with_other_classes_are_refused(tmp_path):
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(first := model(), Named())
    path = fit.checkpoint_callback.best_model_path
    message = "missing 'digit 9'; unknown 'letter'"
    for call in ("test", "validate", "predict", "fit"):
        with pytest.raises(ValueError, match=message):
            getattr(trainer(tmp_path), call)(model(), datamodule=Others(), ckpt_path=path)
        loaded = ImageClassifier.load_from_checkpoint(path, backbone=model().backbone, loss=nn.CrossEntropyLoss())
        with pytest.raises(ValueError, match=message):
            getattr(trainer(tmp_path), call)(loaded, datamodule=Others())
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).test(first, Others())


def test_classes_without_names_are_not_compared(tmp_path):
    loader = DigitsDataModule()
    loader.setup()
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model(), loader.train_dataloader(), loader.val_dataloader())
    fit.test(model(), Others(), ckpt_path=fit.checkpoint_callback.best_model_path, verbose=False)


@pytest.mark.parametrize("count", [1, 6])
def test_the_message_lists_a_few_names(count):
    trained, names = tuple(f"a{i}" for i in range(count)), tuple(f"b{i}" for i in range(count))
    with pytest.raises(ValueError, match=r"missing 'a0'.*; unknown 'b0'") as error:
        DataDescription(class_names=trained).class_order(names)
    assert ("and 1 more" in str(error.value)) == (count == 6)


FIT = (
    "scor-fit --data ImageFolderDataModule --data.root {root} --data.resolution 16 --data.batch_size 8 --data.num_workers 0 "
    "--model.backbone ConvNet --model.loss torch.nn.CrossEntropyLoss --trainer.max_epochs {epochs} "
    "--trainer.enable_progress_bar false --trainer.log_every_n_steps 1"
)


def test_the_commands_refuse_a_checkpoint_of_other_classes(command, tmp_path):
    write_folders(tmp_path / "pets", dict.fromkeys(["cat", "dog", "ship"], 20))
    write_folders(tmp_path / "others", dict.fromkeys(["airplane", "cat", "dog"], 20))
    status, _, error = command(FIT.format(root="pets", epochs=1))
    assert status == 0, error
    best = str(next(Path("runs").glob("*/version_0/checkpoints/best.ckpt")))
    for script in ("scor-test", "scor-validate", "scor-predict"):
        status, _, error = command(script, "--ckpt_path", best, "--data.root", "others")
        assert status == 1
        assert "missing 'ship'; unknown 'airplane'" in error
        assert "Traceback" not in error
    status, _, error = command(FIT.format(root="others", epochs=2), "--ckpt_path", best)
    assert status == 1
    assert "missing 'ship'; unknown 'airplane'" in error


def test_the_commands_match_a_list_in_another_order(command, tmp_path):
    names = ["cat", "dog", "ship"]
    write_folders(tmp_path / "images", dict.fromkeys(names, 30))
    for file, order in (("one.txt", names), ("two.txt", ["ship", "cat", "dog"])):
        lines = [f"{name}/{name}_{i:04d}.jpg {order.index(name)}" for name in names for i in range(1, 31)]
        Path(file).write_text("\n".join(lines))
    status, _, error = command(FIT.format(root="images", epochs=8), "--data.train_list", "one.txt")
    assert status == 0, error
    best = next(Path("runs").glob("*/version_0/checkpoints/best.ckpt"))
    recalls = []
    for file in ("one.txt", "two.txt"):
        # All of the images, so that the split is the same.
        options = ["--data.train_list", file, "--data.test_list", file]
        status, _, error = command("scor-test", "--ckpt_path", str(best), *options)
        assert status == 0, error
        report = json.loads((best.parent / "best.test/metrics.json").read_text())
        recalls.append({row["class"]: row["recall"] for row in report["classes"]})
        status, _, error = command("scor-predict", "--ckpt_path", str(best), *options)
        assert status == 0, error
        with (best.parent / "best.predictions.csv").open() as rows:
            right = [row["true_class"] == row["predicted_class"] for row in csv.DictReader(rows)]
        assert sum(right) / len(right) == pytest.approx(sum(recalls[-1].values()) / 3)
    assert recalls[0] == recalls[1]
    assert min(recalls[0].values()) > 0.8


def test_class_names_come_from_the_folder(tmp_path):
    write_folders(tmp_path, {"b": 1, "a": 1})
    assert ImageFolderDataModule(str(tmp_path)).class_names == ("a", "b")


def test_names_that_are_not_all_different_are_refused():
    with pytest.raises(ValueError, match="different names for all classes but got 'a' more than once"):
        DataDescription(class_names=("a", "b", "c")).class_order(("b", "a", "a"))


def test_a_classifier_that_was_trained_keeps_its_classes_in_another_training(tmp_path):
    classifier = model()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(classifier, Named())
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(classifier, Reordered())
    assert classifier.class_names == list(Named.class_names)
    for data in (Named(), Reordered()):
        assert trainer(tmp_path).test(classifier, data, verbose=False)[0]["test/accuracy"] > 0.85
    with pytest.raises(ValueError, match="missing 'digit 9'"):
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(classifier, Others())
