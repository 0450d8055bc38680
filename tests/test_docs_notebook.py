"""docs/notebooks/own_data.ipynb runs from its first cell to its last, in a short form."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT

NOTEBOOK = ROOT / "docs/notebooks/own_data.ipynb"


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IMAGES", "6")
    monkeypatch.setenv("STEPS", "2")
    (tmp_path / "work").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "work")}}
    ).execute()
    assert (tmp_path / "work/runs/beach/report.html").is_file()
    assert (tmp_path / "work/beach.onnx").is_file()
    said = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("labelled otherwise than by torch: 0" in text for text in said)


def test_it_is_shown_with_small_outputs_that_name_no_folder_of_ours():
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 100_000
    assert "/home/" not in text
    assert "/tmp/" not in text
    cells = json.loads(text)["cells"]
    assert all(cell["outputs"] for cell in cells if "".join(cell["source"]).startswith("%%bash"))
