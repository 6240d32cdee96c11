"""Mixed batches, against independent calculations, in the loss, in training and by the command."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.datamodules import DigitsDataModule, LongTail
from scor_lightning.functional.scor import scor_penalty
from scor_lightning.losses import (
    FocalLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    OPLLoss,
    SCoRLoss,
    WeightedCrossEntropyLoss,
)
from scor_lightning.losses.base import mixed_loss_terms
from scor_lightning.mixing import CMO, CutMix, Mixup, Remix
from scor_lightning.models import MLP

KEY = (3, 1, 4, 0)
COUNTS = torch.tensor([600, 200, 60, 20])


def batch(size=32, classes=4):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 3, 12, 8, generator=generator), torch.randint(classes, (size,), generator=generator)


def partner_of(mixed, images):
    """Find the image that each one was mixed with, which is unique as all differ."""
    share = mixed.weight[0]
    rest = (mixed.images - share * images) / (1 - share)
    distances = (rest.flatten(1)[:, None] - images.flatten(1)).abs().amax(dim=2)
    assert distances.min(dim=1).values.max() < 1e-4
    return distances.argmin(dim=1)


def test_mixup_blends_each_image_with_one_other():
    images, target = batch()
    mixed = Mixup()(images, target, KEY)
    partner = partner_of(mixed, images)
    assert sorted(partner.tolist()) == list(range(32))
    assert torch.equal(mixed.other, target[partner])
    assert torch.equal(mixed.target, target)
    assert len(set(mixed.weight.tolist())) == 1


def test_the_shares_of_mixup_follow_a_beta_distribution():
    images, target = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    shares = np.array([float(Mixup(alpha=0.3)(images, target, (0, 0, i, 0)).weight[0]) for i in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.3 + 1)), rel=0.06)


def test_equal_keys_mix_alike_and_others_do_not():
    images, target = batch()
    for mixing in (Mixup(), CutMix()):
        one, same = mixing(images, target, KEY), mixing(images, target, KEY)
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        for other in ((4, 1, 4, 0), (3, 2, 4, 0), (3, 1, 5, 0), (3, 1, 4, 1)):
            assert not torch.equal(mixing(images, target, other).images, one.images)
    assert torch.equal(images, batch()[0])  # nothing was written into them


def test_remix_assigns_the_target_to_the_rarer_class_if_the_other_is_much_larger():
    images, target = batch()
    seen = set()
    for i in range(40):
        mixed = Remix(kappa=3, tau=0.5)(images, target, (0, 0, i, 0), COUNTS)
        blended = Mixup()(images, target, (0, 0, i, 0))
        assert torch.equal(mixed.images, blended.images)
        share = float(blended.weight[0])
        for a, b, weight in zip(mixed.target.tolist(), mixed.other.tolist(), mixed.weight.tolist(), strict=True):
            ratio = COUNTS[a] / COUNTS[b]
            expected = 0.0 if ratio >= 3 and share < 0.5 else 1.0 if ratio <= 1 / 3 and 1 - share < 0.5 else share
            assert weight == pytest.approx(expected)
        seen |= {len(set(mixed.weight.tolist()))}
    assert max(seen) > 1  # shares that differ within a batch


def test_the_share_of_cutmix_is_that_of_the_pixels():
    ones, zeros = torch.ones(16, 1, 12, 8), torch.zeros(16, 1, 12, 8)
    target, other = torch.zeros(16, dtype=torch.int64), torch.ones(16, dtype=torch.int64)
    shares = []
    for i in range(300):
        mixed = CutMix()(ones, target, (0, 0, i, 0), partners=(zeros, other))
        torch.testing.assert_close(mixed.images.mean(dim=(1, 2, 3)), mixed.weight)
        box = (mixed.images[0, 0] == 0).nonzero()
        if len(box):
            (top, left), (bottom, right) = box.min(0).values, box.max(0).values
            assert len(box) == (bottom - top + 1) * (right - left + 1)  # one rectangle
        shares.append(float(mixed.weight[0]))
    assert 0.5 < np.mean(shares) < 0.85  # boxes are cut off at the edges
    assert min(shares) < 0.5


def test_cmo_mixes_some_batches_of_the_epochs_in_the_middle():
    images, target = batch()
    partners = (images + 1, (target + 1) % 4)
    mixed = [CMO()(images, target, (0, 0, i, 0), partners=partners) for i in range(200)]
    plain = sum(torch.equal(each.images, images) for each in mixed)
    assert 70 < plain < 140
    assert all(torch.equal(each.other, partners[1]) for each in mixed)
    assert [epoch for epoch in range(12) if CMO().active(epoch, 12)] == [4, 5, 6, 7, 8]


def test_partners_are_drawn_with_all_classes_equally_likely():
    data = DigitsDataModule(imbalance=LongTail(50), partner_sampling="class_balanced", val_fraction=0.0)
    data.setup()
    loader = data.train_dataloader()
    ordinary, partners = [], []
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        for _, target in loader:
            assert len(target) % 2 == 0
            ordinary.append(target[: len(target) // 2])
            partners.append(target[len(target) // 2 :])
    assert torch.equal(torch.bincount(torch.cat(ordinary)), 20 * data.class_counts)
    drawn = torch.bincount(torch.cat(partners), minlength=10).double()
    expected = drawn.sum() / 10
    assert (drawn - expected).abs().max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("start", [0.0, 0.8])
def test_sampling_takes_effect_after_a_share_of_the_epochs(start):
    data = DigitsDataModule(imbalance=LongTail(50), sampling="class_balanced", sampling_start=start, val_fraction=0.0)
    data.trainer = Trainer(max_epochs=10, logger=False, accelerator="cpu", enable_checkpointing=False)
    data.setup()
    loader = data.train_dataloader()
    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        counts = torch.bincount(torch.cat([target for _, target in loader]), minlength=10)
        assert torch.equal(counts, data.class_counts) is (epoch < 10 * start)
        if epoch >= 10 * start:
            assert counts.max() < 3 * counts.min()


def per_sample(name, logits, target):
    """Compute the losses of single samples as the papers have them."""
    probability = logits.double().softmax(1)
    p = probability.gather(1, target[:, None]).squeeze(1)
    if name == "cross_entropy":
        return -p.log()
    if name == "smoothed":
        return -0.9 * p.log() - 0.1 * probability.log().mean(1)
    if name == "focal":
        return -((1 - p) ** 2) * p.log()
    if name == "las":
        size = (COUNTS - COUNTS.min()) / (COUNTS.max() - COUNTS.min())
        epsilon = 0.3 * torch.sin(math.pi / 2 * size.double())[target]
        return -(1 - epsilon) * p.log() - epsilon * probability.log().mean(1)
    margins = 0.5 * COUNTS.double() ** -0.25 / (COUNTS.double() ** -0.25).max()
    return F.cross_entropy(
        logits.double() - 30 * margins[target][:, None] * F.one_hot(target, 4), target, reduction="none"
    )


LOSSES = {
    "cross_entropy": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "focal": FocalLoss(),
    "las": LabelAwareSmoothingLoss(),
    "ldam": LDAMLoss(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_weighted_mean_over_both_targets(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 4, generator=generator)
    a, b = torch.randint(4, (2, 16), generator=generator)
    weight = torch.rand(16, generator=generator)  # unequal ones
    loss = deepcopy(LOSSES[name]).train()
    if hasattr(loss, "set_class_counts"):
        loss.set_class_counts(COUNTS)
    (value,) = mixed_loss_terms(loss, logits, a, b, weight).values()
    expected = (weight * per_sample(name, logits, a) + (1 - weight) * per_sample(name, logits, b)).mean()
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    (alone,) = mixed_loss_terms(loss, logits, a, b, torch.ones(16)).values()
    assert float(alone) == pytest.approx(float(loss(logits, a)), rel=1e-5)


@pytest.mark.parametrize("kind", ["torch", "ours"])
def test_class_weights_weigh_both_targets(kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 4, generator=generator)
    a, b = torch.randint(4, (2, 16), generator=generator)
    share, weights = torch.rand(16, generator=generator), torch.tensor([1.0, 2.0, 3.0, 4.0])
    if kind == "torch":
        loss = nn.CrossEntropyLoss(weight=weights)
    else:
        loss = WeightedCrossEntropyLoss()
        loss.set_class_weights(weights)
    (value,) = mixed_loss_terms(loss.train(), logits, a, b, share).values()
    first, second = share * weights[a], (1 - share) * weights[b]
    total = first * per_sample("cross_entropy", logits, a) + second * per_sample("cross_entropy", logits, b)
    assert float(value) == pytest.approx(float(total.sum() / (first + second).sum()), rel=1e-5)


def test_scors_penalty_counts_once_on_the_mixed_logits():
    torch.manual_seed(0)
    logits, (a, b), share = torch.randn(16, 4), torch.randint(4, (2, 16)), torch.rand(16)
    loss = SCoRLoss(alpha=0.01).train()
    generator = torch.Generator().manual_seed(0)
    generator.set_state(loss.generator.get_state())
    terms = mixed_loss_terms(loss, logits, a, b, share)
    assert list(terms) == ["cross_entropy", "scor_penalty"]
    assert terms["cross_entropy"] == mixed_loss_terms(nn.CrossEntropyLoss(), logits, a, b, share)["cross_entropy"]
    assert float(terms["scor_penalty"]) == pytest.approx(0.01 * float(scor_penalty(logits, generator=generator)))


@pytest.mark.parametrize("loss", [OPLLoss(), SCoRLoss(base=OPLLoss())])
def test_a_loss_that_compares_samples_is_refused(loss):
    with pytest.raises(ValueError, match="a mean over single samples for `mixing` but got OPLLoss"):
        ImageClassifier(MLP(num_classes=4), loss, mixing=Mixup())


@pytest.mark.parametrize("mixing", [Mixup(), CMO(margin=0, probability=1.0)])
def test_a_resumed_training_mixes_what_it_would_have_mixed(tmp_path, mixing):
    def train(epochs, checkpoint=None):
        torch.manual_seed(0)
        partners = "class_balanced" if mixing.needs_partners else None
        data = DigitsDataModule(imbalance=LongTail(20), partner_sampling=partners)
        model = ImageClassifier(MLP(10, in_channels=1, image_size=(8, 8), hidden=[16]), SCoRLoss(), mixing=mixing)
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
        trainer = Trainer(max_epochs=epochs, default_root_dir=tmp_path, **options)
        trainer.fit(model, data, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model

    whole = train(4)
    train(2)
    resumed = train(4, tmp_path / "2.ckpt")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--config method/mixup.yaml --config method/cutmix.yaml",
            "Expected one overlay that sets `model.mixing` but got",
        ),
        ("--model.mixing CMO", "set `--data.partner_sampling class_balanced`"),
        ("--data.partner_sampling class_balanced", "Expected no `--data.partner_sampling` without a `--model.mixing`"),
        ("--config loss/opl.yaml --config method/mixup.yaml", "for `mixing` but got OPLLoss"),
        ("--model.mixing Mixup --model.mixing.alpha 0", "Expected `alpha` > 0 but got 0"),
        ("--model.mixing Remix --model.mixing.kappa 0.5", "Expected `kappa` >= 1"),
        ("--data.sampling_start 1", "Expected `sampling_start` in [0, 1) but got 1"),
        ("--data.partner_sampling often", "partner_sampling"),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_training(command, options, message):
    status, _, error = command(f"scor-fit --config digits_scor.yaml --trainer.max_epochs 1 {options}")
    assert status != 0
    assert message in error


def test_label_aware_smoothing_of_equal_classes_is_that_of_the_head():
    loss = LabelAwareSmoothingLoss(head=0.4, tail=0.1)
    loss.set_class_counts(torch.tensor([5, 5, 5]))
    assert loss.smoothing().tolist() == pytest.approx([0.4] * 3)
    with pytest.raises(ValueError, match="Expected `tail` in"):
        LabelAwareSmoothingLoss(tail=1.0)
