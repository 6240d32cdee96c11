import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from torch.utils.data import DataLoader, TensorDataset

from scor_lightning.comparison.pool import Work, run_all
from tests.processes import free_port


def run(work, processes=2, threads=1, **options):
    """Collects the results in the order of their arrival, and the progress."""
    results, progress = [], []
    run_all(work, processes, threads, results.append, lambda shares: progress.append(shares.sum()), **options)
    return results, progress


@pytest.fixture(autouse=True)
def _no_process_is_left():
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [process.cmdline() for process in left if "resource_tracker" not in str(process.cmdline())]


def record(folder, name):
    """Count the attempts of a piece of work; return the number of this one."""
    for attempt in range(1, 100):
        with suppress(FileExistsError):
            (folder / f"{name}.{attempt}").touch(exist_ok=False)
            return attempt
    raise AssertionError


def attempts(folder):
    counts = {}
    for path in folder.iterdir():
        counts[path.stem] = counts.get(path.stem, 0) + 1
    return counts


def numbered(folder, name, advance, seconds=0.0, kills=0, pid=False):
    """Return the name after some seconds; kill the process that often instead."""
    attempt = record(folder, name)
    for _ in range(10):
        time.sleep(seconds / 10)
        advance(0.1)
    if attempt <= kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return (name, os.getpid()) if pid else name


def work(folder, name, **options):
    return Work(f"work {name}", partial(numbered, folder, name, **options))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.exhaustive
def test_results_come_as_they_are_finished(processes, tmp_path):
    times = []
    pieces = [work(tmp_path, "slow", seconds=3), *(work(tmp_path, str(i)) for i in range(4))]
    results = []

    def keep(result):
        assert threading.current_thread() is threading.main_thread()
        results.append(result)
        times.append(time.monotonic())

    run_all(pieces, processes, 1, keep, lambda done: None)
    assert sorted(results) == ["0", "1", "2", "3", "slow"]
    assert results[-1 if processes == 2 else 0] == "slow"
    assert times[-1] - times[0] > 1 or processes == 1
    assert attempts(tmp_path) == dict.fromkeys(results, 1)


def test_one_process_is_this_one_and_its_threads_are_restored(tmp_path):
    before = torch.get_num_threads()
    threads = Work("threads", lambda advance: torch.get_num_threads())
    results, _ = run([work(tmp_path, "a", pid=True), threads], processes=1, threads=before + 1)
    assert results == [("a", os.getpid()), before + 1]
    assert torch.get_num_threads() == before


def settings(advance):
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], blocked, ignored


def large(array, tensor, advance):
    array += 1
    tensor += 1
    return array, tensor


def load(advance):
    data = TensorDataset(torch.arange(10.0))
    start = time.monotonic()
    total = sum(batch.sum().item() for (batch,) in DataLoader(data, batch_size=2, num_workers=1))
    return total, time.monotonic() - start


@pytest.fixture(scope="module")
def from_workers():
    """Results of two workers, by the name of the work."""
    array, tensor = np.zeros(10**6), torch.zeros(10**6)
    functions = {
        "settings": settings,
        "large": partial(large, array, tensor),
        "load": load,
        "local": lambda advance: array.sum() + tensor.sum(),
    }
    results, _ = run([Work("", lambda advance, n=n, f=f: (n, f(advance))) for n, f in functions.items()], threads=3)
    return dict(results) | {"sent": (array, tensor)}


@pytest.mark.exhaustive
def test_workers_have_their_threads_and_ctrl_c_does_not_reach_them(from_workers):
    assert from_workers["settings"] == (3, "3", True, True)


def test_arrays_and_tensors_are_plain_copies(from_workers):
    array, tensor = from_workers["large"]
    assert type(array) is np.ndarray
    assert array.flags.writeable
    assert array.sum() == tensor.sum() == 10**6
    assert not tensor.is_shared()
    assert [sent.sum() for sent in from_workers["sent"]] == [0, 0]


def test_a_loader_has_workers_within_a_worker(from_workers):
    total, seconds = from_workers["load"]
    assert total == 45
    assert seconds < 2  # forked: spawned, it would import torch


def test_work_may_be_a_local_function(from_workers):
    assert from_workers["local"] == 0


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.exhaustive
def test_progress_counts_within_the_work_and_ends_with_the_total(processes, tmp_path):
    pieces = [work(tmp_path, "a", seconds=2.5), work(tmp_path, "b", seconds=2.5)]
    _, progress = run(pieces, processes)
    assert progress == sorted(progress)
    assert progress[-1] == 2
    assert len({done for done in progress if 0 < done < 2}) >= 3
    if processes == 2:
        assert len(progress) < 40  # twice a second


@pytest.mark.slow
@pytest.mark.exhaustive
def test_progress_does_not_fall_when_work_is_repeated(tmp_path):
    pieces = [work(tmp_path, "killed", seconds=2, kills=1), work(tmp_path, "a", seconds=0.1)]
    _, progress = run(pieces)
    assert progress == sorted(progress)
    assert progress[-1] == 2


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_that_is_finished(tmp_path):
    pieces = [
        *(work(tmp_path, str(i), seconds=0.2) for i in range(6)),
        work(tmp_path, "killed", seconds=1, kills=2),
        *(work(tmp_path, str(i), seconds=0.2) for i in range(6, 12)),
    ]
    results, progress = run(pieces)
    counts = attempts(tmp_path)
    assert sorted(results) == sorted(counts)
    assert counts.pop("killed") == 3
    # At each of the two kills, one other piece was under way at most.
    assert sum(counts.values()) <= 12 + 2
    assert progress[-1] == 13


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_work_that_is_always_killed_is_named_not_its_neighbours(tmp_path):
    pieces = [
        work(tmp_path, "long", seconds=3),
        work(tmp_path, "killed", seconds=0.5, kills=99),
        *(work(tmp_path, str(i)) for i in range(3)),
    ]
    results = []
    with pytest.raises(ChildProcessError, match="during work killed") as caught:
        run_all(pieces, 2, 1, results.append, lambda done: None)
    assert str(caught.value) == (
        "A worker process was killed 3 times during work killed, possibly out of memory. Finished work is kept; "
        "resume with fewer `--processes`"
    )
    counts = attempts(tmp_path)
    assert counts["killed"] == 3
    assert counts["long"] <= 3
    assert {"0", "1", "2"} <= set(results)
    assert len(results) == len(set(results))


@pytest.mark.slow
def test_the_number_of_attempts(tmp_path):
    with pytest.raises(ChildProcessError, match="killed 1 times during work a"):
        run([work(tmp_path, "a", kills=1)], attempts=1)
    assert attempts(tmp_path) == {"a": 1}


class StrangeError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail(error, advance):
    if isinstance(error, type):
        raise error("one", "two")
    raise error


@pytest.mark.parametrize(
    ("processes", "error"),
    [(1, ValueError("Expected `alpha` >= 0 but got -1")), (2, FileNotFoundError(2, "no", "x.csv"))],
)
@pytest.mark.exhaustive
def test_an_exception_keeps_its_type_and_message(processes, error, tmp_path):
    with pytest.raises(type(error)) as caught:
        run([Work("bad", partial(fail, error)), work(tmp_path, "a", seconds=20)], processes)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "filename", None) == getattr(error, "filename", None)
    if processes == 2:
        assert "in fail" in str(caught.value.__cause__)  # the worker's traceback


@pytest.mark.slow
@pytest.mark.exhaustive
def test_an_exception_that_cannot_be_pickled_keeps_its_message():
    with pytest.raises(RuntimeError, match=r"^StrangeError: one and two$"):
        run([Work("bad", partial(fail, StrangeError))])
    with pytest.raises(RuntimeError, match=r"^SystemExit: 3$"):
        run([Work("bad", partial(fail, SystemExit(3)))])


def test_work_and_results_that_cannot_be_pickled():
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^Expected work that can be pickled for other processes but .*lock"):
        run([Work("bad", lambda advance: lock)])
    with pytest.raises(TypeError, match="lock"):
        run([Work("bad", lambda advance: threading.Lock())])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_an_exception_of_a_callback_ends_the_workers(tmp_path):
    calls = []

    def full(result):
        calls.append(result)
        raise OSError(28, "No space left on device")

    begin = time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        run_all([work(tmp_path, "a"), work(tmp_path, "b", seconds=100)], 2, 1, full, lambda done: None)
    assert time.monotonic() - begin < 60
    assert calls == ["a"]


def test_no_work_and_no_processes():
    assert run([]) == ([], [])
    with pytest.raises(ValueError, match="Expected `processes` >= 1 but got 0"):
        run([], processes=0)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_other_uses_of_joblib_go_on():
    for _ in range(2):
        assert Parallel(n_jobs=2)(delayed(abs)(i) for i in (-1, -2, -3)) == [1, 2, 3]
        assert run([Work("", load)])[0][0][0] == 45
    get_reusable_executor(reuse=True).shutdown(kill_workers=True)


SCRIPT = """
import sys
from pathlib import Path
from tests.comparison.test_pool import hold, work
from scor_lightning.comparison.pool import Work, run_all

if __name__ == "__main__":
    folder, processes, loader = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "loader"
    pieces = [work(folder, str(i)) for i in range(3)]
    pieces += [Work(str(i), lambda advance: hold(folder, loader)) for i in range(2)]

    def keep(result):
        with open(folder / "results.txt", "a") as file:
            print(result, file=file, flush=True)

    print("ready", flush=True)
    run_all(pieces, processes, 1, keep, lambda done: None)
"""


def hold(folder, loader=False):
    """Work forever, perhaps with a loader's worker."""
    batches = iter(DataLoader(TensorDataset(torch.zeros(10**6)), num_workers=1 if loader else 0))
    next(batches)
    (folder / f"holds.{os.getpid()}").touch()
    while True:
        time.sleep(0.1)


@contextmanager
def program(folder, processes=2, loader=False):
    """A program that runs work forever, in a new process group like one started by a shell."""
    (folder / "program.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "program.py"), str(folder), str(processes), "loader" if loader else ""]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert started.stdout.readline() == "ready\n"
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def family(pid):
    try:
        return [p for p in psutil.Process(pid).children(recursive=True) if "resource_tracker" not in str(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


def gone(processes):
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("end", "loader"), [(signal.SIGKILL, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)]
)
@pytest.mark.exhaustive
def test_workers_end_with_their_parent(end, loader, tmp_path):
    with program(tmp_path, loader=loader) as started:
        wait_until(lambda: len(list(tmp_path.glob("holds.*"))) == 2, 60)
        workers = family(started.pid)
        assert len(workers) == (4 if loader else 2)
        started.send_signal(end)
        wait_until(lambda: gone(workers), 2)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 1.0, 2.0])
@pytest.mark.exhaustive
def test_workers_that_are_starting_end_with_their_parent(delay, tmp_path):
    with program(tmp_path) as started:
        wait_until(lambda: len(family(started.pid)) == 2, 60)
        workers = family(started.pid)
        time.sleep(delay)
        started.kill()
        wait_until(lambda: gone(workers), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "loader", "whom"), [(2, False, "parent"), (2, True, "group"), (1, False, "group")]
)
@pytest.mark.exhaustive
def test_ctrl_c_keeps_what_is_finished(processes, loader, whom, tmp_path):
    with program(tmp_path, processes, loader) as started:
        wait_until(lambda: len(list(tmp_path.glob("holds.*"))) == processes, 60)
        workers = family(started.pid)
        begin = time.monotonic()
        (os.kill if whom == "parent" else os.killpg)(started.pid, signal.SIGINT)
        _, error = started.communicate(timeout=5)
        assert gone(workers)
        assert time.monotonic() - begin < 5
    assert started.returncode == -signal.SIGINT
    assert error.strip().splitlines()[-1] == "KeyboardInterrupt"
    assert sorted((tmp_path / "results.txt").read_text().split()) == ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ctrl_c_at_any_moment(tmp_path, draw):
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        with program(folder) as started:
            time.sleep(number * 0.8 + draw.random() * 0.8)
            workers = family(started.pid)
            os.killpg(started.pid, signal.SIGINT)
            _, error = started.communicate(timeout=5)
            wait_until(lambda workers=workers: gone(workers), 2)
        assert started.returncode == -signal.SIGINT
        assert error.strip().splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ctrl_c_does_not_interrupt_a_callback(tmp_path):
    kept = []

    def keep(result):
        if not kept:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # in any of which Python would look for a signal
                pass
        kept.append(result)

    for processes in (1, 2):
        kept.clear()
        with pytest.raises(KeyboardInterrupt):
            run_all([work(tmp_path, "a"), work(tmp_path, "b", seconds=10)], processes, 1, keep, lambda done: None)
        assert kept == ["a"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def dask(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@contextmanager
def cluster(workers, *options):
    """A Dask scheduler and its workers, as a user starts them."""
    pytest.importorskip("distributed")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    started = [dask("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")]
    started += [dask("dask_worker", address, "--no-dashboard", *options) for _ in range(workers)]
    try:
        yield address, started
    finally:
        for process in reversed(started):
            for child in family(process.pid):
                child.kill()
            process.kill()
            process.wait()


def draws(seed, folder, advance):
    """Draw from the global generator of the process."""
    record(folder, str(seed))
    torch.manual_seed(seed)
    total = 0.0
    for _ in range(5):
        time.sleep(0.1)
        total += torch.rand(100).sum().item()
    return seed, total, torch.get_num_threads()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--nthreads", "3"]])
@pytest.mark.exhaustive
def test_a_cluster_returns_the_results_of_one_process_although_a_worker_is_killed(options, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    expected, _ = run([Work(str(i), partial(draws, i, here)) for i in range(16)], processes=1)
    results, progress = [], []
    with cluster(2, *options) as (address, started):

        def keep(result):
            results.append(result)
            if len(results) == 4:
                for process in [*family(started[-1].pid), psutil.Process(started[-1].pid)]:
                    process.kill()

        run_all(
            [Work(str(i), partial(draws, i, there)) for i in range(16)],
            1,
            1,
            keep,
            lambda shares: progress.append(shares.sum()),
            address,
        )
    assert sorted(results) == expected
    assert 16 < sum(attempts(there).values()) < 20  # what the killed worker had begun, and it had
    assert progress == sorted(progress)
    assert progress[-1] == 16


def draw_or_fail(kind, advance):
    if kind == "fail":
        raise ValueError("Expected `alpha` >= 0\nbut got -1")
    if kind == "strange":
        raise StrangeError("one", "two")
    if kind == "loader":
        return load(advance)[0]
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_cluster_of_one_thread(tmp_path):
    with cluster(1, "--nthreads", "1") as (address, _):
        assert run([Work("", partial(draw_or_fail, "loader"))], cluster=address)[0] == [45.0]
        ((result,), _) = run([work(tmp_path, "a", pid=True)], cluster=address)
        assert result[1] != os.getpid()
        with pytest.raises(ValueError, match=r"^tcp://127.0.0.1:\d+: Expected `alpha` >= 0 but got -1$"):
            run([Work("bad", partial(draw_or_fail, "fail")), Work("", partial(draw_or_fail, 1))], cluster=address)
        with pytest.raises(RuntimeError, match=r"^StrangeError: tcp://127.0.0.1:\d+: one and two$"):
            run([Work("bad", partial(draw_or_fail, "strange"))], cluster=address)
        with pytest.raises(ChildProcessError, match="workers of the cluster were killed during repeat 3") as caught:
            run([Work("repeat 3", partial(draw_or_fail, "kill"))], cluster=address)
        assert "\n" not in str(caught.value)


def beat(folder, advance):
    """Work for a minute, and touch a file ten times per second."""
    for _ in range(600):
        time.sleep(0.1)
        with open(folder / "beats", "a") as file:
            file.write(".")
        advance(1 / 600)


def after_a_beat(folder, advance):
    while not (folder / "beats").exists():
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_work_that_has_begun_on_a_cluster_ends_with_the_comparison(tmp_path):
    def full(result):
        raise OSError("No space left on device")

    pieces = [Work("", partial(after_a_beat, tmp_path)), Work("", partial(beat, tmp_path))]
    with cluster(2, "--nthreads", "1") as (address, _):
        with pytest.raises(OSError, match="No space left"):
            run_all(pieces, 1, 1, full, lambda done: None, address)
        time.sleep(3)
        beats = (tmp_path / "beats").read_text()
        time.sleep(1)
        assert (tmp_path / "beats").read_text() == beats


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_scheduler_that_is_lost_midway(tmp_path):
    with cluster(1, "--nthreads", "1") as (address, started):
        results = []

        def keep(result):
            results.append(result)
            started[0].kill()

        pieces = [work(tmp_path, "a"), work(tmp_path, "b", seconds=300)]
        with pytest.raises(ConnectionError, match=r"The Dask scheduler at .* is lost. Finished work is kept"):
            run_all(pieces, 1, 1, keep, lambda done: None, address)
        assert results == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{}", "tcp://no-such-host.invalid:8786", "nonsense://x"])
@pytest.mark.exhaustive
def test_a_scheduler_that_does_not_answer(address):
    pytest.importorskip("distributed")
    address = address.format(free_port())
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=f"^No Dask scheduler answers at {address}") as caught:
        run([Work("", load)], cluster=address)
    assert time.monotonic() - begin < 15
    assert "\n" not in str(caught.value)


def test_a_cluster_without_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError) as caught:
        run([Work("", load)], cluster="tcp://127.0.0.1:8786")
    assert str(caught.value) == "Expected distributed for `--cluster`; `pip install 'scor-lightning[cluster]'`"
