"""Every shipped configuration, through the command, on small files in the data set's own format."""

import inspect
import pydoc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.transforms import v2

from scor_lightning.configuration import CONFIGS, experiment_name, shipped_configs
from scor_lightning.datamodules import CIFAR10DataModule
from scor_lightning.datamodules.transforms import build_transform
from scor_lightning.parser import training_parser
from tests.data.mnist import write_mnist
from tests.data.photographs import write_dtd, write_folders, write_oxford_pets
from tests.data.published import cifar10, cifar100, flowers102, stl10

SYNSETS = ("n01440764", "n01443537", "n01484850")
PEOPLE = {"Ada": 8, "Bob": 6, "Cyd": 5, "Dot": 2}
SMALL = "--data.resolution 32 --data.num_workers 0 --model.backbone.weights null"


def imagenet(root: Path, patch: Callable) -> None:
    """Write ImageNet's folders, and the lists of its long-tailed subset."""
    folder = root / "imagenet"
    write_folders(folder / "train", dict.fromkeys(SYNSETS, 8), ".JPEG")
    write_folders(folder / "val", dict.fromkeys(SYNSETS, 2), ".JPEG")
    for name, split, sizes in (("train", "train", (6, 3, 1)), ("val", "train", (1, 1, 1)), ("test", "val", (2, 2, 2))):
        lines = [
            f"{split}/{synset}/{synset}_{i:04d}.JPEG {c}"
            for c, (synset, size) in enumerate(zip(SYNSETS, sizes, strict=True))
            for i in range(1, size + 1)
        ]
        (folder / f"ImageNet_LT_{name}.txt").write_text("\n".join(lines))


# The files of each configuration, and options that make it small.
RUNS: dict[str, tuple[Callable, str]] = {
    "digits_scor.yaml": (lambda root, patch: None, ""),
    "mnist_scor.yaml": (lambda root, patch: write_mnist(root), "--data.imbalance.factor 0.5"),
    "fashion_mnist_scor.yaml": (
        lambda root, patch: write_mnist(root, name="FashionMNIST"),
        "--data.imbalance.ratio 10",
    ),
    "cifar10_scor.yaml": (cifar10, "--data.imbalance.factor 0.5"),
    "cifar10lt_scor.yaml": (cifar10, "--data.imbalance.ratio 10"),
    "cifar100lt_scor.yaml": (cifar100, "--data.imbalance.ratio 5"),
    "cifar10_paper.yaml": (cifar10, "--data.imbalance.factor 0.5 --data.batch_size 4"),
    "flowers102_scor.yaml": (flowers102, f"{SMALL} --data.batch_size 8"),
    "oxford_pets_scor.yaml": (
        lambda root, patch: write_oxford_pets(root),
        f"{SMALL} --data.batch_size 8 --data.val_fraction 0.25",
    ),
    "dtd_scor.yaml": (lambda root, patch: write_dtd(root), f"{SMALL} --data.partition 3 --data.batch_size 8"),
    "stl10_scor.yaml": (stl10, f"{SMALL} --data.batch_size 8"),
    "lfw_scor.yaml": (lambda root, patch: write_folders(root, PEOPLE), f"{SMALL} --data.batch_size 8"),
    "image_folder_scor.yaml": (
        lambda root, patch: write_folders(root, PEOPLE, ".png"),
        f"{SMALL} --data.root data --data.batch_size 8",
    ),
    "image_folder_small.yaml": (
        lambda root, patch: write_folders(root, PEOPLE, ".png"),
        "--data.resolution 32 --data.num_workers 0 --data.root data --data.batch_size 8",
    ),
    "imagenet_scor.yaml": (imagenet, f"{SMALL} --data.batch_size 8 --data.val_fraction 0.25"),
    "imagenet_scratch.yaml": (imagenet, f"{SMALL} --data.batch_size 8 --data.val_fraction 0.25"),
    "imagenet_lt.yaml": (imagenet, f"{SMALL} --data.batch_size 8"),
    "imagenet_fake.yaml": (lambda root, patch: None, "--data.batch_size 2 --data.num_workers 0"),
}


# What a protocol changes in the digits is small enough to run; the files are those of the configurations above.
PROTOCOLS = {
    "protocol/cao2019.yaml": (cifar10, "--data.imbalance.ratio 10"),
    "protocol/mislas.yaml": (cifar10, "--data.imbalance.ratio 10"),
    "protocol/bot400.yaml": (cifar10, "--data.imbalance.ratio 10"),
    "protocol/imagenet_lt_90.yaml": (imagenet, f"{SMALL} --data.batch_size 8"),
    "protocol/imagenet_lt_200.yaml": (imagenet, f"{SMALL} --data.batch_size 8"),
}
RUNS |= PROTOCOLS


def runs() -> list:
    """Return the names of the configurations; the paper's network for CIFAR-10 has 134 M parameters."""
    names = sorted(name for name in shipped_configs() if "/" not in name or name.startswith("protocol/"))
    long = ("cifar10_paper.yaml", *PROTOCOLS)
    return [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in long)) for name in names]


@pytest.mark.parametrize("name", runs())
def test_every_config_trains_on_its_own_format(command, monkeypatch, name):
    assert CONFIGS.joinpath(name).read_text().startswith("# ")
    write, options = RUNS[name]
    write(Path("data"), monkeypatch.setattr)
    status, out, error = command(f"scor-fit --config {name} --trainer.fast_dev_run 1 {options}")
    assert status == 0, error
    assert "largest class" in out


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_states_what_it_fixes(name):
    header = "".join(line for line in CONFIGS.joinpath(name).read_text().splitlines() if line.startswith("#"))
    assert all(part in header for part in ("# Fixes", "eviates", "# Published errors", "Ours: "))


def test_protocols_have_the_schedules_of_their_sources():
    parse = training_parser().parse_args
    steps = {
        name: (config.trainer.max_epochs, config.model.lr_scheduler.init_args)
        for name in PROTOCOLS
        for config in [parse(["--config", name])]
    }
    found = {name: (n, args.get("milestones"), args.get("gamma")) for name, (n, args) in steps.items()}
    assert found == {
        "protocol/cao2019.yaml": (200, [160, 180], 0.01),
        "protocol/mislas.yaml": (200, [160, 180], 0.1),
        "protocol/bot400.yaml": (400, [320, 360], 0.01),
        "protocol/imagenet_lt_90.yaml": (90, None, None),
        "protocol/imagenet_lt_200.yaml": (200, None, None),
    }


def test_a_file_is_applied_on_top_of_the_files_that_it_includes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    Path("deep/inner.yaml").write_text("trainer:\n  max_epochs: 7\nmodel: {lr_warmup: 2}\n")
    Path("deep/mine.yaml").write_text("# mine\nconfig:\n  - digits_scor.yaml\n  - inner.yaml\nmodel:\n  lr_warmup: 1\n")
    Path("only.yaml").write_text("config: [deep/mine.yaml]\n")
    config = training_parser().parse_args(["--config", "only.yaml", "--config", "loss/focal.yaml"])
    assert (config.trainer.max_epochs, config.model.lr_warmup) == (7, 1)
    assert config.data.class_path.endswith("DigitsDataModule")
    assert config.model.loss.class_path.endswith("FocalLoss")
    assert experiment_name(config.config) == "only_focal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: [mine.yaml]\n", "include itself"),
        ("config: [other.yaml]\n", "include itself"),
        ("config: {a: 1}\n", "list of configurations"),
        ("config: [nothing.yaml]\n", "nothing.yaml"),
    ],
)
def test_what_cannot_be_included_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("config: [mine.yaml]\n")
    Path("mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        training_parser().parse_args(["--config", "mine.yaml"])


def test_overlays_that_include_a_loss_are_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("config: [loss/focal.yaml]\n")
    with pytest.raises(ValueError, match=r"one overlay that sets `model\.loss`"):
        training_parser().parse_args(
            ["--config", "digits_scor.yaml", "--config", "loss/ldam.yaml", "--config", "mine.yaml"]
        )


class OwnCIFAR10(CIFAR10DataModule):
    """A user's own class."""


def test_a_derived_data_module_keeps_the_options_and_another_starts_from_its_own():
    parse = training_parser().parse_args
    own = f"{OwnCIFAR10.__module__}.OwnCIFAR10"
    kept = parse(["--config", "cifar10lt_scor.yaml", "--data", own]).data.init_args
    assert (kept.batch_size, kept.imbalance.init_args.ratio, kept.val_fraction) == (128, 100, 0)
    other = parse(["--config", "cifar10lt_scor.yaml", "--data", "scor_lightning.datamodules.DigitsDataModule"])
    assert other.data.init_args.imbalance is None


TRANSFORMS = """
data:
  init_args:
    train_transforms:
      - class_path: torchvision.transforms.v2.RandomHorizontalFlip
        init_args: {p: 0.3}
      - class_path: torchvision.transforms.v2.RandomRotation
        init_args: {degrees: 10}
    eval_transforms:
      - class_path: torchvision.transforms.v2.Resize
        init_args: {size: [10, 10]}
      - class_path: torchvision.transforms.v2.CenterCrop
        init_args: {size: 8}
"""


@pytest.mark.exhaustive
def test_transforms_are_replaced_from_yaml_and_kept_in_the_checkpoint(command):
    Path("mine.yaml").write_text(TRANSFORMS)
    line = "scor-fit --config digits_scor.yaml --config mine.yaml --trainer.max_epochs 1 --data.num_workers 1"
    status, _, error = command(line)
    assert status == 0, error
    checkpoint = Path("runs/digits_scor/version_0/checkpoints/best.ckpt")
    kept = build_transform(torch.load(checkpoint, weights_only=True)["data"]["eval_transform"])
    image = torch.randint(256, (1, 8, 8), dtype=torch.uint8)
    assert kept(image).equal(v2.functional.center_crop(v2.functional.resize(image, [10, 10]), [8, 8]))
    status, _, error = command(f"scor-test --ckpt_path {checkpoint}")
    assert status == 0, error
    command(f"{line} --data.train_transforms []")
    plain = Path("runs/digits_scor/version_1/checkpoints/last.ckpt")
    weights, others = (
        torch.load(path, weights_only=True)["state_dict"]["backbone.head.weight"]
        for path in (checkpoint.with_name("last.ckpt"), plain)
    )
    assert not weights.equal(others)


def test_no_configuration_spells_out_a_default():
    """An option that repeats the default of its class adds nothing and hides what matters."""
    found = []

    def walk(node, where):
        if isinstance(node, dict) and "class_path" in node:
            defaults: dict = {}
            for kind in reversed(pydoc.locate(node["class_path"]).__mro__):
                if "__init__" in vars(kind):
                    defaults |= {n: p.default for n, p in inspect.signature(kind.__init__).parameters.items()}
            for name, value in (node.get("init_args") or {}).items():
                default = defaults.get(name)
                if value == (list(default) if isinstance(default, tuple) else default):
                    found.append(f"{where}: {node['class_path']} {name}={value}")
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child, where)

    for name, path in shipped_configs().items():
        walk(yaml.safe_load(path.read_text()), name)
    sweep = "compare/mnist_alpha.yaml: scor_lightning.losses.SCoRLoss alpha=0.0001"  # one of several alphas
    assert found == [sweep]
