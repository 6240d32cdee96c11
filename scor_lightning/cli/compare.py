"""``scor-compare``: compare losses over many paired repeats."""

import os
from pathlib import Path

from scor_lightning.cli.errors import command_line, run_script
from scor_lightning.configuration import CONFIGS, list_configs


def usage() -> str:
    """Return the help on one screen."""
    return f"""\
Compare losses over many paired repeats: which is better, by how much, and how sure that is.

usage: scor-compare --config compare/NAME.yaml [options]

  scor-compare --config compare/digits.yaml                        bundled data, in seconds
  scor-compare --config compare/mnist_one_class.yaml --repeats 200 --data.root data
  scor-compare --config compare/mnist_one_class.yaml --losses.vs VSLoss            one loss more

Any option of the configuration can be given on the command line; the later one wins:
  --repeats 100   --epochs 10   --seed 1   --losses '{{ce: torch.nn.CrossEntropyLoss, scor: SCoRLoss}}'
  --losses.scor.alpha 1e-3      --data.imbalance.factor 0.1      --backbone.hidden [256]
  --baseline focal              the loss that the others are compared with
  --output FOLDER               where the results go; runs/compare/NAME without it
  --spectra true                keep all singular values      --every_epoch true   measure each epoch
  --engine stacked|sequential   --processes 2   --device cpu|cuda   --print_config

The same command resumes a stopped comparison, and extends a finished one by more --repeats.

Configurations, in {CONFIGS}:
{chr(10).join(list_configs(lambda name: name.startswith("compare/")))}
Every option:  scor-compare --config compare/digits.yaml --help
"""


def run(argv: list[str]) -> None:
    """Run a comparison into its folder, or resume it, and print the table.

    Raises:
        ValueError: If the command line names neither a configuration nor the data, or an option is wrong.
    """
    if argv[0].endswith((".yaml", ".yml")):
        raise ValueError(f"Expected `--config {argv[0]}` but got the name alone")
    if not any(argument.startswith(("--config", "-c", "--data", "--help", "-h")) for argument in argv):
        raise ValueError("Expected `--config compare/NAME.yaml`; `scor-compare` without options lists those there are")
    from scor_lightning.cli.report import show
    from scor_lightning.comparison.report import Report
    from scor_lightning.comparison.run import compare
    from scor_lightning.parser import ConfigFile, OneLineErrorParser

    parser = OneLineErrorParser(prog="scor-compare", description="Compare losses over many paired repeats.")
    parser.add_argument("-c", "--config", action=ConfigFile, help="Configuration file; later ones override.")
    parser.add_function_arguments(compare)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes share the cores
    parser.set_defaults(processes=max(1, cores // local))
    config = parser.parse_args(argv)
    if config.output is None:
        name, *_ = [Path(str(path)).stem for path in config.config or []] or ["comparison"]
        config.output = str(Path("runs") / "compare" / name)
    options = parser.instantiate(config)
    del options["config"]
    compare(**options.as_dict())
    if int(os.environ.get("RANK", "0")) == 0:
        show(Report(config.output))


def resume(argv: list[str], saved: bool) -> str:
    """Return the last line of a stopped comparison: the same command resumes it."""
    return f"\nStopped. What was finished is kept; resume with: {command_line('compare', argv)}"


def main() -> None:
    """Run the command."""
    run_script("compare", usage, run, resume)
