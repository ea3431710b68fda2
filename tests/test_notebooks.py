"""The notebooks run from top to bottom in an empty folder, and say what they promise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")
    root = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):  # nobody's own settings
        monkeypatch.setenv(name, str(folder / "home"))
    (folder / "work").mkdir()
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder / "work")}}
    )
    client.execute()
    return book


def said(book: Any) -> str:
    """All that the cells print and show as text."""
    parts: list[str] = []
    for cell in book.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            parts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_an_empty_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = executed(path, tmp_path, monkeypatch)
    text = said(book)
    assert "distilled" in text and "hard" in text
    assert sorted(each.name for each in (tmp_path / "work").iterdir()) == ["runs"]
    if path.stem == "images":
        assert text.count("95% interval") >= 2 and "image/png" in str(book.cells)
    else:
        student, teacher = (float(line.split()[-1]) for line in text.strip().splitlines()[-2:])
        assert 0.7 < student <= 1 and student > teacher - 0.1


def test_they_are_kept_without_outputs() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["images", "texts"]
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert '"outputs": []' in text and text.count('"outputs": []') == text.count('"outputs"'), path
        assert '"execution_count": null' in text
