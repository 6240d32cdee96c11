"""The notebooks run from the first cell to the last, each in a new kernel, on small files in the data's format."""

from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torchvision import models

from scor_lightning.configuration import CONFIGS
from tests.data.mnist import write_mnist
from tests.data.photographs import write_flowers102

NOTEBOOKS = CONFIGS.parent / "notebooks"


def execute(name, folder, shorter):
    """Run a notebook in a folder, with some of its lines replaced; return its cells."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    for old, new in shorter.items():
        (cell,) = (cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells


def outputs(cells):
    given = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in given if output.output_type == "stream")
    pictures = sum("image/png" in output.get("data", {}) for output in given)
    return printed, pictures


@pytest.mark.slow
@pytest.mark.exhaustive
def test_mlp_mnist(tmp_path):
    write_mnist(tmp_path / "data")
    cells = execute("mlp_mnist.ipynb", tmp_path, {"epochs = 5": "epochs = 2"})
    printed, pictures = outputs(cells)
    assert printed.count("balanced accuracy") == 2
    assert "of the sevens are right" in printed
    assert pictures == 4


@pytest.mark.slow
@pytest.mark.exhaustive
def test_convnext_flowers102(tmp_path, monkeypatch):
    write_flowers102(tmp_path / "data", per_class=(2, 1, 1))
    weights = models.ConvNeXt_Tiny_Weights.DEFAULT
    cache = tmp_path / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(models.convnext_tiny().state_dict(), cache / Path(weights.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "sums.py").write_text(  # the small files have other sums than those published
        "import torchvision.datasets.flowers102 as module\n"
        "module.check_integrity = lambda path, md5=None: __import__('os').path.isfile(path)\n"
    )
    cells = execute(
        "convnext_flowers102.ipynb", tmp_path, {"epochs, resolution = 25, 224": "epochs, resolution = 1, 32"}
    )
    printed, pictures = outputs(cells)
    assert "balanced accuracy" in printed
    assert pictures == 2


def test_the_committed_notebook_shows_what_it_gave():
    cells = nbformat.read(NOTEBOOKS / "mlp_mnist.ipynb", as_version=4).cells
    printed, pictures = outputs(cells)
    assert printed.count("balanced accuracy") == 2
    assert pictures == 4
    assert not [c for c in cells if c.cell_type == "code" and "Traceback" in str(c.outputs)]
