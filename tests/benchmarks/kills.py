"""Kill trainings and comparisons repeatedly, resume them, and compare them with uninterrupted ones.

    python -m tests.benchmarks.kills [--kills 12] [--only fit ...] [--seed 0]

Each scenario runs once to its end, and then again with ``--kills`` SIGKILLs at random moments: some while it starts, most
while it trains. Then it is resumed to its end. Weights, optimizers, test results and the rows of comparisons must be
bit-identical. Prints the kills of each scenario and exits with 1 if a result differs. Takes about 25 minutes on two cores.
"""

import argparse
import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_WAIT = 300.0  # seconds for a process to train or end
_TRAINS = 1.5  # maximum seconds of training before a kill
_STARTS = 0.25  # share of the kills while a process starts
_TIMES = {"train_seconds", "threads"}

FIT = "fit --config digits_scor.yaml --model.backbone.hidden [64] --trainer.accelerator cpu --trainer.max_epochs 80"
COMPARE = (
    "compare --config compare/digits.yaml --trainer.max_epochs 20 --output results --engine sequential --repeats 8"
)


@dataclass
class Scenario:
    """A command to kill.

    Attributes:
        command: The command line, without the program.
        result: Reads the result from the folder.
        lone: Whether only the first process is killed, so that the others have to detect it.
        cluster: Whether workers of a cluster train.
    """

    command: str
    result: Callable[[Path], Any]
    lone: bool = False
    cluster: bool = False


def of_run(folder: Path) -> Any:
    """Return the weights, the optimizers and the test results of the newest run, by stage."""
    run = max(folder.glob("runs/*/version_*"), key=lambda path: int(path.name.removeprefix("version_")))
    last = sorted(run.rglob("last.ckpt"))
    states = [torch.load(path, weights_only=True) for path in last]
    found = [{key: state[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")} for state in states]
    tests = {path.parent.name: json.loads(path.read_text()) for path in sorted(run.rglob("metrics.json"))}
    return (
        len(last),
        found,
        {name: {k: v for k, v in each.items() if k != "checkpoint"} for name, each in tests.items()},
    )


def of_comparison(folder: Path) -> Any:
    """Return the rows of a comparison, without its times."""
    with (folder / "results" / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in _TIMES} for row in csv.DictReader(file)]


SCENARIOS = {
    "fit": Scenario(FIT, of_run),
    "second stage": Scenario(f"{FIT} --config method/crt.yaml", of_run),
    "two processes": Scenario(f"{FIT} --trainer.devices 2 --trainer.strategy ddp", of_run, lone=True),
    "compare": Scenario(f"{COMPARE} --processes 2", of_comparison, lone=True),
    "cluster": Scenario(COMPARE, of_comparison, cluster=True),
}


def equal(one: Any, other: Any) -> bool:
    """Compare nested values bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.view(torch.uint8) if one.ndim else one, other.view(torch.uint8) if one.ndim else other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def start(command: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a command in a new process group."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "scor_lightning", *command.split()],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def progress(folder: Path) -> float:
    """Return when a file from which a killed process resumes was last written."""
    kept = [*folder.rglob("last.ckpt"), *folder.rglob("chunks/*.json")]
    return max((path.stat().st_mtime for path in kept if path.exists()), default=0.0)


def kill(process: "subprocess.Popen[bytes]", lone: bool) -> None:
    """Kill a process, and unless ``lone`` those that it started."""
    if lone:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + _WAIT
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise TimeoutError(f"The processes of {process.args} did not end after the first one was killed")


def killed_and_resumed(scenario: Scenario, folder: Path, kills: int, randomness: random.Random) -> int:
    """Run a command to its end with kills; return their number."""
    done = 0
    while True:
        resumes = "fit" in scenario.command and progress(folder) > 0
        process = start(scenario.command + (" --ckpt_path last" if resumes else ""), folder)
        if done < kills:
            began, before = time.time(), progress(folder)
            starting = randomness.random() < _STARTS
            wait = randomness.uniform(0, 6.0 if starting else _TRAINS)
            while (
                process.poll() is None and not starting and progress(folder) <= before and time.time() < began + _WAIT
            ):
                time.sleep(0.02)
            until = time.time() + wait
            while process.poll() is None and time.time() < until:
                time.sleep(0.02)
            if process.poll() is None:
                kill(process, scenario.lone and not starting)
                done += 1
                continue
        if process.wait(_WAIT) != 0:
            raise RuntimeError(f"{process.args} failed:\n{(folder / 'log').read_text()[-2000:]}")
        return done


@contextmanager
def cluster() -> Iterator[str]:
    """Start a Dask scheduler with two workers; yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    program = [sys.executable, "-m", "distributed.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.TemporaryDirectory() as place:
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": place, "env": environment}
        commands = [
            [f"{program[2]}.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
            *[[f"{program[2]}.dask_worker", address, "--nthreads", "1", "--no-dashboard"]] * 2,
        ]
        started = [subprocess.Popen([*program[:2], *each], **options) for each in commands]  # type: ignore[call-overload]
        try:
            yield address
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(30)


def main() -> int:
    """Run the scenarios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    randomness, failed, total = random.Random(options.seed), False, 0
    for name in options.only:
        scenario = SCENARIOS[name]
        began = time.time()
        with tempfile.TemporaryDirectory() as place:
            for part in ("whole", "killed"):
                (Path(place) / part).mkdir()
            with cluster() if scenario.cluster else _nothing() as address:
                if address:
                    scenario.command += f" --cluster {address}"
                killed_and_resumed(scenario, Path(place) / "whole", 0, randomness)
                kills, runs = 0, 0
                killed = Path(place) / "killed"
                alike = True
                while kills < options.kills:
                    runs += 1
                    folder = killed / str(runs)
                    folder.mkdir()
                    kills += killed_and_resumed(scenario, folder, options.kills - kills, randomness)
                    alike &= equal(scenario.result(Path(place) / "whole"), scenario.result(folder))
        total += kills
        failed |= not alike
        said = "equal bit by bit" if alike else "DIFFERENT"
        print(f"{name}: {kills} kills in {runs} run(s), {said} ({time.time() - began:.0f} s)", flush=True)
    print(f"{total} kills")
    return int(failed)


@contextmanager
def _nothing() -> Iterator[str]:
    yield ""


if __name__ == "__main__":
    sys.exit(main())
