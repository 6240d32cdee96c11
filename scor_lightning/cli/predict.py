"""``scor-predict``: write the predictions of a checkpoint for the test set or a folder of images."""

from pathlib import Path

from scor_lightning.cli.errors import PlainParser, option_value, run_script, true_or_false
from scor_lightning.files import check_replaceable, expanded


def usage() -> str:
    """Return the help on one screen."""
    return """\
Write the predictions of a checkpoint for the test set, or for a folder of images, as CSV beside the checkpoint.

usage: scor-predict --ckpt_path FILE [options]

The configuration is the run's own, unless --config names another.

  scor-predict --ckpt_path FILE --images FOLDER [--output FILE]    your own images; requires only the checkpoint
Every option:  scor-predict --ckpt_path FILE --help
"""


def run(argv: list[str]) -> None:
    """Write the predictions."""
    if option_value(argv, "--images") is not None:
        return predict_folder(argv)
    for option in (word.partition("=")[0] for word in argv if word.startswith("--im")):
        raise ValueError(f"no option {option}; did you mean --images?")
    from scor_lightning.callbacks import PredictionWriter
    from scor_lightning.callbacks.prediction_writer import is_table_of_predictions
    from scor_lightning.callbacks.protocol import state_of
    from scor_lightning.cli.training import ScorCLI

    cli = ScorCLI.of_checkpoint(argv)
    path = Path(str(cli.ckpt_path)).with_suffix(".predictions.csv")
    check_replaceable(path, "--ckpt_path", is_table_of_predictions)
    state_of(cli.trainer).callbacks.append(PredictionWriter(path))
    cli.trainer.predict(
        cli.model,
        cli.datamodule,
        ckpt_path=cli.ckpt_path,
        weights_only=cli.config.weights_only,
        return_predictions=False,
    )


def predict_folder(argv: list[str]) -> None:
    """Predict the classes of images from files."""
    parser = PlainParser("scor-predict", description="Predict the classes of images from files, as CSV.")
    parser.add_argument(
        "--ckpt_path", type=expanded, required=True, metavar="FILE", help="checkpoint of a run of scor-fit"
    )
    parser.add_argument(
        "--images", type=expanded, required=True, metavar="FOLDER", help="folder, including subfolders, or one image"
    )
    parser.add_argument(
        "--output", type=expanded, metavar="FILE", help="CSV file to write (default: beside the checkpoint)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch (default: 64)")
    parser.add_argument("--num_workers", type=int, help="processes that read images (default: the free cores)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, ... (default: auto)")
    parser.add_argument("--overwrite", type=true_or_false, default=False, help="replace any file (default: false)")
    parser.add_argument(
        "--all_classes", type=true_or_false, default=False, help="add the probability of each class (default: false)"
    )
    parser.add_argument(
        "--trust_code", type=true_or_false, default=False, help="build classes of any package (default: false)"
    )
    options = parser.parse_args(argv)
    from scor_lightning.prediction import predict_images

    predict_images(**vars(options))


def main() -> None:
    """Run the command."""
    run_script("predict", usage, run)
