import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from scor_lightning.datamodules import ImageFiles, read_image
from tests.data.photographs import photograph


@pytest.fixture
def colours() -> Image.Image:
    """A picture with a different colour in every corner, smooth enough for JPEG."""
    rows, columns = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([rows * 6, columns * 4, 255 - rows * 3 - columns * 2], axis=-1).astype(np.uint8))


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def difference(one: Tensor, other: Tensor) -> float:
    assert one.dtype == other.dtype == torch.uint8
    assert one.shape == other.shape
    return float((one.float() - other.float()).abs().mean())


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".gif", ".jpg", ".webp"])
def test_every_usual_format_becomes_rgb(tmp_path, colours, suffix):
    path = tmp_path / f"image{suffix}"
    colours.save(path)
    assert difference(read_image(path), pixels(colours)) < {".gif": 12, ".jpg": 3, ".webp": 3}.get(suffix, 1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_is_rotated_by_its_exif_orientation(tmp_path, colours, orientation, suffix):
    path = tmp_path / f"image{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    colours.save(path, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert difference(read_image(path), pixels(expected)) < 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_become_eight(tmp_path, suffix):
    deep = np.linspace(0, 65535, 30 * 20).reshape(30, 20).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep{suffix}")
    expected = torch.from_numpy((deep >> 8).astype(np.uint8)).expand(3, 30, 20)
    assert read_image(tmp_path / f"deep{suffix}").equal(expected)


def test_gray_palette_alpha_and_two_colours_become_rgb(tmp_path, colours):
    transparent = colours.copy()
    transparent.putalpha(90)
    palette = colours.quantize(256)
    palette.info["transparency"] = 0
    for name, image, expected in (
        ("gray.png", colours.convert("L"), colours.convert("L").convert("RGB")),
        ("gray.jpg", colours.convert("L"), colours.convert("L").convert("RGB")),
        ("palette.png", colours.quantize(256), colours.quantize(256).convert("RGB")),
        ("clear.png", palette, colours.quantize(256).convert("RGB")),
        ("alpha.png", transparent, colours),
        ("two.png", colours.convert("1"), colours.convert("1").convert("RGB")),
    ):
        image.save(tmp_path / name)
        assert difference(read_image(tmp_path / name), pixels(expected)) < 1, name


def test_cmyk_has_the_colours_that_it_was_made_of(tmp_path, colours):
    colours.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert difference(read_image(tmp_path / "print.jpg"), pixels(colours)) < 5


@pytest.mark.parametrize("content", [b"", b"not an image", "cut.jpg", "cut.png", None])
def test_what_cannot_be_read_is_named(tmp_path, colours, content):
    path = tmp_path / (content if isinstance(content, str) else "image.jpg")
    if isinstance(content, str):
        colours.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected an image but '{path}' cannot be read: .+"):
        read_image(path)


def test_files_are_read_by_batches_of_indices(tmp_path):
    for c in range(3):
        photograph(tmp_path / f"ä{c}.png", c, seed=c)
    files = ImageFiles([f"ä{c}.png" for c in range(3)], torch.arange(3), str(tmp_path))
    images, targets = files[torch.tensor([2, 0])]
    assert [tuple(image.shape) for image in images] == [(3, 42, 46), (3, 40, 48)]
    assert targets.tolist() == [2, 0]
    assert images[0].equal(read_image(tmp_path / "ä2.png"))
    Path(tmp_path / "ä1.png").write_bytes(b"broken")
    assert files.readable().tolist() == [True, False, True]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, mode):
    pixels = np.linspace(0, 255, 64).reshape(8, 8).astype(np.int32 if mode == "I" else np.float32)
    Image.fromarray(pixels).save(tmp_path / "scan.tif")
    with pytest.raises(ValueError, match=r"scan\.tif.*32 bits per channel.*convert it"):
        read_image(tmp_path / "scan.tif")


def test_an_orientation_behind_other_metadata_is_applied(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(16, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "first.jpg", exif=exif)
    whole = (tmp_path / "first.jpg").read_bytes()
    packet = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    xmp = b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet
    (tmp_path / "late.jpg").write_bytes(whole[:2] + xmp + whole[2:])
    assert read_image(tmp_path / "first.jpg").shape == (3, 8, 16)
    assert read_image(tmp_path / "late.jpg").shape == (3, 8, 16)


@pytest.mark.parametrize("small", [True, False])
def test_files_are_the_same_by_content_where_they_are_few_and_by_time_otherwise(tmp_path, monkeypatch, small):
    if not small:
        monkeypatch.setattr("scor_lightning.datamodules.decode._SMALL", 0)
    photograph(tmp_path / "a.png", 0)
    files = ImageFiles(["a.png"], torch.tensor([0]), str(tmp_path))
    before, content = files.state(), (tmp_path / "a.png").read_bytes()
    os.utime(tmp_path / "a.png", (1, 1))
    assert (files.state() == before) is small  # the same image, copied
    changed = files.state()
    (tmp_path / "a.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(tmp_path / "a.png", (1, 1))
    assert (files.state() != changed) is small  # another one, of the same size and time


def test_a_header_that_announces_too_many_pixels_is_refused(tmp_path, colours):
    path = tmp_path / "bomb.jpg"
    colours.save(path)
    content = bytearray(path.read_bytes())
    at = next(i for i in range(len(content)) if content[i : i + 2] == b"\xff\xc0")
    content[at + 5 : at + 9] = (65000).to_bytes(2, "big") * 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"'.*bomb.jpg' cannot be read: it has 65,000 x 65,000 pixels"):
        read_image(path)
