import pytest
import torch
from torchvision.transforms import v2

from scor_lightning.datamodules import RandomCropAndFlip
from scor_lightning.datamodules.transforms import (
    apply_transform,
    build_transform,
    compose,
    describe_transform,
    paper_augmentation,
)


def images(count: int = 1, size: tuple[int, int] = (6, 5)) -> torch.Tensor:
    return torch.randint(1, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_crop_and_flip_draws_every_window_and_mirror_image_equally_often():
    (image,) = images(1, (2, 2))
    seeds = torch.randint(2**62, (18_000,), generator=torch.Generator().manual_seed(1))
    results = RandomCropAndFlip(padding=1).augment(image.expand(18_000, 3, 2, 2), seeds)
    padded = v2.functional.pad(image, [1])
    windows = [v2.functional.crop(padded, top, left, 2, 2) for top in range(3) for left in range(3)]
    expected = [*windows, *(window.flip(-1) for window in windows)]
    counts = [int((results == window).flatten(1).all(1).sum()) for window in expected]
    # the corner windows of the image and of its mirror have no two alike: 18 outcomes of 1,000 draws each
    assert sum(counts) == 18_000
    assert all(850 < count < 1150 for count in counts)


def test_crop_and_flip_is_a_pure_function_of_each_image_and_seed():
    batch, seeds = images(7), torch.arange(7) * 2**40 + 12345
    transform = RandomCropAndFlip(padding=2)
    whole = transform.augment(batch, seeds)
    assert whole.shape == batch.shape
    assert torch.cat([transform.augment(batch[i : i + 1], seeds[i : i + 1]) for i in range(7)]).equal(whole)
    with pytest.raises(ValueError, match="Expected `padding` >= 0 but got -1"):
        RandomCropAndFlip(padding=-1)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    "transform",
    [
        compose(paper_augmentation((8, 8))),
        RandomCropAndFlip(padding=2),
        compose([v2.Resize((9, 9)), RandomCropAndFlip()]),
    ],
    ids=["photographs", "batch", "mixed"],
)
def test_an_image_sees_the_random_numbers_of_its_seed_alone(transform, as_list):
    batch, seeds = images(4), torch.tensor([5, 6, 5, 7])
    given = list(batch) if as_list else batch
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = apply_transform(transform, given, seeds)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(1)
    assert apply_transform(transform, given, seeds).equal(first)
    order = [3, 1, 0, 2]
    again = apply_transform(transform, [given[i] for i in order] if as_list else given[order], seeds[order])
    assert again.equal(first[order])
    same = apply_transform(transform, [batch[0]] * 4 if as_list else batch[:1].expand(4, -1, -1, -1), seeds)
    assert same[0].equal(same[2])
    assert not same[0].equal(same[1])


def test_a_deterministic_transform_treats_a_batch_as_it_treats_each_image():
    batch = images(3)
    resize = v2.Resize((4, 4))
    assert apply_transform(resize, batch, None).equal(apply_transform(resize, list(batch), None))
    assert apply_transform(None, list(batch), None).equal(batch)
    assert compose([]) is None


def test_transformed_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"images of one size but got \(3, 4, 6\) and \(3, 6, 4\)"):
        apply_transform(v2.Resize(4), [torch.zeros(3, 8, 12), torch.zeros(3, 12, 8)], None)


@pytest.mark.parametrize(
    "transform",
    [
        None,
        v2.Resize((7, 8)),
        v2.Resize(7, interpolation=v2.InterpolationMode.NEAREST, max_size=20),
        v2.Compose([v2.Resize(9), v2.CenterCrop(6), v2.Grayscale(3)]),
    ],
)
def test_preprocessing_is_rebuilt_from_its_description(transform):
    built = build_transform(describe_transform(transform))
    image = images(1, (12, 17))[0]
    assert apply_transform(built, [image], None).equal(apply_transform(transform, [image], None))


def test_what_cannot_be_written_down_is_said_to_be_so():
    assert describe_transform(v2.Lambda(lambda image: image)) is None
    assert describe_transform(torch.nn.Identity()) is None
    with pytest.raises(ValueError, match=r"transform of torchvision.transforms.v2 but got 'os.system'"):
        build_transform([{"class_path": "os.system", "init_args": {"command": "true"}}])
    with pytest.raises(ValueError, match=r"but got 'torchvision.transforms.v2.functional'"):
        build_transform([{"class_path": "torchvision.transforms.v2.functional", "init_args": {}}])
