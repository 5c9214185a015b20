"""Notebooks that tests change and have executed."""

from pathlib import Path

import nbformat


def change_cells(path: Path, words: dict[str, str]) -> None:
    """Replace words of a notebook, each of which stands in one cell."""
    notebook = nbformat.read(path, 4)
    for old, new in words.items():
        [cell] = [cell for cell in notebook.cells if old in cell.source]
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, path)


def answer_of(folder: Path, name: str) -> str:
    """The answer, in Markdown, of a notebook that was executed into a run's folder."""
    cells = nbformat.read(folder / "notebooks" / f"{name}.ipynb", 4).cells
    [cell] = [cell for cell in cells if "answer" in cell.metadata.get("tags", [])]
    return cell.outputs[0].data["text/markdown"]
