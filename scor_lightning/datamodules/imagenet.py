"""ImageNet and ImageNet-LT."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.datasets import FakeData
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from scor_lightning.datamodules.image_folder import ImageFolderDataModule
from scor_lightning.datamodules.images import Images
from scor_lightning.datamodules.split import SplitName


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet as it is unpacked: ``train`` and ``val`` with one subfolder per class; ``val`` is the test set.

    The validation set is split off the training data, so that nothing is selected on the test set. ImageNet-LT is the same
    folder with its published lists. Training images are randomly cropped and flipped, test images are resized to 256/224
    of the resolution and centre-cropped.
    `Russakovsky et al. 2015 <https://www.image-net.org>`_; `Liu et al. 2019 <https://arxiv.org/abs/1904.05160>`_.

    Args:
        root: Folder with ``train`` and ``val``.
        fake: Random images instead of files, as many as ImageNet has, to measure speed and try settings. They are
            torchvision's ``FakeData`` with cyclic classes, so that the counts are known without generating them.
        batch_size: Images per batch, the total over all processes.
        val_fraction: Share of the training data that becomes the validation set.
        **kwargs: Arguments of :class:`~scor_lightning.datamodules.ImageFolderDataModule`.

    Raises:
        FileNotFoundError: If ``train`` or ``val`` does not exist.
        ValueError: If they name different classes, or another argument is out of range.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        fake: bool = False,
        batch_size: int = 256,
        val_fraction: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, val_fraction=val_fraction, **kwargs)
        self.fake = fake

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the class folders."""
        if self.fake:
            return tuple(map(str, range(1000)))
        if not self.train_list and not (self._folder("train") and self._folder("val")):
            raise FileNotFoundError(
                f"Expected `train` and `val` with one subfolder per class in {self.root!r}, as "
                f"https://github.com/pytorch/examples/tree/main/imagenet unpacks ImageNet, but they are not there; name "
                f"their folder with `--data.root`, or try `--data.fake true`"
            )
        return super().class_names

    def load(self, split: SplitName) -> Images | None:  # type: ignore[override]
        """List the images of a split."""
        if self.fake:
            return {"train": _Fake(1_281_167), "val": None, "test": _Fake(50_000, first=1_281_167)}[split]
        if self.train_list:
            return super().load(split)
        return None if split == "val" else super().load("train" if split == "train" else "val")

    def default_train_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the random crop and flip."""
        return [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]

    def default_eval_transforms(self, size: tuple[int, int]) -> list[nn.Module]:
        """Return the resize and central crop."""
        return [v2.Resize(round(size[0] * 256 / 224)), v2.CenterCrop(size)]


class _Fake:
    """Random images of 224 x 224 pixels in 1,000 classes."""

    def __init__(self, size: int, first: int = 0) -> None:
        self.data = FakeData(size, (3, 224, 224), 1000, random_offset=first)
        self.targets = torch.arange(size) % 1000

    def __getitem__(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        return [pil_to_tensor(self.data[i][0]) for i in index.tolist()], self.targets[index]
