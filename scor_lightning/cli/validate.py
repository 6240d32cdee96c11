"""``scor-validate``: evaluate a checkpoint on the validation set."""

from scor_lightning.cli.errors import run_script


def usage() -> str:
    """Return the help on one screen."""
    return """\
Evaluate a checkpoint on the validation set.

usage: scor-validate --ckpt_path FILE [options]

The configuration is the run's own, unless --config names another.
Every option:  scor-validate --ckpt_path FILE --help
"""


def run(argv: list[str]) -> None:
    """Validate, and print the table of the classes."""
    from scor_lightning.cli.training import ScorCLI

    cli = ScorCLI.of_checkpoint(argv)
    if cli.datamodule.val_fraction == 0 or cli.trainer.limit_val_batches == 0:
        raise ValueError("Expected a validation set but got `--data.val_fraction 0`; see `scor-test`")
    cli.trainer.validate(
        cli.model, cli.datamodule, ckpt_path=cli.ckpt_path, weights_only=cli.config.weights_only, verbose=False
    )


def main() -> None:
    """Run the command."""
    run_script("validate", usage, run)
