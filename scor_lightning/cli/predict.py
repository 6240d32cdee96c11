"""``scor-predict``: write what a checkpoint predicts, on the test set or on a folder of images."""

import argparse
from pathlib import Path

from scor_lightning.cli.errors import option_value, run_script
from scor_lightning.files import expanded


def usage() -> str:
    """Return the help on one screen."""
    return """\
Write what a checkpoint predicts on the test set, or on a folder of images, as CSV beside the checkpoint.

usage: scor-predict --ckpt_path FILE [options]

The configuration is the run's own, unless --config names another.

  scor-predict --ckpt_path FILE --images FOLDER [--output FILE]    your own images; needs the file alone
Every option:  scor-predict --ckpt_path FILE --help
"""


def run(argv: list[str]) -> None:
    """Write the predictions."""
    if option_value(argv, "--images") is not None:
        return predict_folder(argv)
    from scor_lightning.callbacks import PredictionWriter
    from scor_lightning.callbacks.protocol import state_of
    from scor_lightning.cli.training import ScorCLI

    cli = ScorCLI.of_checkpoint(argv)
    state_of(cli.trainer).callbacks.append(PredictionWriter(Path(str(cli.ckpt_path)).with_suffix(".predictions.csv")))
    cli.trainer.predict(
        cli.model,
        cli.datamodule,
        ckpt_path=cli.ckpt_path,
        weights_only=cli.config.weights_only,
        return_predictions=False,
    )


def predict_folder(argv: list[str]) -> None:
    """Predict the classes of images from files."""
    parser = argparse.ArgumentParser(
        "scor-predict", description="Predict the classes of images from files, as CSV.", allow_abbrev=False
    )
    parser.add_argument(
        "--ckpt_path", type=expanded, required=True, metavar="FILE", help="checkpoint of a run of scor-fit"
    )
    parser.add_argument(
        "--images", type=expanded, required=True, metavar="FOLDER", help="folder, with those below it, or one image"
    )
    parser.add_argument("--output", type=expanded, metavar="FILE", help="CSV to write (default: beside the checkpoint)")
    parser.add_argument("--batch_size", type=int, default=64, help="images at once (default: 64)")
    parser.add_argument("--num_workers", type=int, help="processes that read images (default: the free cores)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, ... (default: auto)")
    options = parser.parse_args(argv)
    from scor_lightning.prediction import predict_images

    predict_images(**vars(options))


def main() -> None:
    """Run the command."""
    run_script("predict", usage, run)
