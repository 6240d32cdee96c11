"""``scor-test``: evaluate a checkpoint on the test set."""

from pathlib import Path

from scor_lightning.cli.errors import run_script


def usage() -> str:
    """Return the help on one screen."""
    return """\
Evaluate a checkpoint on the test set.

usage: scor-test --ckpt_path FILE [options]

The configuration is the run's own, unless --config names another.
Every option:  scor-test --ckpt_path FILE --help
"""


def run(argv: list[str]) -> None:
    """Test; print the table of the classes and write it beside the checkpoint."""
    from scor_lightning.callbacks import ClassReport
    from scor_lightning.callbacks.protocol import state_of
    from scor_lightning.cli.training import ScorCLI

    cli = ScorCLI.of_checkpoint(argv)
    for callback in state_of(cli.trainer).callbacks:
        if isinstance(callback, ClassReport) and callback.folder is None:
            callback.folder = Path(str(cli.ckpt_path)).with_suffix(".test")
    cli.trainer.test(
        cli.model, cli.datamodule, ckpt_path=cli.ckpt_path, weights_only=cli.config.weights_only, verbose=False
    )


def main() -> None:
    """Run the command."""
    run_script("test", usage, run)
