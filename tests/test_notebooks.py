"""The notebooks run from top to bottom, and are stored as a reader wants to find them."""

import pathlib
import re
import shutil

import nbformat
import pytest
from hanging import HANG_SECONDS
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
# How many pictures each shows at least, and what it says on the way.
NOTEBOOKS = {
    "quickstart": (3, ["kn=1024: 42 updates, validation error", "of 360 are wrong"]),
    "colab": (2, ["complete: False", "resumes after update 100", "complete: True", "digits.zip"]),
    "tpu_pod": (2, ["16 devices x 8 lanes", "exit code 0", "Commands are only printed below"]),
    "ablation": (3, ["9 of 9 runs done", "significantly worse", "they differ in"]),
    "finetune": (2, ["6 of 10 classes are used", "head replaced", "full: validation error"]),
    "diagnostics": (4, ["median noise scale", "gradient confusion", "noise_scale.png"]),
}
WHAT_IT_NEEDS = "Where lbsgd is installed from if it is missing"


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_run():
    assert {path.stem for path in ROOT.glob("notebooks/*.ipynb")} == NOTEBOOKS.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_traces_of_a_run(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert not any(cell.metadata for cell in notebook.cells)
    for cell in code(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_begins_with_what_it_teaches_and_what_it_needs(name):
    first, second = read(name).cells[:2]
    for words in ("In this notebook you learn to", "minute", "In Colab"):
        assert words.lower() in first.source.lower()
    assert WHAT_IT_NEEDS in second.source
    assert re.search(r'^REPOSITORY = "\.\."$', second.source, re.MULTILINE)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_of_a_notebook_lead_somewhere(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert links
    missing = [link for link in links if not (ROOT / "notebooks" / link).exists()]
    assert not missing


@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    """In a copy of its folder, where what it trains leaves no trace."""
    for part in ("launch", "notebooks"):
        shutil.copytree(ROOT / part, tmp_path / part)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # What this process has of its own devices is not what a reader has.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = read(name)
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=HANG_SECONDS, kernel_name="python3", resources=where).execute()
    pictures, said = NOTEBOOKS[name]
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) >= pictures
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert [words for words in said if words not in text] == []
    warned = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [line for line in warned if "Warning" in line or "Traceback" in line]
    if name == "diagnostics":
        check_predictions(text)


def check_predictions(text: str) -> None:
    """To the factor of 2 that the notebook says."""
    found = re.findall(r"kn=\d+ +(\d+) updates \((\d+) predicted\)", text)
    assert len(found) == 2
    for was, predicted in found:
        assert 0.5 < int(was) / int(predicted) < 2
