import re
import subprocess
import sys
import time

import pytest

from scor_lightning.comparison.estimate import TimeLeft, seconds_of_training


def test_a_training_is_estimated_from_a_few_of_its_steps():
    steps = []

    def train(advance):
        time.sleep(0.2)  # the set-up, which does not count
        for step in range(1000):
            steps.append(step)
            time.sleep(0.005)
            advance(1 / 1000)

    assert seconds_of_training(train) == pytest.approx(5, rel=0.3)
    assert len(steps) < 50


def test_a_training_of_one_step_is_estimated_too():
    def train(advance):
        time.sleep(0.1)
        advance(1.0)

    assert seconds_of_training(train) == pytest.approx(0.1, abs=0.1)
    assert seconds_of_training(lambda advance: None) < 0.1  # it diverged at once


def test_the_time_left_follows_the_pace_and_not_the_start(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    left = TimeLeft(100)
    assert left.after(0) == 100
    now = 10.0  # the workers have started
    assert left.after(0.01) == 99
    now = 11.0  # a share of 0.01 took a second, so the estimate was right
    assert left.after(0.02) == pytest.approx(98)
    now = 110.0  # it was not: a share of 0.5 took 100 s
    assert left.after(0.51) == pytest.approx(0.49 * 200)
    assert TimeLeft(None).after(0) is None


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_bar_of_a_comparison_names_the_time_left_before_the_start_and_within(tmp_path):
    options = "--config compare/digits.yaml --repeats 4 --engine sequential --output out --processes 1"
    process = subprocess.Popen(
        [sys.executable, "-m", "scor_lightning", "compare", *options.split()],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    seen = []
    assert process.stderr is not None
    for line in re.split(rb"[\r\n]", process.stderr.read()):
        if found := re.search(r"([\d.]+)/16 \[(\d+):(\d+), (\d+):(\d+) left", line.decode()):
            done, *times = found.groups()
            seen.append((float(done), 60 * int(times[0]) + int(times[1]), 60 * int(times[2]) + int(times[3])))
    assert process.wait() == 0
    assert seen[0][0] == 0
    assert seen[0][2] > 0
    end = seen[-1][1]
    within = [(elapsed, left) for done, elapsed, left in seen if 1.6 <= done < 13]
    assert within
    for elapsed, left in within:
        assert left == pytest.approx(end - elapsed, rel=1, abs=6)  # 0.2 on a quiet machine
