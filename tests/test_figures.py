import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scor_lightning.figures import (
    class_sizes_figure,
    confusion_figure,
    render,
    save_image,
    spectra_figure,
    worst_images_figure,
)
from scor_lightning.metrics import class_groups
from scor_lightning.spectrum import weight_spectrum


def texts(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize(("classes", "labels"), [(3, 3), (50, 50), (51, 17), (1000, 20)])
def test_classes_stand_by_size_and_many_get_few_labels(classes, labels):
    counts = torch.arange(1, classes + 1)
    names = [f"class {c}" for c in range(classes)]
    recalls = counts.double().div(classes).tolist()
    figure = class_sizes_figure(counts.tolist(), names, class_groups(counts), recalls)
    upper, lower = figure.axes
    heights = [bar.get_height() for bar in lower.containers[0]]
    assert heights == sorted(counts.tolist(), reverse=True)
    assert [bar.get_height() for bar in upper.containers[0]] == pytest.approx(sorted(recalls, reverse=True))
    assert len(texts(lower)) == labels
    assert texts(lower)[0] == f"class {classes - 1}"
    pixels = render(figure)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


@pytest.mark.parametrize(
    "title", ["SCoRLoss(base=CrossEntropyLoss(label_smoothing=0.1), alpha=0.0001, b='c')\nbalanced", ""]
)
def test_a_title_keeps_its_lines_and_fits_into_the_figure(title):
    names, image = ["a$", "b", "c"], torch.zeros(1, 8, 8)
    for figure in (
        class_sizes_figure([10, 5, 2], names, {}, [1.0, 0.5, 0.2], title),
        confusion_figure(torch.eye(3, dtype=torch.int64), names, [10, 5, 2], title),
        worst_images_figure([image] * 2, names[:2], names[:2], [0.1, 0.2], title),
    ):
        render(figure)
        shown, box = figure.get_suptitle().strip(), figure._suptitle.get_window_extent()
        assert "".join(shown.split()) == "".join(title.split())
        assert "\\n" not in shown
        assert title == "" or shown.endswith("\nbalanced")
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


@pytest.mark.parametrize(("classes", "labels"), [(4, 4), (60, 20), (1000, 20)])
def test_a_confusion_matrix_is_ordered_by_class_size(classes, labels):
    matrix = torch.diag(torch.arange(1, classes + 1))
    matrix[0, classes - 1] = 3
    counts = list(range(classes))
    figure = confusion_figure(matrix, [str(c) for c in range(classes)], counts)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown[-1, 0] == 0.75  # the smallest class is last, and was taken for the largest
    assert shown[0, 0] == 1
    assert len(texts(axes)) == labels
    assert [text.get_text() for text in axes.texts] == (["4", "3", "2", "3", "1"] if classes == 4 else [])
    assert axes.get_yticklabels()[0].get_text() == f"{classes - 1} ({classes - 1:,})"
    long = confusion_figure(matrix, ["a flower of a long name"] * classes, counts).axes[0]
    assert long.get_yticklabels()[0].get_text() == f"a flower of a lon… ({classes - 1:,})"
    assert confusion_figure(matrix, [str(c) for c in range(classes)], None).axes[0].images[0].get_array()[0, -1] == 0.75
    render(figure)


@pytest.mark.parametrize(
    "image",
    [
        torch.randint(256, (1, 5, 6), dtype=torch.uint8),
        torch.randint(256, (3, 5, 6), dtype=torch.uint8),
        torch.randn(3, 5, 6),
        torch.zeros(3, 5, 6),
        torch.randn(4, 5, 6),
    ],
)
def test_images_of_every_kind_are_drawn(image):
    figure = worst_images_figure([image] * 7, ["cat"] * 7, ["a very long name"] * 7, [0.01] * 7)
    assert len(figure.axes) == 7
    assert figure.axes[0].get_title() == "cat → a very lo…\n1 %"
    render(figure)


def test_spectra_of_networks_share_panels():
    small, large = nn.Linear(4, 3), nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)))
    figure = spectra_figure({"a": weight_spectrum(small), "b": weight_spectrum(small)})
    assert len(figure.axes) == 1
    assert len(figure.axes[0].lines) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    render(figure)
    many = spectra_figure({"c": weight_spectrum(large)})
    assert len(many.axes) == 16
    assert [many.axes[i].get_title().split()[0] for i in (0, -1)] == ["0", "29"]
    assert "16 of 30 layers" in many.get_suptitle()


def test_a_picture_is_written_whole(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    save_image(pixels, tmp_path / "x.png")
    assert (np.asarray(Image.open(tmp_path / "x.png")) == pixels).all()
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_nothing_of_a_picture_lies_outside_it():
    counts = [5000, 400, 10]
    sizes = class_sizes_figure(counts, list("abc"), class_groups(torch.tensor(counts)), [1.0, 0.5, float("nan")])
    assert [text.get_text() for text in sizes.axes[0].texts] == ["1.00", "0.50", ""]
    assert sizes.axes[1].get_ylim()[0] == 5  # half of the smallest class, whose bar is seen
    matrix = torch.eye(10, dtype=torch.int64)
    for figure in (sizes, confusion_figure(matrix, list("abcdefghij"), list(range(100, 110)), "two\nlines")):
        pixels = render(figure)
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all()
