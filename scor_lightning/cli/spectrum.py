"""``scor-spectrum``: show the singular values of the weights in checkpoints."""

from pathlib import Path

from scor_lightning.cli.errors import PlainParser, run_script, true_or_false
from scor_lightning.files import check_replaceable, expanded


def _path(given: str) -> Path:
    return Path(expanded(given))


_PARSER = PlainParser(
    "scor-spectrum",
    description="Show the singular values of the weights in checkpoints, several side by side: a table and a picture.",
    epilog="Example: scor-spectrum runs/*/version_0/checkpoints/best.ckpt --layers classifier",
)
_PARSER.add_argument("checkpoints", nargs="+", type=_path, metavar="CHECKPOINT", help="a checkpoint or a state_dict")
_PARSER.add_argument("--layers", default="all", help="all, classifier, or a pattern such as 'layer4.*' (default: all)")
_PARSER.add_argument(
    "--tolerance",
    default="relative",
    choices=("relative", "absolute"),
    help="of the rank: relative to the precision of the weights, or the SCoR paper's 1e-7 (default: relative)",
)
_PARSER.add_argument(
    "--picture",
    default=Path("spectrum.png"),
    type=_path,
    metavar="FILE",
    help="file of the picture (default: spectrum.png)",
)
_PARSER.add_argument("--overwrite", type=true_or_false, default=False, help="replace any picture (default: false)")


def usage() -> str:
    """Return the help."""
    return _PARSER.format_help()


def run(argv: list[str]) -> None:
    """Print the table and draw the picture."""
    options = _PARSER.parse_args(argv)
    if options.picture.suffix != ".png" or not options.picture.absolute().parent.is_dir():
        raise ValueError(f"Expected `--picture` to name a .png in an existing folder but got {options.picture}")
    from scor_lightning.figures import is_own_image, render, save_image, spectra_figure

    check_replaceable(options.picture, "--picture", is_own_image, options.checkpoints, options.overwrite)
    from scor_lightning.spectrum import checkpoint_spectrum, describe_skipped, name_apart, spectrum_table

    names = name_apart(options.checkpoints)
    spectra = {
        name: checkpoint_spectrum(path, options.layers, tolerance=options.tolerance)
        for name, path in zip(names, options.checkpoints, strict=True)
    }
    skipped = dict.fromkeys(line for one in spectra.values() for line in describe_skipped(one.skipped))
    print("\n".join([spectrum_table(spectra), *skipped]))
    save_image(render(spectra_figure(spectra)), options.picture)
    print(f"Picture: {options.picture}")


def main() -> None:
    """Run the command."""
    run_script("spectrum", usage, run)
