"""The notebook runs from its first cell to its last. python -m pytest tests/test_notebook.py"""

from pathlib import Path

import nbclient
import nbformat
import pytest

LAB = Path(__file__).parents[1] / "lab"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says():
    notebook = nbformat.read(LAB / "lifelong.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(LAB)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    finetune, lamol, word = (
        text.split("average")[1].split()[0]
        for text in (output.get("text", "") for output in outputs)
        if "average" in text
    )
    assert float(finetune) < 45 < min(float(lamol), float(word))  # it forgets; both cures work
