"""Second stages: what is frozen, what is learned, and that a run resumes where it stopped."""

import csv
import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from scor_lightning import ImageClassifier, stages
from scor_lightning.callbacks import LastCheckpoint
from scor_lightning.datamodules import DigitsDataModule, LongTail
from scor_lightning.losses import LabelAwareSmoothingLoss, OPLLoss, SCoRLoss
from scor_lightning.mixing import Mixup
from scor_lightning.models import MLP, CifarResNet, CosineLinear
from scor_lightning.second_stage import SecondStage
from tests.processes import Processes

DIGITS = "scor-fit --config digits_scor.yaml --config loss/cross_entropy.yaml --trainer.enable_progress_bar false"
TAIL = "--data.imbalance LongTail --data.imbalance.ratio 50"
METHODS = ("crt", "lws", "mislas")


class Watch(Callback):
    """Records the class counts, the modes and the learning rates of every epoch."""

    def __init__(self):
        self.epoch = None
        self.classes, self.training, self.lr, self.stages = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.epoch == trainer.current_epoch:
            return
        self.epoch = trainer.current_epoch
        self.classes.append(torch.zeros(10, dtype=torch.int64))
        modes = {type(m).__name__: m.training for m in pl_module.backbone.modules() if isinstance(m, nn.BatchNorm2d)}
        self.training.append(modes.get("BatchNorm2d"))
        self.lr.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.stages.append(pl_module.stage)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.classes[-1] += torch.bincount(batch[1], minlength=10)


def fit(stage, epochs=2, loss=None, network=None, folder=None, checkpoint=None, stop=None, mixing=None, **options):
    torch.manual_seed(0)
    data = DigitsDataModule(imbalance=LongTail(20), val_fraction=0.2)
    network = MLP(10, in_channels=1, image_size=(8, 8), hidden=[16]) if network is None else network
    loss = nn.CrossEntropyLoss() if loss is None else loss()  # whose generator follows from the seed
    stage = stage() if callable(stage) else stage
    model = ImageClassifier(network, loss, second_stage=stage, mixing=mixing)
    watch = Watch()
    callbacks = [watch, *options.pop("callbacks", [])]
    if stop is not None:
        callbacks.append(stop)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(each, LastCheckpoint) for each in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=callbacks,
        **options,
    )
    after_first = {}
    between = lambda: after_first.update(deepcopy(model.backbone.state_dict()))
    stages.fit(trainer, model, data, ckpt_path=checkpoint, between=between)
    return model, watch, after_first


def test_the_body_is_frozen_and_a_new_head_is_trained_on_balanced_classes():
    model, watch, before = fit(SecondStage(3, sampling="class_balanced"))
    after = model.backbone.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("body."))
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert watch.stages == [1, 1, 2, 2, 2]
    counts = model.class_counts
    assert all(torch.equal(each, counts) for each in watch.classes[:2])
    assert all(each.max() < 3 * each.min() for each in watch.classes[2:])
    assert watch.lr == [[1e-3]] * 2 + [[0.1]] * 3  # Adam's, then SGD's


def test_a_new_head_follows_from_the_seed_and_a_kept_one_from_the_first_stage():
    class Stop(Callback):
        def on_train_start(self, trainer, pl_module):
            if pl_module.stage == 2:
                self.head = deepcopy(pl_module.backbone.head.state_dict())

    heads = []
    for stage in (SecondStage(1), SecondStage(1), SecondStage(1, head="kept")):
        stop = Stop()
        _, _, before = fit(stage, stop=stop)
        heads.append(stop.head["weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], before["head.weight"])
    assert torch.equal(heads[2], before["head.weight"])
    bound = before["head.weight"].shape[1] ** -0.5  # of torch's own initialisation
    assert heads[0].abs().max() <= bound
    assert heads[0].std() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_only_the_factors_of_the_logits_are_learned():
    model, _, before = fit(SecondStage(2, freeze=("body", "head"), head="scaled", sampling="class_balanced"))
    after = model.backbone.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    scale = after["head.logit_scale"]
    assert (scale != 1).any()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    features = model.backbone.forward_features(model.normalize(images))
    expected = scale * (features @ before["head.weight"].T + before["head.bias"])
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_frozen_batch_norms_are_as_the_stage_has_them(batch_norm):
    torch.manual_seed(0)
    network = CifarResNet(10, depth=8, in_channels=1)
    model, watch, before = fit(SecondStage(1, batch_norm=batch_norm), epochs=1, network=network)
    after = model.backbone.state_dict()
    moved = [name for name in before if name.endswith("running_mean") and not torch.equal(after[name], before[name])]
    assert bool(moved) is (batch_norm == "train")
    assert watch.training == [True, batch_norm == "train"]
    assert all(
        torch.equal(after[name], before[name])
        for name in before
        if not name.startswith("head.") and "running_" not in name and "num_batches" not in name
    )


def test_the_head_has_a_separate_learning_rate():
    schedule = lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    _, watch, _ = fit(SecondStage(2, head="scaled", head_lr_factor=0.5, lr_scheduler=schedule))
    assert [sorted(lr) for lr in watch.lr[2:]] == [[0.05, 0.1], pytest.approx([0.005, 0.01])]


def test_the_scale_of_a_cosine_head_is_set():
    torch.manual_seed(0)
    network = MLP(10, in_channels=1, image_size=(8, 8), hidden=[16], head=CosineLinear)
    model, _, _ = fit(SecondStage(1, head="kept", head_scale=20.0), network=network)
    assert model.backbone.head.scale == 20.0


def test_the_second_stage_has_its_own_loss_and_mixing_and_the_regularizer_applies_to_both():
    torch.manual_seed(0)
    network = MLP(10, in_channels=1, image_size=(8, 8), hidden=[16])
    model = ImageClassifier(
        network,
        nn.CrossEntropyLoss(),
        regularizer=lambda base: SCoRLoss(base, alpha=0.01),
        mixing=Mixup(),
        second_stage=SecondStage(1, loss=LabelAwareSmoothingLoss()),
    )
    assert isinstance(model.loss.base, nn.CrossEntropyLoss)
    model.begin_second_stage(3)
    assert isinstance(model.loss, SCoRLoss)
    assert isinstance(model.loss.base, LabelAwareSmoothingLoss)
    assert model.mixing is None


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_stopped_training_resumes_in_its_stage_to_the_same_weights(tmp_path, at):
    """The steps are few, so that the stops lie in either stage and in mid-epoch."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == at and batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                raise KeyboardInterrupt

    def stage():
        return SecondStage(
            4,
            head="scaled",
            sampling="class_balanced",
            loss=SCoRLoss(LabelAwareSmoothingLoss()),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
        )

    whole, _, _ = fit(stage, loss=SCoRLoss, mixing=Mixup())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(stage, loss=SCoRLoss, mixing=Mixup(), stop=Stop())
    resumed, watch, _ = fit(stage, loss=SCoRLoss, mixing=Mixup(), checkpoint=str(tmp_path / "stopped.ckpt"))
    assert watch.stages[0] == (1 if at < 2 else 2)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), name


def test_a_checkpoint_of_the_second_stage_needs_the_stage(tmp_path):
    model, _, _ = fit(SecondStage(1, head="scaled"))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    new = {"backbone": MLP(10, in_channels=1, image_size=(8, 8), hidden=[16]), "loss": nn.CrossEntropyLoss()}
    with pytest.raises(ValueError, match=r"Expected `second_stage=...` for a checkpoint of a second stage"):
        ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt", **new)
    loaded = ImageClassifier.load_from_checkpoint(
        tmp_path / "a.ckpt", **new, second_stage=SecondStage(1, head="scaled")
    )
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded(images), model.cpu()(images))


def train_on_two():
    options = {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")}
    stage = SecondStage(2, sampling="class_balanced", head="scaled")
    model, watch, _ = fit(stage, loss=SCoRLoss, mixing=Mixup(), **options)
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}, watch.stages


@pytest.mark.slow
def test_several_processes_train_both_stages():
    (one, found), (two, _) = Processes(2, train_on_two).results()
    assert found == [1, 1, 2, 2]
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (one["backbone.head.logit_scale"] != 1).any()


@pytest.mark.parametrize("regularizer", ["", "--config method/scor.yaml"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.exhaustive
def test_every_method_with_two_stages_by_the_command(command, method, regularizer):
    line = f"{DIGITS} {regularizer} --config method/{method}.yaml {TAIL} --trainer.max_epochs 2"
    line += " --model.second_stage.max_epochs 2"
    status, out, error = command(line)
    assert status == 0, error
    assert re.findall(r"stage +(\d) of 2", out) == ["1", "2"]
    (run,) = Path("runs").glob("*/version_0")
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validated = [(row["epoch"], row["stage"]) for row in rows if row["val/balanced_accuracy"]]
    assert validated == [("0", "1.0"), ("1", "1.0"), ("2", "2.0"), ("3", "2.0")]
    assert [row["stage"] for row in rows if row["test/balanced_accuracy"]] == ["1.0", "2.0"]
    tests = [json.loads((run / folder / "test" / "metrics.json").read_text()) for folder in (".", "stage_2")]
    assert [Path(test["checkpoint"]).parts[-3:-1] for test in tests] == [
        ("version_0", "checkpoints"),
        ("stage_2", "checkpoints"),
    ]
    best = run / "stage_2" / "checkpoints" / "best.ckpt"
    status, out, error = command(f"scor-test --ckpt_path {best}")
    assert status == 0, error
    assert f"{tests[1]['metrics']['test/balanced_accuracy']:.4f}" in out
    status, out, error = command(f"{line} --ckpt_path last")
    assert status == 0, error
    assert "Second stage: 2 epochs from epoch 2" in out


@pytest.mark.exhaustive
def test_second_stages_are_compared(command):
    methods = "ce=loss/cross_entropy.yaml crt=loss/cross_entropy.yaml+method/crt.yaml"
    methods += " mislas=loss/cross_entropy.yaml+method/mislas.yaml+method/scor.yaml mixup=loss/cross_entropy.yaml+method/mixup.yaml"
    methods += " drs=loss/cross_entropy.yaml+method/drs.yaml"
    line = (
        f"scor-compare --config digits_scor.yaml {TAIL} --trainer.max_epochs 2 --repeats 2 --processes 1 --output out"
    )
    status, _, error = command(f"{line} --methods {methods}")
    assert status == 0, error
    assert "crt: 2 epochs and 30 of a second stage, one after another, as `--model.second_stage` is set" in error
    assert "drs: 2 epochs, one after another, as `--data.sampling_start` is set" in error
    with open("out/results.csv") as file:
        epochs = {row["method"]: row["epoch"] for row in csv.DictReader(file)}
    assert not Path("out/epochs.csv").exists()
    assert "ce: 2 epochs, stacked" in error
    assert epochs == {"ce": "2", "crt": "32", "mislas": "12", "mixup": "2", "drs": "2"}
    status, _, error = command(f"{line} --methods {methods}")
    assert "trainings to do" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--config method/crt.yaml --config method/lws.yaml", "Expected one overlay that sets `model.second_stage`"),
        ("--config method/crt.yaml --model.second_stage.freeze [bodi]", "to name one of body, head but got 'bodi'"),
        ("--config method/crt.yaml --trainer.max_time 00:00:01:00", "no `--trainer.max_time` with a second stage"),
        ("--config method/crt.yaml --trainer.max_steps 5", "Expected no `--trainer.max_steps`"),
        ("--config method/crt.yaml --model.second_stage.max_epochs 0", "`second_stage.max_epochs` >= 1 but got 0"),
        ("--config method/crt.yaml --model.second_stage.head_lr_factor 0", "`second_stage.head_lr_factor` > 0"),
        ("--config method/crt.yaml --model.second_stage.freeze [body,head]", "all of it is frozen"),
        ("--config method/crt.yaml --model.second_stage.head_scale 20", "Expected the head CosineLinear"),
        (
            "--config loss/ldam.yaml --config method/lws.yaml",
            "Expected a linear head for a learned scale but got CosineLinear",
        ),
    ],
)
def test_what_cannot_be_trained_in_two_stages_is_refused(command, options, message):
    line = DIGITS if "loss/" not in options else DIGITS.replace("--config loss/cross_entropy.yaml ", "")
    status, _, error = command(f"{line} --trainer.max_epochs 1 {options}")
    assert status != 0
    assert message in error
    assert not list(Path().rglob("*.ckpt"))


def test_networks_losses_and_callbacks_that_do_not_fit_are_refused():
    class Whole(nn.Sequential):
        num_classes = 10

    with pytest.raises(ValueError, match="Expected a network with `head` for a second stage but got Whole"):
        ImageClassifier(Whole(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss(), second_stage=SecondStage(1))
    network = MLP(10, in_channels=1, image_size=(8, 8), hidden=[16])
    with pytest.raises(ValueError, match="got OPLLoss"):
        ImageClassifier(network, OPLLoss(), second_stage=SecondStage(1, mixing=Mixup()))
    with pytest.raises(ValueError, match="Expected no StochasticWeightAveraging with a second stage"):
        fit(SecondStage(1), callbacks=[StochasticWeightAveraging(1e-2)])
