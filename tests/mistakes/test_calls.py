"""Every mistake in a call raises a ValueError that names the argument, before any work is done."""

import pytest
import torch
from torch import nn

import scor_lightning
from scor_lightning import ImageClassifier, callbacks, datamodules, losses, mixing, models
from scor_lightning.comparison import Training, compare
from scor_lightning.functional import scor, spectral
from scor_lightning.metrics import class_groups
from scor_lightning.prediction import predict_images
from scor_lightning.schedules import CosineLR

NAN = float("nan")


def digits(**options):
    return datamodules.DigitsDataModule(**options)


def images(**options):
    return datamodules.ImageFolderDataModule("photographs", **options)


def training(**options):
    given = {"data": digits(), "backbone": models.MLP, "loss": nn.CrossEntropyLoss} | options
    return Training(**given)


def comparison(**options):
    methods = options.pop("methods", {"cross_entropy": {}, "scor": {"loss": losses.SCoRLoss}})
    return compare(training(**options.pop("training", {})), methods, **options)


def classifier(**options):
    given = {"backbone": models.MLP(10), "loss": nn.CrossEntropyLoss()} | options
    return ImageClassifier(**given)


def fitted(**options):
    classifier(**options).configure_optimizers()


# The call, and what the message has to name.
MISTAKES = {
    # losses and their functions
    "losses.SCoRLoss(alpha=-1)": "`alpha`",
    "losses.SCoRLoss(alpha=NAN)": "`alpha`",
    "losses.SCoRLoss(base=nn.Linear)": "`base`",
    "losses.FocalLoss(gamma=-1)": "`gamma`",
    "losses.FocalLoss()(torch.zeros(8, 3), torch.zeros(4, dtype=torch.int64))": "`target`",
    "losses.FocalLoss()(torch.zeros(8), torch.zeros(8, dtype=torch.int64))": "`logits`",
    "losses.FocalLoss()(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))": "`logits`",
    "losses.LDAMLoss(max_margin=-1)": "`max_margin`",
    "losses.LDAMLoss(class_counts=[1, -2])": "class_counts",
    "losses.LDAMLoss(class_counts=[])": "class_counts",
    "losses.LDAMLoss(class_counts=[3.5, NAN])": "class_counts",
    "losses.BalancedSoftmaxLoss(class_counts=[1, 2])(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))": "class",
    "losses.BalancedSoftmaxLoss()(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))": "class_counts",
    "losses.LogitAdjustmentLoss(tau=-1)": "`tau`",
    "losses.VSLoss(gamma=-1)": "`gamma`",
    "losses.OPLLoss(gamma=-1)": "`gamma`",
    "losses.OPLLoss()(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))": "features",
    "losses.ClassBalancedLoss(beta=-1)": "`beta`",
    "scor_lightning.class_weights([])": "class_counts",
    "scor_lightning.class_weights([1, -1])": "class_counts",
    "scor_lightning.effective_number_weights([1, 2], beta=2)": "`beta`",
    "scor.scor_penalty(torch.zeros(4))": "`logits`",
    # mixing
    "mixing.Mixup(alpha=0)": "`alpha`",
    "mixing.Mixup(alpha=NAN)": "`alpha`",
    "mixing.CutMix(alpha=-1)": "`alpha`",
    "mixing.Remix(kappa=-1)": "`kappa`",
    "mixing.Remix(tau=-1)": "`tau`",
    # data
    "digits(batch_size=0)": "`batch_size`",
    "digits(val_fraction=1)": "`val_fraction`",
    "digits(val_fraction=NAN)": "`val_fraction`",
    "digits(evaluation='both')": "`evaluation`",
    "digits(sampling='often')": "`sampling`",
    "digits(sampling_start=1)": "`sampling_start`",
    "digits(partner_sampling='often')": "`partner_sampling`",
    "digits(seed=-1)": "`seed`",
    "digits(num_workers=-1)": "`num_workers`",
    "digits(resolution=0)": "`resolution`",
    "digits(mean=(0.5,))": "`std`",
    "digits(mean=(0.5, 0.5), std=(1, 1))": "`mean`",
    "digits(mean=(NAN,), std=(1,))": "`mean`",
    "digits(mean=(0.5,), std=(0,))": "`std`",
    "digits(augment=False, train_transforms=[])": "`train_transforms`",
    "digits(imbalance=datamodules.ReduceClasses(0.5, [12])).setup()": "`classes`",
    "digits(imbalance=datamodules.ReduceClasses(0.5, ['ten'])).setup()": "`classes`",
    "digits(imbalance=datamodules.ClassCounts([5, 5])).setup()": "counts",
    "digits(imbalance=datamodules.ReduceClasses(0.001)).setup()": "`imbalance`",
    "datamodules.ReduceClasses(0)": "`factor`",
    "datamodules.ReduceClasses(NAN)": "`factor`",
    "datamodules.ReduceClasses(0.5, [])": "`classes`",
    "datamodules.ReduceClasses(0.5, [1, 1])": "`classes`",
    "datamodules.ReduceClasses(0.5, [True])": "`classes`",
    "datamodules.LongTail(0.5)": "`ratio`",
    "datamodules.LongTail(NAN)": "`ratio`",
    "datamodules.LongTail(float('inf'))": "`ratio`",
    "datamodules.Step(0)": "`ratio`",
    "datamodules.ClassCounts([])": "`sizes`",
    "datamodules.ClassCounts([-1, 2])": "`sizes`",
    "images(unreadable='maybe')": "`unreadable`",
    "images(val_list='a.txt')": "`train_list`",
    "images(class_list='a.txt')": "`train_list`",
    "scor_lightning.ClassBalancedSampler([])": "target",
    "scor_lightning.imbalanced([(torch.zeros(1), -1)], datamodules.LongTail(10))": "target",
    # networks
    "models.MLP(0)": "`num_classes`",
    "models.MLP(10, hidden=[])": "`hidden`",
    "models.MLP(10, hidden=[0])": "`hidden`",
    "models.MLP(10, in_channels=0)": "`in_channels`",
    "models.MLP(10, image_size=(0, 3))": "`image_size`",
    "models.CifarResNet(10, depth=33)": "`depth`",
    "models.CifarResNet(0)": "`num_classes`",
    "models.ConvNet(0)": "`num_classes`",
    "models.TorchvisionBackbone(0, arch='resnet18')": "`num_classes`",
    "models.TorchvisionBackbone(10, arch='resnet1')": "resnet1",
    "models.TimmBackbone(10, arch='resnet1')": "resnet1",
    "models.CosineLinear(4, 0)": "`out_features`",
    "models.CosineLinear(4, 3, scale=-1)": "`scale`",
    "models.ETFHead(2, 5)": "features",
    # the classifier
    "classifier(backbone=models.MLP)": "`backbone`",
    "classifier(backbone=None)": "`backbone`",
    "classifier(loss=nn.CrossEntropyLoss)": "`loss`",
    "classifier(loss=None)": "`loss`",
    "classifier(num_classes=3)": "`num_classes`",
    "classifier(num_classes=0)": "`num_classes`",
    "classifier(shot_thresholds=(100, 20))": "`shot_thresholds`",
    "classifier(sam_rho=-1)": "`sam_rho`",
    "classifier(sam_rho=NAN)": "`sam_rho`",
    "classifier(body_lr_factor=0)": "`body_lr_factor`",
    "classifier(body_lr_factor=NAN)": "`body_lr_factor`",
    "classifier(lr_warmup=-1)": "`lr_warmup`",
    "classifier(lr_interval='week')": "`lr_interval`",
    "classifier(class_names=['a'])": "`class_names`",
    "classifier(class_counts=[1, 2])": "`class_counts`",
    "classifier(class_counts=[-1] * 10)": "class_counts",
    "classifier(backbone=nn.Linear(3, 10))": "num_classes",
    "classifier(loss=losses.OPLLoss(), backbone=nn.Linear(3, 10), num_classes=10)": "forward_features",
    "classifier(loss=losses.LDAMLoss())": "CosineLinear",
    "classifier(regularizer=losses.FocalLoss)": "`regularizer`",
    "fitted(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=-1))": "`optimizer`",
    "fitted(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1))": "`lr_scheduler`",
    "CosineLR(torch.optim.SGD([torch.zeros(1)], lr=1), final_share=2)": "final_share",
    # callbacks
    "callbacks.WeightSpectrum(every_n_epochs=0)": "`every_n_epochs`",
    "callbacks.WeightSpectrum(tolerance='none')": "`tolerance`",
    "callbacks.BestCheckpoint(every_n_epochs=0)": "`every_n_epochs`",
    "callbacks.BestCheckpoint(save_last=True)": "save_last",
    "callbacks.TauNormalization(tau=-1)": "`tau`",
    "callbacks.TauNormalization(tau=NAN)": "`tau`",
    "callbacks.DeferredReweighting(start=2)": "`start`",
    # spectra, metrics, predictions
    "spectral.singular_values(torch.zeros(3))": "matrix",
    "spectral.circular_singular_values(torch.zeros(3, 3), (8, 8))": "kernels",
    "spectral.numerical_rank(torch.ones(3), (3, 3), tolerance='none')": "`tolerance`",
    "scor_lightning.weight_spectrum(models.MLP(10), layers='nothing')": "nothing",
    "class_groups(torch.tensor([5, 6]), (9, 3))": "thresholds",
    "predict_images('nope.ckpt', 'photographs', batch_size=0)": "`batch_size`",
    "predict_images('nope.ckpt', 'photographs')": "nope.ckpt",
    # comparisons
    "training(epochs=0)": "max_epochs",
    "training(seed=-1)": "seed_everything",
    "training(data=digits(split_file='a.json'))": "`split_file`",
    "comparison(methods={'cross_entropy': {}})": "methods",
    "comparison(methods={'a': {}, 'b': {'los': None}})": "los",
    "comparison(methods={'a': {}, 'b': {'loss': nn.MSELoss}})": "MSELoss",
    "comparison(repeats=0)": "--repeats",
    "comparison(processes=0)": "--processes",
    "comparison(engine='fast')": "--engine",
    "comparison(baseline='nobody')": "--baseline",
    "comparison(measure='luck')": "--measure",
    "comparison(margin=-1)": "--margin",
    "comparison(margin=NAN)": "--margin",
    "comparison(tune={'scor': {'alpha': [1]}})": "`tune`",
    "comparison(training={'optimizer': lambda parameters: torch.optim.SGD(parameters, lr=-1)})": "`optimizer`",
}


NAMES = {
    each.__name__.rpartition(".")[2]: each
    for each in (
        *(callbacks, datamodules, losses, mixing, models, nn, scor, scor_lightning, spectral, torch),
        *(classifier, comparison, digits, fitted, images, training, class_groups, predict_images, CosineLR),
    )
} | {"NAN": NAN}


@pytest.mark.parametrize("call", MISTAKES)
def test_a_mistake_in_a_call_is_named(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        eval(call, NAMES)
    said = str(raised.value)
    assert MISTAKES[call] in said, said
    assert len(said) < 260, said
    assert not list(tmp_path.iterdir())
