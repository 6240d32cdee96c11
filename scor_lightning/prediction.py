"""Prediction for a folder of images."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from scor_lightning.callbacks import PredictionWriter
from scor_lightning.callbacks.prediction_writer import is_table_of_predictions
from scor_lightning.checkpoint import read_run_checkpoint
from scor_lightning.classifier import ImageClassifier
from scor_lightning.datamodules.decode import image_suffixes, read_image
from scor_lightning.datamodules.transforms import build_transform
from scor_lightning.files import check_replaceable


def find_images(place: str | os.PathLike[str]) -> list[Path]:
    """List the images below a folder, by file extension, sorted by path; or the one file given.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If there is no image in it.
    """
    root = Path(place)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"Expected `--images` to name a folder or an image but there is no {str(place)!r}")
    found = [path for path in root.rglob("*") if path.suffix.lower() in image_suffixes() and path.is_file()]
    found = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
    if not found:
        raise ValueError(
            f"Expected images below {str(place)!r} but found none, of no format such as .jpg, .png, .tif, .gif or .webp"
        )
    return found


def predict_images(
    ckpt_path: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    accelerator: str = "auto",
    overwrite: bool = False,
    trust_code: bool = False,
    all_classes: bool = False,
) -> Path:
    """Predict the classes of images from files, with the preprocessing and the class names of the checkpoint.

    Args:
        ckpt_path: Checkpoint of a run of ``scor-fit``.
        images: A folder, with those below it, or one image.
        output: CSV file to write, one row per image: file, predicted class, its probability, and the second to fifth class
            with their probabilities; the other cells of an unreadable image are empty. None writes a file beside the checkpoint,
            named after the images.
        batch_size: Images per batch.
        num_workers: Processes that read images; None uses the free cores.
        accelerator: As of Lightning's ``Trainer``.
        overwrite: Whether ``output`` may replace a file that is not an earlier output; the checkpoint and the images are
            never replaced.
        trust_code: Whether the checkpoint may name classes of any package, see
            :meth:`~scor_lightning.ImageClassifier.load_from_checkpoint`.
        all_classes: Whether to add the probability of each class.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: If the checkpoint or the images do not exist.
        ValueError: If the checkpoint lacks its preprocessing, or an image has another size after it; no file is written
            then.
    """
    if batch_size < 1:
        raise ValueError(f"Expected `batch_size` >= 1 but got {batch_size}")
    read_run_checkpoint(ckpt_path)
    files = find_images(images)
    name = Path(images).resolve().name
    path = Path(output) if output is not None else Path(ckpt_path).with_suffix(f".{name}.csv")
    check_replaceable(path, "--output", is_table_of_predictions, [ckpt_path, *files], overwrite)
    model = ImageClassifier.load_from_checkpoint(ckpt_path, map_location="cpu", trust_code=trust_code)
    prepared = _prepared(files, model, repr(str(ckpt_path)))
    if num_workers is None:
        num_workers = suggested_max_num_workers(1) if len(files) > batch_size else 0
    loader = DataLoader(prepared, batch_size=batch_size, num_workers=num_workers, pin_memory=torch.cuda.is_available())
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(path, [str(file) for file in files], all_classes)],
    )
    trainer.predict(model, loader, return_predictions=False)
    return path


def prepare_images(files: Sequence[str | os.PathLike[str]], model: ImageClassifier) -> Tensor:
    """Read image files and prepare them for a classifier as ``scor-predict`` does.

    Args:
        files: Paths of the images.
        model: A classifier from a checkpoint of ``scor-fit``.

    Returns:
        uint8 ``[B, C, H, W]``, the input of the classifier and of its ONNX model.

    Raises:
        ValueError: If there are no files, an image cannot be read, or the classifier lacks its preprocessing.

    Example:
        .. code-block:: python

            model = ImageClassifier.load_from_checkpoint("best.ckpt").eval()
            probabilities = model(prepare_images(["photo.jpg"], model)).softmax(1)
    """
    if isinstance(files, str | os.PathLike) or not files:
        raise ValueError(f"Expected `files` to be a list of at least one path but got {files!r}")
    prepared = _prepared([Path(file) for file in files], model, "this classifier")
    return torch.stack([prepared.read(index) for index in range(len(prepared))])


def _prepared(files: Sequence[Path], model: ImageClassifier, name: str) -> "_PreparedImages":
    data = model.description
    if data.eval_transform is None or data.image_size is None:
        raise ValueError(
            f"Expected a checkpoint that knows how to prepare images but {name} does not: it was trained on loaders, or "
            "with `eval_transforms` that are not torchvision's"
        )
    return _PreparedImages(files, build_transform(data.eval_transform), len(model.normalize.mean), data.image_size)


class _PreparedImages(Dataset[tuple[Tensor, bool]]):
    """Images, each with whether it could be read."""

    def __init__(
        self, files: Sequence[Path], transform: nn.Module | None, channels: int, size: tuple[int, int]
    ) -> None:
        self.files = files
        self.transform = transform
        self.channels = channels
        self.size = tuple(size)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        try:
            image = read_image(self.files[index])
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
            return torch.zeros(self.channels, *self.size, dtype=torch.uint8), False
        return self._prepare(image, self.files[index]), True

    def read(self, index: int) -> Tensor:
        """Read and prepare an image."""
        return self._prepare(read_image(self.files[index]), self.files[index])

    def _prepare(self, image: Tensor, file: Path) -> Tensor:
        if self.channels == 1:  # Pillow's conversion of colours to gray, which keeps the value of three equal channels
            image = (image.long() * torch.tensor([299, 587, 114]).view(3, 1, 1)).sum(0, keepdim=True) // 1000
            image = image.to(torch.uint8)
        if self.transform is not None:
            image = self.transform(image)
        if tuple(image.shape[-2:]) != self.size:
            raise ValueError(
                f"Expected images of {self.size[0]} x {self.size[1]} pixels, as the network was trained on, but "
                f"{str(file)!r} has {image.shape[-2]} x {image.shape[-1]}"
            )
        return image

    def __len__(self) -> int:
        return len(self.files)
