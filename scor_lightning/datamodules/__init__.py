"""Imbalanced image data sets as LightningDataModules."""

from scor_lightning.datamodules.base import ImageDataModule, ImagesInMemory
from scor_lightning.datamodules.digits import DigitsDataModule
from scor_lightning.datamodules.imbalance import ClassCounts, Imbalance, LongTail, ReduceClasses, Step
from scor_lightning.datamodules.mnist import MNISTDataModule
from scor_lightning.datamodules.sampler import BatchSampler, ResumableDataLoader

__all__ = [
    "BatchSampler",
    "ClassCounts",
    "DigitsDataModule",
    "ImageDataModule",
    "ImagesInMemory",
    "Imbalance",
    "LongTail",
    "MNISTDataModule",
    "ReduceClasses",
    "ResumableDataLoader",
    "Step",
]
