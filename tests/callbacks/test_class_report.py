import re

import torch
from lightning.pytorch import Trainer
from torch import nn

from scor_lightning import ImageClassifier
from scor_lightning.callbacks import ClassReport
from scor_lightning.datamodules import ImageDataModule, ImagesInMemory, LongTail
from scor_lightning.models import MLP


class Stripes(ImageDataModule):
    """Class c has its one bright pixel at c."""

    num_classes = 12
    class_names = tuple(f"stripe {c}" for c in range(12))
    in_channels = 1
    native_size = (1, 12)
    mean = (0.0,)
    std = (1.0,)

    def load(self, split):
        if split == "val":
            return None
        targets = torch.arange(12).repeat(50)
        return ImagesInMemory(nn.functional.one_hot(targets, 12).to(torch.uint8).mul(255).view(-1, 1, 1, 12), targets)


def test_of_many_classes_the_ten_worst_are_shown(capsys):
    model = ImageClassifier(MLP(num_classes=12, image_size=(1, 12)), nn.CrossEntropyLoss())
    with torch.no_grad():  # knows every class but the classes 3 and 7, which it takes for 0
        model.backbone.body[1].weight.zero_()[:12].fill_diagonal_(1)
        model.backbone.body[1].bias.zero_()
        model.backbone.head.weight.zero_()[:, :12].fill_diagonal_(1)
        model.backbone.head.bias.zero_()
        for missed in (3, 7):
            model.backbone.head.weight[missed, missed] = -1
            model.backbone.head.weight[0, missed] = 1
    trainer = Trainer(logger=False, callbacks=ClassReport(), enable_progress_bar=False, accelerator="cpu")
    trainer.test(model, Stripes(imbalance=LongTail(5)), verbose=False)
    out = capsys.readouterr().out
    assert "class (the 10 lowest recalls of 12)  training images  recall" in out
    rows = re.findall(r"^(stripe \d+) +(\d+)  ([01]\.\d{4})$", out, re.MULTILINE)
    assert len(rows) == 10
    assert [row[::2] for row in rows[:2]] == [("stripe 3", "0.0000"), ("stripe 7", "0.0000")]
    assert all(recall == "1.0000" for *_, recall in rows[2:])
    assert rows[0][1] == str(int(45 * 5 ** (-3 / 11)))
    assert "accuracy           0.8333" in out
