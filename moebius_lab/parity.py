"""One comparison and one tolerance table, for every graph, backend and precision."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from . import LabError

TOLERANCES = {
    "vae_encoder": 1e-4,  # max |d| against PyTorch in float32; outputs are of order 1
    "denoiser": 1e-4,
    "vae_decoder": 1e-4,
    "picture": 1.0,  # 8-bit levels, whole pipeline
}


class ParityError(LabError):
    """A graph that does not compute what PyTorch computes."""


@dataclass(frozen=True)
class Row:
    """One line of the parity table."""

    graph: str
    output: str
    backend: str
    max_error: float
    mean_error: float
    relative_error: float  # norm of the difference over norm of the reference
    psnr_db: float  # peak is the reference's range; infinite for equal arrays
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.max_error <= self.tolerance  # False for NaN as well


def compare(graph: str, output: str, backend: str, got: np.ndarray, reference: np.ndarray) -> Row:
    """Compare an output with PyTorch's; the tolerance is the graph's entry in `TOLERANCES`.

    Raises:
        ParityError: the shapes differ.
    """
    if got.shape != reference.shape:
        raise ParityError(f"{graph}.{output} on {backend}: shape {got.shape} instead of {reference.shape}")
    a, b = got.astype(np.float64), reference.astype(np.float64)
    d = np.abs(a - b)
    mse, peak = float(np.mean(d * d)), max(float(b.max() - b.min()), 1e-30)
    return Row(
        graph, output, backend, float(d.max()), float(d.mean()),
        float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)),
        math.inf if mse == 0 else 20 * math.log10(peak) - 10 * math.log10(mse),
        TOLERANCES[graph],
    )  # fmt: skip


def table(rows: list[Row]) -> pd.DataFrame:
    """The rows as a table, with a verdict column."""
    return pd.DataFrame([asdict(row) | {"verdict": "equal" if row.ok else "DIFFERENT"} for row in rows])


def require(rows: list[Row]) -> None:
    """Raise ParityError naming every row past its tolerance."""
    bad = [f"{r.graph}.{r.output} on {r.backend}: {r.max_error:.2e} > {r.tolerance:.0e}" for r in rows if not r.ok]
    if bad:
        raise ParityError("not equal to PyTorch: " + "; ".join(bad))
