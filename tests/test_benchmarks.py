"""The benchmark of a GPU at its small scale, so that it works the day that there is one."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path):
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--small", "--output", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())
    assert results["stacked"]["trainings"] == 16
    assert results["share"]["21841"]["scor_ms"] > 0
    assert results["resnet50"]["bf16-mixed"]["scor"] > 0
    assert results["cifar"]["eager"]["step_ms"][0] > 0
