"""Commands work in unusual environments."""

import os
import subprocess
import sys

import pytest

from scor_lightning.configuration import CONFIGS
from tests.data.photographs import write_folders

OPTIONS = "--config image_folder_scor.yaml --data.root photographs --data.resolution 8 --model.backbone MLP"
ENVIRONMENTS = {
    "narrow and without colours": {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb", "LANG": "C", "LC_ALL": "C"},
    "without a home": {"HOME": None, "XDG_CACHE_HOME": None, "LANG": "C", "PYTHONUTF8": "0"},
    "with a home that cannot be written": {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": None},
}


@pytest.mark.parametrize(
    "name",
    [name if name == "without a home" else pytest.param(name, marks=pytest.mark.exhaustive) for name in ENVIRONMENTS],
)
def test_a_run_in_an_odd_environment(tmp_path, name):
    write_folders(tmp_path / "photographs", {"r\xf6da": 8, "gr\xf6na": 8})
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    for variable, value in ENVIRONMENTS[name].items():
        environment.pop(variable, None)
        if value is not None:
            environment[variable] = value
    short = "--trainer.max_epochs 1 --trainer.accelerator cpu --data.num_workers 0 --data.val_fraction 0.3"
    run = subprocess.run(
        [sys.executable, "-m", "scor_lightning", "fit", *OPTIONS.split(), *short.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode(errors="replace")[-2000:]
    assert (tmp_path / "runs/image_folder_scor/version_0/test/metrics.json").is_file()
    wrong = subprocess.run(
        [sys.executable, "-m", "scor_lightning", "fit", *OPTIONS.split(), "--data.seed", "-1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert b"Traceback" not in wrong.stderr
    assert wrong.stderr.splitlines()[-1] == b"scor-fit: error: Expected `seed` >= 0 but got -1"
