"""The average of DistributedDataParallel over real processes equals the result of one process with the whole batch."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scor_lightning.functional import scor_penalty
from scor_lightning.losses import FocalLoss, LDAMLoss, OPLLoss, SCoRLoss, WeightedCrossEntropyLoss

CLASSES = 5
SIZE = 24  # divides by 2 and by 3
LOSSES = {
    "scor": lambda: SCoRLoss(alpha=0.1),
    "scor_odd": lambda: SCoRLoss(alpha=0.1, odd_batch="self", reduction="mean"),
    "scor_over_opl": lambda: SCoRLoss(OPLLoss(), alpha=0.1),
    "opl": OPLLoss,
    "weighted_cross_entropy": WeightedCrossEntropyLoss,
    "scor_over_ldam_weighted": lambda: SCoRLoss(LDAMLoss(scale=1.0), alpha=0.1),
    "focal_sum": lambda: FocalLoss(reduction="sum"),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        features = self.body(x).tanh()
        return self.head(features), features


def make(name):
    torch.manual_seed(0)
    net, loss = Net().double(), LOSSES[name]()
    loss.set_class_counts(torch.tensor([50, 20, 10, 5, 1]))
    if name.endswith("weighted"):
        loss.set_class_weights(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    size = 27 if name == "scor_odd" else SIZE
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, size, 6, dtype=torch.float64, generator=generator)
    return net, loss, images, torch.randint(CLASSES, (3, size), generator=generator)


def steps(net, loss, batches):
    """Three steps of descent: values of the loss, and the last gradient."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    values = []
    for x, y in batches:
        logits, features = net(x)
        value = loss(logits, y, features)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return torch.stack(values), [p.grad for p in net.parameters()]


def on_rank(rank, world, folder, job, names):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.set_num_threads(1)
    try:
        torch.save({name: job(rank, world, name) for name in names}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_ranks(world, job, names):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (world, folder, job, names), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def train(rank, world, name):
    net, loss, images, target = make(name)
    if rank:  # only the first process's draws count
        torch.manual_seed(rank)
        if isinstance(loss, SCoRLoss):
            loss.generator.manual_seed(rank)
    return steps(DistributedDataParallel(net), loss, shards(images, target, rank, world))


def shards(images, target, rank, world):
    return [(x.chunk(world)[rank], y.chunk(world)[rank]) for x, y in zip(images, target, strict=True)]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.exhaustive
def test_equals_one_process_with_the_whole_batch(world):
    names = [name for name in LOSSES if world == 3 or name != "scor_odd"]
    results = on_ranks(world, train, names)
    for name in names:
        net, loss, images, target = make(name)
        values, gradients = steps(net, loss, zip(images, target, strict=True))
        torch.testing.assert_close(torch.stack([result[name][0] for result in results]).mean(0), values)
        for result in results:
            torch.testing.assert_close(result[name][1], gradients)


def alone(rank, world, name):
    """Return the penalty of each process's own batch, the same without communication, and the errors."""
    net, _, images, target = make(name)
    x, y = shards(images, target, rank, world)[0]
    logits = net(x)[0].detach()
    local = SCoRLoss(alpha=1.0, gather_distributed=False)
    permutation = torch.randperm(len(y), generator=local.generator.clone_state())
    penalties = local.terms(logits, y)["scor_penalty"], scor_penalty(logits, permutation=permutation)

    if rank == 0:  # evaluation does not communicate: this process has one batch more
        for loss in (SCoRLoss(), OPLLoss(), FocalLoss(reduction="sum")):
            loss.eval()(logits, y, logits)

    refusals = []
    for loss in (SCoRLoss(), OPLLoss()):
        loss(logits, y, logits)
    try:
        loss(logits[rank:], y[rank:], logits[rank:])
    except (ValueError, RuntimeError) as error:
        refusals.append(str(error))
    return penalties, refusals


def test_each_process_alone_and_batches_of_different_sizes():
    results = [result["scor"] for result in on_ranks(2, alone, ["scor"])]
    for (own, expected), _ in results:
        assert own == expected
    assert results[0][0] != results[1][0]
    message = "Expected batches of one size on all processes but got [12, 11]"
    assert results[1][1][0].startswith(message)
