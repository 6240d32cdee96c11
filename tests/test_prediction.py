import csv
import json
import re
import runpy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import scor_lightning
from scor_lightning import ImageClassifier
from scor_lightning.cli import fit
from scor_lightning.configuration import CONFIGS
from scor_lightning.datamodules import DigitsDataModule
from scor_lightning.datamodules.decode import read_image
from scor_lightning.models import MLP, CosineLinear, TorchvisionBackbone
from scor_lightning.prediction import find_images, predict_images

DIGITS = "scor-fit --config digits_scor.yaml --trainer.max_epochs 2 --trainer.enable_progress_bar false"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as `scor-fit` writes it, with posthoc logit adjustment and named classes."""
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(DigitsDataModule, "class_names", tuple(f"digit {c}" for c in range(10)))
    patch.setattr("sys.argv", f"{DIGITS} --config loss/logit_adjustment_posthoc.yaml".split())
    fit.main()
    patch.undo()
    return folder / "runs/digits_logit_adjustment_posthoc/version_0/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of test digits as pictures, one of them in a folder below, gray and in colours; with their bytes."""
    data = DigitsDataModule()
    data.setup()
    images, _ = next(iter(data.test_dataloader()))
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    (folder / ".hidden").mkdir()
    for i, image in enumerate(images[:12]):
        picture = Image.fromarray(image[0].numpy()).convert("RGB" if i % 2 else "L")
        picture.save(folder / ("below/11.PNG" if i == 11 else f"{i:02}.png"))
    (folder / "notes.txt").write_text("no image")
    picture.save(folder / ".hidden/12.png")
    return folder, torch.cat([images[:11], images[11:12]])


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_folder_of_images_is_predicted_by_the_checkpoint_alone(command, checkpoint, photos):
    folder, images = photos
    alone = Path("moved.ckpt")
    alone.write_bytes(checkpoint.read_bytes())
    before = sorted(folder.rglob("*"))
    status, out, error = command(f"scor-predict --ckpt_path {alone} --images {folder} --batch_size 5 --num_workers 0")
    assert status == 0, error
    path = Path(f"moved.{folder.name}.csv")
    assert f"Wrote 12 predictions to {path}" in out
    assert sorted(folder.rglob("*")) == before
    written = rows(path)
    assert [row["file"] for row in written] == [str(file) for file in find_images(folder)]
    assert len(written) == 12
    model = ImageClassifier.load_from_checkpoint(alone)
    expected = model.eval()(images).softmax(1)
    assert model.eval()(images).sub(model.backbone(images / 255)).abs().max() > 0.1  # the adjustment
    for row, probabilities in zip(written, expected, strict=True):
        p, c = probabilities.topk(5)
        named = [model.class_names[i] for i in c]
        assert [row["predicted_class"], *(row[f"class_{i}"] for i in range(2, 6))] == named
        assert named[0].startswith("digit ")
        shares = [float(row[name]) for name in ("probability", *(f"probability_{i}" for i in range(2, 6)))]
        assert shares == pytest.approx(p.tolist(), abs=2e-6)


def test_one_image_by_workers_to_a_named_file(checkpoint, photos, tmp_path):
    folder, _ = photos
    path = predict_images(checkpoint, folder, tmp_path / "out.csv", batch_size=4, num_workers=2, accelerator="cpu")
    assert len(rows(path)) == 12
    one = predict_images(checkpoint, folder / "03.png", tmp_path / "one.csv", accelerator="cpu")
    assert rows(one) == [row for row in rows(path) if row["file"].endswith("03.png")]


@pytest.mark.parametrize("options", ["--num_workers 0", "--batch_size 1 --num_workers 1"])
def test_images_that_cannot_be_read_are_named_and_the_others_predicted(command, checkpoint, options):
    Path("some").mkdir()
    for name in ("0.png", "2.png"):
        Image.new("L", (8, 8)).save(f"some/{name}")
    Path("some/1.png").write_bytes(b"no image")
    told = pytest.warns(UserWarning, match="'some/1.png' cannot be read") if options.endswith("0") else nullcontext()
    with told:
        status, out, error = command(f"scor-predict --ckpt_path {checkpoint} --images some --output o.csv {options}")
    assert status == 0, error
    assert "Wrote 3 images to o.csv, 1 without a prediction because they cannot be read" in out
    first, broken, last = rows("o.csv")
    assert broken["file"] == "some/1.png"
    assert not broken["predicted_class"]
    assert first["probability"] == last["probability"] > "0"


def test_the_probability_of_every_class_is_written_on_request(checkpoint, tmp_path):
    folder = tmp_path / "=some"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "0.png")
    (folder / "1.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="cannot be read"):
        path = predict_images(
            checkpoint, folder, tmp_path / "all.csv", num_workers=0, accelerator="cpu", all_classes=True
        )
    with path.open(newline="") as file:
        header, first, broken = csv.reader(file)
    each = [i for i, name in enumerate(header) if name.startswith("probability[")]
    assert len(each) == 10
    shown = [float(first[i]) for i in each]
    assert sum(shown) == pytest.approx(1, abs=1e-5)
    assert f"{max(shown):.6f}" == first[header.index("probability")]
    assert header[each[shown.index(max(shown))]] == f"probability[{first[1]}]"
    assert len(header) == len(first) == len(broken)
    assert not any(broken[1:])


def test_mistakes_are_refused_and_leave_nothing(command, checkpoint, photos, tmp_path):
    folder, _ = photos

    def refused(options):
        status, _, error = command(f"scor-predict {options}")
        assert status != 0
        assert "Traceback" not in error
        assert not list(Path().glob("*.csv*"))
        return error

    Path("c.ckpt").write_bytes(checkpoint.read_bytes())
    assert "no file 'nope.ckpt'" in refused(f"--ckpt_path nope.ckpt --images {folder}")
    assert "there is no 'nowhere'" in refused("--ckpt_path c.ckpt --images nowhere")
    Path("empty").mkdir()
    assert "Expected images below 'empty' but found none" in refused("--ckpt_path c.ckpt --images empty")
    assert "--ckpt_path" in refused(f"--images {folder}")
    Path("broken").mkdir()
    Image.new("L", (8, 8)).save("broken/0.png")
    Image.new("L", (8, 9)).save("broken/2.png")
    message = "Expected images of 8 x 8 pixels, as the network was trained on, but 'broken/2.png' has 9 x 8"
    assert message in refused("--ckpt_path c.ckpt --images broken --num_workers 0")
    assert "Expected `batch_size` >= 1 but got 0" in refused("--ckpt_path c.ckpt --images broken --batch_size 0")


def test_what_was_built_in_python_asks_for_its_modules(tmp_path, command):
    def network():
        return MLP(num_classes=3, image_size=(2, 2), hidden=[4])

    loader = DataLoader(TensorDataset(torch.rand(12, 1, 2, 2), torch.arange(12) % 3), batch_size=4)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False
    )
    model = ImageClassifier(network(), nn.CrossEntropyLoss())
    trainer.fit(model, loader)
    trainer.save_checkpoint("python.ckpt")
    with pytest.raises(
        ValueError, match=r"Expected `backbone=...` and `loss=...` beside 'python.ckpt': they were built"
    ):
        ImageClassifier.load_from_checkpoint("python.ckpt")
    again = ImageClassifier.load_from_checkpoint("python.ckpt", backbone=network(), loss=nn.CrossEntropyLoss())
    assert again.backbone.head.weight.equal(model.backbone.head.weight)
    Image.new("L", (2, 2)).save("image.png")
    status, _, error = command("scor-predict --ckpt_path python.ckpt --images image.png")
    assert status != 0
    assert "scor-predict: error: Expected `backbone=...` and `loss=...` beside 'python.ckpt'" in error
    other = MLP(num_classes=3, image_size=(2, 2), hidden=[4, 4])
    with pytest.raises(ValueError, match=r"Expected backbone.body.3.weight of shape \(4, 4\) .* but got none"):
        ImageClassifier.load_from_checkpoint("python.ckpt", backbone=other, loss=nn.CrossEntropyLoss())
    other = MLP(num_classes=5, image_size=(2, 2), hidden=[4])
    with pytest.raises(ValueError, match="Expected a checkpoint of 5 classes but got one of 3"):
        ImageClassifier.load_from_checkpoint("python.ckpt", backbone=other, loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="knows no data"):
        model.to_onnx("classifier.onnx")


def test_a_checkpoint_with_more_layers_is_refused(checkpoint):
    small = MLP(num_classes=10, image_size=(8, 8), hidden=[128])
    small.body = nn.Sequential(*small.body[:1], nn.Linear(64, 128, bias=False), nn.ReLU())
    with pytest.raises(ValueError, match=r"weights of a MLP in the checkpoint but got also backbone\.body\.1\.bias"):
        ImageClassifier.load_from_checkpoint(checkpoint, backbone=small)


def test_an_exported_classifier_returns_the_same_probabilities(checkpoint, photos, tmp_path):
    _, images = photos
    model = ImageClassifier.load_from_checkpoint(checkpoint)
    model.train()
    model.to_onnx(tmp_path / "classifier.onnx")
    assert all(module.training for module in model.modules())
    session = onnxruntime.InferenceSession(str(tmp_path / "classifier.onnx"))
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [1, 8, 8])
    with torch.no_grad():
        expected = model.eval()(images).softmax(1)
    for batch in (images, images[:1]):
        (probabilities,) = session.run(["probabilities"], {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(probabilities), expected[: len(batch)], atol=1e-6, rtol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["class_names"].startswith('["digit 0", "digit 1"')
    assert json.loads(metadata["preprocessing"]) == model.description.eval_transform


def test_a_gray_classifier_with_another_head_is_exported(tmp_path):
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(5, in_channels=1, image_size=(48, 40), arch="resnet18", head=CosineLinear)
    model = ImageClassifier(backbone, nn.CrossEntropyLoss(), channels_last=True).eval()
    images = torch.randint(256, (3, 1, 48, 40), dtype=torch.uint8)
    model.to_onnx(tmp_path / "classifier.onnx", input_sample=images)
    session = onnxruntime.InferenceSession(str(tmp_path / "classifier.onnx"))
    with torch.no_grad():
        expected = model(images[:1]).softmax(1)
    (probabilities,) = session.run(None, {"images": images[:1].numpy()})
    torch.testing.assert_close(torch.from_numpy(probabilities), expected, atol=1e-5, rtol=1e-4)


def test_the_guides_example_runs(checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("best.ckpt").write_bytes(checkpoint.read_bytes())
    (example,) = re.findall(r"```py\n(.*?)```", (CONFIGS.parent / "docs/photographs.md").read_text(), re.DOTALL)
    Path("example.py").write_text(example)
    Image.open(photos[0] / "00.png").save("photo.jpg")
    names = runpy.run_path("example.py")
    assert names["probabilities"].shape == (1, 10)
    torch.testing.assert_close(torch.from_numpy(names["exported"]), names["probabilities"], atol=1e-6, rtol=1e-5)
    assert names["class_names"][0] == "digit 0"


def test_files_are_prepared_as_they_are_for_predictions(checkpoint, photos, tmp_path):
    """Digits enlarged to 20 x 20 pixels, which the checkpoint's own resize brings back to 8 x 8."""
    folder, _ = photos
    Image.open(folder / "01.png").resize((20, 20)).save(tmp_path / "large.png")
    model = ImageClassifier.load_from_checkpoint(checkpoint).eval()
    transform = [{"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [8, 8]}}]
    model.known_data.restore(replace(model.description, eval_transform=transform))
    images = scor_lightning.prepare_images([tmp_path / "large.png"], model)
    assert (images.dtype, images.shape) == (torch.uint8, (1, 1, 8, 8))
    expected = v2.Resize((8, 8))(read_image(tmp_path / "large.png"))[:1]
    torch.testing.assert_close(images[0], expected)
    model.known_data.restore(replace(model.description, eval_transform=None))
    for files in ([], str(tmp_path / "large.png")):
        with pytest.raises(ValueError, match="a list of at least one path"):
            scor_lightning.prepare_images(files, model)
    with pytest.raises(ValueError, match="knows how to prepare images but this classifier does not"):
        scor_lightning.prepare_images([tmp_path / "large.png"], model)


@pytest.mark.exhaustive
def test_weights_are_not_asked_for_again_by_a_checkpoint(command, tmp_path):
    from torchvision import models

    torch.save(models.squeezenet1_1().state_dict(), "weights.pth")
    options = (
        "--config digits_scor.yaml --trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_test_batches 1 "
        "--trainer.limit_val_batches 1 --trainer.enable_progress_bar false --data.resolution 32 "
        "--model.backbone TorchvisionBackbone --model.backbone.arch squeezenet1_1 --model.backbone.weights weights.pth"
    )
    assert command(f"scor-fit {options}")[0] == 0
    Path("weights.pth").unlink()
    assert "`weights` of squeezenet1_1" in command(f"scor-fit {options}")[2]
    path = "runs/digits_scor/version_0/checkpoints/last.ckpt"
    assert "weights: weights.pth" in Path("runs/digits_scor/version_0/config.yaml").read_text()
    for line in (
        f"scor-test --ckpt_path {path} --trainer.limit_test_batches 1",
        f"scor-fit {options} --trainer.max_epochs 2 --ckpt_path {path}",
        f"scor-fit {options} --trainer.max_epochs 3 --ckpt_path last",
    ):
        status, _, error = command(line)
        assert status == 0, error
    assert ImageClassifier.load_from_checkpoint(path)(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape == (2, 10)
