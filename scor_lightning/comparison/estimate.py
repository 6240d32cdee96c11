"""The duration of a comparison: estimated from a few steps before it starts, and from its pace afterwards."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from scor_lightning.comparison.pool import Advance

_STEPS, _SECONDS = 24, 2.0  # a trial ends after either, whichever comes first
_WARM_UP = 4  # steps that are not counted, if there are others
_TRUSTED = 0.05  # share of the work from which on only the pace is used


class _TrialOver(Exception):
    pass


def seconds_of_training(train: Callable[[Advance], Any]) -> float:
    """Estimate the duration of a training function from its first steps.

    Args:
        train: Function that trains and reports, after each step, the share of the work done since the last report.

    Returns:
        Seconds, without the set-up.
    """
    marks: list[tuple[float, float]] = []

    def advance(share: float) -> None:
        marks.append((time.perf_counter(), share + (marks[-1][1] if marks else 0.0)))
        if len(marks) >= _STEPS or marks[-1][0] - marks[0][0] >= _SECONDS:
            raise _TrialOver

    began = time.perf_counter()
    with suppress(_TrialOver):
        train(advance)
    if len(marks) < 2:  # a short or failed training
        return time.perf_counter() - began
    (first, before), (last, done) = marks[min(_WARM_UP, len(marks) // 2)], marks[-1]
    return (last - first) / max(done - before, 1e-9)


class TimeLeft:
    """Estimates the remaining time.

    Args:
        estimate: Seconds of all the work, estimated before the start; None if unknown.
    """

    def __init__(self, estimate: float | None) -> None:
        self._estimate = estimate
        self._began: tuple[float, float] | None = None

    def after(self, share: float) -> float | None:
        """Return the remaining seconds once a share of the work, in [0, 1], is done; None if nothing is known yet.

        The pace is measured from the first progress on: the start of the workers says nothing about it.
        """
        now = time.monotonic()
        if self._began is None:
            if share > 0:
                self._began = now, share
            return None if self._estimate is None else self._estimate * (1 - share)
        began, before = self._began
        progress = share - before
        if progress <= 0:
            return None if self._estimate is None else self._estimate * (1 - share)
        by_pace = (now - began) / progress
        trust = 1.0 if self._estimate is None else min(1.0, progress / _TRUSTED)
        return (1 - share) * (trust * by_pace + (1 - trust) * (self._estimate or 0.0))
