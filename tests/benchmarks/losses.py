"""Measure SCoRLoss against the authors' package, forward and backward, cross entropy included, in one run.

python -m tests.benchmarks.losses
"""

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from scor.losses import SCoR

from scor_lightning.losses import SCoRLoss

# B, K, rounds, and the maximum share of the reference's time
CASES = [
    (64, 10, 10, 1.1),
    (256, 100, 10, 1.1),
    (256, 1_000, 10, 0.35),
    (1_024, 1_000, 10, 0.75),
    (256, 10_000, 5, 0.03),
    (256, 21_841, 3, 0.015),
]
TURN = 0.5  # seconds, or one step if that takes longer
PEAK_CASE = (256, 21_841)
PEAK_TARGET = 150e6


def step(loss: torch.nn.Module, logits: torch.Tensor, target: torch.Tensor) -> float:
    logits.grad = None
    start = time.perf_counter()
    loss(logits, target).backward()
    return time.perf_counter() - start


def milliseconds(size: int, classes: int, turns: int) -> tuple[float, float]:
    """Return the shortest times of the two, which alternate: other programs on the machine only add to a time."""
    logits, target = torch.randn(size, classes, requires_grad=True), torch.randint(classes, (size,))
    losses, least = [SCoR(), SCoRLoss()], [float("inf")] * 2
    for _ in range(turns):
        for i, loss in enumerate(losses):
            end = time.perf_counter() + TURN
            while True:
                least[i] = min(least[i], step(loss, logits, target))
                if time.perf_counter() > end:
                    break
    return 1e3 * least[0], 1e3 * least[1]


def peak(loss: torch.nn.Module) -> float:
    """Return the peak of the resident memory that a step adds, in bytes, including the gradient of the logits."""
    size, classes = PEAK_CASE
    target = torch.randint(classes, (size,))
    step(loss, torch.randn(8, 4, requires_grad=True), torch.zeros(8, dtype=torch.long))
    logits = torch.randn(size, classes, requires_grad=True)
    gc.collect()
    page = 4096
    highest, running = 0, True

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    def watch() -> None:
        nonlocal highest
        while running:
            highest = max(highest, resident())
            time.sleep(2e-4)

    before = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    step(loss, logits, target)
    running = False
    thread.join()
    return highest - before


def main() -> None:
    """Print the table; exit with 1 if a target is missed."""
    missed = False
    print("| B | K | reference ms | ours ms | ratio | target | |\n|---|---|---|---|---|---|---|")
    for size, classes, turns, target in CASES:
        reference, ours = milliseconds(size, classes, turns)
        ratio = ours / reference
        missed |= ratio > target
        verdict = "met" if ratio <= target else "MISSED"
        print(f"| {size} | {classes} | {reference:.3f} | {ours:.3f} | {ratio:.4f} | {target} | {verdict} |", flush=True)
    # in separate processes, because the allocator keeps the memory of the first one
    peaks = [
        float(subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout)
        for name in ("reference", "ours")
    ]
    missed |= peaks[1] > PEAK_TARGET
    print(f"peak extra memory at {PEAK_CASE}: reference {peaks[0] / 1e6:.0f} MB, ours {peaks[1] / 1e6:.0f} MB")
    sys.exit(missed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(peak({"reference": SCoR, "ours": SCoRLoss}[sys.argv[1]]()))
    else:
        main()
