import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.connectors.logger_connector import result
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from scor_lightning import ImageClassifier, evaluation
from scor_lightning.callbacks import DeferredReweighting
from scor_lightning.datamodules import DigitsDataModule, ReduceClasses
from scor_lightning.description import DataDescription
from scor_lightning.losses import Loss, SCoRLoss, WeightedCrossEntropyLoss
from scor_lightning.models import MLP


class TwoTerms(Loss):
    """Cross entropy and a small penalty of the features."""

    needs_features = True

    def terms(self, logits, target, features=None):
        return {"fit": nn.functional.cross_entropy(logits, target), "size": 1e-4 * features.square().mean()}

    def adjust_logits(self, logits):
        return logits.roll(1, dims=1)


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(default_root_dir=folder, accelerator="cpu", **{**quiet, **options})


def network():
    torch.manual_seed(0)
    return MLP(num_classes=10, image_size=(8, 8), hidden=[32])


def test_training_learns_and_logs(tmp_path):
    fit = trainer(tmp_path, max_epochs=30, log_every_n_steps=5, enable_checkpointing=False)
    model = ImageClassifier(network(), nn.CrossEntropyLoss())
    fit.fit(model, DigitsDataModule(batch_size=32))
    logged = fit.logged_metrics
    assert logged["val/accuracy"] > 0.9
    assert logged["train/loss"] == logged["train/cross_entropy"]
    assert {f"val/recall/{c}" for c in range(10)} <= set(logged)
    assert {"val/loss", "val/balanced_accuracy", "val/f1_macro", "val/accuracy_top5"} <= set(logged)
    recalls = torch.stack([logged[f"val/recall/{c}"] for c in range(10)])
    assert logged["val/balanced_accuracy"] == pytest.approx(recalls.mean().item())


class BarAndReads(Callback):
    """Records what the progress bar shows, and counts how often Lightning reads a value for it."""

    def __init__(self):
        self.shown = set()
        self.reads = 0

    def on_train_batch_end(self, trainer, *_):
        self.shown.add(trainer.progress_bar_metrics.get("train/loss"))


def test_the_bar_shows_the_loss_without_reading_it_at_every_step(tmp_path, monkeypatch):
    bar = BarAndReads()
    read = result.convert_tensors_to_scalars

    def counted(value):
        bar.reads += 1
        return read(value)

    monkeypatch.setattr(result, "convert_tensors_to_scalars", counted)
    fit = trainer(tmp_path, max_steps=20, log_every_n_steps=5, enable_checkpointing=False, callbacks=[bar])
    fit.fit(ImageClassifier(network(), nn.CrossEntropyLoss()), DigitsDataModule(batch_size=32, val_fraction=0))
    assert bar.reads == 0
    assert len(bar.shown - {None}) == 4


def test_what_was_built_in_python_is_no_hyperparameter(tmp_path):
    model = ImageClassifier(network(), nn.CrossEntropyLoss(), shot_thresholds=(5, 9))
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, logger=logger, max_steps=1, enable_checkpointing=False).fit(model, DigitsDataModule())
    assert model.hparams["shot_thresholds"] == (5, 9)
    assert not {"backbone", "loss", "optimizer"} & (model.hparams.keys() | model.hparams_initial.keys())
    assert "torch" not in (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text()


@pytest.mark.parametrize("together", [1, 2**20])
def test_an_evaluation_that_was_stopped_does_not_count_in_the_next(tmp_path, monkeypatch, together):
    monkeypatch.setattr(evaluation, "COUNTED_TOGETHER", together)

    class Stop(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            raise RuntimeError("stopped")

    data = DigitsDataModule(batch_size=32)
    model = ImageClassifier(network(), nn.CrossEntropyLoss())
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, callbacks=[Stop()]).validate(model, data, verbose=False)
    (found,) = trainer(tmp_path).validate(model, data, verbose=False)
    images, target = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    assert model.class_results["val"]["support"].sum() == len(target)
    assert found["val/accuracy"] == pytest.approx((logits.argmax(1) == target).float().mean().item())
    assert found["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, target).item(), rel=1e-5)


def test_terms_counts_features_and_adjusted_logits_reach_the_loss(tmp_path):
    loss = TwoTerms()
    model = ImageClassifier(network(), loss)
    fit = trainer(tmp_path, max_steps=5, log_every_n_steps=1, enable_checkpointing=False)
    data = DigitsDataModule(imbalance=ReduceClasses(0.1, classes=[2]))
    fit.fit(model, data)
    logged = fit.logged_metrics
    assert logged["train/loss"] == pytest.approx((logged["train/fit"] + logged["train/size"]).item())
    assert loss.class_counts.equal(data.class_counts)
    images, _ = next(iter(data.test_dataloader()))
    model.eval()
    assert torch.allclose(model(images), model.backbone(images / 255).roll(1, dims=1), atol=1e-6)


def test_bytes_are_scaled_and_normalised_and_floats_left_alone(tmp_path):
    class Normalised(DigitsDataModule):
        mean = (0.25,)
        std = (0.5,)

    model = ImageClassifier(network(), nn.CrossEntropyLoss())
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    fit.fit(model, Normalised())
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(model(images), model((images / 255 - 0.25) / 0.5), atol=1e-6)


class CommandLine:
    """Callables like those of the command line, with references that cannot be copied."""

    def make_optimizer(self, parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    def make_schedule(self, optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


def test_an_average_copies_the_classifier_without_what_makes_its_optimizer(tmp_path):
    line = CommandLine()
    model = ImageClassifier(network(), nn.CrossEntropyLoss(), line.make_optimizer, line.make_schedule)
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False, callbacks=[EMAWeightAveraging(decay=0.9)])
    fit.fit(model, DigitsDataModule())
    assert fit.lr_scheduler_configs


def test_scors_share_is_logged_and_warned_of(tmp_path):
    fit = trainer(tmp_path, max_epochs=1, log_every_n_steps=1, enable_checkpointing=False)
    with pytest.warns(UserWarning, match=r"alpha = 10.0 and 64 samples.*`reduction=\"mean\"`"):
        fit.fit(ImageClassifier(network(), SCoRLoss(alpha=10.0)), DigitsDataModule())
    assert 0.5 < fit.logged_metrics["train/scor_share"] < 1


def test_a_users_own_loaders_and_network(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.flatten(1))

    model = ImageClassifier(Plain(), nn.CrossEntropyLoss(), num_classes=3)
    loader = DataLoader(TensorDataset(torch.rand(12, 1, 2, 2), torch.arange(12) % 3), batch_size=4)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, loader, loader)
    assert "val/recall/2" in fit.logged_metrics
    again = ImageClassifier.load_from_checkpoint(
        fit.checkpoint_callback.best_model_path, backbone=Plain(), loss=nn.CrossEntropyLoss(), num_classes=3
    )
    assert again.backbone.layer.weight.equal(model.backbone.layer.weight)


def test_a_checkpoint_stores_the_data_description(tmp_path):
    fit = trainer(tmp_path, max_epochs=1)
    model = ImageClassifier(network(), TwoTerms())
    data = DigitsDataModule()
    data.class_names = [f"digit {c}" for c in range(10)]
    fit.fit(model, data)
    path = fit.checkpoint_callback.best_model_path
    kept = DataDescription.from_dict(torch.load(path, weights_only=True)["data"])
    assert kept == data.description
    assert kept == DataDescription(
        class_names=tuple(data.class_names),
        class_counts=tuple(data.class_counts.tolist()),
        reduced_classes=(),
        image_size=(8, 8),
        mean=(0.0,),
        std=(1.0,),
        eval_transform=[],
    )
    loss = TwoTerms()
    again = ImageClassifier.load_from_checkpoint(path, backbone=network(), loss=loss)
    assert again.class_names == data.class_names
    assert loss.class_counts.equal(data.class_counts)
    assert fit.predict(again, data)[0].sum(1).allclose(torch.ones(64))


class Regularized(MLP):
    """A network with dropout."""

    def __init__(self):
        super().__init__(num_classes=10, image_size=(8, 8), hidden=[32])
        self.body.append(nn.Dropout(0.5))


def resumable(folder, accumulate, callbacks=(), **options):
    """A run of 3 epochs of 11 batches with everything that is random or changes on the way: class, loss, dropout."""
    torch.manual_seed(0)
    fit = trainer(
        folder,
        max_epochs=3,
        accumulate_grad_batches=accumulate,
        callbacks=[DeferredReweighting(0.34), *callbacks],
        **options,
    )
    return fit, ImageClassifier(Regularized(), SCoRLoss(WeightedCrossEntropyLoss(), alpha=1e-3))


def imbalanced_digits(**options):
    return DigitsDataModule(batch_size=128, imbalance=ReduceClasses(0.8, classes=[0, 1]), **options)


@pytest.fixture(scope="module", params=[1, 3])
def uninterrupted(tmp_path_factory, request):
    """Checkpoints after every step of a run; the folder, and after how many batches a step comes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit, model = resumable(folder, request.param, callbacks=[every_step])
    fit.fit(model, imbalanced_digits())
    fit.save_checkpoint(folder / "end.ckpt")
    return folder, request.param


@pytest.mark.parametrize(("share", "num_workers"), [(0.1, 0), (1 / 3, 0), (0.4, 0), (0.4, 2), (2 / 3, 2), (0.9, 0)])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(uninterrupted, tmp_path, share, num_workers):
    folder, accumulate = uninterrupted
    steps = sorted(int(path.stem.removeprefix("step=")) for path in folder.glob("step=*.ckpt"))
    stop = round(share * steps[-1])
    fit, model = resumable(tmp_path, accumulate, enable_checkpointing=False)
    fit.fit(model, imbalanced_digits(num_workers=num_workers), ckpt_path=folder / f"step={stop}.ckpt")
    expected = torch.load(folder / "end.ckpt", weights_only=True)["state_dict"]
    weights = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert len(weights) == 4
    assert all(value.equal(expected[name]) for name, value in weights.items())
    assert model.state_dict()["loss._extra_state"]["generator"].equal(expected["loss._extra_state"]["generator"])


def test_a_run_from_a_checkpoint_trains_on_the_data_there_are(tmp_path):
    first = trainer(tmp_path / "first", max_epochs=1)
    first.fit(ImageClassifier(network(), WeightedCrossEntropyLoss()), DigitsDataModule())
    other = DigitsDataModule(imbalance=ReduceClasses(0.2, classes=[4]))
    loss = WeightedCrossEntropyLoss()
    model = ImageClassifier(network(), loss)
    second = trainer(tmp_path / "second", max_epochs=2)
    second.fit(model, other, ckpt_path=first.checkpoint_callback.best_model_path)
    assert loss.class_counts.equal(other.class_counts)
    assert loss.class_weights.argmax() == 4
    assert model.class_counts.equal(other.class_counts)


def test_a_loss_that_becomes_nan_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    class Breaks(Loss):
        calls = 0

        def terms(self, logits, target, features=None):
            self.calls += self.training
            value = nn.functional.cross_entropy(logits, target)
            return {"fit": value * torch.nan if self.calls == 31 else value}

    fit = trainer(tmp_path, max_epochs=5)
    with pytest.raises(FloatingPointError, match="became nan or inf at step 30"):
        fit.fit(ImageClassifier(network(), Breaks()), DigitsDataModule())
    kept = torch.load(fit.checkpoint_callback.best_model_path, weights_only=True)
    assert kept["epoch"] == 0
    assert all(value.isfinite().all() for value in kept["state_dict"].values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_the_last_steps_of_a_run_are_checked_too(tmp_path, broken):
    class Breaks(Loss):
        calls = 0

        def terms(self, logits, target, features=None):
            self.calls += self.training
            value = nn.functional.cross_entropy(logits, target)
            if self.calls == 6:  # the gradient of a square root at 0 is not finite, its value is
                value = value * torch.nan if broken == "loss" else value + (logits * 0).square().sum().sqrt()
            return {"fit": value}

    fit = trainer(tmp_path, max_steps=6, enable_checkpointing=False)
    model = ImageClassifier(network(), Breaks())
    if broken == "loss":
        with pytest.raises(FloatingPointError, match="at step 5"):
            fit.fit(model, DigitsDataModule())
    else:
        fit.fit(model, DigitsDataModule())
        for weights_only in (False, True):
            with pytest.raises(FloatingPointError, match="Some weights became nan"):
                fit.save_checkpoint(tmp_path / "broken.ckpt", weights_only=weights_only)
            assert not (tmp_path / "broken.ckpt").exists()


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected `backbone\.num_classes`"):
        ImageClassifier(nn.Linear(4, 3), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="the backbone's 10 but got 12"):
        ImageClassifier(network(), nn.CrossEntropyLoss(), num_classes=12)
    with pytest.raises(ValueError, match="`forward_features` and a module `head` for TwoTerms, which reads features"):
        ImageClassifier(nn.Linear(4, 3), TwoTerms(), num_classes=3)
    model = ImageClassifier(MLP(num_classes=3, image_size=(8, 8)), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="The data have 10 classes but the backbone has 3"):
        trainer(tmp_path, max_steps=1).fit(model, DigitsDataModule())


def test_schedule_advances_once_an_epoch(tmp_path):
    model = ImageClassifier(
        network(),
        nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1),
    )
    fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    fit.fit(model, DigitsDataModule())
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("loss", "batch_size", "accumulated", "warning"),
    [
        (SCoRLoss(), 1, 1, "A batch of one image has none to compare: raise `--data.batch_size`"),
        (SCoRLoss(), 16, 2, "With gradients accumulated over 2 batches, it compares only samples of the same batch"),
        (SCoRLoss(), 16, 1, None),
        (nn.CrossEntropyLoss(), 1, 2, None),
    ],
)
def test_a_loss_of_pairs_without_pairs_is_warned_of(tmp_path, recwarn, loss, batch_size, accumulated, warning):
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        accumulate_grad_batches=accumulated,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(ImageClassifier(MLP(10, image_size=(8, 8)), loss), DigitsDataModule(batch_size=batch_size))
    texts = [str(one.message) for one in recwarn if "compares the samples" in str(one.message)]
    assert (texts == []) if warning is None else (len(texts) == 1 and warning in texts[0])
