import torch

from scor_lightning.seeding import Purpose, derived_generator


def draw(*key):
    return torch.randperm(100, generator=derived_generator(*key))


def test_streams_depend_on_purpose_and_key():
    keys = [(purpose, seed, epoch) for purpose in Purpose for seed in range(3) for epoch in range(3)]
    assert len({tuple(draw(*key).tolist()) for key in keys}) == len(keys)
    assert draw(Purpose.ORDER, 0, 1).equal(draw(Purpose.ORDER, 0, 1))


def test_streams_are_the_same_on_every_machine():
    assert draw(Purpose.ORDER, 7, 0)[:8].tolist() == [55, 95, 78, 96, 75, 77, 68, 47]
