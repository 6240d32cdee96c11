"""`scor-compare` and `scor-report`: jsonargparse over :func:`compare`, and the table at the end."""

import os
from pathlib import Path

from jsonargparse import Namespace

import scor_lightning.losses
import scor_lightning.models  # noqa: F401  (classes that are imported go by their short names in YAML)
from scor_lightning.cli import OneLineErrorParser
from scor_lightning.comparison.report import Report, write_report
from scor_lightning.comparison.run import compare


def compare_command(arguments: list[str]) -> None:
    """Run a comparison into its folder, or go on with it, and print the table."""
    parser = OneLineErrorParser(prog="scor-compare", description="Compare losses over many paired repeats.")
    parser.add_argument("-c", "--config", action="config", help="Configuration file; later ones override.")
    parser.add_function_arguments(compare)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes share the cores
    parser.set_defaults(processes=max(1, cores // local))
    config = parser.parse_args(arguments)
    if config.output is None:
        config.output = default_output(config)
    options = parser.instantiate(config)
    del options["config"]
    compare(**options.as_dict() if isinstance(options, Namespace) else options)
    if int(os.environ.get("RANK", "0")) == 0:
        _show(Report(config.output))


def default_output(config: Namespace) -> str:
    """Name the folder after the first configuration file, under ``runs/compare``."""
    names = [Path(str(path)).stem for path in config.config or []]
    return str(Path("runs") / "compare" / (names[0] if names else "comparison"))


def report_command(arguments: list[str]) -> None:
    """Print the table of a folder of results and write its report anew."""
    parser = OneLineErrorParser(prog="scor-report", description="Report what a folder of results says so far.")
    parser.add_argument("folder", type=str, help="Folder that scor-compare writes.")
    parser.add_argument("--baseline", type=str | None, default=None, help="Loss that the others are compared with.")
    config = parser.parse_args(arguments)
    _show(write_report(config.folder, config.baseline))


def _show(report: Report) -> None:
    print(f"\n{report.table()}")
    print(f"Page:    {report.path / 'report.html'}\nNumbers: {report.path / 'results.csv'}, summary.json")
