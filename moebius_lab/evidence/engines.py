"""Every browser engine, provider and precision of the page against PyTorch: a second implementation of WebGPU is evidence that one
alone is not.

    found = compare_in_engines(graphs, references, bundle, every_case(("fp32", "fp16")))
    found.table()
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from .. import LabError
from ..config import PRECISIONS, PROVIDERS
from ..page.browser import Browser
from ..page.engines import ENGINES
from ..port.graphs import Graphs
from ..port.precision import per_graph
from .parity import Row, compare_in_time


@dataclass(frozen=True)
class Case:
    """One way in which a browser runs the model."""

    engine: str  # one of `ENGINES`
    provider: str  # one of `PROVIDERS`
    precision: str  # one of `PRECISIONS`
    network: str = ""  # that stands in for the one that is looked at, as the tables call it
    recorded: bool = (
        True  # on WebGPU from the bundle's recording, where it has one; else ONNX Runtime is asked in that browser
    )

    @property
    def backend(self) -> str:
        """What rows are said to have run on."""
        asked = "" if self.recorded else ", ONNX Runtime asked there"
        return f"{ENGINES[self.engine].label}, {self.provider}{asked}" + (f" ({self.network})" if self.network else "")

    @property
    def name(self) -> str:
        """All of it, for what is missing and for evidence."""
        return f"{self.backend}, {self.precision}"


def every_case(
    precisions: Iterable[str],
    providers: Iterable[str] = PROVIDERS,
    engines: Iterable[str] = tuple(ENGINES),
    network: str = "",
    recorded: bool = True,
) -> list[Case]:
    """Each engine with each of the page's providers that can run a precision, an engine's own together.

    Args:
        precisions: of `PRECISIONS`.
        providers: of `PROVIDERS`.
        engines: of `ENGINES`.
        network, recorded: see `Case`.
    """
    return [
        Case(engine, provider, precision, network, recorded)
        for engine in engines
        for provider in providers
        for precision in precisions
        if provider in PRECISIONS[precision].providers
    ]


@dataclass
class Found:
    """What came of the cases."""

    cases: dict[Case, list[Row]] = field(default_factory=dict)  # the rows of each, none where it could not run
    evidence: dict[str, str] = field(default_factory=dict)  # by case: what really ran, in the page's words
    missing: dict[str, str] = field(default_factory=dict)  # by case, or case and graph: why it was not compared

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.cases.values() for row in rows]

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it is within its tolerance."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def __or__(self, other: Found) -> Found:
        """Both together."""
        return Found(self.cases | other.cases, self.evidence | other.evidence, self.missing | other.missing)

    def table(self) -> pd.DataFrame:
        """A row for each case: its largest error, its smallest signal-to-noise ratio and its verdict, or why there is none."""
        lines = []
        for case, rows in self.cases.items():
            line = {"engine": case.backend, "precision": case.precision}
            if rows:
                error, db = max(row.max_error for row in rows), min(row.psnr_db for row in rows)
                line |= {"largest error": f"{error:.1e}", "least dB": f"{db:.0f}", "asked": rows[0].tolerance}
                line["verdict"] = "ok" if all(row.ok for row in rows) else "DIFFERENT"
                left_out = [reason for name, reason in self.missing.items() if name.startswith(f"{case.name}, ")]
                line["verdict"] += "".join(f"; {reason}" for reason in left_out)
            else:
                line["verdict"] = f"missing: {self.missing[case.name]}"
            lines.append(line)
        columns = ("engine", "precision", "largest error", "least dB", "asked", "verdict")
        return pd.DataFrame(lines, columns=columns).fillna("").set_index(["engine", "precision"])


def compare_in_engines(
    graphs: Graphs, references: dict[str, dict[str, np.ndarray]], bundle: Path, cases: Iterable[Case]
) -> Found:
    """Run every graph in each case, as far as there is time for it, and compare each output.

    An engine is started once for all of its cases that stand together. One that is not here, and one that cannot run a precision, is
    missing from the rows with its reason.

    Args:
        graphs: of the network.
        references: from `parity.reference_outputs`.
        bundle: a folder of `write_bundle` that has the precisions.
        cases: see `every_case`.
    """
    found = Found()
    for engine, together in groupby(cases, lambda case: case.engine):
        with ExitStack() as started:
            browser = None
            for case in together:
                found.cases[case] = []
                try:
                    if browser:
                        browser.reload(provider=case.provider, precision=case.precision, recorded=case.recorded)
                    else:
                        way = {"recorded": case.recorded, "engine": engine}
                        browser = started.enter_context(Browser(bundle, case.provider, case.precision, **way))
                    rows, left_out = compare_in_time(
                        references, graphs.net, browser.run, per_graph(case.precision), case.backend
                    )
                except LabError as reason:
                    found.missing[case.name] = str(reason)
                    continue
                found.evidence[case.name] = f"{browser.name}, {browser.evidence}"
                found.cases[case] = rows
                found.missing |= {f"{case.name}, {graph}": words for graph, words in left_out.items()}
    return found
