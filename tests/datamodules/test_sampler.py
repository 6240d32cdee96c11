from itertools import chain

import pytest
import torch
from torch.utils.data import Dataset

from scor_lightning.datamodules import BatchSampler, ResumableDataLoader


class Echo(Dataset):
    """Returns the index that it is asked for."""

    def __getitem__(self, draws):
        return draws.positions, draws.seeds

    def __len__(self):
        return 50


def batches(sampler):
    return [draws.positions.tolist() for draws in sampler]


def seeds(sampler):
    return {i: seed for draws in sampler for i, seed in zip(*map(torch.Tensor.tolist, draws), strict=True)}


def test_an_epoch_yields_every_sample_once_in_an_order_of_seed_and_epoch():
    sampler = BatchSampler(10, 4, shuffle=True, seed=3)
    first = batches(sampler)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(chain(*first)) == list(range(10))
    assert batches(sampler) == first
    sampler.set_epoch(1)
    assert batches(sampler) != first
    other = BatchSampler(10, 4, shuffle=True, seed=4)
    assert batches(other) != first


def test_the_seed_of_a_sample_depends_on_seed_epoch_and_index_alone():
    def drawn(batch_size, epoch=2, seed=3, **kwargs):
        sampler = BatchSampler(12, batch_size, shuffle=True, seed=seed, **kwargs)
        sampler.set_epoch(epoch)
        return seeds(sampler)

    expected = drawn(4)
    assert len(set(expected.values())) == 12
    assert drawn(6) == expected
    assert drawn(4, num_replicas=2, rank=0) | drawn(4, num_replicas=2, rank=1) == expected
    assert not set(drawn(4, epoch=3).values()) & set(expected.values())
    assert not set(drawn(4, seed=4).values()) & set(expected.values())


def test_a_sample_that_is_drawn_twice_has_two_seeds():
    sampler = BatchSampler(6, 6, shuffle=True, seed=0, weights=torch.tensor([1.0, 0, 0, 0, 0, 0]))
    (draws,) = sampler
    assert draws.positions.tolist() == [0] * 6
    assert len(set(draws.seeds.tolist())) == 6


def test_weighted_draws_shard_and_resume_like_a_permutation():
    weights = torch.tensor([0.0, 1.0] * 8)
    whole = BatchSampler(16, 4, shuffle=True, seed=0, weights=weights)
    whole.set_epoch(5)
    expected = batches(whole)
    assert all(i % 2 for i in chain(*expected))
    shards = []
    for rank in range(2):
        part = BatchSampler(16, 4, shuffle=True, seed=0, weights=weights, num_replicas=2, rank=rank)
        part.set_epoch(5)
        part.offset = 1
        shards.append(batches(part))
    assert [list(chain(*parts)) for parts in zip(*shards, strict=True)] == expected[1:]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_batches_of_all_processes_together_are_those_of_one(processes):
    single = batches(BatchSampler(26, 8, shuffle=True, seed=0))
    shards = [
        batches(BatchSampler(26, 8, shuffle=True, seed=0, num_replicas=processes, rank=rank))
        for rank in range(processes)
    ]
    assert [list(chain(*parts)) for parts in zip(*shards, strict=True)] == single[
        :3
    ]  # the incomplete fourth is dropped


@pytest.mark.parametrize("size", [1, 9, 16])
def test_evaluation_assigns_every_sample_to_one_process(size):
    shards = [
        chain(*batches(BatchSampler(size, 8, shuffle=False, seed=0, num_replicas=4, rank=rank))) for rank in range(4)
    ]
    assert sorted(chain(*shards)) == list(range(size))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_resumes_where_another_stopped(num_workers):
    def loader():
        sampler = BatchSampler(50, 4, shuffle=True, seed=0)
        return ResumableDataLoader(Echo(), sampler, num_workers)

    whole = loader()
    whole.sampler.set_epoch(2)
    expected = [tuple(map(torch.Tensor.tolist, batch)) for batch in whole]

    stopped = loader()
    stopped.sampler.set_epoch(2)
    iterator = iter(stopped)
    given = [tuple(map(torch.Tensor.tolist, next(iterator))) for _ in range(5)]
    state = stopped.state_dict()
    assert state == {"epoch": 2, "given": 5}

    resumed = loader()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(2)  # as Lightning does at the start of the epoch
    assert given + [tuple(map(torch.Tensor.tolist, batch)) for batch in resumed] == expected
    assert resumed.state_dict() == {"epoch": 3, "given": 0}
    assert len(resumed) == 13
    resumed.sampler.set_epoch(3)
    whole.sampler.set_epoch(3)
    assert [batch[0].tolist() for batch in resumed] == [batch[0].tolist() for batch in whole]


def test_batch_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of their number 2 but got 5"):
        BatchSampler(10, 5, shuffle=True, seed=0, num_replicas=2)
    with pytest.raises(ValueError, match="at least `batch_size` = 8 samples but got 7"):
        BatchSampler(7, 8, shuffle=True, seed=0, num_replicas=2)


def test_weights_are_those_of_the_draws():
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 6.0, 0.0])
    sampler = BatchSampler(6, 6, shuffle=True, seed=0, weights=weights)
    counts = torch.zeros(6)
    for epoch in range(3000):
        sampler.set_epoch(epoch)
        counts += torch.bincount(sampler.order(), minlength=6)
    drawn, expected = counts / counts.sum(), weights / weights.sum()
    assert (drawn[weights == 0] == 0).all()
    error = (expected * (1 - expected) / 18000).sqrt()
    assert ((drawn - expected).abs() <= 4 * error).all()


def test_more_samples_than_multinomial_takes_can_be_weighted():
    size = 2**24 + 9
    weights = torch.zeros(size)
    weights[-3:] = 1
    order = BatchSampler(size, 256, shuffle=True, seed=0, weights=weights).order()
    assert len(order) == size
    counts = torch.bincount(order - (size - 3), minlength=3) / size
    assert (counts - 1 / 3).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("size", "batch_size", "lengths"),
    [(9, 4, [4, 5]), (5, 4, [5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
@pytest.mark.parametrize("weights", [False, True])
def test_a_last_sample_alone_joins_the_batch_before(size, batch_size, lengths, weights):
    weight = torch.ones(size) if weights else None
    sampler = BatchSampler(size, batch_size, shuffle=True, seed=0, weights=weight)
    assert [len(batch) for batch in batches(sampler)] == lengths
    assert len(sampler) == len(lengths)
    assert len(list(ResumableDataLoader(Echo(), sampler, num_workers=0))) == len(lengths)
    if not weights:
        assert sorted(chain(*batches(sampler))) == list(range(size))
    assert all(len(draws.positions) == len(draws.seeds) for draws in sampler)
    whole = batches(sampler)
    for sampler.offset in range(len(lengths) + 1):
        assert batches(sampler) == whole[sampler.offset :]
    ordered = BatchSampler(size, batch_size, shuffle=False, seed=0)
    assert sum(len(batch) for batch in batches(ordered)) == size
    assert max(len(batch) for batch in batches(ordered)) <= batch_size


@pytest.mark.parametrize("size", [8, 9, 11])
def test_processes_have_parts_of_one_size(size):
    parts = [BatchSampler(size, 4, shuffle=True, seed=0, num_replicas=2, rank=rank) for rank in range(2)]
    assert [[len(batch) for batch in batches(part)] for part in parts] == [[2, 2], [2, 2]]
    assert [len(part) for part in parts] == [2, 2]
