"""The signals that ask a run to stop, and who answers them."""

import signal

# Ctrl-C; what a cloud, SLURM or `kill` sends; what SLURM sends by `--signal=USR1@120`; the end of the terminal or of the
# program that started the run. Windows lacks the last two.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)


def leave_signals_to_the_main_process(worker_id: int) -> None:
    """Let a loader's worker go on when a terminal or a cluster asks all processes to stop.

    The training process decides when to stop; without its workers it could not finish the step.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
