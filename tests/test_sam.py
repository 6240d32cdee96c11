"""Sharpness-aware minimisation, against the steps of its definition."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import DigitsDataModule, LongTail
from scor_lightning.losses import SCoRLoss
from scor_lightning.models import Backbone
from scor_lightning.optim import check_sharpness_aware

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
OPTIONS |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}


class Small(Backbone):
    """A network with a batch norm and dropout."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.num_classes, self.num_features = 10, 16
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(16, 10)

    def forward_features(self, images):
        return self.body(images)


def train(rho, epochs=1, loss=None, folder=None, checkpoint=None, dropout=0.5, **options):
    torch.manual_seed(0)
    data = DigitsDataModule(imbalance=LongTail(20), val_fraction=0.0)
    model = ImageClassifier(
        Small(dropout), (loss or nn.CrossEntropyLoss)(), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), sam_rho=rho
    )
    trainer = Trainer(max_epochs=epochs, **OPTIONS, **options)
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model, trainer, data


def test_the_steps_are_those_of_the_definition():
    model, _, data = train(0.05, dropout=0.0)
    torch.manual_seed(0)
    network = Small(0.0).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    for pixels, target in loader:
        images = model.normalize(pixels)
        nn.functional.cross_entropy(network(images), target).backward()
        statistics = [buffer.clone() for buffer in network.buffers()]
        weights = [p.detach().clone() for p in network.parameters()]
        norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters()))
        with torch.no_grad():
            for p in network.parameters():
                p += 0.05 * p.grad / norm
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), target).backward()
        with torch.no_grad():
            for p, value in zip(network.parameters(), weights, strict=True):
                p.copy_(value)
            for buffer, value in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(value)  # the first pass alone counts
        optimizer.step()
        optimizer.zero_grad()
    for (name, got), expected in zip(model.backbone.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)


def test_both_passes_draw_the_same_dropout_and_permutation(monkeypatch):
    masks, permutations = [], []

    def watch(module, arguments, output):
        masks.append(output == 0)

    original = torch.randperm

    def randperm(*arguments, **options):
        drawn = original(*arguments, **options)
        if options.get("generator") is not None and len(drawn) <= 64:
            permutations.append(drawn)
        return drawn

    torch.manual_seed(0)
    data = DigitsDataModule(imbalance=LongTail(20), val_fraction=0.0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    network.num_classes = 10
    network[1].register_forward_hook(watch)
    model = ImageClassifier(network, SCoRLoss(), sam_rho=0.1)
    monkeypatch.setattr(torch, "randperm", randperm)
    Trainer(max_steps=3, max_epochs=1, **OPTIONS).fit(model, data)
    assert len(masks) == 6
    assert len(permutations) == 6
    for drawn in (masks, permutations):
        assert all(torch.equal(drawn[i], drawn[i + 1]) for i in (0, 2, 4))
        assert not torch.equal(drawn[0], drawn[2])


def test_the_reported_loss_is_that_of_the_weights_themselves():
    plain, trainer, _ = train(None, max_steps=1, log_every_n_steps=1)
    sharp, other, _ = train(1.0, max_steps=1, log_every_n_steps=1)
    assert float(other.callback_metrics["train/loss"]) == pytest.approx(float(trainer.callback_metrics["train/loss"]))
    assert not torch.equal(plain.backbone.head.weight, sharp.backbone.head.weight)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole, _, _ = train(0.1, 2, SCoRLoss)
    _, trainer, _ = train(0.1, 1, SCoRLoss)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, _, _ = train(0.1, 2, SCoRLoss, checkpoint=tmp_path / "one.ckpt")
    for a, b in zip(whole.backbone.state_dict().values(), resumed.backbone.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--trainer.accumulate_grad_batches 2", "Expected no `--trainer.accumulate_grad_batches` with `sam_rho`"),
        ("--model.sam_rho 0", "Expected `sam_rho` > 0 but got 0"),
    ],
)
def test_what_it_cannot_train_with_is_refused(command, options, message):
    status, _, error = command(f"scor-fit --config digits_scor.yaml --config method/sam.yaml {options}")
    assert status != 0
    assert message in error


def test_scaled_gradients_are_refused():
    with pytest.raises(ValueError, match="bf16-mixed or 32-true with `sam_rho` but got 16-mixed"):
        check_sharpness_aware("16-mixed", 1)  # which Lightning replaces where there is no GPU
    check_sharpness_aware("bf16-mixed", 1)


def test_the_overlay_trains_and_is_compared(command):
    methods = "ce=loss/cross_entropy.yaml sam=loss/cross_entropy.yaml+method/sam.yaml car=loss/car.yaml"
    methods += " temperature=loss/cross_entropy.yaml+method/temperature.yaml"
    line = (
        f"scor-compare --config digits_scor.yaml --trainer.max_epochs 2 --repeats 2 --processes 1 --methods {methods}"
    )
    status, out, error = command(f"{line} --output out")
    assert status == 0, error
    assert "as `--model.sam_rho` is set" in error
    assert "sam" in out
