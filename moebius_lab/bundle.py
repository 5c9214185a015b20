"""What will be shipped to the browser: the files of the three graphs, and which of their operators WebGPU runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from .backends import GRAPHS
from .export import operator_counts
from .workbench import file_digest

CPU_OPERATORS = frozenset({"Attention", "GridSample", "Mod", "GroupNormalization"})
"""Operators that ONNX Runtime Web 1.30 hands to the CPU beside its WebGPU provider, wholly or in part, as seen running."""


def shipped_files(folder: str | Path) -> pd.DataFrame:
    """Every file of the three graphs in `folder`, with its size (MB) and SHA-256."""
    files = sorted(file for graph in GRAPHS for file in Path(folder).glob(f"{graph}.onnx*"))
    rows = [{"file": file.name, "MB": file.stat().st_size / 1e6, "sha256": file_digest(file)} for file in files]
    return pd.DataFrame(rows).set_index("file")


def operators_off_the_gpu(folder: str | Path) -> dict[str, Counter[str]]:
    """For each graph, the operators in it that the WebGPU provider does not run, and how often they occur."""
    counted = {graph: operator_counts(Path(folder) / f"{graph}.onnx") for graph in GRAPHS}
    return {graph: Counter({op: n for op, n in ops.items() if op in CPU_OPERATORS}) for graph, ops in counted.items()}
