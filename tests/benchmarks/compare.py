"""`scor-compare` against the reference package's `trainMLP`, in trainings per hour, side by side in one run.

    SCOR_TEST_DATA=... python -m tests.benchmarks.compare [--repeats 200] [--rounds 1]

The work is that of `trainMLP`: cross entropy, label smoothing, focal loss and SCoR on MNIST with one class reduced to
5 %, batch 64, five epochs, with evaluation and spectra. Ours is the whole command, from the start of Python to the
report. The peak memory of all its processes together is printed too.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LOSSES = 4  # number of losses of the reference
METHODS = 6  # number of methods of the configuration


def memory_of_tree(pid: int) -> int:
    """Return the proportional set sizes of a process and its descendants, in bytes."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    total, todo = 0, [pid]
    while todo:
        process = todo.pop()
        todo += parents.get(process, [])
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    return total


def ours(data: Path, repeats: int, processes: int) -> tuple[float, int]:
    """Return the duration of the command in seconds, and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--repeats {repeats} --data.root {data} --processes {processes}"
        command = [sys.executable, "-m", "scor_lightning", "compare", "--config", "compare/mnist_one_class.yaml"]
        started = time.perf_counter()
        process = subprocess.Popen([*command, *options.split()], cwd=folder, stdout=subprocess.DEVNULL)
        highest = 0

        def watch() -> None:
            nonlocal highest
            while process.poll() is None:
                highest = max(highest, memory_of_tree(process.pid))
                time.sleep(2)  # not more often, because reading takes processor time from the command

        thread = threading.Thread(target=watch)
        thread.start()
        if process.wait():
            raise SystemExit("scor-compare failed")
        seconds = time.perf_counter() - started
        thread.join()
    return seconds, highest


def reference(data: Path) -> float:
    """Return the seconds of one iteration of the reference: one training per loss."""
    from scor.training import trainMLP

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("data").symlink_to(data)
        Path("results").mkdir()
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            trainMLP(64, device="cpu", iterations=1, epochs=5)
        seconds = time.perf_counter() - started
        assert len(list(Path("results").iterdir())) == LOSSES
        os.chdir(before)
    return seconds


def main() -> None:
    """Print the trainings per hour of both, and their ratio; exit with 1 if the target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    data = Path(os.environ["SCOR_TEST_DATA"]).resolve()
    ratios = []
    for _ in range(given.rounds):
        seconds, memory = ours(data, given.repeats, given.processes)
        mine = 3600 * METHODS * given.repeats / seconds
        theirs = 3600 * LOSSES / reference(data)
        ratios.append(mine / theirs)
        print(
            f"trainings per hour: scor-compare {mine:,.0f} ({seconds:.0f} s for {METHODS * given.repeats}), "
            f"scor==0.2.2 {theirs:,.0f}; ratio {ratios[-1]:.1f}; memory {memory / 2**30:.2f} GiB",
            flush=True,
        )
    sys.exit(max(ratios) < 25)


if __name__ == "__main__":
    main()
