"""Processes that train together, forked so that nothing is imported again."""

import multiprocessing
import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _work(rank: int, world: int, port: int, result: Path, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
    }
    result.write_bytes(pickle.dumps(function(*arguments)))


class Processes:
    """Processes that each call a function, as a Lightning Trainer with several devices expects."""

    def __init__(self, world: int, function: Callable[..., Any], *arguments: Any, port: int = 0) -> None:
        context = multiprocessing.get_context("fork")
        port, folder = port or free_port(), Path(tempfile.mkdtemp())
        self._results = [folder / str(rank) for rank in range(world)]
        self._all = [
            context.Process(target=_work, args=(rank, world, port, self._results[rank], function, arguments))
            for rank in range(world)
        ]
        for process in self._all:
            process.start()

    def results(self, timeout: float = 60) -> list[Any]:
        """Return the results; None for a process that failed or was killed."""
        for process in self._all:
            process.join(timeout)
        alive = [process for process in self._all if process.is_alive()]
        for process in alive:
            process.kill()
        assert not alive, f"did not end within {timeout} s"
        return [pickle.loads(path.read_bytes()) if path.exists() else None for path in self._results]
