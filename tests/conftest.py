"""Fixtures of all tests."""

import http.server
import os
import random
import signal
import sys
import threading
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

# The processes of the tests, and those that they start, share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets what it starts in the background ignore Ctrl-C, and `nohup` the end of the terminal; the tests, and what
# they start, receive both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


FORKING = {
    "test_building_blocks.py",
    "test_checkpoint.py",
    "test_confusion_aware.py",
    "test_last_checkpoint.py",
    "test_processes.py",
    "test_scale.py",
    "test_second_stage.py",
}


def pytest_collection_modifyitems(items):
    """Run the tests that fork first: once autograd has started threads of its own, a forked process cannot train."""
    items.sort(key=lambda item: item.path.name not in FORKING)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets."""
    folder = os.environ.get("SCOR_TEST_DATA")
    if not folder:
        pytest.skip("SCOR_TEST_DATA does not name the folder with the real data")
    return Path(folder).resolve()


@pytest.fixture
def draw():
    """Return a generator whose seed is shown on failure and can be set by SCOR_TEST_SEED."""
    seed = int(os.environ.get("SCOR_TEST_SEED", random.randrange(2**32)))
    print(f"Drawn from SCOR_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """Use a cache folder of the tests instead of the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def server(tmp_path):
    """Serve a folder on localhost; yield the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):  # a client that stops reading is no error here
            pass

    with Server(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Run a console script in this process, in an empty folder; it returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(line: str, *more: str) -> tuple[int, str, str]:
        script, *options = line.split()
        monkeypatch.setattr(sys, "argv", [script, *options, *more])
        status = 0
        try:
            import_module(f"scor_lightning.cli.{script.removeprefix('scor-')}").main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            status = stop.code if isinstance(stop.code, int) else 1
        return status, *capfd.readouterr()

    return call
