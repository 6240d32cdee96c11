"""The comparison of every shipped method."""

import json
from pathlib import Path

import pytest
import yaml

from scor_lightning.configuration import CONFIGS, shipped_configs

SHIPPED = yaml.safe_load((CONFIGS / "compare/digits_all.yaml").read_text())


def test_every_overlay_is_compared_alone_and_under_scor():
    overlays = {name for name in shipped_configs() if name.startswith(("loss/", "method/")) and "_probe" not in name}
    methods = {name: [given] if isinstance(given, str) else given for name, given in SHIPPED["methods"].items()}
    assert {overlay for files in methods.values() for overlay in files} == overlays
    alone = {name for name, files in methods.items() if not {"method/scor.yaml", "loss/scor.yaml"} & {*files}}
    assert {"cross_entropy", "crt", "gcl", "etf", "car", "sam", "cmo", "temperature"} <= alone
    under = {name.removesuffix("+scor") for name in methods if name.endswith("+scor")}
    assert alone - under == {
        "cross_entropy",
        "label_smoothing",
        "scor_label_smoothing",
    }  # whose SCoR is a loss of its own


@pytest.mark.exhaustive
def test_all_methods_run_through_to_the_report(command):
    status, out, error = command(
        "scor-compare --config compare/digits_all.yaml --repeats 2 --trainer.max_epochs 12 --output all"
    )
    assert status == 0, error
    assert "Best balanced accuracy" in out
    summary = json.loads(Path("all/summary.json").read_text())
    found = summary["measures"]["accuracy"]
    assert {name for name, each in found.items() if each["n"] == 2} == {*SHIPPED["methods"]}
    assert summary["measures"]["cross_entropy"]["etf"]["n"] == 0
    assert summary["measures"]["aurc"]["etf"]["n"] == 2
    assert Path("all/report.html").is_file()
