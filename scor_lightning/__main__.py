"""The console scripts. What needs no training, such as the help, loads nothing heavy."""

import argparse
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

_PACKAGE = Path(__file__).parent
# Inside the package when installed from a wheel, beside it when installed with `pip install -e`.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())

_PURPOSE = {
    "fit": "Train a classifier on imbalanced images, test its best checkpoint, print the results.",
    "validate": "Evaluate a checkpoint on the validation set.",
    "test": "Evaluate a checkpoint on the test set.",
    "predict": "Write what a checkpoint predicts on the test set, or on a folder of images, as CSV beside the checkpoint.",
    "compare": "Compare losses over many paired repeats: which is better, by how much, and how sure that is.",
    "report": "Print the table of a comparison and write its report, finished or not.",
}


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    return {path.relative_to(CONFIGS).as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}


def find_config(name: str) -> str:
    """Find a configuration in the working directory, then among those shipped.

    Raises:
        ValueError: If it is in neither; the shipped ones are listed.
    """
    if Path(name).is_file():
        return name
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    raise ValueError(f"Expected `--config` to name a file or one of {', '.join(shipped)} but got {name!r}")


def usage(command: str) -> str:
    """Return the help on one screen."""
    lines = [_PURPOSE[command], ""]
    if command == "fit":
        lines += [
            "usage: scor-fit --config NAME.yaml [--config loss/NAME.yaml] [options]",
            "",
            "  scor-fit --config digits_scor.yaml                               bundled data, trained in seconds",
            "  scor-fit --config digits_scor.yaml --config loss/focal.yaml      another loss, all else the same",
            "  ... --config loss/focal.yaml --config method/scor.yaml           SCoR over that loss",
            "  scor-fit --config mnist_scor.yaml --data.root data --data.download true",
            "",
            "Any option of the configuration can be given on the command line; the later one wins:",
            "  --data.batch_size 128  --data.imbalance.factor 0.1  --model.loss.alpha 1e-3",
            "  --model.optimizer.lr 0.01  --trainer.max_epochs 20  --seed_everything 1",
            "  --ckpt_path last   go on with the newest run        --ckpt_path FILE   start from a checkpoint",
            "  --print_config     show the whole configuration",
            "",
            f"Configurations, in {CONFIGS}:",
        ]
        lines += _listed(config for config in shipped_configs() if not config.startswith("compare/"))
        lines += ["", f"Copy one out to edit it:  cp {CONFIGS}/digits_scor.yaml mine.yaml"]
    elif command == "compare":
        lines += [
            "usage: scor-compare --config compare/NAME.yaml [options]",
            "",
            "  scor-compare --config compare/digits.yaml                        bundled data, in seconds",
            "  scor-compare --config compare/mnist_one_class.yaml --repeats 200 --data.root data",
            "  scor-compare --config compare/mnist_one_class.yaml --losses.vs VSLoss            one loss more",
            "",
            "Any option of the configuration can be given on the command line; the later one wins:",
            "  --repeats 100   --epochs 10   --seed 1   --losses '{ce: torch.nn.CrossEntropyLoss, scor: SCoRLoss}'",
            "  --losses.scor.alpha 1e-3      --data.imbalance.factor 0.1      --backbone.hidden [256]",
            "  --baseline focal              the loss that the others are compared with",
            "  --output FOLDER               where the results go; runs/compare/NAME without it",
            "  --spectra true                keep all singular values      --every_epoch true   measure each epoch",
            "  --engine stacked|sequential   --processes 2   --device cpu|cuda   --print_config",
            "",
            "The same command goes on where it was stopped, and extends a finished comparison by more --repeats.",
            "",
            f"Configurations, in {CONFIGS}:",
            *_listed(config for config in shipped_configs() if config.startswith("compare/")),
        ]
    elif command == "report":
        lines += [
            "usage: scor-report FOLDER [--baseline LOSS]",
            "",
            "Writes report.html, results.csv, summary.json and pictures/ into the folder of a scor-compare.",
        ]
        return "\n".join([*lines, ""])
    else:
        lines += [
            f"usage: scor-{command} --ckpt_path FILE [options]",
            "",
            "The configuration is the run's own, unless --config names another.",
        ]
        if command == "predict":
            lines += [
                "",
                "  scor-predict --ckpt_path FILE --images FOLDER [--output FILE]    your own images; needs the file alone",
            ]
    examples = {"fit": "--config digits_scor.yaml", "compare": "--config compare/digits.yaml"}
    example = examples.get(command, "--ckpt_path FILE")
    return "\n".join([*lines, f"Every option:  scor-{command} {example} --help", ""])


def _listed(names: Iterable[str]) -> list[str]:
    titles = {name: shipped_configs()[name].read_text().splitlines()[0] for name in names}
    return [f"  {name:<36}{title.lstrip('# ').split(' (')[0].rstrip('.')}" for name, title in titles.items()]


def arguments(command: str, given: list[str]) -> list[str]:
    """Complete a command line: the subcommand, whole paths of configurations, and the run's own configuration."""
    args = given[1:] if given[:1] == [command] else list(given)
    if args and not args[0].startswith("-") and args[0].endswith((".yaml", ".yml")):
        raise ValueError(f"Expected `--config {args[0]}` but got the name alone")
    configs: list[str] = []
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if arg.startswith("-c") and not equals and len(arg) > 2:
            option, equals, value = "-c", "=", arg[2:]
        if option in ("--config", "-c"):
            if equals:
                configs.append(find_config(value))
                args[i] = f"{option}={configs[-1]}"
            elif i + 1 < len(args):
                configs.append(find_config(args[i + 1]))
                args[i + 1] = configs[-1]
    if configs and Path(configs[0]).parent.name in ("loss", "method"):
        overlay = "/".join(Path(configs[0]).parts[-2:])
        raise ValueError(f"Expected an overlay on top of a configuration: `--config NAME.yaml --config {overlay}`")
    losses = {path: loss for path in configs[1:] if (loss := _loss_class(path)) is not None}
    if len(set(losses.values())) > 1:
        raise ValueError(
            f"Expected one overlay that sets `model.loss` but got {' and '.join(losses)}; SCoR over a loss is "
            "`--config method/scor.yaml`"
        )
    if command == "compare" and not configs and not any(arg.startswith(("--data", "--help", "-h")) for arg in args):
        raise ValueError("Expected `--config compare/NAME.yaml`; `scor-compare` without options lists those there are")
    if command in ("compare", "report"):
        return args
    checkpoint = _option(args, "--ckpt_path")
    if command != "fit" and not configs and not {"--help", "-h"} & set(args):
        if checkpoint is None:
            raise ValueError("Expected `--ckpt_path FILE`, the checkpoint to evaluate")
        own = Path(checkpoint).parent.parent / "config.yaml"
        if not Path(checkpoint).is_file():
            raise ValueError(f"Expected `--ckpt_path` to name a checkpoint but there is no file {checkpoint!r}")
        if not own.is_file():
            raise ValueError(f"Expected the run's configuration in {str(own)!r}; name another with `--config FILE`")
        args = ["--config", str(own), *args]
    # A command line that names the data, or asks for help, can do without.
    complete = re.compile(r"--data(=.*|\.class_path.*)?|-h|--help|--.*\.help(=.*)?")
    if command == "fit" and not configs and not any(complete.fullmatch(arg) for arg in args):
        raise ValueError("Expected `--config NAME.yaml`; `scor-fit` without options lists those there are")
    return [command, *args]


def _loss_class(path: str) -> str | None:
    """Return the import path of the loss that a configuration names; None if it names none."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError):  # which the parser reports
        return None
    model = content.get("model") if isinstance(content, dict) else None
    loss = model.get("loss") if isinstance(model, dict) else None
    if isinstance(loss, dict):
        loss = loss.get("class_path")
    if not isinstance(loss, str):
        return None
    return loss if "." in loss else f"scor_lightning.losses.{loss}"


def shorten(message: str) -> str:
    r"""Leave out of jsonargparse's message what describes its types, and of a loader's worker its traceback.

    Example:
        >>> shorten("Does not validate against any of the Union subtypes\nErrors:\n  - Expected a <class 'int'>")
        "Expected a <class 'int'>"
        >>> shorten("Caught ValueError in DataLoader worker process 0.\nTraceback ...\nValueError: Expected an image")
        'Expected an image'
    """
    if message.startswith("Caught ") and " in DataLoader worker process " in message:
        message = re.split(r"^\w+: ", message, flags=re.MULTILINE)[-1]
    noise = (
        r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Expected a <class 'NoneType'>|"
        r"Expected a path but .*|Given value type: .*|Given value: \w*(Namespace|NestedArg)\(.*|"
    )
    bare = (line.strip().removeprefix("- ") for line in message.splitlines())
    return "\n".join(line for line in bare if not re.fullmatch(noise, line))


def _option(args: list[str], name: str) -> str | None:
    value = None
    for i, arg in enumerate(args):
        if arg.startswith(f"{name}="):
            value = arg.partition("=")[2]
        elif arg == name and i + 1 < len(args):
            value = args[i + 1]
    return value


def _silence_what_users_cannot_mend() -> None:
    for message in (
        ".*does not have many workers.*",  # data held in memory need none
        ".*isinstance.treespec, LeafSpec.*",  # Lightning's own call
        ".*nn.functional.all_gather is deprecated.*",  # Lightning's own call
        "The dirpath has changed",  # weights taken from another run
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()  # an advertisement at every start
    )


def run(command: str) -> None:
    """Run a console script.

    A mistake ends it with one message and no traceback; ``JSONARGPARSE_DEBUG=true`` in the environment shows it.
    """
    given = sys.argv[1:]
    if given in ([], [command], ["--help"], ["-h"]):
        print(usage(command))
        return
    _silence_what_users_cannot_mend()
    try:
        if command == "predict" and any(arg.partition("=")[0] == "--images" for arg in given):
            from scor_lightning.prediction import main as predict_images

            return predict_images(given[1:] if given[:1] == [command] else given)
        # The processes that Lightning starts for DDP run sys.argv again.
        sys.argv[1:] = arguments(command, given)
        if command in ("compare", "report"):
            from scor_lightning.comparison import cli

            return {"compare": cli.compare_command, "report": cli.report_command}[command](sys.argv[1:])
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from scor_lightning.cli import ScorCLI

        try:
            ScorCLI()
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
        leave_process_group()
    except (KeyboardInterrupt, SystemExit) as stop:
        from lightning.pytorch.utilities import rank_zero_only
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        # Lightning turns Ctrl-C outside of the training steps into an exit, after it has put everything in order, and
        # SIGTERM there into one without a status.
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            status: Any = 128 + signal.SIGINT
        else:
            status = 128 + signal.SIGTERM if isinstance(stop, SIGTERMException) else stop.code
        if not isinstance(status, int) or status <= 128:
            raise
        in_step = type(stop) is SystemExit and stop.code == status  # with a checkpoint of it
        if in_step:
            leave_process_group()  # all processes are here
        if getattr(rank_zero_only, "rank", 0) == 0:
            if command == "compare":
                print(f"\nStopped. What was finished is kept; go on with: {continuing(command, given)}", flush=True)
            else:
                print(f"Go on with:  {continuing(command, given)}" if in_step else "\nStopped.", flush=True)
        sys.exit(status)
    except UnpicklingError as error:
        if "JSONARGPARSE_DEBUG" in os.environ:
            raise
        sys.exit(f"scor-{command}: error: Expected a checkpoint of data alone but it holds more than data: {error}")
    except (ValueError, OSError, FloatingPointError) as error:
        if "JSONARGPARSE_DEBUG" in os.environ:
            raise
        in_progress_bar = "\n" if isinstance(error, FloatingPointError) else ""
        sys.exit(f"{in_progress_bar}scor-{command}: error: {shorten(str(error))}")
    except RuntimeError as error:
        if "JSONARGPARSE_DEBUG" in os.environ or not (reason := lost_process(error)):
            raise
        sys.exit(f"\nscor-{command}: error: {reason}")


def leave_process_group() -> None:
    """End what connects the processes, as Lightning does for NCCL alone; Gloo's threads now and then abort Python's end."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def continuing(command: str, given: list[str]) -> str:
    """Return the command line that resumes the newest run; the command of a comparison resumes by itself."""
    last = [] if command == "compare" or _option(given, "--ckpt_path") == "last" else ["--ckpt_path", "last"]
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    program = ["torchrun", "...", "-m", "scor_lightning", command] if by_torchrun else [f"scor-{command}"]
    return shlex.join([*program, *(given[1:] if given[:1] == [command] else given), *last])


def lost_process(error: RuntimeError) -> str | None:
    """Describe in one line how the connection between processes ended; None for other errors."""
    message = str(error).splitlines()[0]
    if "EADDRINUSE" in str(error):
        return "Expected a free port for the processes to meet at but it is in use: choose another one by MASTER_PORT"
    if type(error).__name__.startswith("Dist") or "gloo" in message or "NCCL" in message:
        return (
            "Expected all processes to go on but lost one of them, or did not find it. Start all of them again with "
            f"`--ckpt_path last`. What was seen: {message.split(' This is typically')[0]}"
        )
    return None


def fit() -> None:
    """Run ``scor-fit``."""
    run("fit")


def validate() -> None:
    """Run ``scor-validate``."""
    run("validate")


def test() -> None:
    """Run ``scor-test``."""
    run("test")


def predict() -> None:
    """Run ``scor-predict``."""
    run("predict")


def spectrum() -> None:
    """Run ``scor-spectrum``."""
    parser = argparse.ArgumentParser(
        "scor-spectrum",
        description="Show the singular values of the weights in checkpoints, several side by side: a table and a picture.",
        epilog="Example: scor-spectrum runs/*/version_0/checkpoints/best.ckpt --layers classifier",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="a checkpoint or a state_dict")
    parser.add_argument(
        "--layers", default="all", help="all, classifier, or a pattern such as 'layer4.*' (default: all)"
    )
    parser.add_argument(
        "--tolerance",
        default="relative",
        choices=("relative", "absolute"),
        help="of the rank: relative to the precision of the weights, or the SCoR paper's 1e-7 (default: relative)",
    )
    parser.add_argument(
        "--picture", default="spectrum.png", type=Path, metavar="FILE", help="where to draw it (default: spectrum.png)"
    )
    options = parser.parse_args()
    try:
        if options.picture.suffix != ".png" or not options.picture.absolute().parent.is_dir():
            raise ValueError(f"Expected `--picture` to name a .png in a folder that there is but got {options.picture}")
        from scor_lightning.spectrum import checkpoint_spectrum, describe_skipped, name_apart, spectrum_table

        names = name_apart(options.checkpoints)
        spectra = {
            name: checkpoint_spectrum(path, options.layers, tolerance=options.tolerance)
            for name, path in zip(names, options.checkpoints, strict=True)
        }
        skipped = dict.fromkeys(line for one in spectra.values() for line in describe_skipped(one.skipped))
        print("\n".join([spectrum_table(spectra), *skipped]))
        from scor_lightning.figures import render, save_image, spectra_figure

        save_image(render(spectra_figure(spectra)), options.picture)
        print(f"Picture: {options.picture}")
    except (ValueError, OSError) as error:
        sys.exit(f"scor-spectrum: error: {error}")


def compare() -> None:
    """Run ``scor-compare``."""
    run("compare")


def report() -> None:
    """Run ``scor-report``."""
    run("report")


def main() -> None:
    """Run ``python -m scor_lightning fit ...``."""
    if sys.argv[1:2] == ["spectrum"]:
        del sys.argv[1]
        return spectrum()
    if sys.argv[1:2] and sys.argv[1] in _PURPOSE:
        return run(sys.argv[1])
    sys.exit(f"usage: python -m scor_lightning {{{','.join(_PURPOSE)},spectrum}} ...")


if __name__ == "__main__":
    main()
