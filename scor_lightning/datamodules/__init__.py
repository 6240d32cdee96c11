"""Imbalanced image data sets as LightningDataModules."""

from scor_lightning.datamodules.base import ImageDataModule
from scor_lightning.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from scor_lightning.datamodules.class_balanced_sampler import ClassBalancedSampler
from scor_lightning.datamodules.decode import ImageFiles, read_image
from scor_lightning.datamodules.digits import DigitsDataModule
from scor_lightning.datamodules.dtd import DTDDataModule
from scor_lightning.datamodules.flowers102 import Flowers102DataModule
from scor_lightning.datamodules.image_folder import ImageFolderDataModule
from scor_lightning.datamodules.imagenet import ImageNetDataModule
from scor_lightning.datamodules.images import Images, ImagesInMemory
from scor_lightning.datamodules.imbalance import ClassCounts, Imbalance, LongTail, ReduceClasses, Step
from scor_lightning.datamodules.lfw import LFWDataModule
from scor_lightning.datamodules.mnist import FashionMNISTDataModule, MNISTDataModule
from scor_lightning.datamodules.oxford_pets import OxfordPetsDataModule
from scor_lightning.datamodules.sampler import BatchSampler, Draws, ResumableDataLoader
from scor_lightning.datamodules.stl10 import STL10DataModule
from scor_lightning.datamodules.subset import ImbalancedSubset, imbalanced
from scor_lightning.datamodules.torchvision import TorchvisionDataModule
from scor_lightning.datamodules.transforms import BatchTransform, RandomCropAndFlip

__all__ = [
    "BatchSampler",
    "BatchTransform",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "ClassBalancedSampler",
    "ClassCounts",
    "DTDDataModule",
    "DigitsDataModule",
    "Draws",
    "FashionMNISTDataModule",
    "Flowers102DataModule",
    "ImageDataModule",
    "ImageFiles",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "Images",
    "ImagesInMemory",
    "Imbalance",
    "ImbalancedSubset",
    "LFWDataModule",
    "LongTail",
    "MNISTDataModule",
    "OxfordPetsDataModule",
    "RandomCropAndFlip",
    "ReduceClasses",
    "ResumableDataLoader",
    "STL10DataModule",
    "Step",
    "TorchvisionDataModule",
    "imbalanced",
    "read_image",
]
