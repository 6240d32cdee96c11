import multiprocessing
import os
import random
import signal
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torchvision.transforms import v2

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import DeferredReweighting, LastCheckpoint, last_checkpoint
from scor_lightning.losses import SCoRLoss, WeightedCrossEntropyLoss
from scor_lightning.signals import STOP_SIGNALS
from tests.test_classifier import Regularized, imbalanced_digits, trainer

EPOCHS, BATCHES = 3, 10


class Send(Callback):
    """Send this process a signal in the n-th call of a hook."""

    def __init__(self, number: int, hook: str, n: int):
        self.number, self.left = number, n
        setattr(self, hook, self.send)

    def send(self, *arguments):
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        self.left -= 1


def fit(folder, *callbacks, accumulate=1, val_check_interval=1.0, num_workers=0, minutes=15.0, ckpt_path=None):
    """A run with all that is random or changes on the way: classes, images, loss, weights, dropout, learning rate."""
    by_step = val_check_interval < 1
    torch.manual_seed(0)
    best = ModelCheckpoint(folder, filename="best", monitor="val/loss", enable_version_counter=False)
    last = LastCheckpoint(minutes)
    last.dirpath = str(folder)
    run = trainer(
        folder,
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        val_check_interval=val_check_interval,
        num_sanity_val_steps=1,
        callbacks=[DeferredReweighting(0.34), *callbacks, best, last],
    )
    model = ImageClassifier(
        Regularized(),
        SCoRLoss(WeightedCrossEntropyLoss(), alpha=1e-3),
        optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
        lr_scheduler=lambda optimizer: ExponentialLR(optimizer, 0.95 if by_step else 0.5),
        lr_interval="step" if by_step else "epoch",
        lr_warmup=7 if by_step else 2,
    )
    data = imbalanced_digits(num_workers=num_workers, train_transforms=[v2.RandomRotation(20)])
    run.fit(model, data, ckpt_path=ckpt_path)
    assert run.num_training_batches == BATCHES
    return run


def stopped(folder, *callbacks, **options):
    """Return the exit status of a run that is stopped."""
    with pytest.raises(SystemExit) as stop:
        fit(folder, *callbacks, **options)
    return stop.value.code


def contents(path):
    return torch.load(path, weights_only=True)


def differences(path, other):
    """Return the entries that differ between two checkpoints: weights, losses, optimizers, schedules, progress."""
    one, two = contents(path), contents(other)

    def compare(a, b, name):
        if isinstance(a, torch.Tensor):
            return [] if isinstance(b, torch.Tensor) and a.equal(b) else [name]
        if isinstance(a, dict):
            return [found for key in a.keys() | b.keys() for found in compare(a.get(key), b.get(key), f"{name}/{key}")]
        if isinstance(a, list | tuple):
            return [found for i in range(len(a)) for found in compare(a[i], b[i], f"{name}/{i}")]
        return [] if a == b else [name]

    keys = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    return [found for key in keys for found in compare(one.get(key), two.get(key), key)]


@cache
def uninterrupted(accumulate, val_check_interval):
    folder = Path(mkdtemp())
    fit(folder, accumulate=accumulate, val_check_interval=val_check_interval)
    return folder


def assert_same(folder, accumulate=1, val_check_interval=1.0):
    whole = uninterrupted(accumulate, val_check_interval)
    assert differences(whole / "last.ckpt", folder / "last.ckpt") == []
    assert differences(whole / "best.ckpt", folder / "best.ckpt") == []


def cases():
    draw = random.Random(0)
    for number in range(12):
        accumulate, interval, workers = draw.choice((1, 3)), draw.choice((0.5, 1.0)), 2 * (number % 3 == 0)
        yield pytest.param(draw.choice(STOP_SIGNALS), draw.randrange(EPOCHS * BATCHES), accumulate, interval, workers)
    # a validation, the end of an epoch or of the run follows
    for batch in (BATCHES // 2 - 1, BATCHES - 1, EPOCHS * BATCHES - 1):
        yield pytest.param(signal.SIGTERM, batch, 1, 0.5, 0)


@pytest.mark.parametrize(("number", "batch", "accumulate", "val_check_interval", "num_workers"), cases())
def test_a_run_stopped_in_a_step_ends_with_the_same_bits(
    tmp_path, number, batch, accumulate, val_check_interval, num_workers
):
    options = {"accumulate": accumulate, "val_check_interval": val_check_interval, "num_workers": num_workers}
    assert stopped(tmp_path, Send(number, "on_before_zero_grad", batch // accumulate), **options) == 128 + number
    path = tmp_path / "last.ckpt"
    taken = contents(path)["global_step"]
    assert 0 <= taken - batch // accumulate <= 1 + accumulate
    fit(tmp_path, ckpt_path=path, **options)
    assert_same(tmp_path, accumulate, val_check_interval)


@pytest.mark.parametrize(
    ("hook", "n", "steps"),
    [("on_validation_batch_start", 0, 1), ("on_validation_batch_start", 2, BATCHES), ("on_train_epoch_start", 1, 11)],
)
def test_a_run_stopped_between_steps_ends_with_the_same_bits(tmp_path, hook, n, steps):
    assert stopped(tmp_path, Send(signal.SIGTERM, hook, n)) == 143
    assert contents(tmp_path / "last.ckpt")["global_step"] == steps
    assert stopped(tmp_path, Send(signal.SIGUSR1, "on_train_batch_end", 8), ckpt_path=tmp_path / "last.ckpt") == 138
    assert contents(tmp_path / "last.ckpt")["global_step"] == steps + 9
    fit(tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert_same(tmp_path)


class StopLikeTimer(Callback):
    """Ends a run as `max_time` does."""

    def on_train_batch_end(self, run, *arguments):
        run.should_stop = run.global_step == 14


def test_a_run_that_ends_within_an_epoch_can_be_made_longer(tmp_path):
    fit(tmp_path, StopLikeTimer())
    assert contents(tmp_path / "last.ckpt")["global_step"] == 14
    fit(tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert differences(uninterrupted(1, 1.0) / "last.ckpt", tmp_path / "last.ckpt") == []


def test_a_stop_that_is_put_off_does_not_save_every_step(tmp_path):
    class Early(Callback):
        saved = 0

        def on_train_batch_end(self, run, *arguments):
            run.fit_loop.min_epochs, run.should_stop = 2, True

        def on_save_checkpoint(self, *arguments):
            self.saved += 1

    early = Early()
    fit(tmp_path, early)
    assert contents(tmp_path / "last.ckpt")["global_step"] == 2 * BATCHES
    assert early.saved < 6


def test_the_average_of_the_weights_is_resumed_too(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, EMAWeightAveraging(decay=0.9))
    assert stopped(parts, Send(signal.SIGTERM, "on_train_batch_end", 14), EMAWeightAveraging(decay=0.9)) == 143
    fit(parts, EMAWeightAveraging(decay=0.9), ckpt_path=parts / "last.ckpt")
    assert differences(whole / "last.ckpt", parts / "last.ckpt") == []
    assert differences(whole / "best.ckpt", parts / "best.ckpt") == []
    assert "state_dict/backbone.head.weight" in differences(uninterrupted(1, 1.0) / "best.ckpt", parts / "best.ckpt")


def in_a_child(folder, function, *arguments, **options):
    """Start a process, forked so that nothing is imported again, with one thread, as the tests' comparison has."""

    def work():
        torch.set_num_threads(1)
        function(folder, *arguments, **options)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Slow(Callback):
    def __init__(self, seconds: float = 0.02):
        self.seconds = seconds

    def on_train_batch_end(self, *arguments):
        time.sleep(self.seconds)


@pytest.mark.parametrize("steps", [1, 6, 14])
def test_a_killed_run_resumes_from_the_last_periodic_checkpoint(tmp_path, steps):
    last = tmp_path / "last.ckpt"
    child = in_a_child(tmp_path, fit, Slow(), minutes=0)
    wait_for(lambda: last.exists() and contents(last)["global_step"] >= steps)
    child.kill()
    child.join()
    assert contents(tmp_path / "last.ckpt")["global_step"] < EPOCHS * BATCHES
    fit(tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert_same(tmp_path)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_ends_a_run_at_once(tmp_path, first):
    class Impatient(Callback):
        def on_train_batch_start(self, *arguments):
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), first)  # passed on twice, as by terminal and launcher
            last = next(callback for callback in arguments[0].callbacks if isinstance(callback, LastCheckpoint))
            wait_for(lambda: time.monotonic() - last._received_at > 1)  # as much later as it takes for another one
            os.kill(os.getpid(), signal.SIGINT)

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    assert stopped(tmp_path, Impatient()) == 1  # Lightning's, of an interrupted run
    assert not (tmp_path / "last.ckpt").exists()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it off
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under `nohup`
    fit(tmp_path, Send(signal.SIGHUP, "on_train_batch_start", 4))
    signal.signal(signal.SIGHUP, before)


def test_periodic_checkpoints_are_written_by_the_clock(tmp_path, monkeypatch):
    written, clock = [], [0.0]
    monkeypatch.setattr(last_checkpoint.time, "monotonic", lambda: clock[0])

    class Watch(Callback):
        def on_train_batch_start(self, run, *arguments):
            if (tmp_path / "last.ckpt").exists():
                written.append(contents(tmp_path / "last.ckpt")["global_step"])
            clock[0] += 1

    fit(tmp_path, Watch(), minutes=4 / 60)
    # Every four steps of one second each, and at the end of an epoch of ten steps, which restarts the time.
    assert list(dict.fromkeys(written)) == [4, 8, 10, 14, 18, 20, 24, 28]


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="`minutes` >= 0 but got -1"):
        LastCheckpoint(minutes=-1)
