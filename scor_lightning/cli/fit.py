"""``scor-fit``: train a classifier, test its best checkpoint."""

import re

from scor_lightning.cli.errors import command_line, option_value, run_script
from scor_lightning.configuration import CONFIGS, list_configs


def usage() -> str:
    """Return the help on one screen."""
    return f"""\
Train a classifier on imbalanced images, test its best checkpoint, print the results.

usage: scor-fit --config NAME.yaml [--config loss/NAME.yaml] [options]

  scor-fit --config digits_scor.yaml                               bundled data, trained in seconds
  scor-fit --config digits_scor.yaml --config loss/focal.yaml      another loss, all else the same
  ... --config loss/focal.yaml --config method/scor.yaml           SCoR over that loss
  scor-fit --config mnist_scor.yaml --data.root data --data.download true

Any option of the configuration can be given on the command line; the later one wins:
  --data.batch_size 128  --data.imbalance.factor 0.1  --model.loss.alpha 1e-3
  --model.optimizer.lr 0.01  --trainer.max_epochs 20  --seed_everything 1
  --ckpt_path last   resume the newest run            --ckpt_path FILE   start from a checkpoint
  --print_config     show the whole configuration

Configurations, in {CONFIGS}:
{chr(10).join(list_configs(lambda name: not name.startswith("compare/")))}

Copy one out to edit it:  cp {CONFIGS}/digits_scor.yaml mine.yaml
Every option:  scor-fit --config digits_scor.yaml --help
"""


def run(argv: list[str]) -> None:
    """Train into a run folder, and test the best checkpoint.

    Raises:
        ValueError: If the command line names neither a configuration nor the data, or an option is wrong.
    """
    if argv[0].endswith((".yaml", ".yml")):
        raise ValueError(f"Expected `--config {argv[0]}` but got the name alone")
    # A command line that names the data, or asks for help, needs no configuration.
    complete = re.compile(r"--data(=.*|\.class_path.*)?|-h|--help|--.*\.help(=.*)?")
    if option_value(argv, "--config", "-c") is None and not any(map(complete.fullmatch, argv)):
        raise ValueError("Expected `--config NAME.yaml`; `scor-fit` without options lists the shipped configurations")
    from scor_lightning.cli.training import ScorCLI

    cli = ScorCLI(argv)
    cli.fit()
    if not cli.config.trainer.fast_dev_run:
        cli.test_best()


def resume(argv: list[str], saved: bool) -> str:
    """Return the last line of a stopped run: how to resume it, where the last step was saved."""
    if not saved:
        return "\nStopped."
    last = [] if option_value(argv, "--ckpt_path") == "last" else ["--ckpt_path", "last"]
    return f"Resume with:  {command_line('fit', [*argv, *last])}"


def main() -> None:
    """Run the command."""
    run_script("fit", usage, run, resume)
