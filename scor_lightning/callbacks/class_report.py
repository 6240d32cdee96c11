"""The results of each class: a table after an evaluation, files in the run folder, and pictures."""

import json
import os
import zlib
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from scor_lightning.callbacks.protocol import SECOND_STAGE, Classifier, as_classifier, stage_of, state_of
from scor_lightning.callbacks.run_folder import numbered, run_folder
from scor_lightning.checkpoint import read_epoch
from scor_lightning.datamodules import ImageDataModule
from scor_lightning.files import csv_text, six_digits, write_whole
from scor_lightning.loggers import log_files, log_image, takes_images
from scor_lightning.losses.base import describe_loss
from scor_lightning.metrics import class_thirds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 10
FEW_IMAGES = 100  # below this number, the recall of a class has an interval
_SETS = {"val": "validation", "test": "test"}
_MEASURES = {  # "-" for measures of probabilities if the loss has none
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "worst_class_recall": "worst-class recall",
    "calibration_error": "calibration error",
    "cross_entropy": "cross entropy",
}
_TITLES = {
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "head_third": "largest third",
    "middle_third": "middle third",
    "tail_third": "smallest third",
    "reduced": "reduced classes",
}
MAX_CONFUSION = 5000  # maximum number of classes for a confusion matrix, 200 MB
WORST_IMAGES = 24


class _Image(NamedTuple):
    """A test image with the predicted probability of its class, its true and its predicted class."""

    probability: float
    target: int
    predicted: int
    pixels: Tensor | None  # None if the batch has features of a frozen body
    position: int  # index in the test set


class ClassReport(Callback):
    """Reports an evaluation class by class.

    After a test or a validation it prints a table: what was evaluated, loss, metrics, and images and recall of each class; of
    more than ten classes, the ten with the lowest recall. The recall of a class with fewer than 100 evaluated images has
    Wilson's 95 % interval.

    After a test it also writes, to ``test/`` in the run's folder:

    - ``metrics.json``: everything by name, with the loss, the checkpoint that was tested and the class results;
    - ``classes.csv``: one row per class, with training and test images, recall (empty for a class without test images),
      precision and F1;
    - ``confusion_matrix.csv``: a row for each true class, a column for each predicted one (up to 5,000 classes);
    - ``recall_by_class.png``, ``confusion_matrix.png`` and ``worst_images.png``: the recalls and training images of the
      classes, largest class first; the confusion matrix; the images with the lowest probability of their own class.

    A later test of other data or of another checkpoint is written to ``test_2/`` and so on. The pictures are also logged
    as ``test/...``, and the class sizes as ``train/class_sizes`` when training starts, to loggers that support images;
    loggers that store files receive the files. Every sample counts once over all processes.

    Args:
        folder: Folder for the files; None is ``test/`` in the run folder, see
            :func:`~scor_lightning.callbacks.run_folder.run_folder`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[ClassReport()])
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._target: Path | None = None
        self._written: Path | None = None
        self._confusion: MulticlassConfusionMatrix | None = None
        self._worst: list[_Image] = []
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a picture of the class sizes."""
        model = _reported(pl_module)
        counts = None if model is None else model.description.class_counts
        if model is None or counts is None or not takes_images(trainer) or not trainer.is_global_zero:
            return
        from scor_lightning.figures import class_sizes_figure, render

        log_image(trainer, "train/class_sizes", render(class_sizes_figure(counts, model.class_names, _shots(model))))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts."""
        self._target = None
        model = _reported(pl_module)
        if state_of(trainer).fast_dev_run or model is None:
            return
        self._target = self.folder
        if self._target is None:
            place = run_folder(trainer)
            self._target = (place / SECOND_STAGE if stage_of(pl_module) == 2 else place) / "test"
        self._confusion = None
        if model.num_classes <= MAX_CONFUSION:
            self._confusion = MulticlassConfusionMatrix(model.num_classes, validate_args=False).to(pl_module.device)
        self._worst, self._seen = [], 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the confusion matrix, and keep the images with the lowest probability of their class."""
        if self._target is None:
            return
        images, target = batch[0], outputs.get("target", batch[1])
        logits: Tensor = outputs["logits"]
        if self._confusion is not None:
            self._confusion.update(logits, target)
        if images.ndim != 4 and trainer.world_size > 1:
            return  # features have no images
        probability = logits.softmax(-1, dtype=torch.float32).gather(1, target[:, None]).squeeze(1)
        worst = probability.topk(min(WORST_IMAGES, len(target)), largest=False).indices
        columns = (probability[worst], target[worst], logits[worst].argmax(-1))
        pixels = images[worst].cpu() if images.ndim == 4 else [None] * len(worst)
        positions = (self._seen + worst).tolist()
        rows = zip(*(column.tolist() for column in columns), pixels, positions, strict=True)
        self._worst = _worst([*self._worst, *(_Image(*row) for row in rows)])
        self._seen += len(target)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files and log the pictures."""
        if self._target is None or "test/accuracy" not in trainer.callback_metrics:
            return
        confusion = self._confusion.compute().cpu() if self._confusion is not None else None
        parts: list[Any] = [self._worst]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._worst)
        self._confusion, self._worst = None, []
        if trainer.is_global_zero:
            model = as_classifier(pl_module)
            assert model is not None  # there is a target
            self._write(trainer, model, self._target, confusion, _worst([image for part in parts for image in part]))

    @rank_zero_only
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table, below the progress bar, which has ended by then."""
        split = {"test": "test", "validate": "val"}.get(stage)
        model = as_classifier(pl_module)
        if model is not None and f"{split}/accuracy" in trainer.callback_metrics:  # absent if the run was stopped
            print(self.table(str(split), trainer, model), flush=True)
            if split == "test" and self._written is not None:
                here = self._written.is_relative_to(Path.cwd())
                print(f"Files: {self._written.relative_to(Path.cwd()) if here else self._written}", flush=True)

    def _write(
        self,
        trainer: Trainer,
        model: Classifier,
        folder: Path,
        confusion: Tensor | None,
        worst: list[_Image],
    ) -> None:
        from scor_lightning.figures import class_sizes_figure, confusion_figure, render, save_image, worst_images_figure

        names, sizes = model.class_names, model.description.class_counts
        results = {name: values.cpu() for name, values in model.class_results["test"].items()}
        rows = [
            {
                "class": name,
                "training_images": None if sizes is None else sizes[c],
                "test_images": int(results["support"][c]),
                "recall": float(results["recall"][c]) if results["support"][c] else None,
                "precision": float(results["precision"][c]),
                "f1": float(results["f1"][c]),
            }
            for c, name in enumerate(names)
        ]
        scalars = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics = {name: value for name, value in scalars.items() if isfinite(value) and "/recall/" not in name}
        checkpoint = None if trainer.ckpt_path is None else os.path.relpath(str(trainer.ckpt_path))
        tested = {"checkpoint": checkpoint, "data": _describe_test_data(trainer, int(results["support"].sum()))}
        folder = next(place for place in numbered(folder) if not place.exists() or _is_report_of(place, tested))
        folder.mkdir(parents=True, exist_ok=True)
        self._written = folder
        report = {"loss": describe_loss(model.loss), **tested, "metrics": metrics, "classes": rows}
        write_whole(folder / "metrics.json", json.dumps(six_digits(report), indent=1, allow_nan=False))
        write_whole(folder / "classes.csv", csv_text([list(rows[0]), *(row.values() for row in rows)]))
        title = f"{describe_loss(model.loss)}\nbalanced accuracy {metrics['test/balanced_accuracy']:.4f} (test)"
        figures: dict[str, Figure] = {}
        if sizes is not None:
            recalls = results["recall"].where(results["support"] > 0, torch.nan).tolist()
            figures["recall_by_class"] = class_sizes_figure(sizes, names, _shots(model), recalls, title)
        if confusion is not None:
            matrix = confusion.tolist()
            header = ["true class", *names]
            lines = ([name, *row] for name, row in zip(names, matrix, strict=True))
            write_whole(folder / "confusion_matrix.csv", csv_text([header, *lines]))
            figures["confusion_matrix"] = confusion_figure(confusion, names, sizes, title)
        data = state_of(trainer).datamodule
        pictures = [image.pixels for image in worst if image.pixels is not None]
        if worst and not pictures and isinstance(data, ImageDataModule):
            pictures = list(data.pictures("test", [image.position for image in worst]))
        if pictures:
            figures["worst_images"] = worst_images_figure(
                pictures,
                [names[image.target] for image in worst],
                [names[image.predicted] for image in worst],
                [image.probability for image in worst],
                "Worst test images: true class → predicted,\nprobability of the true class",
            )
        for name, figure in figures.items():
            pixels = render(figure)
            save_image(pixels, folder / f"{name}.png")
            log_image(trainer, f"test/{name}", pixels)
        log_files(trainer, folder)

    def _groups(self, split: str, results: dict[str, float], model: Classifier) -> list[str]:
        """Return one line per group of classes that does not contain all of them."""
        if model.description.class_counts is None:
            return []
        few, many = model.shot_thresholds
        about = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
        thirds = class_thirds(torch.tensor(model.description.class_counts))
        lines = []
        shots = _shots(model)
        told = {} if any(members.all() for members in shots.values()) else shots
        for group, members in {**told, **thirds, "reduced": model.class_groups.get("reduced")}.items():
            tag = f"{split}/accuracy_{group}"
            if members is not None and not members.any() and group in about:
                lines.append(f"{_TITLES[group]:<17}  -       (no class of {about[group]} training images)")
            elif tag in results and members is not None and not members.all():  # that of all classes is above
                count = f"{int(members.sum())} of {model.num_classes} classes"
                training = f"; {about[group]} training images" if group in about else ""
                lines.append(f"{_TITLES[group]:<17}  {results[tag]:.4f}  ({count}{training})")
        return lines

    def table(self, split: str, trainer: Trainer, model: Classifier) -> str:
        """Format the results of the last evaluation of a split."""
        results = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = {name: f"{value:.4f}" for name, value in results.items()}
        names, counts = model.class_names, model.description.class_counts  # of the training data
        images = ["?"] * len(names) if counts is None else [f"{count:,}" for count in counts]
        recalls: list[float] = model.class_results[split]["recall"].tolist()
        support = [int(n) for n in model.class_results[split]["support"].tolist()]
        rows = [row for row in zip(names, images, recalls, support, strict=True) if row[3]]
        heading = "class"
        if len(rows) > MAX_CLASSES:
            heading = f"class (the {MAX_CLASSES} lowest recalls of {len(rows)})"
            rows = sorted(rows, key=lambda row: row[2])[:MAX_CLASSES]
        width = max(len(heading), *(len(row[0]) for row in rows))
        lines = [
            "",
            _evaluated(split, sum(support), trainer),
            *([] if (stage := stage_of(trainer.lightning_module)) is None else [f"stage              {stage} of 2"]),
            f"loss               {describe_loss(model.loss)}",
            *(f"{name:<17}  {value:g}" for name, value in model.fitted.items()),
            *(f"{title:<18} {shown.get(f'{split}/{name}', '-')}" for name, title in _MEASURES.items()),
        ]
        lines += self._groups(split, results, model)
        few = any(n < FEW_IMAGES for *_, n in rows)
        evaluated = f"{_SETS[split]} images"
        lines += ["", f"{heading:<{width}}  training images  {evaluated}  recall{'  95 % interval' if few else ''}"]
        for name, size, recall, n in rows:
            interval = f"  [{', '.join(f'{end:.3f}' for end in _interval(recall, n))}]" if n < FEW_IMAGES else ""
            lines.append(f"{name:<{width}}  {size:>15}  {n:>{len(evaluated)},}  {recall:6.4f}{interval}")
        return "\n".join([*lines, ""])


def _reported(pl_module: LightningModule) -> Classifier | None:
    """Return the module as a classifier; warn if it is not one."""
    model = as_classifier(pl_module)
    if model is None:
        rank_zero_warn(f"ClassReport requires an ImageClassifier and does not report {type(pl_module).__name__}.")
    return model


def _evaluated(split: str, images: int, trainer: Trainer) -> str:
    """Return the line that describes what was evaluated: the set, and the checkpoint with its epoch."""
    path, evaluated = trainer.ckpt_path, f"{_SETS[split].capitalize()} set: {images:,} images"
    if path is None or not Path(path).is_file():
        return f"{evaluated}; the weights in memory"
    return f"{evaluated}; {os.path.relpath(path)}, epoch {read_epoch(path)}"


def _interval(recall: float, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a recall for other images of the class."""
    from scipy.stats import binomtest

    interval = binomtest(round(recall * images), images).proportion_ci(method="wilson")
    return interval.low, interval.high


def _shots(model: Classifier) -> dict[str, Tensor]:
    return {name: members for name, members in model.class_groups.items() if name != "reduced"}


def _describe_test_data(trainer: Trainer, images: int) -> str:
    data = state_of(trainer).datamodule
    if data is None:
        return f"{images} images of a loader"
    described = f"{images} images of {type(data).__name__}"
    if not isinstance(data, ImageDataModule):
        return described
    irrelevant = ("batch_size", "num_workers", "download", "train_transforms", *_SAMPLING)
    options = {name: repr(vars(data).get(name)) for name in data.arguments() if name not in irrelevant}
    return f"{described} (data seed {data.seed}; options {zlib.crc32(json.dumps(options).encode()):08x})"


_SAMPLING = ("sampling", "sampling_start", "partner_sampling")


def _is_report_of(folder: Path, tested: dict[str, Any]) -> bool:
    """Return whether a folder holds an earlier report of the same checkpoint on the same data."""
    try:
        report = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return False
    return tested["checkpoint"] is not None and all(report.get(name) == value for name, value in tested.items())


def _worst(images: list[_Image]) -> list[_Image]:
    return sorted(images, key=lambda image: image.probability)[:WORST_IMAGES]
