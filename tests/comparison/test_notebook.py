"""`compare_losses.ipynb` runs from the first cell to the last on the bundled digits."""

import nbformat
import pytest
from nbclient import NotebookClient

from scor_lightning.configuration import CONFIGS

NOTEBOOK = CONFIGS.parent / "notebooks" / "compare_losses.ipynb"


def outputs(notebook):
    given = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in given if output.output_type == "stream")
    return printed, sum("image/png" in output.get("data", {}) for output in given)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "epochs=25" in cell.source)
    cell.source = cell.source.replace("epochs=25", "epochs=2")
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed, pictures = outputs(notebook)
    assert "accuracy_reduced         scor " in printed
    assert "Intervals of differences to focal" in printed
    assert pictures == 2


def test_the_committed_notebook_shows_what_it_gave():
    printed, pictures = outputs(nbformat.read(NOTEBOOK, as_version=4))
    assert "20 repeats" in printed
    assert pictures == 2
