"""``scor-compare``: compare methods over many paired repeats of one training."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scor_lightning.cli.errors import command_line, option_value, run_script
from scor_lightning.configuration import CONFIGS, data_name, experiment_name, find_config, list_configs, read_yaml
from scor_lightning.files import expanded
from scor_lightning.messages import nearest
from scor_lightning.signals import sigterm_like_ctrl_c

OWN = (
    "methods",
    "repeats",
    "baseline",
    "output",
    "engine",
    "processes",
    "cluster",
    "every_epoch",
    "spectra",
    "predictions",
    "measure",
    "margin",
    "tune",
)
# Options of version 0.1.0 and their replacements.
_REPLACED = {
    "epochs": "--trainer.max_epochs",
    "seed": "--seed_everything, and --data.seed for the data",
    "device": "--trainer.accelerator",
    "precision": "--trainer.precision",
    "losses": "--methods loss/NAME.yaml ...",
    "backbone": "--model.backbone",
    "optimizer": "--model.optimizer",
    "lr_scheduler": "--model.lr_scheduler",
}


# Options of a training that a comparison does not use, and why.
_UNUSED = {
    "checkpoint": "a comparison measures the network after the last epoch and keeps no checkpoints",
    "last_checkpoint": "a comparison keeps finished trainings, not checkpoints",
    "ckpt_path": "every training of a comparison starts from the beginning",
    "trainer.devices": "each training of a comparison uses one device; see `--processes`",
    "trainer.num_nodes": "each training of a comparison uses one device; see `--cluster`",
    "trainer.default_root_dir": "results are written to `--output`",
    "trainer.fast_dev_run": "a comparison tries every method before it starts; see `--repeats 1`",
}


def usage() -> str:
    """Return the help on one screen."""
    return f"""\
Compare methods over many paired repeats: which is better, by how much, and how certain that is.

usage: scor-compare --config NAME.yaml --methods OVERLAY.yaml OVERLAY.yaml ... [options]

  scor-compare --config compare/digits.yaml                        bundled data, in seconds
  scor-compare --config compare/mnist_one_class.yaml --repeats 200 --data.root data
  scor-compare --config digits_scor.yaml --methods loss/cross_entropy.yaml loss/ldam_drw.yaml --repeats 12

The training is what scor-fit trains with the same options; each method is an overlay on top of it:
  --methods loss/ldam.yaml loss/ldam.yaml+method/scor.yaml mine=loss/focal.yaml
  --trainer.max_epochs 10   --model.backbone.hidden [256]   --data.imbalance.factor 0.1   --seed_everything 1
  --repeats 100             repeats, each with another subset, split and initial weights
  --baseline focal          the method that the others are compared with
  --measure accuracy        the measure of the best method; default: balanced_accuracy
  --margin 0.005            differences up to this count as none; default: 0.002
  --tune '{{"scor": {{"model.loss.alpha": [1e-5, 1e-4]}}, "focal": {{"model.loss.gamma": [1, 2]}}}}'
                            values to try, equally many per method; each repeat selects on its validation set
  --output FOLDER           folder for the results; default: runs/compare/NAME-DATA
  --spectra true            keep all singular values       --every_epoch true   measure each epoch
  --engine stacked|sequential   --processes 2   --cluster tcp://HOST:8786   --print_config

The same command resumes a stopped comparison; more --repeats and --methods extend it.

Configurations, in {CONFIGS}:
{chr(10).join(list_configs(lambda name: name.startswith("compare/")))}
Every option:  scor-compare --config compare/digits.yaml --help
"""


@sigterm_like_ctrl_c()
def run(argv: list[str]) -> None:
    """Run a comparison into its folder, or resume it, and print the table.

    Raises:
        ValueError: If the command line names neither a configuration nor the data, or an option is wrong.
    """
    if argv[0].endswith((".yaml", ".yml")):
        raise ValueError(f"Write `--config {argv[0]}`, not the name alone")
    for option in (word.partition("=")[0] for word in argv if word.startswith("--")):
        name = option.removeprefix("--").partition(".")[0]
        if name in _REPLACED:
            raise ValueError(f"There is no `--{name}`; write `{_REPLACED[name]}`")
        if name in _UNUSED or option.removeprefix("--") in _UNUSED:
            raise ValueError(
                f"{option}: not an option here, as {_UNUSED.get(option.removeprefix('--')) or _UNUSED[name]}"
            )
    if not any(argument.startswith(("--config", "-c", "--data", "--help", "-h")) for argument in argv):
        raise ValueError(
            "Expected `--config compare/NAME.yaml`; `scor-compare` without options lists the shipped configurations"
        )
    from scor_lightning.cli.report import show
    from scor_lightning.comparison.methods import named_methods, read_training, resolve
    from scor_lightning.comparison.report import Report
    from scor_lightning.comparison.run import compare_trainings
    from scor_lightning.comparison.tuning import trials

    whole = _expand(argv)
    parser = _parser()
    printed = [word for word in whole if word.partition("=")[0] == "--print_config"]
    whole = [word for word in whole if word not in printed]
    if "--config" not in whole:
        whole = ["--config", "{}", *whole]  # the overlays are applied on top of the training's options
    config = parser.parse_args(whole)
    methods, tried = trials(named_methods(config.methods), config.tune or {})
    resolved = resolve(parser, whole, methods)
    own = {name: config.pop(name) for name in OWN}
    for each in resolved.values():
        for name in OWN:
            each.pop(name)
    if printed:
        print(_dump(parser, config, resolved, own))
        return
    _report_discarded(parser, argv, config, resolved)
    if own["output"] is None:
        first = option_value(argv, "--config", "-c")
        data = data_name(config.data)
        name = experiment_name([first]) if first else data
        known = data.replace("_", "") in name.replace("_", "")
        own["output"] = str(Path("runs") / "compare" / (name if known else f"{name}-{data}"))
    about = {"options": _training_only(whole), "overlays": methods, "tuned": tried if own["tune"] else None}
    del own["methods"], own["tune"]
    trainings = {name: read_training(each) for name, each in resolved.items()}
    compare_trainings(trainings, **own, about=about)
    show(Report(own["output"]))


def _parser() -> Any:
    """Build the parser: the options of a comparison, followed by those of a training."""
    from typing import Literal

    from scor_lightning.parser import training_parser

    parser = training_parser()
    parser.description = "Compare methods over many paired repeats of one training."
    group = parser.add_argument_group("Comparison", "The methods, the number of repeats and the results.")
    group.add_argument("--methods", nargs="+", default=None, help="[NAME=]OVERLAY[+OVERLAY...] of each method.")
    group.add_argument("--repeats", type=int, default=100, help="Number of repeats, >= 1.")
    group.add_argument(
        "--baseline", type=str | None, default=None, help="Method that the others are compared with; the first."
    )
    group.add_argument("--output", type=str | None, default=None, help="Folder for the results and the report.")
    group.add_argument("--engine", type=Literal["auto", "stacked", "sequential"], default="auto")
    group.add_argument(
        "--processes", type=int | None, default=None, help="Processes that train at the same time; one per core or GPU."
    )
    group.add_argument("--cluster", type=str | None, default=None, help="Address of a Dask scheduler: tcp://HOST:8786.")
    group.add_argument("--every_epoch", type=bool, default=False, help="Measure after every epoch.")
    group.add_argument("--spectra", type=bool, default=False, help="Keep all singular values.")
    group.add_argument("--predictions", type=bool, default=True, help="Keep the prediction of every test image.")
    group.add_argument("--measure", type=str, default="balanced_accuracy", help="The measure of the best method.")
    group.add_argument("--tune", type=dict[str, Any] | None, default=None, help="Values to try, by method and option.")
    group.add_argument("--margin", type=float | None, default=None, help="Differences up to this count as none.")
    return parser


def _expand(argv: Sequence[str]) -> list[str]:
    """Replace comparison files on a command line by the options that they contain."""
    from scor_lightning.comparison.methods import training_options

    words: list[str] = []
    comparison: str | None = None
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word[:2] == "-c" and word[:3] != "-c=" and len(word) > 2:
            option, equals, value = "-c", "=", word[2:]
        if option not in ("--config", "-c") or (not equals and not rest):
            words.append(word)
            continue
        value = value if equals else rest.pop(0)
        if value.lstrip().startswith("{"):
            words += ["--config", value]
            continue
        content = _comparison(find_config(expanded(value)))
        if content is None:
            words += ["--config", value]
            continue
        if comparison is not None:
            raise ValueError(f"--config: expected one comparison but got {comparison} and {value}")
        comparison = value
        words += training_options(content.pop("training", None) or [])
        for name, given in content.items():
            if given is None:
                continue
            values = given if isinstance(given, list) else [given]
            words += [f"--{name}", *(json.dumps(one) if isinstance(one, Mapping) else str(one) for one in values)]
    return words


def _comparison(path: str) -> dict[str, Any] | None:
    """Read the file of a comparison; None if it is a training configuration."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        return None
    for name in _REPLACED:
        if name in content:
            raise ValueError(
                f"There is no `{name}` in {path!r}; write `training:` and `methods:` as in compare/digits.yaml"
            )
    if not {"methods", "training"} & content.keys():
        return None
    if unknown := [name for name in content if name not in ("training", *OWN)]:
        remedy = nearest(unknown[0], ("training", *OWN)) or "; it belongs in `training`"
        raise ValueError(f"Expected training, {', '.join(OWN)} in {path!r} but got {unknown[0]!r}{remedy}")
    return content


def _training_only(words: Sequence[str]) -> list[str]:
    """Return the options of the training from the command line, without those of the comparison."""
    kept: list[str] = []
    skip = False
    for word in words:
        if word.startswith("-"):
            skip = word.partition("=")[0].removeprefix("--") in OWN
        if not skip:
            kept.append(word)
    return kept


def _report_discarded(parser: Any, argv: Sequence[str], config: Any, resolved: Mapping[str, Any]) -> None:
    """Report the command-line options that a method overrides, for example by replacing the loss."""
    from scor_lightning.parser import flat_options

    base = flat_options(parser, config)
    given = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    for option in sorted(given & base.keys()):
        without = [name for name, each in resolved.items() if flat_options(parser, each).get(option) != base[option]]
        if without:
            print(f"{', '.join(without)}: the overlay replaces --{option}", file=sys.stderr)


def _dump(parser: Any, config: Any, resolved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    import yaml

    whole = {**{name: value for name, value in own.items() if name != "methods"}}
    whole["training"] = yaml.safe_load(parser.dump(config, skip_validation=True))
    whole["methods"] = {
        name: yaml.safe_load(parser.dump(each, skip_validation=True)) for name, each in resolved.items()
    }
    return str(yaml.safe_dump(whole, sort_keys=False))


def resume(argv: list[str], saved: bool) -> str:
    """Return the last line of a stopped comparison: the same command resumes it."""
    return f"\nStopped; resume with: {command_line('compare', argv)}"


def main() -> None:
    """Run the command."""
    run_script("compare", usage, run, resume)
