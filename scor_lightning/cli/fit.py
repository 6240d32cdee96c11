"""``scor-fit``: train a classifier, test its best checkpoint."""

import inspect
import re

from scor_lightning.cli.errors import command_line, option_value, run_script
from scor_lightning.configuration import CONFIGS, list_configs
from scor_lightning.help import first_sentence


def usage() -> str:
    """Return the help on one screen."""
    return f"""\
Train a classifier on imbalanced images, test its best checkpoint, print the results.

usage: scor-fit --config NAME.yaml [--config loss/NAME.yaml] [options]

  scor-fit --config digits_scor.yaml                               bundled data, trained in seconds
  scor-fit --config digits_scor.yaml --config loss/focal.yaml      another loss, everything else equal
  ... --config loss/focal.yaml --config method/scor.yaml           SCoR over that loss
  scor-fit --config mnist_scor.yaml --data.root data --data.download true

Any option of the configuration can be given on the command line; the later one wins:
  --data.batch_size 128  --data.imbalance.factor 0.1  --model.loss.alpha 1e-3
  --model.optimizer.lr 0.01  --trainer.max_epochs 20  --seed_everything 1
  --ckpt_path last   resume the newest run            --ckpt_path FILE   start from a checkpoint
  --print_config     show the whole configuration

Configurations, in {CONFIGS}:
{chr(10).join(list_configs(lambda name: not name.startswith("compare/")))}

Data sets, networks, losses and methods:  scor-fit --list

Copy one to edit it:  cp {CONFIGS}/digits_scor.yaml mine.yaml
Every option:  scor-fit --config digits_scor.yaml --help
"""


def listing() -> str:
    """Return one line per configuration, overlay, data set, network and loss."""
    from scor_lightning import datamodules, losses, models

    kinds = {
        "Training runs (--config)": lambda name: "/" not in name or name.startswith("protocol/"),
        "Losses (--config, after a training run)": lambda name: name.startswith("loss/"),
        "Methods (--config, after a training run)": lambda name: name.startswith("method/"),
        "Loggers (--config, after a training run)": lambda name: name.startswith("logger/"),
        "Comparisons (scor-compare --config)": lambda name: name.startswith("compare/"),
    }
    lines: list[str] = []
    for heading, wanted in kinds.items():
        lines += [f"{heading}:", *list_configs(wanted), ""]
    classes = {
        "Data sets (--data)": (datamodules, datamodules.ImageDataModule),
        "Networks (--model.backbone)": (models, models.Backbone),
        "Losses (--model.loss)": (losses, losses.Loss),
    }
    for heading, (module, base) in classes.items():
        lines.append(f"{heading}:")
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind):
                lines.append(
                    f"  {name:<36}{first_sentence((inspect.getdoc(kind) or '').partition(chr(10))[0]).rstrip('.')}"
                )
        lines.append("")
    return "\n".join(lines).rstrip()


def run(argv: list[str]) -> None:
    """Train into a run folder, and test the best checkpoint.

    Raises:
        ValueError: If the command line names neither a configuration nor the data, or an option is wrong.
    """
    if argv == ["--list"]:
        print(listing())
        return
    if argv[0].endswith((".yaml", ".yml")):
        raise ValueError(f"Write `--config {argv[0]}`, not the name alone")
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
    """Return the last line of a stopped run: how to resume it if the last step was saved."""
    if not saved:
        return "\nStopped."
    last = [] if option_value(argv, "--ckpt_path") == "last" else ["--ckpt_path", "last"]
    return f"Resume with:  {command_line('fit', [*argv, *last])}"


def main() -> None:
    """Run the command."""
    run_script("fit", usage, run, resume)
