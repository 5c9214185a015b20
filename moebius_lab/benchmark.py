"""Warmed timings as tidy rows; a timing is a median with its quartiles, never a verdict."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one piece of work on one backend."""

    what: str
    backend: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    repeats: int


def measure(what: str, works: dict[str, Callable[[], object]], repeats: int = 5, warmup: int = 1) -> list[Timing]:
    """Time the same work on several backends, in turns, so that what else the machine does meets all alike.

    Args:
        what: the name of the work.
        works: a function for each backend's name; each returns when its work is finished.
        repeats: timed rounds, at least 3.
        warmup: rounds before them that do not count.

    Returns:
        One `Timing` a backend.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(warmup + repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if i >= warmup:
                times[name].append((time.perf_counter() - start) * 1000)
    return [
        Timing(what, name, statistics.median(t), *statistics.quantiles(t, n=4)[::2], len(t)) for name, t in times.items()
    ]


def machine() -> dict[str, object]:
    """What the timings were taken on."""
    packages = ("torch", "onnxruntime", "onnx", "diffusers", "numpy")
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
