"""The signals that ask a run to stop, and the processes that handle them."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C; what a cloud, SLURM or `kill` sends; what SLURM sends by `--signal=USR1@120`; the end of the terminal or of the
# program that started the run. Windows lacks the last two.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)


def leave_signals_to_the_main_process(worker_id: int) -> None:
    """Keep a loader's worker running when a terminal or a cluster signals all processes to stop.

    The training process decides when to stop; without its workers it could not finish the step.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_ctrl_c_to_the_parent(parent: int) -> None:
    """Set up a worker process: Ctrl-C does not reach it, and it ends within a second of its parent.

    A killed parent cannot end its workers, and they cannot detect its end by a pipe that other processes inherit.

    Args:
        parent: Process id of the parent, which may have ended already.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        for child in multiprocessing.active_children():  # a loader's workers
            child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Terminated(KeyboardInterrupt):
    """Ctrl-C that stands for SIGTERM."""


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C in a block, which then raises :class:`Terminated`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminated = False

    def interrupt(*_: Any) -> None:
        nonlocal terminated
        terminated = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        else:
            signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the one into the other
        if not terminated:
            raise
        raise Terminated from stop
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach; this process receives it at the end of the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if handler is not None:  # the mask applies to this thread only: another thread may receive the signal
        signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)
