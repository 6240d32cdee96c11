import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from scor_lightning.cli.compare import usage
from scor_lightning.cli.errors import run_script
from scor_lightning.configuration import CONFIGS, shipped_configs
from scor_lightning.datamodules import DigitsDataModule, ReduceClasses
from scor_lightning.datamodules.split import draw_split
from scor_lightning.losses import FocalLoss, OPLLoss, SCoRLoss
from scor_lightning.models import MLP
from tests.comparison import compare_losses
from tests.data.mnist import write_mnist
from tests.data.photographs import write_folders
from tests.data.published import cifar10

DIGITS = "scor-compare --config compare/digits.yaml --trainer.max_epochs 1 --processes 1"
LOSSES = {"cross_entropy": nn.CrossEntropyLoss, "scor": SCoRLoss}


def digits():
    return DigitsDataModule(imbalance=ReduceClasses(factor=0.05), val_fraction=0.0)


def results(folder="runs/compare/digits") -> list[dict[str, str]]:
    with open(Path(folder) / "results.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row.pop("train_seconds")) > 0
    return rows


def without_chunks(rows):
    """Rows as a set: rounding depends on which repeats train together, in the last digits."""
    return {
        (row["repeat"], row["method"]): {
            k: v if isinstance(v, list | str | int) else pytest.approx(v, abs=1e-4, nan_ok=True)
            for k, v in row.items()
            if k not in ("train_seconds", "threads")
        }
        for row in rows
    }


def test_one_command_writes_a_table_numbers_and_a_page(command):
    status, out, error = command(f"{DIGITS} --repeats 3")
    assert status == 0, error
    assert "4 methods x 3 repeats: 12 trainings to do on cpu" in error
    assert out.startswith("\nBest balanced accuracy: ")
    assert re.search(r"^  method +mean +sd +difference +new images +redraws +better in +p +verdict$", out, re.MULTILINE)
    line = r"^  scor +0\.\d{4} +0\.\d{4} +[+-]0\.\d{4} +\[.*\] +\[.*\] +[01]\.\d\d +\d\.\d{4}  \w+"
    assert re.search(line, out, re.MULTILINE)
    rows = results()
    assert [(row["repeat"], row["method"]) for row in rows[:5]] == [
        ("0", "cross_entropy"),
        ("0", "label_smoothing"),
        ("0", "focal"),
        ("0", "scor"),
        ("1", "cross_entropy"),
    ]
    assert len({(row["repeat"], row["reduced"], row["train_images"]) for row in rows}) == 3
    summary = json.loads(Path("runs/compare/digits/summary.json").read_text())
    mean = sum(float(row["f1_macro"]) for row in rows if row["method"] == "scor") / 3
    assert summary["measures"]["f1_macro"]["scor"]["mean"] == pytest.approx(mean)
    assert f"{mean:.4f}" in out
    page = Path("runs/compare/digits/report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert page.count("Omitted: it requires at least") == 3  # which three repeats cannot support
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert {path.name for path in Path("runs/compare/digits/pictures").iterdir()} == {
        "differences.png",
        "recall.png",
    }
    status, again, _ = command("scor-report runs/compare/digits")
    assert status == 0
    assert again.strip() == out.strip()
    status, other, _ = command("scor-report runs/compare/digits --baseline focal")
    assert "Intervals of differences to focal" in other
    summary = json.loads(Path("runs/compare/digits/summary.json").read_text())
    assert summary["baseline"] == "focal"
    assert "difference" not in summary["measures"]["accuracy"]["focal"]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_random_body_is_warned_of_before_training_and_in_the_report(command, frozen):
    options = f"--model.frozen_body {str(frozen).lower()} --trainer.max_epochs 1 --repeats 1 --output out"
    line = f"scor-compare --config digits_scor.yaml --methods loss/cross_entropy.yaml loss/focal.yaml {options}"
    status, out, error = command(line)
    assert status == 0, error
    for text in (error, out, Path("out/report.html").read_text()):
        assert ("The frozen body has random weights, so the head learns from random features" in text) == frozen
    assert ".py:" not in error


def test_fewer_repeats_than_the_folder_contains_change_nothing(command):
    _, out, _ = command(f"{DIGITS} --repeats 2 --trainer.max_epochs 1")
    before = results()
    status, again, error = command(f"{DIGITS} --repeats 1 --trainer.max_epochs 1")
    assert status == 0, error
    assert "The folder already contains 2 repeats; the report covers all of them" in error
    assert again == out
    assert results() == before


def test_ctrl_c_counts_the_finished_ones_of_the_trainings_that_were_asked_for(command, monkeypatch):
    line = "scor-compare --config digits_scor.yaml --trainer.max_epochs 1 --output out"
    command(f"{line} --methods loss/cross_entropy.yaml loss/focal.yaml --repeats 2")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scor_lightning.comparison.run._train", interrupt)
    status, out, error = command(f"{line} --methods loss/cross_entropy.yaml loss/focal.yaml loss/scor.yaml --repeats 1")
    assert status == 130
    assert "2 of 3 trainings are finished" in error
    assert "Stopped; resume with: scor-compare" in out


@pytest.mark.parametrize("options", [["compare"], ["fit", "--list"]])  # at the flush, and within the command
def test_a_closed_pipe_ends_a_command_quietly(options):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-u", "-m", "scor_lightning", *options]
    done = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_an_error(monkeypatch):
    def run(argv):
        raise BrokenPipeError("the connection to a server was lost")

    monkeypatch.setattr(sys, "argv", ["scor-fit", "--config", "x.yaml"])
    with pytest.raises(SystemExit, match="scor-fit: error: the connection to"):
        run_script("fit", str, run)


@pytest.mark.exhaustive
def test_the_same_command_resumes_and_more_repeats_extend_it(command):
    command(f"{DIGITS} --repeats 2")
    before = results()
    _, _, error = command(f"{DIGITS} --repeats 2")
    assert "trainings to do" not in error
    _, _, error = command(f"{DIGITS} --repeats 4")
    assert "8 trainings to do" in error
    assert results()[:8] == before
    assert len(results()) == 16
    # a lost chunk is trained again, with the same results
    next(Path("runs/compare/digits/chunks").glob("000000*")).unlink()
    _, _, error = command(f"{DIGITS} --repeats 4")
    assert "8 trainings to do" in error
    assert results()[:8] == before


@pytest.mark.exhaustive
def test_a_damaged_file_or_a_lost_manifest_is_named(command):
    command(f"{DIGITS} --repeats 2")
    folder = Path("runs/compare/digits")
    (chunk,) = (folder / "chunks").iterdir()
    whole = chunk.read_text()
    chunk.write_text(whole[:1000])
    for line in (f"{DIGITS} --repeats 2", f"scor-report {folder}"):
        status, _, error = command(line)
        assert status != 0
        assert f"{str(chunk)!r}, which is damaged" in error
    chunk.write_text(whole)
    (folder / "manifest.json").unlink()
    status, _, error = command(f"{DIGITS} --repeats 2 --data.seed 1")
    assert status != 0
    assert "Expected the manifest.json of the results in 'runs/compare/digits' but it is missing" in error
    assert chunk.read_text() == whole


def test_a_full_disk_is_named_and_leaves_nothing_half_written(command, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command(f"{DIGITS} --repeats 1")
    chunks = Path("runs/compare/digits/chunks")
    before = results()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        status, _, error = command(f"{DIGITS} --repeats 2")
    assert status != 0
    assert "No space left on device: 'runs/compare/digits/" in error
    assert len(list(chunks.iterdir())) == 1
    assert not [path for path in chunks.parent.iterdir() if path.name.endswith(".part")]
    command("scor-report runs/compare/digits")
    assert results() == before


def test_losses_that_diverge_are_named(command):
    Path("huge.yaml").write_text("model: {loss: {class_path: SCoRLoss, init_args: {alpha: 1.0e+38}}}")
    options = "--repeats 2 --model.optimizer torch.optim.SGD --model.optimizer.lr 1"
    options += " --methods cross_entropy=loss/cross_entropy.yaml scor=huge.yaml"
    status, out, error = command(f"{DIGITS} {options}")
    assert status == 0, error
    assert "scor diverged in 2 of 2 repeats; its means exclude them." in out
    assert "<li>scor diverged in 2 of 2 repeats" in Path("runs/compare/digits/report.html").read_text()
    assert json.loads(Path("runs/compare/digits/summary.json").read_text())["diverged"] == {"scor": 2}
    assert {row["cross_entropy"] for row in results() if row["method"] == "scor"} == {"nan"}


def test_processes_give_the_same_rows(monkeypatch, tmp_path):
    monkeypatch.setattr("scor_lightning.comparison.run._LITTLE_WORK", 0)
    options = {"losses": LOSSES, "backbone": partial(MLP, hidden=[8]), "repeats": 4, "epochs": 1}
    two = compare_losses(digits(), processes=2, output=str(tmp_path), **options)
    assert len(list((tmp_path / "chunks").iterdir())) == 2
    assert without_chunks(two) == without_chunks(compare_losses(digits(), **options))


def test_further_methods_draw_no_further_splits(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "scor_lightning.datamodules.split.draw_split",
        lambda settings, targets: drawn.append(settings.seed) or draw_split(settings, targets),
    )
    counts = []
    for further in (0, 9):
        losses = LOSSES | {f"focal_{gamma}": partial(FocalLoss, gamma=gamma) for gamma in range(further)}
        drawn.clear()
        compare_losses(digits(), partial(MLP, hidden=[8]), losses, repeats=3, epochs=1, engine="stacked")
        counts.append(len(drawn))
    assert counts[0] == counts[1] > 0


class Counted(DigitsDataModule):
    """Counts in a file how often the images are read."""

    def __init__(self, file: str, **options) -> None:
        super().__init__(**options)
        self.file = file

    def load(self, split):
        with open(self.file, "a") as file:
            file.write(f"{os.getpid()} {split}\n")
        return super().load(split)


@pytest.mark.exhaustive
def test_each_process_reads_the_images_once(tmp_path):
    data = Counted(str(tmp_path / "reads"), imbalance=ReduceClasses(factor=0.05), val_fraction=0.0)
    options = {"repeats": 4, "epochs": 1, "engine": "sequential"}
    compare_losses(data, partial(MLP, hidden=[8]), LOSSES, processes=2, **options)
    reads = (tmp_path / "reads").read_text().splitlines()
    assert len({line.split()[0] for line in reads}) == 3  # with this one, which looks at them first
    assert len(reads) == len(set(reads))


@pytest.mark.exhaustive
def test_what_is_defined_in_a_notebook_trains_in_processes_and_what_cannot_be_pickled_is_refused(monkeypatch):
    monkeypatch.setattr("scor_lightning.comparison.run._LITTLE_WORK", 0)
    rows = compare_losses(digits(), lambda **kwargs: MLP(**kwargs), LOSSES, repeats=2, epochs=1, processes=2)
    assert len(rows) == 4
    lock = threading.Lock()
    with pytest.raises(ValueError, match="pickle"):
        compare_losses(digits(), lambda **kwargs: lock and MLP(**kwargs), LOSSES, repeats=2, epochs=1, processes=2)


FIVE = ["cross_entropy", "label_smoothing", "focal", "scor", "opl"]


def test_networks_that_cannot_be_stacked_train_one_after_another(command):
    options = "--repeats 1 --model.backbone ConvNet --model.backbone.widths [4] --methods"
    status, _, error = command(f"{DIGITS} {options} loss/{' loss/'.join(f'{name}.yaml' for name in FIVE)}")
    assert status == 0, error
    assert "1 repeats: 5 trainings to do on cpu" in error
    assert "25 epochs" not in error
    assert f"{', '.join(FIVE)}: 1 epochs, one after another, as BatchNorm2d keeps statistics of its own" in error
    rows = results()
    assert [row["method"] for row in rows] == FIVE
    assert all(float(row["spectrum/body.0.0/sigma_min"]) > 0 for row in rows)
    assert len(list(Path("runs/compare/digits/chunks").iterdir())) == 5


def test_the_engines_give_the_same_rows_by_the_command(command):
    command(f"{DIGITS} --repeats 2")
    command(f"{DIGITS} --repeats 2 --engine sequential --output other")
    for stacked, alone in zip(results(), results("other"), strict=True):
        assert float(stacked["accuracy"]) == pytest.approx(float(alone["accuracy"]), abs=0.005)
        assert float(stacked["spectrum/head/sigma_min"]) == pytest.approx(
            float(alone["spectrum/head/sigma_min"]), abs=1e-4
        )


def test_whole_spectra_and_every_epoch_are_options(command):
    status, _, error = command(f"{DIGITS} --repeats 2 --trainer.max_epochs 2 --spectra true --every_epoch true")
    assert status == 0, error
    with open("runs/compare/digits/epochs.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)].count("1") == 8
    assert {row["epoch"] for row in results()} == {"2"}
    chunk = json.loads(next(Path("runs/compare/digits/chunks").iterdir()).read_text())["rows"]
    assert len(chunk[0]["spectrum/body.1/values"]) == 64
    assert "values" not in Path("runs/compare/digits/results.csv").read_text().splitlines()[0]
    assert Path("runs/compare/digits/pictures/epochs.png").is_file()


def test_whole_spectra_of_a_method_whose_head_has_no_weights(command):
    methods = "--methods loss/cross_entropy.yaml loss/etf.yaml"
    status, _, error = command(f"{DIGITS} {methods} --repeats 2 --trainer.max_epochs 2 --spectra true")
    assert status == 0, error
    assert Path("runs/compare/digits/pictures/spectrum.png").is_file()


TINY = (
    "--data.resolution 32 --data.num_workers 0 --data.batch_size 4 --model.backbone.weights null "
    "--model.backbone.arch resnet18"
)
# The files of each configuration, and options that make it small.
RUNS = {
    "digits": (lambda patch: None, "", 4, 1),
    "mnist_one_class": (lambda patch: write_mnist(Path("data"), train_per_class=100), "", 6, 1),
    "mnist_nine_classes": (lambda patch: write_mnist(Path("data"), train_per_class=100), "", 6, 9),
    "mnist_alpha": (lambda patch: write_mnist(Path("data"), train_per_class=100), "", 9, 1),
    "mnist_alpha_tuned": (lambda patch: write_mnist(Path("data"), train_per_class=100), "", 16, 1),
    "mnist_long_tail": (
        lambda patch: write_mnist(Path("data"), train_per_class=100),
        "--data.imbalance.ratio 10",
        34,
        9,
    ),
    "cifar10_one_class": (
        lambda patch: cifar10(Path("data"), patch),
        "--data.imbalance.factor 0.5 --model.backbone CifarResNet --model.backbone.depth 8",
        4,
        1,
    ),
    "cifar10_nine_classes": (
        lambda patch: cifar10(Path("data"), patch),
        "--data.imbalance.factor 0.5 --model.backbone CifarResNet --model.backbone.depth 8",
        4,
        9,
    ),
    "image_folder": (lambda patch: write_folders(Path("data"), {"Ada": 12, "Bob": 8, "Cyd": 5}), TINY, 11, 0),
    "imagenet": (lambda patch: write_imagenet(Path("data/imagenet")), TINY, 6, 0),
}


QUICK = ("compare/digits.yaml", "compare/image_folder.yaml", "compare/mnist_one_class.yaml")


def write_imagenet(root: Path) -> None:
    write_folders(root / "train", {"n01440764": 6, "n01443537": 6, "n01484850": 6})
    write_folders(root / "val", {"n01440764": 2, "n01443537": 2, "n01484850": 2})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive)
        for name in sorted(shipped_configs())
        if name.startswith("compare/") and name != "compare/digits_all.yaml"
    ],
)
def test_every_config_runs_on_its_own_format(command, monkeypatch, name):
    assert CONFIGS.joinpath(name).read_text().startswith("# ")
    write, options, losses, reduced = RUNS[Path(name).stem]
    write(monkeypatch.setattr)
    stacked = name.startswith(("compare/mnist", "compare/digits"))
    repeats = 2 if stacked else 1
    status, out, error = command(
        f"scor-compare --config {name} --repeats {repeats} --trainer.max_epochs 1 --processes 1 {options}"
    )
    assert status == 0, error
    assert ("stacked" in error) == stacked
    folder = {"compare/image_folder.yaml": "compare/image_folder-data"}.get(name, name.removesuffix(".yaml"))
    rows = results(f"runs/{folder}")
    assert len({row["method"] for row in rows}) == losses
    assert len(rows) == repeats * losses
    assert len(json.loads(rows[0]["reduced"])) == reduced
    assert re.search(r"^  scor\S* +[01]\.\d{4} ", out, re.MULTILINE)
    assert "largest class" not in out  # nothing between the progress and the table


@pytest.mark.parametrize("line", ["scor-compare", "scor-compare --help"])
def test_help_fits_on_a_screen(command, line):
    status, out, _ = command(line)
    assert status == 0
    assert out == usage() + "\n"
    assert all(name in out for name in shipped_configs() if name.startswith("compare/"))
    assert len(out.splitlines()) < 45
    assert max(map(len, out.splitlines())) < 140
    assert "scor-report FOLDER" in command("scor-report")[1]


def test_print_config_shows_what_the_command_line_changed(command):
    _, out, _ = command(f"{DIGITS} --model.optimizer.lr 0.5 --data.imbalance.factor 0.25 --print_config")
    assert out.count("lr: 0.5") == 5  # of the training, and of each method
    assert "factor: 0.25" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--repeats 0", "Expected `--repeats` >= 1 but got 0"),
        ("--trainer.max_epochs 0", "--trainer.max_epochs: expected more than 0"),
        ("--methods loss/focal.yaml", "Expected at least two `--methods` to compare but got ['focal']"),
        ("--methods loss/focal.yaml loss/focal.yaml", "Expected methods of different names but got 'focal' twice"),
        ("--baseline nobody", "Expected `--baseline` to be one of cross_entropy, label_smoothing"),
        ('--methods {"a":{"model":{"loss":{"init_args":{"alpha":-1}}}},"b":[]}', "Expected `alpha` >= 0 but got -1"),
        (
            "--methods loss/focal.yaml loss/nothing.yaml",
            "(the method 'nothing')",
        ),
        ("--trainer.accelerator gpu", "it has no CUDA device"),
        ("--losses.x NoSuchLoss", "There is no `--losses`; write `--methods loss/NAME.yaml ...`"),
        ("--device cpu", "There is no `--device`; write `--trainer.accelerator`"),
        ("--engine magic", "stacked, sequential"),
        ("--engine stacked --model.backbone ConvNet", "but BatchNorm2d keeps statistics of its own"),
        ("--processes 0", "Expected `--processes` >= 1 but got 0"),
        ("--data.split_file x.json", "Expected no `split_file`"),
        ("--config nope.yaml", "the command without options lists them"),
        ("--output /dev/null/results", "Expected a folder to write results into but got '/dev/null/results'"),
        ("--data MNISTDataModule", "download it with `--data.download true`"),
        ("--foo 1", "--foo"),
    ],
)
def test_mistakes_get_a_short_message_before_any_training(command, options, message):
    status, _, error = command(f"{DIGITS} {options}")
    assert status != 0
    assert "Traceback" not in error
    text = error[error.index("scor-compare: error: ") :]
    assert message in text
    assert len(text.splitlines()) <= 5
    assert "trainings to do" not in error
    assert not Path("runs").exists()


def test_without_a_config_or_results_the_error_states_what_is_expected(command):
    assert "Expected `--config compare/NAME.yaml`" in command("scor-compare --repeats 3")[2]
    assert "Expected a folder of results" in command("scor-report nowhere")[2]


@pytest.mark.exhaustive
def test_another_configuration_in_the_same_folder_is_refused_by_name(command):
    command(f"{DIGITS} --repeats 1")
    before = Path("runs/compare/digits/manifest.json").read_text()
    for options, message in (
        ("--trainer.max_epochs 3", "trainer.max_epochs = 1, but got 3"),
        ("--model.backbone.hidden [64]", "model.backbone.hidden = [128], but got [64]"),
        ("--data.imbalance.factor 0.1", "data.imbalance.factor = 0.05, but got 0.1"),
        ("--model.optimizer.lr 1", "model.optimizer.lr = 0.003, but got 1"),
    ):
        status, _, error = command(f"{DIGITS} --repeats 2 {options}")
        assert status != 0
        assert message in error
        assert "choose another folder with `--output`" in error
    assert Path("runs/compare/digits/manifest.json").read_text() == before
    assert len(results()) == 4


def test_a_loss_that_reads_features_requires_a_network_that_returns_them():
    def plain(num_classes, in_channels, image_size):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    with pytest.raises(
        ValueError, match=r"with `forward_features` and a module `head` for OPLLoss.*\(the method 'opl'\)"
    ):
        compare_losses(digits(), plain, {"cross_entropy": nn.CrossEntropyLoss, "opl": OPLLoss})


def start(*options: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "scor_lightning", "compare", "--config", "compare/digits.yaml", *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_where_it_was(command, draw):
    options = "--engine sequential --trainer.max_epochs 2 --repeats 4 --processes 1"
    chunks = Path("runs/compare/digits/chunks").resolve()
    process = start(*options.split())
    some = draw.randrange(1, 12)
    wait_for(lambda: len(list(chunks.glob("*.json"))) >= some, process)
    process.kill()
    process.communicate()
    kept = len([json.loads(path.read_text()) for path in chunks.glob("*.json")])  # each a whole file
    assert some <= kept < 16
    status, _, error = command(f"{DIGITS} {options}")
    assert status == 0
    assert f"{16 - kept} trainings to do" in error
    command(f"{DIGITS} {options} --output uninterrupted")
    assert results() == results("uninterrupted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "trained"),
    [
        *((signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)),
        *((signal.SIGKILL, False), (signal.SIGKILL, True)),
    ],
)
@pytest.mark.exhaustive
def test_its_processes_end_with_it(tmp_path, monkeypatch, end, trained):  # also while they are still starting
    monkeypatch.chdir(tmp_path)
    process = start("--engine", "sequential", "--trainer.max_epochs", "3", "--repeats", "1000", "--processes", "2")
    folder = tmp_path / "runs" / "compare" / "digits"
    wait_for(lambda: (folder / "manifest.json").is_file() and len(children(process.pid)) >= 2, process)
    if trained:
        wait_for(lambda: len(list((folder / "chunks").glob("*.json"))) >= 2, process)
    mine = children(process.pid)
    process.send_signal(end)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    if end != signal.SIGKILL:
        assert process.returncode == 128 + end
        assert "Stopped; resume with: scor-compare --config compare/digits.yaml" in out
        assert trained == (re.search(r"^[1-9]\d* of 4000 trainings are finished$", error, re.MULTILINE) is not None)
        assert "Traceback" not in error
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in mine):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(("interrupt", "status"), [("SIG_IGN", -signal.SIGTERM), ("default_int_handler", 143)])
def test_sigterm_ends_a_comparison_in_one_process(tmp_path, monkeypatch, interrupt, status):
    """Also where Ctrl-C is ignored, as in the background of a shell."""
    monkeypatch.chdir(tmp_path)
    program = f"""import signal, sys
signal.signal(signal.SIGINT, signal.{interrupt})
from scor_lightning.cli.compare import main
main()"""
    options = "--engine sequential --processes 1 --repeats 1000 --trainer.max_epochs 3"
    line = [sys.executable, "-c", program, *f"{DIGITS} {options}".removeprefix("scor-compare ").split()]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(tmp_path.glob("runs/compare/digits/chunks/*.json"))) >= 1, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert ("Stopped; resume with:" in out) == (status == 143)


def test_torchrun_is_refused(command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, error = command(f"{DIGITS} --repeats 1")
    assert status == 1
    assert "`torchrun` started several; see `--processes` and `--cluster`" in error


def test_names_of_losses_are_any_text(tmp_path):
    losses = {"a/b": nn.CrossEntropyLoss, "../<c> & d": SCoRLoss}
    compare_losses(
        digits(), partial(MLP, hidden=[8]), losses, repeats=1, epochs=1, engine="sequential", output=str(tmp_path)
    )
    assert [row["method"] for row in results(tmp_path)] == list(losses)
    assert "../&lt;c&gt; &amp; d" in (tmp_path / "report.html").read_text()


def test_from_python_records_are_returned_and_no_files_left(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    rows = compare_losses(digits(), partial(MLP, hidden=[8]), LOSSES, repeats=2, epochs=1)
    assert [(row["repeat"], row["method"]) for row in rows] == [(r, name) for r in range(2) for name in LOSSES]
    assert all(0 < row["accuracy"] < 1 for row in rows)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_rows_are_those_of_the_cpu():
    options = {"losses": LOSSES, "backbone": partial(MLP, hidden=[8]), "repeats": 4, "epochs": 1}
    assert without_chunks(compare_losses(digits(), accelerator="gpu", **options)) == without_chunks(
        compare_losses(digits(), accelerator="cpu", **options)
    )
