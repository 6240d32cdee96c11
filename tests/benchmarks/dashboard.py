"""The overhead of the dashboard: an epoch of MNIST with and without it, side by side in one run.

    OMP_NUM_THREADS=1 SCOR_TEST_DATA=... python tests/benchmarks/dashboard.py [--rounds 5]

Both train the 784-128-10 network under SCoR on the 60,000 images, 54,000 to train on and 6,000 to validate, and log loss
and accuracy to TensorBoard. One has WeightSpectrum, ClassReport and Dashboard, and all metrics; the other has no
callbacks, and accuracy as its only metric. An epoch is from its first batch to the end of all callbacks, validation included.
The seconds are CPU time of the process, including TensorBoard's writing thread. The two alternate, and for each part of an
epoch (a hundred training steps, the validation, the callbacks) the fastest run is used, because other programs on the
machine make an epoch up to twice as long. Pictures, which are drawn once when training starts and after the test, are
reported separately.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import ClassReport, Dashboard, WeightSpectrum
from scor_lightning.datamodules import MNISTDataModule
from scor_lightning.losses import SCoRLoss
from scor_lightning.models import MLP


class Plain(ImageClassifier):
    """Measures only loss and accuracy."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        accuracy = MetricCollection({"accuracy": MulticlassAccuracy(10, average="micro", validate_args=False)})
        self.val_metrics, self.test_metrics = accuracy.clone("val/"), accuracy.clone("test/")

    def _log_evaluation(self, split, metrics, mean_loss):
        self._count(metrics)
        self.log_dict({f"{split}/loss": mean_loss.compute(), **metrics.compute()})


class EpochClock(Callback):
    """Seconds of the parts of each epoch; it precedes the other callbacks, so that an epoch ends where the next begins."""

    def __init__(self):
        self.epochs = []

    def mark(self):
        self.epochs[-1].append(time.process_time())

    def on_train_epoch_start(self, trainer, pl_module):
        if self.epochs:
            self.mark()
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 100 == 0:
            self.mark()

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.mark()

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.mark()

    def parts(self):
        """Return the seconds of the parts of all epochs except the first and the last, float64 ``[epochs, parts]``."""
        return torch.tensor(self.epochs[1:-1], dtype=torch.float64).diff()


def run(kind, callbacks, data, epochs):
    """Return the seconds of the parts of epochs, and those of the test."""
    seed_everything(0, verbose=False)
    clock = EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            callbacks=[clock, *callbacks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = kind(MLP(num_classes=10), SCoRLoss(), optimizer=lambda p: torch.optim.Adam(p, fused=True))
        trainer.fit(model, data)
        started = time.process_time()
        trainer.test(model, data, verbose=False)
        return clock.parts(), time.process_time() - started


def main() -> None:
    """Print the seconds of both and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    root = Path(os.environ["SCOR_TEST_DATA"]).resolve()
    parts = {"plain": [], "dashboard": []}
    tests = {"plain": [], "dashboard": []}
    for _ in range(rounds):
        for name, found in parts.items():
            data = MNISTDataModule(str(root))
            everything = [WeightSpectrum(), ClassReport(), Dashboard()] if name == "dashboard" else []
            epochs, test = run(ImageClassifier if everything else Plain, everything, data, epochs=6)
            found.append(epochs)
            tests[name].append(test)
    quickest = {name: torch.cat(epochs).amin(0) for name, epochs in parts.items()}
    print(f"\n{int(data.class_counts.sum()):,} images, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, seconds in quickest.items():
        validation, callbacks = seconds[-2:].tolist()
        print(
            f"{name:<10} {seconds.sum():.3f} s per epoch (validation {validation:.3f} s, then {callbacks:.3f} s), "
            f"{min(tests[name]):.3f} s for the test, with files and pictures"
        )
    print(f"ratio      {quickest['dashboard'].sum() / quickest['plain'].sum():.3f}  (at most 1.05)")


if __name__ == "__main__":
    main()
