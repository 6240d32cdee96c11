"""Frozen bodies: the head alone is trained, on features that are computed once."""

import csv
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from scor_lightning import ImageClassifier, features
from scor_lightning.callbacks import ClassReport
from scor_lightning.comparison import Training, compare
from scor_lightning.datamodules import DigitsDataModule, ImageFolderDataModule, LongTail
from scor_lightning.description import channel_statistics
from scor_lightning.features import body_key, use_features
from scor_lightning.losses import BalancedSoftmaxLoss
from scor_lightning.models import MLP, ConvNet, CosineLinear, MLPHead
from tests.data.photographs import write_folders

PEOPLE = {"Ada Byron": 20, "Bob": 14, "Cyd": 9}
CPU = torch.device("cpu")


class Fixed(ConvNet):
    """A network whose body is the same whatever the seed, as a pretrained one is; with batch norm."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (8, 8),
        head: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size, head=head)
        draw = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            if not name.startswith("head."):
                parameter.data = torch.randn(parameter.shape, generator=draw)
        self.norm = nn.BatchNorm1d(self.num_features, affine=False)
        self.norm.running_mean.normal_(generator=draw)

    def forward_features(self, images):
        return self.norm(super().forward_features(images))


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(Path("data"), PEOPLE, ".png")
    monkeypatch.setattr(features, "_FOLDERS", [])
    return partial(
        ImageFolderDataModule, "data", resolution=8, augment=False, batch_size=8, cache="cache", num_workers=0
    )


def fit(data, seed=0, **options):
    torch.manual_seed(seed)
    options = {"frozen_body": True, "optimizer": partial(torch.optim.SGD, lr=0.1)} | options
    model = ImageClassifier(Fixed(len(PEOPLE)), nn.CrossEntropyLoss(), **options)
    before = body_key(model.backbone)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, data)
    assert body_key(model.backbone) == before  # weights and the statistics of batch norms
    return model, trainer


def kept():
    return sorted(Path("cache/features").glob("*.npz"))


def computed(capsys):
    return "features of train images" in capsys.readouterr().err


def test_the_head_alone_is_trained_on_features_as_on_images(photographs, monkeypatch, capsys):
    model, _ = fit(photographs())
    assert computed(capsys)
    assert not model.backbone.norm.training
    assert model.backbone.head.training
    with monkeypatch.context() as patch:
        patch.setattr("scor_lightning.classifier.use_features", lambda *_: False)
        other, _ = fit(photographs())
        assert not computed(capsys)
    start = Fixed(3).head.weight
    assert not torch.allclose(model.backbone.head.weight, start)
    torch.testing.assert_close(model.backbone.head.weight, other.backbone.head.weight, rtol=1e-4, atol=1e-5)
    assert len(kept()) == 1


def test_features_are_those_of_the_network(photographs):
    data, network = photographs(), Fixed(3).eval()
    data.setup()
    raw = photographs()
    raw.setup()
    assert use_features(data, network, CPU)
    images, index = data.split("train")
    for (batch, target), part in zip(raw.val_dataloader(), torch.split(data.split("val")[1], 8), strict=True):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (raw.mean, raw.std))
        expected = network.forward_features((batch / 255 - mean) / std)
        torch.testing.assert_close(images[part][0], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(images[part][1], target)
    assert len(index) + len(data.split("val")[1]) + len(data.split("test")[1]) == sum(PEOPLE.values())


def test_what_is_kept_is_used_until_something_changes(photographs, capsys):
    fit(photographs())
    assert computed(capsys)
    fit(photographs(), seed=1)  # another head and order, the same body
    fit(photographs(seed=3, imbalance=LongTail(2)))
    assert not computed(capsys)
    assert len(kept()) == 1
    fit(photographs(resolution=10))
    assert computed(capsys)
    image = next(Path("data/Bob").iterdir())
    image.write_bytes(next(Path("data/Cyd").iterdir()).read_bytes())
    os.utime(image, (1, 1))
    fit(photographs())
    assert computed(capsys)
    assert len(kept()) == 3


def test_a_damaged_cache_is_computed_again_in_one_line(photographs, capsys):
    model, _ = fit(photographs())
    (file,) = kept()
    for damage in (file.read_bytes()[:-40], bytes(100), file.read_bytes()[:200] + b"!!" + file.read_bytes()[202:]):
        file.write_bytes(damage)
        capsys.readouterr()
        again, _ = fit(photographs())
        out = capsys.readouterr().out
        assert out.count("is damaged; its features are computed again") == 1
        torch.testing.assert_close(
            again.backbone.head.weight, model.backbone.head.weight, rtol=1e-3, atol=1e-3
        )  # perhaps in another memory format


def test_a_run_continues_without_a_writable_cache(photographs, capsys, monkeypatch):
    Path("cache").write_text("a file, so that no folder can be made")
    model, _ = fit(photographs())
    assert model.backbone.head.weight.isfinite().all()
    assert Path("cache").is_file()
    monkeypatch.setattr("scor_lightning.datamodules.folder_index.write_whole", full_disk)
    with pytest.raises(ValueError, match="Expected room for features of 0 MB but the disks are full"):
        fit(photographs(cache="elsewhere"))  # not even for this run
    assert "cannot be written" in capsys.readouterr().out


def full_disk(path, content):
    raise OSError(28, "No space left on device")


def test_features_that_are_not_finite_name_the_image(photographs):
    data, network = photographs(), Fixed(3)
    data.setup()
    network.norm.running_var.zero_()
    network.norm.eps = 0.0
    with pytest.raises(ValueError, match=r"Expected finite features but 43 of 43 train images .*Ada Byron"):
        use_features(data, network, CPU)
    assert kept() == []


def test_augmented_and_mixed_images_are_not_replaced(photographs):
    data = photographs(augment=True)
    fit(data)
    assert data.features == {}
    with pytest.raises(ValueError, match="no `train_transforms` with `augment` false"):
        photographs(train_transforms=[])


def test_a_network_without_body_and_head_is_refused():
    with pytest.raises(ValueError, match="`forward_features` and a module `head` for `frozen_body` but got Linear"):
        ImageClassifier(nn.Linear(4, 3), nn.CrossEntropyLoss(), num_classes=3, frozen_body=True)


class Expecting(Fixed):
    """A network that expects other statistics than the data module has."""

    mean, std = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)


def test_a_pretrained_network_brings_its_preprocessing(photographs):
    model = ImageClassifier(Expecting(3), nn.CrossEntropyLoss())
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(model, photographs())
    assert model.description.mean == (0.1, 0.2, 0.3)
    torch.testing.assert_close(model.normalize.std.flatten(), torch.tensor([0.9, 0.8, 0.7]))
    trainer.save_checkpoint("kept.ckpt")
    checkpoint = torch.load("kept.ckpt", weights_only=True)
    assert tuple(checkpoint["data"]["mean"]) == (0.1, 0.2, 0.3)


METHODS = {
    "cross_entropy": {},
    "balanced_softmax": {"loss": BalancedSoftmaxLoss},
    "cosine": {"backbone": partial(Fixed, head=CosineLinear)},
    "mlp": {"backbone": partial(Fixed, head=MLPHead)},
}


def test_a_comparison_stacks_heads_with_the_results_of_single_trainings(photographs):
    training = Training(
        photographs(val_fraction=0),
        Fixed,
        nn.CrossEntropyLoss,
        epochs=2,
        optimizer=partial(torch.optim.SGD, lr=0.05),
        classifier={"frozen_body": True},
    )
    stacked, alone = (compare(training, METHODS, repeats=3, engine=engine) for engine in ("auto", "sequential"))
    assert {row["engine"] for row in stacked} == {"stacked"}
    for one, other in zip(stacked, alone, strict=True):
        assert (one["repeat"], one["method"]) == (other["repeat"], other["method"])
        assert one["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=1e-4)
        assert one["accuracy"] == other["accuracy"]
    assert len(kept()) == 1
    row = next(row for row in alone if row["method"] == "mlp" and row["repeat"] == 1)
    torch.manual_seed(row["seed"])
    model = ImageClassifier(
        Fixed(3, head=MLPHead), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.05), frozen_body=True
    )
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    data = photographs(val_fraction=0, seed=row["seed"])
    trainer.fit(model, data)
    result = trainer.test(model, data, verbose=False)[0]
    assert result["test/cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-5)
    assert result["test/accuracy"] == pytest.approx(row["accuracy"])


def test_a_body_with_random_weights_is_trained_as_a_whole(photographs):
    training = Training(
        photographs(val_fraction=0), partial(ConvNet), nn.CrossEntropyLoss, 1, classifier={"frozen_body": True}
    )
    rows = compare(training, {"a": {}, "b": {"loss": BalancedSoftmaxLoss}}, repeats=2)
    assert {row["engine"] for row in rows} == {"sequential"}
    assert np.isfinite([row["cross_entropy"] for row in rows]).all()


def test_a_probe_predicts_photographs_and_is_exported(command, photographs):
    line = (
        "scor-fit --config image_folder_scor.yaml --config method/mlp_probe.yaml --model.backbone "
        f"{Fixed.__module__}.Fixed --data.root data --data.resolution 8 --trainer.max_epochs 2 --data.cache cache"
    )
    status, _, error = command(line)
    assert status == 0, error
    run = next(Path("runs").glob("*/version_0"))
    checkpoint = run / "checkpoints/best.ckpt"
    status, _, error = command(
        f"scor-predict --ckpt_path {checkpoint} --images data/Bob --output bob.csv --trust_code true"
    )
    assert status == 0, error
    assert len(Path("bob.csv").read_text().splitlines()) == 1 + PEOPLE["Bob"]
    status, _, error = command(f"scor-test --ckpt_path {checkpoint} --trust_code true")  # on the images themselves
    assert status == 0, error
    pytest.importorskip("onnx")
    model = ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu", trust_code=True)
    assert model.frozen_body
    model.to_onnx("probe.onnx")
    assert Path("probe.onnx").is_file()


def test_digits_in_memory_are_identified_by_their_content(tmp_path):
    network = Fixed(10, in_channels=1)
    for expected, options in ((1, {}), (1, {"seed": 5}), (2, {"resolution": 12})):
        data = DigitsDataModule(augment=False, cache=str(tmp_path), **options)
        data.setup()
        assert use_features(data, network, CPU)
        trained = {file.name for file in data.features.values()}
        assert len(trained) == len(data.features)
        assert len(list(tmp_path.rglob("*.npz"))) == expected * len(data.features)


@pytest.mark.exhaustive
def test_eleven_methods_are_compared_on_a_folder_stacked_and_alone(command, photographs):
    line = (
        f"scor-compare --config compare/image_folder.yaml --data.root data --data.resolution 8 --data.cache cache "
        f"--model.backbone {Fixed.__module__}.Fixed --trainer.max_epochs 3 --repeats 2 --output out"
    )
    status, out, error = command(line)
    assert status == 0, error
    assert "one after another" not in error
    assert "Compares heads on a fixed body; to compare full fine-tuning: `--model.frozen_body false" in out
    with open("out/results.csv") as file:
        rows = list(csv.DictReader(file))
    assert len({row["method"] for row in rows}) == 11
    assert len(rows) == 22
    assert {row["engine"] for row in rows} == {"stacked"}
    assert all(float(row["tau"]) >= 0 for row in rows if row["method"] == "tau_norm")
    status, _, error = command(f"{line}_alone --engine sequential")
    assert status == 0, error
    with open("out_alone/results.csv") as file:
        alone = list(csv.DictReader(file))
    for one, other in zip(rows, alone, strict=True):
        assert (one["method"], one["tau"]) == (other["method"], other["tau"])
        assert float(one["cross_entropy"]) == pytest.approx(float(other["cross_entropy"]), rel=1e-3)


def test_images_of_two_dimensions_are_features_of_a_frozen_body_alone():
    class Table(nn.Module):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward_features(self, rows):
            return self.body(rows)

        def forward(self, rows):
            return self.head(self.body(rows))

    rows, network = torch.randn(6, 4), Table()
    torch.testing.assert_close(ImageClassifier(network, nn.CrossEntropyLoss())(rows), network(rows))
    features_of = network.forward_features(rows)
    frozen = ImageClassifier(network, nn.CrossEntropyLoss(), frozen_body=True)
    torch.testing.assert_close(frozen(features_of), network(rows))


def test_a_probe_shows_the_worst_images_themselves(photographs):
    data = photographs()
    model, trainer = fit(data)
    trainer.callbacks.append(ClassReport("report"))
    trainer.test(model, data, verbose=False)
    assert data.features
    assert Path("report/worst_images.png").is_file()
    whole = photographs()
    whole.setup()
    images, _ = next(iter(whole.test_dataloader()))
    assert torch.equal(data.pictures("test", range(len(images))), images)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, (0.2, 0.3, 0.4)), ({"mean": (0.5,), "std": (0.25,)}, (0.5, 0.5, 0.5))],
)
def test_given_statistics_override_those_of_a_pretrained_network(photographs, given, expected):
    class Pretrained(Fixed):
        mean, std = (0.2, 0.3, 0.4), (0.2, 0.2, 0.2)

    data = photographs(**given)
    data.setup()
    assert channel_statistics(data, Pretrained(3)).mean == expected


@pytest.mark.parametrize("given", [{"mean": (0.5,)}, {"mean": (0.5, 0.5), "std": (1, 1)}, {"mean": (0,), "std": (0,)}])
def test_statistics_that_do_not_fit_are_refused(photographs, given):
    with pytest.raises(ValueError, match=r"Expected `(mean|std)`"):
        photographs(**given)


def test_stacked_networks_normalise_as_those_that_are_pretrained_expect():
    class Pretrained(MLP):
        mean, std = (0.5,), (0.1,)

    data = DigitsDataModule()
    training = Training(data, Pretrained, nn.CrossEntropyLoss, epochs=1)
    methods = {"a": {}, "b": {"loss": BalancedSoftmaxLoss}}
    rows = [compare(training, methods, repeats=2, engine=engine) for engine in ("stacked", "sequential")]
    for stacked, alone in zip(*rows, strict=True):
        assert stacked["cross_entropy"] == pytest.approx(alone["cross_entropy"], abs=1e-4)
