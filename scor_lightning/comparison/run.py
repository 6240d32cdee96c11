"""Running a comparison: which trainings are missing, who does them, and what becomes of the results."""

import ctypes
import json
import math
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from scor_lightning.comparison import sequential, stacked
from scor_lightning.comparison.plan import Plan, Precision
from scor_lightning.comparison.results import ResultsFolder, Row, in_order
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.signals import ctrl_c_held_back

Advance = Callable[[float], None]
_MEMORY = 5e9  # bytes for all processes together
_PROCESS = 7e8  # bytes that a process takes before it trains
_LITTLE_WORK = 3e12  # floating-point operations below which further processes are not worth their start


def compare(
    data: ImageDataModule,
    backbone: Callable[[int, int, tuple[int, int]], nn.Module],
    losses: dict[str, Callable[[], nn.Module]],
    repeats: int = 100,
    epochs: int = 5,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    seed: int = 0,
    baseline: str | None = None,
    output: str | None = None,
    engine: Literal["auto", "stacked", "sequential"] = "auto",
    device: str = "auto",
    processes: int = 1,
    precision: Precision = "32-true",
    every_epoch: bool = False,
    spectra: bool = False,
) -> list[Row]:
    """Train every loss on every repeat and measure each network on the whole held-out set.

    Repeats differ in everything that is drawn: the reduced class, the subset, the split, the initial weights, the order
    of the batches, SCoR's permutations. Within a repeat all of these are the same for every loss. All of it follows
    from ``seed``, the data's own seed and the number of the repeat.

    Args:
        data: The data. Each repeat draws subset and split anew; the test set is what is measured.
        backbone: Makes the network; called with ``num_classes``, ``in_channels`` and ``image_size`` by keyword.
        losses: Makes each loss, by the name that it has in the results, at least two.
        repeats: Number of repeats, >= 1. A folder with fewer is extended.
        epochs: Epochs of each training, >= 1.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes a schedule from the optimizer; it advances once an epoch.
        seed: Seed of the comparison, >= 0.
        baseline: The loss that the others are compared with; None is the first.
        output: Folder for the results and the report. Finished trainings found in it are not done again. None keeps the
            results in memory.
        engine: ``"stacked"`` trains many small networks at once, ``"sequential"`` one after another by Lightning's
            Trainer; ``"auto"`` stacks where that is possible. Stacked, a loss must not change with the number of its
            calls: the check beforehand sees that at the second call, not later.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` is a CUDA device where there is one.
        processes: Processes that train at the same time on the CPU, each with its share of the cores. They take what is
            compared by pickle.
        precision: ``"32-true"``, or ``"64-true"`` to see what rounding does.
        every_epoch: Measure after every epoch, not after the last alone.
        spectra: Keep all singular values of the weights, not the extreme ones alone.

    Returns:
        A record for each repeat and loss, and each epoch if asked: ``repeat``, ``loss``, ``epoch``, the ``reduced``
        classes, ``train_images``, and the measures of :mod:`scor_lightning.comparison.measures`.

    Raises:
        ValueError: If an argument is out of its range, a loss cannot be used with the network, the folder holds another
            comparison or cannot be written, or ``engine="stacked"`` is not possible.

    Example:
        >>> from functools import partial
        >>> from scor_lightning.comparison import compare
        >>> from scor_lightning.datamodules import DigitsDataModule, ReduceClasses
        >>> from scor_lightning.losses import SCoRLoss
        >>> from scor_lightning.models import MLP
        >>> data = DigitsDataModule(imbalance=ReduceClasses(factor=0.05))
        >>> losses = {"cross_entropy": nn.CrossEntropyLoss, "scor": partial(SCoRLoss, alpha=1e-4)}
        >>> rows = compare(data, partial(MLP, hidden=[16]), losses, repeats=2, epochs=1)
        >>> [(row["repeat"], row["loss"]) for row in rows]
        [(0, 'cross_entropy'), (0, 'scor'), (1, 'cross_entropy'), (1, 'scor')]
    """
    if repeats < 1:
        raise ValueError(f"Expected `repeats` >= 1 but got {repeats}")
    if processes < 1:
        raise ValueError(f"Expected `processes` >= 1 but got {processes}")
    if engine not in ("auto", "stacked", "sequential"):
        raise ValueError(f"Expected `engine` to be 'auto', 'stacked' or 'sequential' but got {engine!r}")
    if baseline is not None and baseline not in losses:
        raise ValueError(f"Expected `baseline` to be one of {', '.join(losses)} but got {baseline!r}")
    plan = Plan(data, backbone, losses, epochs, optimizer, lr_scheduler, seed, precision, every_epoch, spectra)
    where = _device(device)
    group = _ProcessGroup()
    group.one_after_another(plan.prepare)
    reason = "it was asked for" if engine == "sequential" else stacked.why_not(plan)
    if engine == "stacked" and reason:
        raise ValueError(f"Expected a comparison that can be stacked but {reason}; see `--engine auto`")
    folder = None if output is None else ResultsFolder(output)
    about = {
        "losses": list(losses),
        "baseline": baseline or next(iter(losses)),
        "version": version("scor-lightning"),
        "torch": torch.__version__,
    }
    if folder is not None:
        group.one_after_another(lambda: folder.begin(plan.description(), about))
    rows = [] if folder is None else folder.rows()
    finished = group.union({(row["repeat"], row["loss"]) for row in rows if row["epoch"] == epochs})
    missing = {n: [name for name in losses if (n, name) not in finished] for n in range(repeats)}
    missing = {n: names for n, names in missing.items() if names}
    mine = list(missing)[group.rank :: group.size]
    amount = sum(len(missing[n]) for n in mine)
    processes = 1 if where.type != "cpu" else _sensible_processes(plan, processes, amount, stacked=reason is None)
    tasks = _tasks(plan, {n: missing[n] for n in mine}, where, processes, stack=reason is None)

    def save(new: list[Row]) -> None:
        rows.extend(new)
        if folder is not None:
            folder.add(new)

    if group.rank == 0 and amount:
        how = "stacked" if reason is None else f"one after another, as {reason}"
        print(
            f"{len(losses)} losses x {repeats} repeats x {epochs} epochs, {how}; "
            f"{sum(map(len, missing.values()))} trainings to do on {where}",
            file=sys.stderr,
        )
    title = "trainings" if group.size == 1 else f"trainings of process {group.rank} of {group.size}"
    with tqdm(
        total=amount,
        desc=title,
        unit="",
        disable=group.rank > 0 or not amount,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]",
    ) as bar:
        _run(plan, tasks, where, min(processes, len(tasks)), save, _Progress(bar))
    rows = group.gather_rows(in_order(rows, list(losses)))
    if group.rank == 0:
        rows = in_order(rows, list(losses))
        if folder is not None:
            here = {(row["repeat"], row["loss"]) for row in folder.rows()}
            if elsewhere := [row for row in rows if (row["repeat"], row["loss"]) not in here]:
                folder.add(elsewhere)  # of processes whose folder is on another machine
            from scor_lightning.comparison.report import write_report

            write_report(folder.path)
    return rows


@dataclass
class _Task:
    """A chunk of trainings: some repeats stacked, or one repeat of one loss."""

    repeats: list[int]
    loss: str | None = None


def _tasks(
    plan: Plan, missing: Mapping[int, list[str]], device: torch.device, processes: int, stack: bool
) -> list[_Task]:
    if not stack:
        return [_Task([n], name) for n, names in missing.items() for name in names]
    if not missing:
        return []
    rounds = math.ceil(len(missing) / (processes * stacked.chunk_size(plan, device)))
    chunks = min(len(missing), processes * rounds)  # of one size, so that the processes end together
    numbers = list(missing)
    return [_Task(numbers[i * len(numbers) // chunks : (i + 1) * len(numbers) // chunks]) for i in range(chunks)]


def _sensible_processes(plan: Plan, wanted: int, trainings: int, stacked: bool) -> int:
    images = int(plan.repeat(0).data.class_counts.sum())
    if stacked and 6.0 * plan.parameters * images * plan.epochs * trainings < _LITTLE_WORK:
        return 1
    each = _PROCESS + (0 if stacked else 24 * plan.parameters)
    return max(1, min(wanted, int(_MEMORY / each)))


def _do(plan: Plan, task: _Task, device: torch.device, advance: Advance) -> list[Row]:
    if task.loss is None:
        return stacked.train(plan, task.repeats, device, advance)
    return sequential.train(plan, task.repeats[0], task.loss, device, advance)


class _Progress:
    """Shows fractions of trainings as they are done."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self.bar = bar
        self.done = 0.0

    def advance(self, trainings: float) -> None:
        self.show(self.done + trainings)

    def show(self, done: float) -> None:
        self.done = done
        self.bar.update(round(done, 3) - self.bar.n)


def _run(
    plan: Plan,
    tasks: list[_Task],
    device: torch.device,
    processes: int,
    save: Callable[[list[Row]], None],
    progress: _Progress,
) -> None:
    if processes <= 1:
        for task in tasks:
            save(_do(plan, task, device, progress.advance))
        return
    try:
        pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"Expected what is compared to be picklable for {processes} processes but {error}") from error
    context = multiprocessing.get_context("spawn")
    done = context.Value("d", 0.0)
    others = multiprocessing.active_children()
    threads = max(1, (os.cpu_count() or 1) // processes)
    try:
        with ProcessPoolExecutor(processes, context, _start, (plan, str(device), threads, done)) as pool:
            try:
                with ctrl_c_held_back():  # from the processes that begin here; this one ends them
                    pending = {pool.submit(_work, task) for task in tasks}
                while pending:
                    # Interrupted while it holds the locks of the futures, `wait` would leave them locked for ever.
                    with ctrl_c_held_back():
                        finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                        results = [future.result() for future in finished]
                    for rows in results:
                        save(rows)
                    progress.show(done.value)
            except BaseException:
                for child in set(multiprocessing.active_children()) - set(others):
                    # Not SIGTERM, which Lightning's Trainer turns into an exception, after which the next task would begin.
                    # This process alone writes, so nothing is lost but what is under way.
                    child.kill()
                raise
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "Expected the training processes to live but one was killed, perhaps for want of memory. What was finished "
            "is kept; go on with fewer `--processes`"
        ) from error


_worker: dict[str, Any] = {}


def _start(plan: Plan, device: str, threads: int, done: Any) -> None:
    torch.set_num_threads(threads)
    _keep_freed_memory()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:  # also where that was killed
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _worker.update(plan=plan, device=torch.device(device), done=done)


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one; given back to the system, it costs a tenth of the time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD, in bytes
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the most that is allowed


def _work(task: _Task) -> list[Row]:
    def advance(trainings: float) -> None:
        with _worker["done"].get_lock():
            _worker["done"].value += trainings

    return _do(_worker["plan"], task, _worker["device"], advance)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Expected `device` to be one of this machine but got {name!r}: {error}") from error
    return device


class _ProcessGroup:
    """The processes that ``torchrun`` started. They train apart and meet at a key-value store.

    A process group of torch.distributed would not do: losses that find one take part in each other's batches.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._store: Store | None = None
        self._met = 0
        if self.size > 1:
            self._store, self.rank, self.size = next(rendezvous("env://", timeout=timedelta(days=365)))

    def _exchange(self, mine: Any) -> list[Any]:
        if self._store is None:
            return [mine]
        self._met += 1
        self._store.set(f"scor-compare/{self._met}/{self.rank}", json.dumps(mine))
        return [json.loads(self._store.get(f"scor-compare/{self._met}/{rank}")) for rank in range(self.size)]

    def one_after_another(self, action: Callable[[], None]) -> None:
        """Let every process do something, the first one before the others."""
        if self.rank == 0:
            action()
        self._exchange(None)
        if self.rank > 0:
            action()

    def union(self, mine: set[tuple[int, str]]) -> set[tuple[int, str]]:
        """Return the union over the processes."""
        return {(n, name) for theirs in self._exchange(sorted(mine)) for n, name in theirs}

    def gather_rows(self, mine: list[Row]) -> list[Row]:
        """Gather the records of all processes, which wait for one another."""
        return [row for theirs in self._exchange(mine) for row in theirs]
