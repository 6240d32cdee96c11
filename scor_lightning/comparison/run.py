"""Run a comparison: distribute the repeats, save finished trainings, and show the progress."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from scor_lightning.comparison import sequential, stacked
from scor_lightning.comparison.estimate import TimeLeft, seconds_of_training
from scor_lightning.comparison.frozen import on_features
from scor_lightning.comparison.methods import (
    Overlay,
    built_methods,
    named_methods,
    read_training,
    resolve,
    training_options,
)
from scor_lightning.comparison.plan import Plan, Training, group, unpaired
from scor_lightning.comparison.pool import Advance, Work, connect, run_all
from scor_lightning.comparison.predictions import KEY
from scor_lightning.comparison.results import ResultsFolder, Row, in_order
from scor_lightning.comparison.statistics import PREDICTION
from scor_lightning.comparison.tuning import trials
from scor_lightning.datamodules.held import SHARE, available_memory
from scor_lightning.messages import nearest
from scor_lightning.parser import RANDOM_BODY, training_parser

_PROCESS = 7e8  # memory of a process before it trains, in bytes
_LITTLE_WORK = 3e12  # floating-point operations below which starting further processes does not pay


def compare(
    training: Training | Overlay | Sequence[Overlay],
    methods: Mapping[str, Any] | Sequence[str],
    repeats: int = 100,
    baseline: str | None = None,
    output: str | None = None,
    engine: Literal["auto", "stacked", "sequential"] = "auto",
    processes: int = 1,
    cluster: str | None = None,
    every_epoch: bool = False,
    spectra: bool = False,
    predictions: bool = True,
    measure: str = "balanced_accuracy",
    margin: float | None = None,
    tune: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
) -> list[Row]:
    """Train every method on every repeat and measure each network on the whole test set.

    Repeats differ in everything that is random: the reduced class, the subset, the split, the initial weights, the order
    of the batches, SCoR's permutations. Within a repeat all of these are the same for every method, except the weights of
    heads of different kinds. They are functions of the training's seeds and the number of the repeat.

    Args:
        training: The common training: the configuration of ``scor-fit``, a file or a list of files and mappings of
            options; or a :class:`~scor_lightning.comparison.Training` built in Python.
        methods: At least two, by name. Over a configuration each is a list of overlays, files or mappings of options; over
            a :class:`~scor_lightning.comparison.Training`, a mapping from its arguments to their replacements.
        repeats: Number of repeats, >= 1. A folder with fewer is extended.
        baseline: The method that the others are compared with; None is the first one.
        output: Folder for the results and the report. Finished trainings in it are not repeated. None keeps the
            results in memory.
        engine: ``"stacked"`` trains many small networks at once, ``"sequential"`` one after another by Lightning's
            Trainer; ``"auto"`` stacks if possible. A stacked loss must not depend on the number of its calls: the check
            before training detects this at the second call, but not later.
        processes: Processes that train at the same time, on the CPU or distributed over the GPUs, at least one per GPU.
            The trainings are pickled for them.
        cluster: Address of a Dask scheduler whose workers train instead, such as ``"tcp://host:8786"``.
        every_epoch: Measure after every epoch instead of only after the last.
        spectra: Keep all singular values of the weights instead of only the extreme ones.
        predictions: Keep the predicted class and the probability of the true class of each test image in ``output``, for
            the interval that covers new images. Read them with
            :meth:`~scor_lightning.comparison.results.ResultsFolder.predictions`.
        measure: The measure of predictions that determines the best method in the report.
        margin: Differences up to this, in the unit of the measure, count as none in the report; None is .002 for
            accuracies, recalls and F1, and 0 otherwise.
        tune: Values to try by method and option, equally many settings per method, such as
            ``{"scor": {"model.loss.alpha": [1e-5, 1e-4]}, "focal": {"model.loss.gamma": [1.0, 2.0]}}``.
            Each repeat selects the setting of each method by balanced accuracy on its validation set, and the report shows
            the selected ones. Requires a configuration as ``training``.

    Returns:
        One record per repeat and method, and per epoch with ``every_epoch``: ``repeat``, ``method``, ``epoch``, ``engine``,
        ``threads``, the ``reduced`` classes, ``train_images``, ``test_images``, the measures of
        :mod:`scor_lightning.comparison.measures`, ``diverged``, and ``train_seconds``.

    Raises:
        ValueError: If an argument is out of range, a loss does not fit the network, the folder contains another comparison
            or cannot be written, or ``engine="stacked"`` is not possible.
        ChildProcessError: If a process was killed repeatedly, possibly because it ran out of memory.

    Example:
        >>> from functools import partial
        >>> from torch import nn
        >>> from scor_lightning.comparison import Training, compare
        >>> from scor_lightning.datamodules import DigitsDataModule, ReduceClasses
        >>> from scor_lightning.losses import SCoRLoss
        >>> from scor_lightning.models import MLP
        >>> data = DigitsDataModule(imbalance=ReduceClasses(factor=0.05))
        >>> training = Training(data, partial(MLP, hidden=[16]), nn.CrossEntropyLoss, epochs=1)
        >>> rows = compare(training, {"cross_entropy": {}, "scor": {"loss": SCoRLoss}}, repeats=2)
        >>> [(row["repeat"], row["method"]) for row in rows]
        [(0, 'cross_entropy'), (0, 'scor'), (1, 'cross_entropy'), (1, 'scor')]
    """
    if isinstance(training, Training):
        if tune:
            raise ValueError("Expected a configuration to `tune`; of a Training, give each setting as a method")
        trainings, about = built_methods(training, methods), {}  # type: ignore[arg-type]
    else:
        named, tried = trials(named_methods(methods), tune or {})
        options = training_options(training)
        trainings = {name: read_training(config) for name, config in resolve(training_parser(), options, named).items()}
        about = {"options": options, "overlays": named, "tuned": tried if tune else None}
    return compare_trainings(
        trainings,
        repeats,
        baseline,
        output,
        engine,
        processes,
        cluster,
        every_epoch,
        spectra,
        predictions,
        measure,
        margin,
        about,
    )


def compare_trainings(
    trainings: Mapping[str, Training],
    repeats: int,
    baseline: str | None,
    output: str | None,
    engine: str,
    processes: int | None,
    cluster: str | None,
    every_epoch: bool,
    spectra: bool,
    predictions: bool,
    measure: str,
    margin: float | None,
    about: Mapping[str, Any],
) -> list[Row]:
    """Compare resolved trainings as :func:`compare` does; ``about`` is kept for the report."""
    if repeats < 1:
        raise ValueError(f"Expected `--repeats` >= 1 but got {repeats}")
    if processes is not None and processes < 1:
        raise ValueError(f"Expected `--processes` >= 1 but got {processes}")
    if engine not in ("auto", "stacked", "sequential"):
        raise ValueError(f"Expected `--engine` to be 'auto', 'stacked' or 'sequential' but got {engine!r}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("Expected one process but `torchrun` started several; see `--processes` and `--cluster`")
    names = list(about.get("tuned") or trainings)
    if baseline is not None and baseline not in names:
        raise ValueError(f"Expected `--baseline` to be one of {', '.join(names)} but got {baseline!r}")
    if measure not in PREDICTION:
        known = nearest(measure, PREDICTION) or f", such as {', '.join(list(PREDICTION)[:3])}"
        raise ValueError(f"--measure: expected a measure of predictions but got {measure!r}{known}")
    if margin is not None and not margin >= 0:
        raise ValueError(f"Expected `--margin` >= 0 but got {margin}")
    frozen = [name for name, training in trainings.items() if training.classifier.get("frozen_body")]
    trainings, random = on_features(trainings, _device)
    plans = group(trainings, every_epoch, spectra, predictions and output is not None)
    reasons = []
    for plan in plans:
        _device(plan.shared)  # raises if it does not exist
        plan.prepare()
        if about.get("tuned") and not plan.validates:
            raise ValueError(
                "Expected a validation set to select settings on, for `--tune`; raise `--data.val_fraction`"
            )
        reasons.append("it was asked for" if engine == "sequential" else stacked.why_not(plan))
        if engine == "stacked" and reasons[-1]:
            raise ValueError(f"Expected methods that can be stacked but {reasons[-1]}; see `--engine auto`")
    if cluster is not None:
        connect(cluster).close()  # before anything is written
    data = plans[0].repeat(0).data
    where = "" if data.resampling_ratio() is None else " (in the first repeat)"
    notes = [*([RANDOM_BODY] if random else []), *unpaired(plans), *(note + where for note in data.notes())]
    folder = None if output is None else ResultsFolder(output)
    if folder is not None:
        identities = {name: identity for plan in plans for name, identity in plan.identities().items()}
        named = {
            name: reason or "stacked" for plan, reason in zip(plans, reasons, strict=True) for name in plan.trainings
        }
        folder.begin(
            {name: identities[name] | {"every_epoch": str(every_epoch), "spectra": str(spectra)} for name in trainings},
            {
                "baseline": baseline or names[0],
                "engines": {name: named[name] for name in trainings},
                "version": version("scor-lightning"),
                "torch": torch.__version__,
                "class_names": plans[0].class_names,
                "frozen_body": frozen,
                "features": {
                    name: training.data.features_computed
                    for name, training in trainings.items()
                    if training.data.features_computed
                },
                "resampling_ratio": plans[0].resampling_ratio,
                "measure": measure,
                "margin": margin,
                **about,
                "notes": notes,
            },
        )
    rows = [] if folder is None else [row for row in folder.rows() if row["method"] in trainings]
    last = {name: training.total_epochs for name, training in trainings.items()}

    def finished() -> set[tuple[int, str]]:
        return {(row["repeat"], row["method"]) for row in rows if row["epoch"] == last[row["method"]]}

    wanted = [(n, name) for n in range(repeats) for name in trainings]
    before = finished()
    missing = [each for each in wanted if each not in before]
    if missing:
        _announce(plans, reasons, repeats, missing, cluster)
        for note in notes:
            print(note, file=sys.stderr)
    elif further := {n for n, _ in before if n >= repeats}:
        print(
            f"The folder already contains {repeats + len(further)} repeats; the report covers all of them",
            file=sys.stderr,
        )

    def save(new: list[Row]) -> None:
        if folder is not None:
            folder.add(new)
        rows.extend({name: value for name, value in row.items() if name != KEY} for row in new)

    output_folder = None if folder is None else folder.path
    phases = []
    for stack in (True, False):
        chosen = [plan for plan, reason in zip(plans, reasons, strict=True) if (reason is None) is stack]
        phases.append(_Phase(chosen, missing, stack, processes, cluster, output_folder))
    try:
        _train(phases, len(missing), save, cluster)
    except KeyboardInterrupt:
        print(f"\n{len(finished() & set(wanted))} of {len(wanted)} trainings are finished", file=sys.stderr)
        raise
    rows = in_order(rows, list(trainings))
    if folder is not None:
        from scor_lightning.comparison.report import write_report

        write_report(folder.path)
    return rows


def _announce(
    plans: list[Plan],
    reasons: list[str | None],
    repeats: int,
    missing: Sequence[tuple[int, str]],
    cluster: str | None,
) -> None:
    names = sum(len(plan.trainings) for plan in plans)
    where = f"on the cluster {cluster}" if cluster else f"on {_device(plans[0].shared)}"
    print(f"{names} methods x {repeats} repeats: {len(missing)} trainings to do {where}", file=sys.stderr)
    for plan, reason in zip(plans, reasons, strict=True):
        to_do = [name for name in plan.trainings if any(name == each for _, each in missing)]
        if not to_do:
            continue
        how = "stacked" if reason is None else f"one after another, as {reason}"
        total = next(iter(plan.trainings.values())).total_epochs
        further = f" and {total - plan.epochs} of a second stage" if total > plan.epochs else ""
        print(f"  {', '.join(to_do)}: {plan.epochs} epochs{further}, {how}", file=sys.stderr)


def _train(phases: "Sequence[_Phase]", missing: int, save: Callable[[list[Row]], None], cluster: str | None) -> None:
    """Run all phases one after another, with a progress bar that counts trainings."""
    if not missing:
        return
    left = TimeLeft(None)
    with tqdm(
        total=missing,
        desc="trainings",
        unit="",
        mininterval=0.5 if sys.stderr.isatty() else 10,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}{postfix}]",
    ) as bar:
        bar.set_postfix_str("estimating")
        costs = [phase.estimate() for phase in phases]
        total = sum(map(sum, costs))
        left = TimeLeft(None if cluster else total)
        before, finished = 0.0, 0.0

        def show(trainings: float, cost: float) -> None:
            seconds = left.after(cost / total)
            left_over = "" if seconds is None else f"{tqdm.format_interval(max(seconds, 0))} left"
            bar.set_postfix_str(left_over, refresh=False)
            bar.update(round(trainings, 3) - bar.n)

        show(0.0, 0.0)
        bar.refresh()
        for phase, cost in zip(phases, costs, strict=True):

            def progress(
                shares: np.ndarray[Any, Any],
                phase: "_Phase" = phase,
                cost: list[float] = cost,
                before: float = before,
                finished: float = finished,
            ) -> None:
                show(finished + float(shares @ np.array(phase.trainings)), before + float(shares @ np.array(cost)))

            run_all(phase.work, min(phase.processes, max(1, len(phase.work))), phase.threads, save, progress, cluster)
            before, finished = before + sum(cost), finished + sum(phase.trainings)


class _Phase:
    """The work of the plans with the same engine."""

    def __init__(
        self,
        plans: Sequence[Plan],
        missing: Sequence[tuple[int, str]],
        stack: bool,
        processes: int | None,
        cluster: str | None,
        output: Path | None,
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        mine = [(n, name) for n, name in missing if any(name in plan.trainings for plan in plans)]
        device = _device(plans[0].shared) if plans else torch.device("cpu")
        if device.type == "cuda":
            self.processes = min(max(processes or 1, torch.cuda.device_count()), max(1, len(mine)))
        else:
            self.processes = _sensible_processes(plans, processes or cores, mine, stack)
        # The result of a training that runs alone depends on the number of threads.
        alone = stack or len(mine) == 1 or device.type == "cuda"
        self.threads = max(1, cores // self.processes) if alone else 1
        place = None if output is None or stack or cluster else output / "unfinished"
        self.tasks = [
            _Task(plan, repeats, names, str(device), self.processes, self.threads, stack, place)
            for plan in plans
            for repeats, names in _tasks(plan, mine, device, self.processes, stack)
        ]
        self.work: list[Work[list[Row]]] = [Work(task.title, task) for task in self.tasks]
        self.trainings = [len(task.repeats) * len(task.names) for task in self.tasks]

    def estimate(self) -> list[float]:
        """Estimate the seconds of each piece of work from a few steps of each plan."""
        seconds: dict[int, float] = {}
        for task in self.tasks:
            if id(task.plan) not in seconds:
                seconds[id(task.plan)] = task.trial()
        return [seconds[id(task.plan)] * n / self.processes for task, n in zip(self.tasks, self.trainings, strict=True)]


_IMAGES: dict[bytes, Any] = {}


@dataclass
class _Task:
    """Some repeats of some methods, stacked, or one repeat of one method."""

    plan: Plan
    repeats: list[int]
    names: list[str]
    device: str
    processes: int
    threads: int
    stack: bool
    unfinished: Path | None
    hold: bool = True  # decoded images in memory

    @property
    def title(self) -> str:
        some = f"repeat {self.repeats[0]}" + (f" to {self.repeats[-1]}" if len(self.repeats) > 1 else "")
        return f"{some} of {', '.join(self.names)}"

    def trial(self) -> float:
        """Estimate the seconds of one training from the first steps of a few; on a GPU, of all that train at once."""
        repeats = self.repeats if self.device == "cuda" else self.repeats[:4]
        few = replace(self, repeats=repeats, unfinished=None, hold=False)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return seconds_of_training(few) / (len(few.repeats) * len(few.names))
        finally:
            torch.set_num_threads(before)

    def __call__(self, advance: Advance) -> list[Row]:
        started = time.perf_counter()
        # A process reads the images once, although each piece of work has its own description of them.
        self.plan.data.share_images(_IMAGES)
        self.plan.data.memory_share = SHARE / self.processes if self.hold else 0.0
        trainings = len(self.repeats) * len(self.names)
        with _free_device(self.device, self.processes) as device:
            if self.stack:
                share = partial(_advance_by, advance, trainings)
                rows = stacked.train(self.plan, self.repeats, device, share, self.names)
            else:
                (number,), (name,) = self.repeats, self.names
                place = self.unfinished and self.unfinished / f"{number}-{quote(name, safe='')}"
                rows = sequential.train(self.plan, number, name, device, advance, place)
        seconds = (time.perf_counter() - started) / trainings
        about = {"engine": "stacked" if self.stack else "sequential", "threads": self.threads}
        return [row | about | {"train_seconds": seconds} for row in rows]


def _advance_by(advance: Advance, trainings: int, done: float) -> None:
    advance(done / trainings)


class _free_device:
    """A device on which no more processes of this comparison train than on the others."""

    def __init__(self, name: str, processes: int) -> None:
        self.name = name
        self.processes = processes
        self.lock: FileLock | None = None

    def __enter__(self) -> torch.device:
        device = torch.device(self.name)
        if device.type != "cuda" or device.index is not None or torch.cuda.device_count() < 2:
            return device
        parent = os.getppid()
        while True:
            for place in range(self.processes):
                index = place % torch.cuda.device_count()
                lock = FileLock(
                    Path(os.environ.get("TMPDIR", "/tmp")) / f"scor-compare-{parent}-gpu{index}-{place}.lock"
                )
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                self.lock = lock
                return torch.device("cuda", index)
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


def _tasks(
    plan: Plan, missing: Sequence[tuple[int, str]], device: torch.device, processes: int, stack: bool
) -> list[tuple[list[int], list[str]]]:
    mine = [(n, name) for n, name in missing if name in plan.trainings]
    if not stack:
        return [([n], [name]) for n, name in mine]
    by_names: dict[tuple[str, ...], list[int]] = {}  # finished trainings are not repeated
    for n in dict.fromkeys(n for n, _ in mine):
        by_names.setdefault(tuple(name for m, name in mine if m == n), []).append(n)
    tasks = []
    for names, numbers in by_names.items():
        rounds = -(-len(numbers) // (processes * stacked.chunk_size(plan, device)))
        chunks = min(len(numbers), processes * rounds)  # of equal size, so that the processes end at the same time
        tasks += [
            (numbers[i * len(numbers) // chunks : (i + 1) * len(numbers) // chunks], list(names)) for i in range(chunks)
        ]
    return tasks


def _sensible_processes(plans: Sequence[Plan], wanted: int, missing: Sequence[tuple[int, str]], stack: bool) -> int:
    if not plans:
        return 1
    largest = max(plan.parameters for plan in plans)
    if stack:
        to_do = Counter(name for _, name in missing)
        trainings = [(plan, to_do[name]) for plan in plans for name in plan.trainings]
        work = sum(6.0 * plan.parameters * plan.train_images * plan.epochs * number for plan, number in trainings)
        if work < _LITTLE_WORK:
            return 1
    each = _PROCESS + (0 if stack else 24 * largest)
    return max(1, min(wanted, int(available_memory() / each), max(1, len(missing))))


def _device(training: Training) -> torch.device:
    accelerator = training.trainer.get("accelerator", "auto")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("gpu", "cuda"):
        raise ValueError("Expected `--trainer.accelerator` to be one of this machine but it has no CUDA device")
    return torch.device("cpu")
