"""Run callables in worker processes of this machine or on a Dask cluster, and repeat the work of killed workers."""

import asyncio
import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cloudpickle
import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from scor_lightning.signals import ctrl_c_held_back, leave_ctrl_c_to_the_parent

T = TypeVar("T")
Advance = Callable[[float], None]
_POLL = 0.5  # seconds between updates of the progress
_CONNECT = 10  # timeout of the scheduler, in seconds
_STOP = 4  # timeout for ending workers, in seconds
_END, _CTRL_C = -1, -2  # events that are not the index of finished work


@dataclass(frozen=True)
class Work(Generic[T]):
    """A piece of work: a function that runs in a worker process.

    Args:
        name: Name in messages.
        function: Function that returns the result; both are pickled. It is called with ``advance``, where
            ``advance(share)`` reports that another share of the work, in [0, 1], is done.
    """

    name: str
    function: Callable[[Advance], T]


def run_all(
    work: Sequence[Work[T]],
    processes: int,
    threads: int,
    on_result: Callable[[T], None],
    on_progress: Callable[[np.ndarray[Any, Any]], None],
    cluster: str | None = None,
    attempts: int = 3,
) -> None:
    """Run all work and pass on each result as it arrives.

    Both callbacks are called in the thread of the caller. Ctrl-C does not interrupt ``on_result``; finished results
    are passed on before ``KeyboardInterrupt`` is raised. When this function returns or raises, its workers have ended.

    If a worker is killed, the unfinished work of all workers is repeated. The last attempt runs alone, so that it has the
    machine's memory to itself and no other work is blamed.

    Args:
        work: The work, in the order in which it starts.
        processes: Number of worker processes, >= 1. With 1, everything runs in this process. Not used on a cluster.
        threads: Threads of each process, >= 1.
        on_result: Receives each result, in the order of their arrival.
        on_progress: Receives the finished share of each piece, float64 ``[len(work)]`` in [0, 1], twice per second. Shares
            never decrease, and end at 1.
        cluster: Address of a Dask scheduler, such as ``"tcp://host:8786"``; None uses this machine. Its workers run one
            piece of work at a time per process (``dask worker --nthreads 1 --nworkers N``). Progress counts whole
            pieces. After an error or Ctrl-C, running work ends at its next report of progress.
        attempts: Number of attempts for work whose worker is killed, >= 1. A cluster has its own limit, Dask's
            ``distributed.scheduler.allowed-failures``.

    Raises:
        ChildProcessError: If a worker was killed at each attempt of a piece of work.
        ConnectionError: If the scheduler does not answer or is lost.
        ImportError: If ``cluster`` is used without the package distributed.
        ValueError: If the work cannot be pickled.
        Exception: The exception of a piece of work. From a cluster, the message begins with the worker's address.
    """
    if processes < 1:
        raise ValueError(f"Expected `processes` >= 1 but got {processes}")
    if not work:
        return
    if cluster is None and processes == 1:
        _run_here(work, threads, on_result, on_progress)
        return
    with ExitStack() as stack:
        workers: _Workers
        if cluster is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scor-", ignore_cleanup_errors=True)))
            workers = _LocalWorkers(work, processes, threads, attempts, folder)
        else:
            workers = _ClusterWorkers(work, threads, cluster)
        _collect(workers, len(work), on_result, on_progress)


def _run_here(
    work: Sequence[Work[T]],
    threads: int,
    on_result: Callable[[T], None],
    on_progress: Callable[[np.ndarray[Any, Any]], None],
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shares = np.zeros(len(work))
        for index, one in enumerate(work):

            def report(done: float, index: int = index) -> None:
                shares[index] = done
                on_progress(shares)

            result = one.function(_Share(report).advance)
            with ctrl_c_held_back():
                on_result(result)
            report(1.0)
    finally:
        torch.set_num_threads(before)


class _Share:
    """The finished share of a piece of work, in [0, 1]."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._done = 0.0

    def advance(self, share: float) -> None:
        self._done = min(1.0, self._done + share)
        self._report(self._done)


class _Workers(Protocol):
    """The workers and the outcomes of the work."""

    def run(self) -> Iterator[int]:
        """Run all work and yield the index of each finished piece; called in a separate thread."""

    def finished(self) -> list[int]:
        """Return the indices of the available outcomes."""

    def take(self, index: int) -> bytes:
        """Return and remove an outcome."""

    def shares(self) -> np.ndarray[Any, Any]:
        """Return the finished share of each piece, in [0, 1]."""

    def stop(self) -> None:
        """End the workers and `run`."""


def _collect(
    workers: _Workers,
    pieces: int,
    on_result: Callable[[T], None],
    on_progress: Callable[[np.ndarray[Any, Any]], None],
) -> None:
    # joblib runs in a thread that Ctrl-C does not reach: if interrupted in the main thread, it may hold its locks or
    # lose a worker that it is starting.
    events: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            for index in workers.run():
                events.put(index)
            events.put(_END)
        except BaseException as error:  # noqa: BLE001 (raised in the main thread)
            events.put(error)

    thread = threading.Thread(target=run, daemon=True)
    done, shown, taken = np.zeros(pieces), time.monotonic(), set[int]()
    accepts = True  # results are discarded after `on_result` has failed

    def hand_over(index: int) -> None:
        nonlocal accepts
        taken.add(index)
        result = _open(workers.take(index))
        accepts = False
        on_result(result)
        accepts = True

    with _ctrl_c_calls(lambda: events.put(_CTRL_C)):
        try:
            with ctrl_c_held_back():  # for the thread and the processes that it starts
                thread.start()
            while True:
                try:
                    event = events.get(timeout=_POLL)
                except queue.Empty:
                    pass
                else:
                    if event == _END:
                        break
                    if event == _CTRL_C:
                        raise KeyboardInterrupt
                    if isinstance(event, BaseException):
                        raise event
                    hand_over(event)
                if time.monotonic() - shown >= _POLL:
                    shares = workers.shares()
                    shares[list(taken)] = 1
                    done = np.maximum(done, shares)  # repeated work restarts at 0
                    on_progress(done)
                    shown = time.monotonic()
            on_progress(np.ones(pieces))
        except BaseException:
            _stop(workers, thread)
            for index in workers.finished() if accepts else []:
                try:
                    hand_over(index)
                except Exception:
                    if not accepts:
                        raise
            raise
        finally:
            _stop(workers, thread)


def _stop(workers: _Workers, thread: threading.Thread) -> None:
    until = time.monotonic() + _STOP
    shown = threading.excepthook

    def show(failed: threading.ExceptHookArgs) -> None:
        if "Executor" not in type(failed.thread).__name__:  # an error of loky, whose workers are killed below
            shown(failed)

    threading.excepthook = show
    try:
        while True:
            workers.stop()  # repeatedly, because joblib may be starting workers
            thread.join(0.1)
            if not thread.is_alive() or time.monotonic() > until:
                return
    finally:
        threading.excepthook = shown


@contextmanager
def _ctrl_c_calls(function: Callable[[], None]) -> Iterator[None]:
    """Call a function on Ctrl-C instead of raising KeyboardInterrupt; raise it at the end if nobody handled it."""
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if handler in (None, signal.SIG_IGN):
        yield
        return
    seen = []

    def handle(number: int, frame: Any) -> None:
        seen.append(number)
        function()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if seen:
        signal.raise_signal(signal.SIGINT)


class _LocalWorkers:
    """Processes of this machine, started by loky.

    Outcomes and progress are passed in files, so that a killed worker loses no results: joblib discards unread results
    when it raises.
    """

    def __init__(self, work: Sequence[Work[Any]], processes: int, threads: int, attempts: int, folder: Path) -> None:
        self._names = [one.name for one in work]
        self._functions = _pickled(work)
        self._processes, self._threads, self._attempts, self._folder = processes, threads, attempts, folder
        # The finished share of each piece; NaN before it starts.
        self._shares = np.memmap(folder / "progress", np.float32, "w+", shape=(len(work),))
        self._shares[:] = np.nan
        self._stopped = False
        if os.name == "posix":
            resource_tracker.ensure_running()  # it unblocks Ctrl-C in the thread that starts it, and thus in its workers

    def run(self) -> Iterator[int]:
        pending = dict.fromkeys(range(len(self._names)))
        killed = [0] * len(self._names)
        while pending and not self._stopped:
            together = [i for i in pending if killed[i] < max(1, self._attempts - 1)]
            begin = together or [next(iter(pending))]
            self._shares[begin] = np.nan
            try:
                for index in self._parallel(begin):
                    del pending[index]
                    yield index
            except TerminatedWorkerError:
                for index in [i for i in begin if i in pending and _outcome_file(self._folder, i).exists()]:
                    del pending[index]
                    yield index
                lost = [i for i in begin if i in pending]
                for index in [i for i in lost if not np.isnan(self._shares[i])] or lost:
                    killed[index] += 1
                    if killed[index] >= self._attempts:
                        raise ChildProcessError(
                            f"A worker process was killed {killed[index]} times during {self._names[index]}, possibly "
                            "out of memory. Finished work is kept; resume with fewer `--processes`"
                        ) from None

    def _parallel(self, indices: list[int]) -> Iterator[int]:
        with parallel_config(
            backend="loky",
            inner_max_num_threads=self._threads,
            initializer=leave_ctrl_c_to_the_parent,
            initargs=(os.getpid(),),
        ):
            parallel = Parallel(
                n_jobs=max(2, min(self._processes, len(indices))),  # with 1, joblib would not start a process
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="all",
                max_nbytes=None,
            )
        results: Iterator[int] = parallel(
            delayed(_run_in_process)(self._functions[i], i, self._folder, self._threads) for i in indices
        )
        return results

    def finished(self) -> list[int]:
        return [i for i in range(len(self._names)) if _outcome_file(self._folder, i).exists()]

    def take(self, index: int) -> bytes:
        path = _outcome_file(self._folder, index)
        outcome = path.read_bytes()
        path.unlink()
        return outcome

    def shares(self) -> np.ndarray[Any, Any]:
        return np.nan_to_num(np.array(self._shares, np.float64))

    def stop(self) -> None:
        self._stopped = True
        with suppress(AttributeError):  # joblib may shut down the executor at the same time
            get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def _outcome_file(folder: Path, index: int) -> Path:
    return folder / f"{index}.pickle"


def _run_in_process(function: bytes, index: int, folder: Path, threads: int) -> int:
    _set_up_worker(threads)
    shares = np.memmap(folder / "progress", np.float32, "r+")
    shares[index] = 0

    def report(done: float) -> None:
        shares[index] = done

    outcome = _outcome(function, _Share(report).advance)
    path = _outcome_file(folder, index)
    path.with_suffix(".part").write_bytes(outcome)
    path.with_suffix(".part").replace(path)
    report(1)
    return index


def connect(address: str) -> Any:
    """Connect to a Dask scheduler.

    Raises:
        ImportError: If Dask is not installed.
        ConnectionError: If no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("Expected distributed for `--cluster`; `pip install 'scor-lightning[cluster]'`") from error
    try:
        return Client(address, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConnectionError(
            f"No Dask scheduler answers at {address}; start one by `dask scheduler`: {_line(error)}"
        ) from error


class _ClusterWorkers:
    """The workers of a Dask scheduler."""

    def __init__(self, work: Sequence[Work[Any]], threads: int, address: str) -> None:
        self._client = connect(address)
        from distributed import KilledWorker
        from joblib._dask import DaskDistributedBackend

        self._names = [one.name for one in work]
        self._functions = _pickled(work)
        self._threads, self._address = threads, address
        self._outcomes: dict[int, bytes] = {}
        self._open: set[Future[Any]] = set()
        names, open_futures = self._names, self._open

        class Backend(DaskDistributedBackend):  # type: ignore[misc]
            """joblib's backend, which would wait forever for a task that fails outside of its function."""

            def effective_n_jobs(self, n_jobs: int) -> int:
                return 2  # with fewer, joblib would not use the cluster; more are not needed, as all tasks are submitted at once

            def submit(self, func: Any, callback: Callable[[Any], None]) -> "Future[Any]":
                ((_, (_, index, _), _),) = func.items
                future: Future[Any] = super().submit(func, callback)
                open_futures.add(future)

                def end(done: "Future[Any]") -> None:
                    open_futures.discard(done)
                    if error := done.exception():
                        callback(_Failure(names[index], error))

                future.add_done_callback(end)
                return future

            def retrieve_result_callback(self, out: Any) -> Any:
                if not isinstance(out, _Failure):
                    return super().retrieve_result_callback(out)
                if isinstance(out.error, KilledWorker):
                    raise ChildProcessError(
                        f"Several workers of the cluster were killed during {out.name}, possibly out of memory. "
                        "Finished work is kept; resume with fewer workers per machine"
                    )
                raise RuntimeError(f"The cluster could not run {out.name}: {_line(out.error)}")

        self._backend = Backend(client=self._client, wait_for_workers_timeout=None)

    def run(self) -> Iterator[int]:
        if not self._client.nthreads():
            warnings.warn(f"No worker is connected to {self._address} yet; waiting for one", stacklevel=1)
        with parallel_config(backend=self._backend):
            parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        tasks = (delayed(_run_on_cluster)(function, i, self._threads) for i, function in enumerate(self._functions))
        try:
            for index, outcome in parallel(tasks):
                self._outcomes[index] = outcome
                yield index
        except (asyncio.CancelledError, CancelledError) as error:  # raised for all tasks when the connection ends
            raise self._lost() from error

    def finished(self) -> list[int]:
        return list(self._outcomes)

    def take(self, index: int) -> bytes:
        return self._outcomes.pop(index)

    def shares(self) -> np.ndarray[Any, Any]:
        if self._client.status != "running":
            raise self._lost()
        return np.zeros(len(self._names))

    def _lost(self) -> ConnectionError:
        return ConnectionError(f"The Dask scheduler at {self._address} is lost. Finished work is kept")

    def stop(self) -> None:
        for future in list(self._open):
            if not future.done():
                future.set_exception(ConnectionAbortedError("stopped"))
        self._client.close()


@dataclass(frozen=True)
class _Failure:
    name: str
    error: BaseException


_turn = threading.Lock()  # a Dask worker has one thread per core, but seeds belong to the whole process


def _run_on_cluster(function: bytes, index: int, threads: int) -> tuple[int, bytes]:
    from distributed.worker import get_worker, thread_state  # type: ignore[attr-defined]

    worker, key = get_worker(), thread_state.key

    def advance(share: float) -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise InterruptedError("The comparison was stopped")

    with _turn:
        _set_up_worker(threads)
        # Dask starts its workers as daemons, which may not start processes, such as a loader's workers.
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        return index, _outcome(function, advance, worker.address)


def _pickled(work: Sequence[Work[Any]]) -> list[bytes]:
    try:
        return [cloudpickle.dumps(one.function) for one in work]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"Expected work that can be pickled for other processes but {_line(error)}") from error


def _outcome(function: bytes, advance: Advance, worker: str | None = None) -> bytes:
    """Return the pickled result of a pickled function, or its exception."""
    try:
        return pickle.dumps((pickle.loads(function)(advance), None, None))
    except BaseException as error:  # noqa: BLE001 (raised in the parent)
        page = traceback.format_exc()
        message = str(error) if worker is None else f"{worker}: {_line(error)}"
        portable = error
        try:
            if worker is not None:
                portable = type(error)(message)
            portable = pickle.loads(pickle.dumps(portable))
            as_before = isinstance(portable, Exception) and str(portable) == message
        except Exception:  # noqa: BLE001 (raised by its constructor or its pickle)
            as_before = False
        if not as_before:
            portable = RuntimeError(f"{type(error).__name__}: {message}")
        return pickle.dumps((None, portable, page))


def _open(outcome: bytes) -> Any:
    result, error, page = pickle.loads(outcome)
    if error is not None:
        raise error from _WorkerTracebackError(page)
    return result


class _WorkerTracebackError(Exception):
    """The traceback of a worker, as the cause of its exception."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@cache
def _set_up_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    _keep_freed_memory()
    if sys.platform == "linux":
        # Fork a loader's workers: spawned ones import torch each time, and loky's start method fails for them.
        multiprocessing.set_start_method("fork", force=True)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step; returning it to the system costs a tenth of the time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD, in bytes
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the most that is allowed
