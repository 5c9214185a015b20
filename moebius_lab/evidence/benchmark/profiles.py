"""Where a step's time goes, by operator or by kind of work, and what the same backend does at best: a large product, a large copy.

A profile is ONNX Runtime's own, one list of events for the processor and for WebGPU, native or in a browser. Times of the
processor are those of each node's call; on WebGPU that is the time to hand the work over, and the time on the card stands in
events of its own, one a dispatch, where the runtime could ask the card for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ... import LabError
from ...config import CARD, OPSET, PROCESSOR, NetworkConfig
from ...files import write_json, write_whole
from ...page.browser import Browser
from ...page.driving import chosen_adapter
from ...port.precision import STAMP
from ..inventory import graph_gflop

KERNEL = re.compile(r"^(?P<node>[^&|]*)[&|](?P<operator>[^&|]+)")  # a dispatch is called NODE&OPERATOR&PROGRAM

LIMIT_SIDES = {CARD: 4096, PROCESSOR: 1024}
"""Side of the square matrices of the product."""
COPIED = (8192, 4096)  # float32: 134 MB, more than a cache holds
LIMIT_CHAIN = {"product": (1, 9), "copy": (8, 40)}
"""How often the operator is repeated in the two graphs whose times are subtracted."""


@dataclass(frozen=True)
class OperatorTime:
    """All calls of one operator in one run."""

    operator: str
    where: str  # PROCESSOR or CARD
    calls: float  # a run
    ms: float  # a run


def operator_times(events: str | list[dict], runs: int) -> list[OperatorTime]:
    """Sum a profile by operator, the most expensive first, leaving out the first run, which loads and compiles.

    Args:
        events: what ONNX Runtime wrote at the end of profiling: JSON, or its list.
        runs: in the profile after the first.

    Raises:
        LabError: no such events, or fewer runs than that.
    """
    listed = json.loads(events) if isinstance(events, str) else events
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in listed if e.get("name") == "model_run"]
    if len(spans) != runs + 1:
        raise LabError(f"the profile holds {len(spans)} runs, not {runs + 1}: the runtime did not write all of it")
    first_end = min(spans)[1]
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    for event in listed:
        operator = event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and operator and event["name"].endswith("_kernel_time") and event["ts"] >= first_end:
            _add(sums[operator, PROCESSOR], event["dur"])
    dispatches = sorted((e for e in listed if e.get("cat") in ("Api", "Kernel")), key=lambda event: event["ts"])
    for event in dispatches[len(dispatches) // (runs + 1) :]:
        found = KERNEL.match(event["name"])
        _add(sums[found["operator"] if found else event["name"], CARD], event["dur"])
    times = [OperatorTime(*key, calls / runs, micros / runs / 1000) for key, (calls, micros) in sums.items()]
    return sorted(times, key=lambda time: -time.ms)


def _add(entry: list[float], micros: float) -> None:
    entry[0] += 1
    entry[1] += micros


@dataclass(frozen=True)
class KernelTimes:
    """The commands of a guided step in the page, with the runtime's kernels and with ours, next to what the device does at most."""

    evidence: str  # what ran, in the page's words
    software: bool  # on an adapter on the processor, which says nothing about a card
    work: list[dict]  # kind, and how many commands and ms: before, after; after is missing where no kernel of ours is used
    limits: dict[str, float]  # GB/s of a copy, GFLOP/s in registers: both through WGSL
    tiles: list[dict]  # of a large product, or a small one where the adapter is software


KINDS = {
    "products": ("MatMul", "MatMulNaive", "Gemm", "Conv2dMM", "product", "products", "vector"),
    "norms and depthwise convolutions": (
        *("ComputeChannelScaleShift", "InstanceNorm", "BatchNormalization", "GroupedConv", "Pool"),
        *("norm depthwise", "depthwise", "middle", "norm last"),
    ),
    "layer norms": ("LayerNorm", "SkipLayerNorm", "layer norm"),
    "moving numbers": ("Transpose", "DepthToSpace", "Gather", "Concat", "Split", "Slice", "Expand", "tokens", "concat"),
    "casts and widened weights": ("Cast", "DequantizeLinear"),
}
"""Programs of the runtime, and kinds of our kernels, by what they do; all others are "the rest", most of them one by one."""
SOFTWARE_GFLOP = 0.1  # of a step that a software adapter is asked to time


def kernel_times(bundle: str | Path, config: NetworkConfig, precision: str = "fp32", adapter: str = "auto") -> KernelTimes:
    """Time the commands of the page's guided step by kind of work, before and after kernels of our own, in headless Chromium.

    A software adapter is asked only for its limits, and for the step of a small network, without our kernels: see `SOFTWARE_GFLOP`.

    Raises:
        NoBrowser: there is no Chromium.
        LabError: the page's own message of why it cannot run the model here.
    """
    software = chosen_adapter(adapter) == "software"
    timed = not software or graph_gflop(config)["step"] < SOFTWARE_GFLOP
    with Browser(bundle, "webgpu", precision, adapter, capture=timed, kernels="none") as browser:
        before = browser.command_times("step" if timed else "")
        runs = {"before": before["commands"]}
        if not software:
            browser.reload(kernels="fastest")
            if browser.loaded["kernels"]["replaced"]:
                runs["after"] = browser.command_times("step")["commands"]
        limits = {"copy, GB/s": before["limits"]["gigabytes"], "in registers, GFLOP/s": before["limits"]["gflops"]}
        tiles = [tile | {"product": " x ".join(map(str, before["limits"]["sides"]))} for tile in before["limits"]["tiles"]]
        return KernelTimes(browser.evidence, software, by_kind(runs), limits, tiles)


def by_kind(runs: dict[str, list[dict]]) -> list[dict]:
    """Sum the commands of runs, as `Browser.command_times` gives them, by kind of work; the longest of the first run first."""
    kinds = {label: kind for kind, labels in KINDS.items() for label in labels}
    rows: dict[str, dict] = {}
    for name, commands in runs.items():
        for command in commands:
            kind = kinds.get(command["label"], "the rest")
            row = rows.setdefault(
                kind, {"kind": kind} | {f"{run}, {what}": 0 for run in runs for what in ("commands", "ms")}
            )
            row[f"{name}, commands"] += command["count"]
            row[f"{name}, ms"] += command["milliseconds"]
    return sorted(rows.values(), key=lambda row: -row[f"{next(iter(runs))}, ms"])


def write_limits(folder: str | Path) -> dict[str, Path]:
    """Graphs that measure a backend's own limits: the same operator repeated, a few times and often.

    Input `x` (1, n) float32 is spread over the whole tensor on the device and one row `y` comes back, so that next to nothing
    is transferred; the difference of the two graphs' times is the operator's alone.

    Returns:
        The file of each graph by its name: `product_SIDE_TIMES` and `copy_TIMES`, each in a folder of its own with
        `files.json`, as `Graphs.stored` writes.
    """
    graphs = {f"product_{n}_{times}": _product(n, times) for n in LIMIT_SIDES.values() for times in LIMIT_CHAIN["product"]}
    graphs |= {f"copy_{times}": _copy(times) for times in LIMIT_CHAIN["copy"]}
    paths = {}
    for name, model in graphs.items():
        path = Path(folder) / name / f"{name}.onnx"
        body = model.SerializeToString()
        write_whole(path, body)
        files = [{"name": path.name, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}]
        write_json(path.with_name(STAMP), {"files": files})
        paths[name] = path
    return paths


def limit_feeds(name: str) -> dict[str, np.ndarray]:
    """The input of a graph of `write_limits`: normal numbers of a spread that repeated products keep."""
    width = int(name.split("_")[1]) if name.startswith("product") else COPIED[1]
    return {"x": np.random.default_rng(0).standard_normal((1, width), dtype=np.float32) / np.float32(width**0.5)}


def limit_work(where: str) -> dict[str, float]:
    """For each limit, what one repetition does: GFLOP of a product; GB of a copy, read and written."""
    return {"product": 2 * LIMIT_SIDES[where] ** 3 / 1e9, "copy": 2 * 4 * COPIED[0] * COPIED[1] / 1e9}


def limit_graphs(limit: str, where: str) -> tuple[str, str]:
    """The two graphs whose times are subtracted, the shorter first."""
    side = f"_{LIMIT_SIDES[where]}" if limit == "product" else ""
    few, often = LIMIT_CHAIN[limit]
    return f"{limit}{side}_{few}", f"{limit}{side}_{often}"


def _product(side: int, times: int) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["a" if i == 0 else f"p{i}", "a"], [f"p{i + 1}"]) for i in range(times)]
    return _limit_graph((side, side), nodes, f"p{times}")


def _copy(times: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["a" if i == 0 else f"p{i}", "one"], [f"p{i + 1}"]) for i in range(times)]
    return _limit_graph(COPIED, nodes, f"p{times}")


def _limit_graph(shape: tuple[int, int], nodes: list[onnx.NodeProto], last: str) -> onnx.ModelProto:
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], shape),
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        *(helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in (("begin", 0), ("end", 1))),
    ]
    spread = helper.make_node("Expand", ["x", "shape"], ["a"])
    row = helper.make_node("Slice", [last, "begin", "end", "begin"], ["y"])  # the first row: axis 0 is `begin` too
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, shape[1]]) for name in "xy"]
    graph = helper.make_graph([spread, *nodes, row], "limit", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model
