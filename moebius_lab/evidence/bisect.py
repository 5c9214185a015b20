"""Where two runs of one graph part: the first node, in graph order, whose output differs by more than its tolerance.

    answer = between(graphs, "step", ("onnxruntime-cpu", "chromium-webgpu"), ("fp32", "fp16"))
    print(answer.words())

Intermediate values are read from the running graph in groups. For each group, a copy of the graph that shares its weight
files exposes some nodes' outputs as extra outputs. The bytes read at once are limited; a larger tensor is read in several
parts. Groups follow the graph's order, on both sides, until one holds a difference. There is no search by halves, since a
difference need not grow: a later mask, choice of rows or norm may hide what an earlier node did. So every number of every
tensor before the one that is named was compared.

Extra outputs change a run a little. A runtime fuses nodes only if nobody else reads the values between them, and in 16 bits
it rounds only what leaves a fused node. So the nodes of the current group are not fused with their readers. All others run
as usual, at the same level of optimisation. The graph's own outputs are compared first, without extra ones: if they differ
and no node does, a fused kernel is to blame.

PyTorch does not have the graph's nodes. There, each module's output is compared, at the last node of its scope, which the
exporter notes. These are the modules that were exported, with their rewrites. The graph's own outputs are compared with
those of the published form, which exposes a wrong rewrite.
"""

from __future__ import annotations

import ast
import hashlib
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor, nn

from .. import LabError
from ..config import FLOAT32, GRAPHS, OPSET, PRECISIONS, SIDES, Side
from ..files import write_json, write_whole
from ..page.browser import Browser
from ..page.bundle import write_bundle
from ..port.export import OUTPUT_NAMES, example_feeds, example_inputs, exported_module, torch_graphs
from ..port.graphs import Graphs
from ..port.passes import HALF, SCOPES, Piece, settle_sizes, take_out, tensor_types_and_shapes
from ..port.precision import STAMP, files_of, per_graph
from ..port.sessions import open_session, webgpu_session

HALF_LARGEST = float(np.finfo(np.float16).max)  # 65504
HALF_NEAR = HALF_LARGEST / 2  # from here on the sum of two such numbers overflows 16 bits
HALF_LEAST = float(np.finfo(np.float16).tiny)  # 6.1e-5: smaller numbers are denormal in 16 bits, with fewer digits, or zero
LEAST = float(np.finfo(np.float32).tiny)  # 1.2e-38, the same in 32 bits
MADE_HERE = 10.0  # a node causes a difference if its output's is this many times its inputs', as shares of their magnitudes
WORTH_SAYING = 0.01  # denormals are mentioned from this share of a tensor's numbers on
BLOCK = 1 << 22  # numbers that are compared at once

Feeds = dict[str, np.ndarray]
OnGroup = Callable[[int, int], object]


# -- what flows in a graph ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flow:
    """A floating-point tensor that a node of a graph outputs."""

    name: str  # in the graph of 32 bits
    stored: str  # in this graph
    half: bool  # whether it has 16 bits here
    shape: tuple[int, ...]
    node: int  # index in graph order of the node that makes it


class Outline:
    """What flows in a graph, without its weights.

    Attributes:
        nodes: in graph order, for inputs of the shapes of `feeds`.
        flows: by their names in 32 bits, in graph order: those that depend on the graph's inputs. A session
            folds whatever depends on constants only when it is created.
        scopes: for each node, the modules that contain it, outermost first. If the exporter noted none, as at a node that a
            pass made, those that its neighbours share.
    """

    def __init__(self, path: Path, feeds: Feeds) -> None:
        self.path = path
        model = onnx.load(str(path), load_external_data=False)
        settle_sizes(model.graph, {name: x.shape for name, x in feeds.items()})
        kinds = tensor_types_and_shapes(model)
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.outputs = [value.name for value in model.graph.output]
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        self.flows: dict[str, Flow] = {}
        moving = {value.name for value in model.graph.input}
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(i)
            if not moving.intersection(node.input):
                continue
            moving.update(filter(None, node.output))
            for name in filter(None, node.output):
                kind, shape = kinds.get(name, (0, ()))
                width_alone = node.op_type == "Cast" and plain_name(name) == plain_name(node.input[0])
                if kind in (TensorProto.FLOAT, TensorProto.FLOAT16) and not width_alone:
                    self.flows[plain_name(name)] = Flow(plain_name(name), name, kind == TensorProto.FLOAT16, shape, i)
        self.scopes = self._scopes()

    def readers_of(self, flow: Flow) -> list[int]:
        """Indices of the nodes that read a tensor, in 16 or 32 bits, without the Cast between the two."""
        names = {flow.name, flow.stored, flow.name + HALF}
        found = [i for name in names for i in self.readers.get(name, [])]
        return [i for i in found if not names.issuperset(self.nodes[i].output)]

    def _scopes(self) -> list[tuple[str, ...]]:
        noted = [_noted_scopes(node) for node in self.nodes]
        found = []
        for node, scopes in zip(self.nodes, noted):
            if scopes is None:
                beside = [self.makers[name] for name in node.input if name in self.makers]
                beside += [reader for name in node.output for reader in self.readers.get(name, [])]
                known = [scopes for i in beside if (scopes := noted[i]) is not None]
                scopes = tuple(os.path.commonprefix(known)) if known else ()
            found.append(scopes)
        return found


def plain_name(name: str) -> str:
    """What a tensor is called in the graph of 32 bits."""
    return name.removesuffix(HALF)


def _noted_scopes(node: NodeProto) -> tuple[str, ...] | None:
    """The modules that the exporter noted at a node; it appends the node's own name."""
    noted = next((note.value for note in node.metadata_props if note.key == SCOPES), None)
    return None if noted is None else tuple(scope for scope in ast.literal_eval(noted)[:-1] if scope)


# -- numbers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Statistics of the numbers of a tensor, or of a part of it."""

    count: int
    low: float  # of the finite ones
    high: float
    unbounded: int = 0  # how many are NaN or infinite
    beyond: int = 0  # finite, but infinite in 16 bits
    near: int = 0  # at least half of the largest number of 16 bits, but not beyond it
    half_denormal: int = 0  # not 0, but less than the least normal number of 16 bits
    denormal: int = 0  # the same for 32 bits

    def __add__(self, other: Range) -> Range:
        counts = ("count", "unbounded", "beyond", "near", "half_denormal", "denormal")
        sums = {name: getattr(self, name) + getattr(other, name) for name in counts}
        return Range(low=min(self.low, other.low), high=max(self.high, other.high), **sums)

    @property
    def magnitude(self) -> float:
        """The largest finite magnitude; 0 where nothing is finite."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    def words(self) -> str:
        """The range of the finite numbers, in words."""
        return f"{self.low:.3g} to {self.high:.3g}" if self.low <= self.high else "nothing finite"

    def remarks(self) -> list[str]:
        """What is unusual about these numbers, each point in a few words."""
        found = []
        for count, what in (
            (self.unbounded, "NaN or infinite"),
            (self.beyond, "beyond 16 bits"),
            (self.near, "near overflow in 16 bits"),
        ):
            if count:
                found.append(f"{count:,} of {self.count:,} {what}")
        for count, what in ((self.denormal, "denormal"), (self.half_denormal - self.denormal, "denormal in 16 bits")):
            if count >= WORTH_SAYING * self.count:
                found.append(f"{count / self.count:.0%} {what}")
        if self.low == self.high and not self.unbounded and self.count > 1:
            found.append("constant")
        return found


def range_of(x: np.ndarray) -> Range:
    """The range of a float32 array that is not empty."""
    finite = x[np.isfinite(x)]
    size = np.abs(finite)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)
    return Range(
        x.size,
        low,
        high,
        x.size - finite.size,
        int((size > HALF_LARGEST).sum()),
        int(((size >= HALF_NEAR) & (size <= HALF_LARGEST)).sum()),
        int(((size > 0) & (size < HALF_LEAST)).sum()),
        int(((size > 0) & (size < LEAST)).sum()),
    )


@dataclass(frozen=True)
class Comparison:
    """A tensor, or a part of it, on both sides."""

    name: str
    largest: float  # difference; infinite where a number is not finite on one side, or on both, or where shapes differ
    reference: Range
    other: Range

    def __add__(self, other: Comparison) -> Comparison:
        ranges = self.reference + other.reference, self.other + other.other
        return Comparison(self.name, max(self.largest, other.largest), *ranges)

    @property
    def share(self) -> float:
        """The largest difference as a share of the reference's largest magnitude."""
        size = self.reference.magnitude
        return self.largest / size if size else (math.inf if self.largest else 0.0)

    def words(self) -> str:
        """The difference in words."""
        if math.isinf(self.largest):
            return "is not finite" if self.reference.unbounded or self.other.unbounded else "has another shape"
        return f"differs by {self.largest:.2g}, {self.share:.2g} of its largest magnitude"

    def remarks(self) -> str:
        """What is unusual about the numbers of either side."""
        sides = self.reference.remarks(), self.other.remarks()
        if sides[0] == sides[1]:
            return "; ".join(sides[0])
        return "; ".join(f"{side}: {', '.join(words)}" for side, words in zip(("reference", "other"), sides) if words)


def compare(name: str, reference: np.ndarray, other: np.ndarray) -> Comparison:
    """Compare two float32 arrays, block by block. A number that is not finite differs from everything; so does
    another shape."""
    if reference.shape != other.shape:
        return Comparison(name, math.inf, range_of(reference), range_of(other))
    found = None
    for a, b in zip(_blocks(reference), _blocks(other), strict=True):
        both = np.isfinite(a) & np.isfinite(b)
        largest = float(np.abs(a - b).max()) if both.all() else math.inf
        block = Comparison(name, largest, range_of(a), range_of(b))
        found = found + block if found else block
    return found


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    flat = x.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK]


# -- parts and groups --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The part of a tensor that is read at once: all of it, or from `start` up to but not including `stop` on one axis."""

    name: str  # of the tensor in 32 bits
    bytes: int  # in float32
    axis: int = 0
    start: int = 0
    stop: int | None = None  # None: all of it
    last: bool = True  # whether it is the last of this tensor


def parts_of(flow: Flow, most: int) -> list[Part]:
    """A tensor in parts of at most `most` bytes, cut along its longest axis into slices of at least 1."""
    size = 4 * math.prod(flow.shape)
    if size <= most:
        return [Part(flow.name, size)]
    axis = max(range(len(flow.shape)), key=lambda i: flow.shape[i])
    side = flow.shape[axis]
    width = max(1, side * most // size)
    cuts = [(start, min(start + width, side)) for start in range(0, side, width)]
    return [Part(flow.name, size // side * (stop - start), axis, start, stop, stop == side) for start, stop in cuts]


def groups_of(flows: Iterable[Flow], most: int) -> list[list[Part]]:
    """The parts of all these tensors, in order, in groups of at most `most` bytes or of a single part."""
    groups, size = [], 0
    for part in (part for flow in flows for part in parts_of(flow, most)):
        if not groups or size + part.bytes > most:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.bytes
    return groups


# -- sides -------------------------------------------------------------------------------------------------------------


class Run(Protocol):
    """One side of a comparison: a graph on a backend, with its inputs."""

    label: str  # the backend, and the form of its graph
    flows: dict[str, Flow]  # the tensors that can be read, by name, in graph order

    def outputs(self) -> Feeds:
        """The graph's own outputs by name, from a run without extra outputs."""

    def take(self, parts: list[Part]) -> list[np.ndarray]:
        """Run again and return these parts of intermediate tensors, float32."""

    def evidence(self) -> str:
        """What really ran, in the backend's words; after the first run."""


class GraphRun:
    """A stored graph on a runtime.

    Args:
        label: of the backend, for people.
        path: the graph, as `Graphs.stored` writes it, with `files.json` next to it.
        run: the backend, from `OPENERS`.
        feeds: inputs by name, float32.
    """

    def __init__(self, label: str, path: Path, run: Backend, feeds: Feeds) -> None:
        self.label, self.path, self.run, self.feeds = label, path, run, feeds
        self.outline = Outline(path, feeds)
        self.flows = self.outline.flows

    def outputs(self) -> Feeds:
        return self.run(self.path, self.model(), self.feeds)

    def take(self, parts: list[Part]) -> list[np.ndarray]:
        model, wanted = self.model(), [(self.flows[part.name], part) for part in parts]
        widened = self.run.gives_float32
        names = take_out(
            model, [Piece(flow.stored, flow.half and widened, part.axis, part.start, part.stop) for flow, part in wanted]
        )
        got = self.run(self.path, model, self.feeds)
        return [got[name] for name in names]

    def model(self) -> onnx.ModelProto:
        """The graph, without its weights."""
        return onnx.load(str(self.path), load_external_data=False)

    def evidence(self) -> str:
        return self.run.evidence


class TorchRun:
    """The exported module in PyTorch, whose modules correspond to the nodes that end their scopes in a graph.

    Args:
        label: for people.
        exported: the module that the graph was exported from.
        published: the one that it must equal; its outputs are `outputs`.
        inputs: of both, by name, in the order of their arguments.
        outline: of the graph.
    """

    def __init__(
        self, label: str, exported: nn.Module, published: nn.Module, graph: str, inputs: dict[str, Tensor], outline: Outline
    ) -> None:
        self.label, self.exported, self.published, self.graph, self.inputs = label, exported, published, graph, inputs
        modules, shapes, calls = dict(exported.named_modules()), {}, Counter()

        def note(name: str, y: object) -> None:
            calls[name] += 1
            if isinstance(y, Tensor) and y.dtype == torch.float32:
                shapes[name] = tuple(y.shape)

        self._run_with({name: partial(note, name) for name in modules})
        once = {name: shape for name, shape in shapes.items() if calls[name] == 1}
        self.ends = module_ends(outline, once)
        self.flows = {name: flow for name, flow in outline.flows.items() if name in self.ends}

    def outputs(self) -> Feeds:
        with torch.inference_mode():
            got = self.published(*self.inputs.values())
        got = got if isinstance(got, tuple) else (got,)
        return {name: y.numpy() for name, y in zip(OUTPUT_NAMES[self.graph], got, strict=True)}

    def take(self, parts: list[Part]) -> list[np.ndarray]:
        taken: dict[Part, np.ndarray] = {}

        def keep(wanted: list[Part], y: Tensor) -> None:
            for part in wanted:
                cut = y if part.stop is None else y.narrow(part.axis, part.start, part.stop - part.start)
                taken[part] = cut.clone().numpy()

        wanted: dict[str, list[Part]] = {}
        for part in parts:
            wanted.setdefault(self.ends[part.name], []).append(part)
        self._run_with({name: partial(keep, parts) for name, parts in wanted.items()})
        return [taken[part] for part in parts]

    def evidence(self) -> str:
        return f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; {len(self.ends)} modules"

    def _run_with(self, watchers: dict[str, Callable[[Tensor], object]]) -> None:
        """Run the exported module once; each watcher is called with the output of the module that it is named after."""
        modules = dict(self.exported.named_modules())
        hooks = [modules[name].register_forward_hook(partial(_watch, watch)) for name, watch in watchers.items()]
        try:
            with torch.inference_mode():
                self.exported(*self.inputs.values())
        finally:
            for hook in hooks:
                hook.remove()


def _watch(watch: Callable[[Tensor], object], _module: nn.Module, _inputs: tuple, y: Tensor) -> None:
    """A forward hook, which leaves the output as it is."""
    watch(y)


def module_ends(outline: Outline, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Names of tensors with the module whose output each is.

    A module's output is the last tensor that a node of its scope makes for a node outside. If its shape is not that of the
    module's output, a pass or the exporter has left nothing to compare, and the module is not among the values. If several
    modules share an output, the innermost is chosen.

    Args:
        outline: of the graph.
        shapes: of each module's output, by its name.
    """
    outputs = {plain_name(name) for name in outline.outputs}
    ends: dict[str, str] = {}
    for module, shape in sorted(shapes.items(), key=lambda item: item[0].count(".")):
        last = None
        for flow in outline.flows.values():
            if module in outline.scopes[flow.node]:
                readers = outline.readers_of(flow)
                read_outside = flow.name in outputs or any(module not in outline.scopes[i] for i in readers)
                if read_outside and (
                    last is None or flow.node != last.node
                ):  # a fused norm puts out the sum too, as its second
                    last = flow
        if last and last.shape == shape:
            ends[last.name] = module
    return ends


# -- backends ----------------------------------------------------------------------------------------------------------


class Backend(Protocol):
    """Runs graphs."""

    gives_float32: bool  # outputs of 16 bits must be widened in the graph
    evidence: str  # what the last run really ran on

    def __call__(self, path: Path, model: onnx.ModelProto, feeds: Feeds) -> Feeds:
        """Run a graph, whose weights are next to the stored graph `path`, on float32 arrays by name: its outputs by name."""


class Native:
    """ONNX Runtime in this process; every run has a session of its own.

    Its CPU provider computes most of a graph of 16 bits in 32, and removes every pair of Casts that this introduces. So
    outputs of 16 bits stay as they are: a Cast to float32 would form such a pair with the one before it, and hide an
    overflow.
    """

    gives_float32 = False

    def __init__(self, open_: Callable[..., onnxruntime.InferenceSession]) -> None:
        self.open, self.evidence = open_, ""

    def __call__(self, path: Path, model: onnx.ModelProto, feeds: Feeds) -> Feeds:
        session = self.open(path, model=model)
        self.evidence = f"ONNX Runtime {onnxruntime.__version__}, {', '.join(session.get_providers())}"
        names = [output.name for output in session.get_outputs()]
        return {name: y.astype(np.float32, copy=False) for name, y in zip(names, session.run(names, feeds), strict=True)}


class InBrowser:
    """The page's engine in a browser, which starts anew for every run, so that no memory of an earlier session remains.

    The bundle has the graph under its own name; a graph that computes next to nothing replaces the other two.

    Args:
        graphs: the network.
        form: the graph's precision, as the page is told.
        side: provider, and whether the graph is captured.
        work: an empty folder, for the bundle and, as a bundle is made from graphs with their weights, for a copy of those.
    """

    gives_float32 = True

    def __init__(self, graphs: Graphs, form: str, side: Side, work: Path) -> None:
        self.graphs, self.form, self.side, self.work, self.evidence = graphs, form, side, work, ""
        self.nothing = work / "nothing" / "nothing.onnx"
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        body = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "nothing", ends[:1], ends[1:])
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        _write_graph(self.nothing, model, [])

    def __call__(self, path: Path, model: onnx.ModelProto, feeds: Feeds) -> Feeds:
        bundle, copy = self.work / "bundle", self.work / path.stem / path.name
        _, *weights = files_of(path)
        copy.parent.mkdir(exist_ok=True)
        for file in weights:
            if not copy.with_name(file["name"]).is_file():
                shutil.copyfile(path.with_name(file["name"]), copy.with_name(file["name"]))
        _write_graph(copy, model, weights)
        write_bundle(self.graphs, bundle, (self.form,), graphs=dict.fromkeys(GRAPHS, self.nothing) | {path.stem: copy})
        side = self.side
        options = {"capture": side.captured, "kernels": side.kernels, "engine": side.engine}
        with Browser(bundle, side.provider, self.form, **options) as browser:
            self.evidence = f"{browser.name}, {_told(browser.loaded, path.stem)}"
            return browser.run(path.stem, feeds)


def _told(loaded: dict, graph: str) -> str:
    """What the page reports about itself and one graph, which is captured only if all of it runs on the device."""
    nodes = loaded["placed"][graph]["nodes"]
    captured = loaded["captured"] and set(nodes) == {"WebGpu"}
    placed = ", ".join(f"{count} on {where}" for where, count in nodes.items())
    return f"{loaded['device']}{', captured' if captured else ''}; nodes by ONNX Runtime's own log: {placed}"


def _write_graph(path: Path, model: onnx.ModelProto, weights: list[dict]) -> None:
    """A graph with the record of its files, as `Graphs.stored` leaves one; `weights` are the entries of the other files."""
    body = model.SerializeToString()
    write_whole(path, body)
    own = {"name": path.name, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    write_json(path.with_name(STAMP), {"files": [own, *weights]})


TORCH = "torch"  # the `opened_by` of the side that runs no graph: `TorchRun`
OPENERS: dict[str, Callable[[Graphs, str, Side, Path], Backend]] = {
    "onnxruntime": lambda graphs, form, side, work: Native(open_session),
    "webgpu": lambda graphs, form, side, work: Native(webgpu_session),
    "browser": InBrowser,
}
"""What opens a side that runs graphs, by its `opened_by`."""


# -- the search --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Where two runs part, or the finding that they do not."""

    graph: str
    labels: tuple[str, str]  # of the reference and of the other side
    evidence: tuple[str, str]
    tolerance: float  # largest difference as a share of the reference's largest magnitude
    compared: int  # tensors, up to the one where they part
    common: int  # tensors that both sides have
    outline: Outline  # of the graph whose order counts
    groups: int  # how many were run
    outputs: list[Comparison]  # the graph's own, without extra outputs
    first: Comparison | None  # the first tensor that differs by more than the tolerance
    worst: Comparison | None  # of all that agree, the one that differs most
    suspects: list[int]  # nodes in order, from agreeing tensors to `first`, or else `worst`; the last one makes it
    inputs: list[Comparison]  # tensors that agree, which these nodes read
    module: str  # of PyTorch, whose output differs; empty where both sides are graphs

    @property
    def failed(self) -> bool:
        """Whether an intermediate tensor or an output of the graph differs by more than the tolerance."""
        return bool(self.first) or any(not c.share <= self.tolerance for c in self.outputs)

    @property
    def node(self) -> NodeProto | None:
        """The node at which they part; None where they do not."""
        return self.outline.nodes[self.suspects[-1]] if self.first else None

    def words(self) -> str:
        """What was found, in a few lines."""
        reference, other = self.labels
        lines = [
            f"{self.graph}: {other}, against {reference}",
            *(f"  {label}: {words}" for label, words in zip(self.labels, self.evidence)),
            f"  {self.compared:,} of {self.common:,} tensors compared, groups of outputs: {self.groups}",
            f"  tolerance: {self.tolerance:g} of a tensor's largest magnitude",
            "  the graph's outputs, without extra ones: " + "; ".join(f"{c.name} {c.words()}" for c in self.outputs),
        ]
        if self.first:
            return "\n".join([*lines, *self._where()])
        worst = self.worst
        if worst:
            at = self._place(self.outline.flows[worst.name].node)
            lines.append(f"No tensor differs by more than the tolerance. The most: {worst.name} {worst.words()}, {at}.")
        if self.failed:
            why = "Look at fused kernels, which extra outputs keep apart; where PyTorch is a side, at the rewrites too."
            lines.append(f"But the graph's outputs differ by more. {why}")
        return "\n".join(lines)

    def _where(self) -> list[str]:
        *before, node = self.suspects
        lines = [f"They part {self._place(node)}: {self.first.name} {self.first.words()}."]
        if self.module:
            lines.append(f"It is what the module {self.module} puts out.")
        if before:
            operators = Counter(self.outline.nodes[i].op_type for i in self.suspects)
            listed = ", ".join(f"{count} {operator}" for operator, count in operators.most_common())
            lines.append(
                f"What lies between it and tensors that agree was not compared: nodes {before[0]} to {node} ({listed})."
            )
        inherited = max((c.share for c in self.inputs), default=0.0)
        read = f"differs by {inherited:.2g} of its magnitude at most" if inherited else "is equal on both sides"
        if self.first.share < MADE_HERE * inherited:
            read = f"differs by {inherited:.2g} of its magnitude already"
            lines.append(f"What it reads {read}: the difference has grown on the way, and no one node makes it.")
        else:
            lines.append(f"What it reads {read}: the difference is made here.")
        return lines

    def _place(self, index: int) -> str:
        node, scopes = self.outline.nodes[index], self.outline.scopes[index]
        where = f" in {scopes[-1]}" if scopes else ""
        return f"at node {index} of {len(self.outline.nodes)}, {node.op_type} {node.name}{where}"

    def table(self) -> pd.DataFrame:
        """The tensor where they part, or else where they differ most, and what the nodes that lead to it read."""
        rows = {}
        for comparison, role in [(self.first or self.worst, "output"), *((c, "input") for c in self.inputs)]:
            if comparison:
                rows[comparison.name] = {
                    "what": role,
                    "largest difference": f"{comparison.largest:.2g}",
                    "share": f"{comparison.share:.2g}",
                    "reference": comparison.reference.words(),
                    "other": comparison.other.words(),
                    "remarks": comparison.remarks(),
                }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("tensor")


def find_parting(
    graph: str,
    reference: Run,
    other: Run,
    outline: Outline,
    tolerance: float,
    most: int,
    on_group: OnGroup = lambda done, groups: None,
) -> Answer:
    """Compare two runs, tensor by tensor in the order of a graph, up to the first that differs by more than the tolerance.

    Args:
        graph: one of `GRAPHS`, for the answer.
        reference: the side that differences are measured from.
        other: the side under test.
        outline: of a graph of either side, whose order counts.
        tolerance: see `Answer`.
        most: bytes of intermediate values that are read at once, in float32, on each side.
        on_group: called before each group with the number done and the largest possible number.
    """
    expected, got = reference.outputs(), other.outputs()
    outputs = [compare(name, y, got[name]) for name, y in expected.items() if name in got]
    common = [flow for name, flow in outline.flows.items() if name in reference.flows and name in other.flows]
    unlike = next((flow for flow in common if reference.flows[flow.name].shape != other.flows[flow.name].shape), None)
    groups = groups_of(common[: common.index(unlike)] if unlike else common, most)
    done: dict[str, Comparison] = {}
    first, runs = None, 0
    for runs, parts in enumerate(groups, 1):
        on_group(runs - 1, len(groups))
        for part, a, b in zip(parts, reference.take(parts), other.take(parts), strict=True):
            found = compare(part.name, a, b)
            done[part.name] = done[part.name] + found if part.name in done else found
            if part.last and not done[part.name].share <= tolerance:
                first = done.pop(part.name)
                break
        if first:
            break
    if not first and unlike:
        ranges = (_whole_range(run, unlike.name, most) for run in (reference, other))
        first = Comparison(unlike.name, math.inf, *ranges)
    worst = max(done.values(), key=lambda comparison: comparison.share, default=None)
    shown = first or worst
    suspects = _suspects(outline, outline.flows[shown.name].node, set(done) - {shown.name}) if shown else []
    read = dict.fromkeys(plain_name(name) for i in suspects for name in outline.nodes[i].input)
    return Answer(
        graph,
        (reference.label, other.label),
        (reference.evidence(), other.evidence()),
        tolerance,
        len(done) + bool(first),
        len(common),
        outline,
        runs,
        outputs,
        first,
        worst,
        suspects,
        [done[name] for name in read if name in done and name != shown.name],
        next((run.ends[first.name] for run in (reference, other) if first and isinstance(run, TorchRun)), ""),
    )


def _whole_range(run: Run, name: str, most: int) -> Range:
    """The range of a tensor that may come in several parts."""
    ranges = [range_of(x) for parts in groups_of([run.flows[name]], most) for x in run.take(parts)]
    return sum(ranges[1:], ranges[0])


def _suspects(outline: Outline, node: int, agreeing: set[str]) -> list[int]:
    """The nodes that lead to `node` from tensors on which both sides agree, in graph order, itself included."""
    found, waiting = set(), [node]
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            read = (name for name in outline.nodes[i].input if plain_name(name) not in agreeing)
            waiting += [outline.makers[name] for name in read if name in outline.makers]
    return sorted(found)


def tolerance_of(a: str, b: str) -> float:
    """How far two runs of one graph may differ at a node, as a share of the tensor's largest magnitude.

    Args:
        a, b: the precisions of their graphs. Two graphs of one form that compute in 32 bits are the same function.
    """
    entries = PRECISIONS[a], PRECISIONS[b]
    if a == b and entries[0].arithmetic == FLOAT32:
        return PRECISIONS["fp32"].node_tolerance
    return max(entry.node_tolerance for entry in entries)


def between(
    graphs: Graphs,
    graph: str,
    sides: tuple[str, str],
    precisions: tuple[str, str] = ("fp32", "fp32"),
    tolerance: float | None = None,
    on_group: OnGroup = lambda done, groups: None,
) -> Answer:
    """Where two backends part on one graph, on `export.example_inputs`.

    Args:
        graphs: the network; missing graphs are made.
        graph: one of `GRAPHS`.
        sides: two of `config.SIDES`; differences are measured from the first.
        precisions: of each side's graph, see `precision.per_graph`.
        tolerance: overrides `tolerance_of`.
        on_group: see `find_parting`.

    Raises:
        LabError: the same run twice, a precision that a side lacks, or a backend that cannot run here.
    """
    if graph not in GRAPHS:
        raise LabError(f"there is no graph {graph!r}; choose one of {', '.join(GRAPHS)}")
    for side in sides:
        if side not in SIDES:
            raise LabError(f"there is no backend {side!r} to compare; choose from {', '.join(SIDES)}")
    forms = tuple(per_graph(precision)[graph] for precision in precisions)
    entries = [SIDES[side] for side in sides]
    if len(set(zip(sides, forms))) == 1:
        raise LabError(f"both sides are {sides[0]} in {forms[0]}: choose two backends, or two precisions")
    for side, entry, form in zip(sides, entries, forms):
        if entry.forms and form not in entry.forms:
            raise LabError(f"{side} computes in {entry.forms[0]}; give each side its precision, as in --precision fp32 int8")
        if entry.provider and entry.provider not in PRECISIONS[form].providers:
            raise LabError(f"{side} cannot run {form}, which is for {', '.join(PRECISIONS[form].providers)}; choose another")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise LabError(f"tolerance {tolerance} is not possible; give a finite number of at least 0")
    inputs = example_inputs(graphs.config)[graph]
    feeds = example_feeds(graphs.config)[graph]
    most = min(entry.taken_at_once for entry in entries)
    with tempfile.TemporaryDirectory(dir=graphs.folder) as work:
        runs: list[Run | None] = []
        for i, (entry, form) in enumerate(zip(entries, forms)):
            label = f"{entry.label}, {form}"
            if entry.opened_by == TORCH:
                runs.append(None)
                continue
            folder = Path(work) / str(i)
            folder.mkdir()
            path = graphs.stored(precisions[i])[graph]
            runs.append(GraphRun(label, path, OPENERS[entry.opened_by](graphs, form, entry, folder), feeds))
        outline = next(run.outline for run in reversed(runs) if run)
        for i, entry in enumerate(entries):
            if runs[i] is None:
                modules = exported_module(graph, graphs.net, graphs.vae), torch_graphs(graphs.net, graphs.vae)[graph]
                runs[i] = TorchRun(f"{entry.label}, fp32", *modules, graph, inputs, outline)
        chosen = tolerance_of(*forms) if tolerance is None else tolerance
        return find_parting(graph, *runs, outline, chosen, most, on_group)
