"""Run a command: turn an exception into one line and an exit status."""

import argparse
import logging
import os
import re
import select
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

from scor_lightning.files import printable
from scor_lightning.messages import explain
from scor_lightning.signals import Terminated

_LONG = 200  # length from which whole sentences of a message are omitted


def option_value(argv: Sequence[str], *names: str) -> str | None:
    """Return the last value of an option on a command line; None if it is not given.

    Example:
        >>> option_value(["--ckpt_path=a.ckpt", "-cmine.yaml"], "--ckpt_path")
        'a.ckpt'
        >>> option_value(["--ckpt_path=a.ckpt", "-cmine.yaml"], "--config", "-c")
        'mine.yaml'
    """
    value = None
    for i, argument in enumerate(argv):
        option, equals, attached = argument.partition("=")
        if option in names:
            value = attached if equals else (argv[i + 1] if i + 1 < len(argv) else "")
        elif argument[:2] in names and argument[1:2] != "-":  # a short option joined with its value
            value = argument[2:]
    return value


def versions() -> str:
    """Return the versions of this package and its dependencies, for a bug report."""
    names = ("scor-lightning", "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse")
    return "\n".join(f"{name} {version(name)}" for name in names) + f"\nPython {sys.version.split()[0]}"


def command_line(name: str, argv: Sequence[str]) -> str:
    """Return a command line as the user has to type it."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    program = ["torchrun", "...", "-m", "scor_lightning", name] if by_torchrun else [f"scor-{name}"]
    return shlex.join([*program, *argv])


def run_script(
    name: str,
    usage: Callable[[], str],
    run: Callable[[list[str]], None],
    stopped: Callable[[list[str], bool], str] = lambda argv, saved: "\nStopped.",
) -> None:
    """Run a console script.

    An error ends it with one line and no traceback, which ``JSONARGPARSE_DEBUG=true`` in the environment shows. The traceback
    of an unexpected error is written to a file, which the line names.

    Args:
        name: The command, such as ``fit``.
        usage: Returns the short help, which is printed without options and by ``--help`` alone.
        run: Runs the command, given the options.
        stopped: Returns what to print after a signal ended the command, given the options and whether a checkpoint of
            the last step was saved.
    """
    try:
        _run_script(name, usage, run, stopped)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # stdout was closed, as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
        sys.exit(128 + signal.SIGPIPE)


def _run_script(
    name: str,
    usage: Callable[[], str],
    run: Callable[[list[str]], None],
    stopped: Callable[[list[str], bool], str],
) -> None:
    argv = sys.argv[1:]
    if argv[:1] == [name]:  # as in `python -m scor_lightning fit`
        del argv[0]
    if argv in ([], ["--help"], ["-h"]):
        print(usage())
        return
    if argv == ["--version"]:
        print(versions())
        return
    _silence_what_users_cannot_mend()
    try:
        run(argv)
    except (KeyboardInterrupt, SystemExit) as stop:
        # If Lightning is not imported yet, no work has started; do not import it now.
        if "lightning.pytorch.utilities.exceptions" not in sys.modules:
            if isinstance(stop, SystemExit):
                raise
            print(stopped(argv, False), flush=True)
            sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))
        from lightning.pytorch.utilities import rank_zero_only
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        # Outside of training steps, Lightning turns Ctrl-C into an exit after cleaning up, and SIGTERM into one without a
        # status.
        if isinstance(stop, Terminated):
            status: Any = 128 + signal.SIGTERM
        elif isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            status = 128 + signal.SIGINT
        else:
            status = 128 + signal.SIGTERM if isinstance(stop, SIGTERMException) else stop.code
        if not isinstance(status, int) or status <= 128:
            raise
        saved = type(stop) is SystemExit and stop.code == status
        if saved:
            leave_process_group()  # all processes have reached this point
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(stopped(argv, saved), flush=True)
        sys.exit(status)
    except Exception as error:
        if "JSONARGPARSE_DEBUG" in os.environ or (isinstance(error, BrokenPipeError) and _stdout_is_closed()):
            raise
        message = describe_error(error)
        in_progress_bar = "\n" if message is None or isinstance(error, FloatingPointError | RuntimeError) else ""
        message = one_line(message) if message is not None else _report_failure(name, error)
        sys.exit(f"{in_progress_bar}scor-{name}: error: {message}")


class PlainParser(argparse.ArgumentParser):
    """Reports a mistake in one line, without usage."""

    def __init__(self, program: str, **kwargs: Any) -> None:
        super().__init__(program, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """End the command; :func:`run_script` prints the message."""
        raise ValueError(explain(message, self._option_string_actions))


def true_or_false(text: str) -> bool:
    """Read the value of an option that is true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false but got {text!r}")
    return text.lower() == "true"


def one_line(message: str) -> str:
    r"""Join the lines of a message.

    Example:
        >>> one_line("Expected a checkpoint\n   but got none")
        'Expected a checkpoint but got none'
    """
    return " ".join(printable(message.replace("\n", " ")).split())


def _stdout_is_closed() -> bool:
    """Return whether the reader of a pipe that stdout is has closed it."""
    if sys.stdout is None or not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _report_failure(name: str, error: Exception) -> str:
    """Write the traceback of an unexpected error to a file; return the line that names it."""
    file = Path(tempfile.gettempdir()) / f"scor-{name}-{os.getpid()}.log"
    says = one_line(str(error)) or "no message"
    says = says if len(says) <= 120 else f"{says[:117]}..."
    with suppress(OSError):
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return f"{type(error).__name__}: {says}; the full report is in {file} (JSONARGPARSE_DEBUG=true shows it here)"
    return f"{type(error).__name__}: {says}; JSONARGPARSE_DEBUG=true shows the full report"


def describe_error(error: Exception) -> str | None:
    """Describe in one line an error that users can correct; None for others."""
    if isinstance(error, UnpicklingError):
        return f"Expected a checkpoint of data alone but it holds more than data: {error}"
    if isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        return str(error) if _is_own(error) else shorten(str(error))
    if type(error).__name__ == "MisconfigurationException":  # Lightning's; it is not imported for this check
        return shorten(str(error))
    return lost_process(error) if isinstance(error, RuntimeError) else None


def _is_own(error: Exception) -> bool:
    """Return whether an error was raised by this package, whose messages are not too long."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    package = Path(__file__).parents[1]
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(package)


def shorten(message: str) -> str:
    r"""Remove the traceback from an error of a loader's worker, and descriptions of types from one of jsonargparse.

    Example:
        >>> shorten("Caught ValueError in DataLoader worker process 0.\nTraceback ...\nValueError: Expected an image")
        'Expected an image'
    """
    if message.startswith("Caught ") and " in DataLoader worker process " in message:
        message = re.split(r"^\w+: ", message, flags=re.MULTILINE)[-1]
    if "Does not validate" in message or 'Parser key "' in message:
        message = explain(message)
    sentences = re.split(r"(?<=[\w`'\")]\.) (?=[A-Z])", " ".join(message.split()))
    if len(message) > _LONG and len(sentences) > 1:  # the rest is advice of other libraries
        while len(sentences) > 1 and len(" ".join(sentences)) > _LONG:
            sentences.pop()
        message = " ".join(sentences)
    return message


def lost_process(error: RuntimeError) -> str | None:
    """Describe in one line how the connection between processes ended; None for other errors."""
    message = str(error).partition("\n")[0]
    if "EADDRINUSE" in str(error):
        return "Expected a free port for the processes to meet at but it is in use: choose another one by MASTER_PORT"
    if type(error).__name__.startswith("Dist") or "gloo" in message or "NCCL" in message:
        return (
            "A process of the training was lost, or could not be reached. Start all of them again with "
            f"`--ckpt_path last`. The cause: {message.split(' This is typically')[0]}"
        )
    return None


def leave_process_group() -> None:
    """Destroy the process group, as Lightning does for NCCL only; Gloo's threads sometimes abort Python at exit."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _silence_what_users_cannot_mend() -> None:
    for message in (
        ".*does not have many workers.*",  # data in memory need none
        ".*isinstance.treespec, LeafSpec.*",  # Lightning's own call
        ".*nn.functional.all_gather is deprecated.*",  # Lightning's own call
        "The dirpath has changed",  # weights from another run
        ".*in eval mode at the start of training",  # intended for a frozen body
        ".*is smaller than the logging interval",  # steps are counted over epochs
        "A worker stopped while some jobs were given to the executor",  # loky starts another one
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()  # an advertisement
    )
