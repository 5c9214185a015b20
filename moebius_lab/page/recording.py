"""Recordings: what ONNX Runtime Web asks of any graphics device, taken down once when a bundle is made.

    with Recorder(runtime) as recorder:                       # headless Chromium on its software adapter
        file = kept(bench.folder, "fp32", graphs, job, recorder)

Which programs the runtime makes depends on its device's features and limits. One with default limits and no features, which every device
can be, gives the same recording to everybody: programs, commands, sizes, and how each weight is made from the bundle's files. The page plays
it (`web/engine/recorded/`) without ONNX Runtime. `recorder.js` takes it down; here its weights are found in the stored graphs, by the
SHA-256 of what the device's buffers held.

A recording is one file, compressed by gzip: four bytes, little endian, that count those of a description in JSON (`Recording` in
`web/engine/recorded/recording.js`); the description; the numbers of weights that stand in no other file, as they are.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import LabError
from ..files import (
    STORED_FILE,
    changed_file,
    digest_of,
    file_sha256,
    kept_json,
    listed,
    record,
    replace_folder,
    say,
    write_json,
)
from ..port.precision import STAMP, files_of
from ..provenance import made_by
from .driving import IMPORT, Refused, session_of
from .engines import ENGINES, MAIN
from .modules import ENGINE, WEB, linked_from, page_files
from .serve import Server

SCRIPT = Path(__file__).with_name("recorder.js")
CALL = "([work, argument]) => recorder[work](argument)"
NAME = "recording"
APART = 16  # bytes: the runtime's buffers are multiples of it
MOST_AXES = 4  # of a weight that is looked for transposed
PIECE_BYTES = 4_000_000  # of weights that come from the browser at once
KEPT = record(made_from={"type": "object"}, files=listed(STORED_FILE, 1))


class Unrecordable(LabError):
    """Graphs of which no recording can be made, or not here."""


# -- taking it down ----------------------------------------------------------------------------------------------------


class Recorder:
    """Chromium on its software adapter, started when it is first needed; use it as a context.

    Args:
        runtime: the folder of ONNX Runtime Web's files.
        builds: module and wasm of each build for WebGPU, in that folder.
        version: of ONNX Runtime Web.
    """

    def __init__(self, runtime: Path, builds: dict[str, tuple[str, str]], version: str) -> None:
        self.runtime, self.builds, self.version = runtime, builds, version
        self.count = 0  # of graphs so far
        self.ended = ExitStack()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.close()

    def take_down(self, graphs: dict[str, Path], form: dict, runs: dict, layouts: dict) -> bytes:
        """A recording of graphs, as a file's content.

        Args:
            graphs: the .onnx file of each, with its record of files.
            form: of the precision, as the manifest has it.
            runs: every way in which a picture runs a graph, as the manifest has them.
            layouts: in which a graph's convolutions run.

        Raises:
            Unrecordable: the runtime does something on this device that cannot be recorded.
            NoBrowser: there is no Chromium.
        """
        links = {}
        for graph, path in graphs.items():
            self.count += 1  # an address of its own: browsers keep what they have read
            (self._folder / str(self.count)).symlink_to(path.parent.resolve(), target_is_directory=True)
            links[graph] = [file | {"file": f"{self._server.url}{self.count}/{file['name']}"} for file in files_of(path)]
        job = {
            "engine": f"{self._server.url}web/{ENGINE}", "runtime": f"{self._server.url}runtime/", "builds": self.builds,
            "version": self.version, "form": form | {"graphs": links}, "runs": runs, "layouts": layouts,
        }  # fmt: skip
        # a page of its own: the runtime's log goes to what it found when it started
        self._do(self._tab.goto, self._server.url)
        self._do(self._tab.evaluate, IMPORT, ["recorder", SCRIPT.read_text(encoding="utf-8")])
        description = self._call("record", job)
        weights = [(weight["bytes"], weight["sha256"]) for weight in description["weights"]]
        found = find_weights(weights, graphs)
        own = b""
        for few in _pieces([i for i, source in enumerate(found) if source is None], weights):
            content = base64.b64decode(self._call("contents", few))
            for i in few:
                size, _ = weights[i]
                found[i] = {"name": "", "formula": _leaf("", len(own), size, (size // 4,), "uint32")}
                own, content = own + content[:size], content[size:]
        made = [source | {"bytes": size} for source, (size, _) in zip(found, weights)]
        text = json.dumps(description | {"weights": made}, separators=(",", ":")).encode()
        return gzip.compress(struct.pack("<I", len(text)) + text + own, mtime=0)

    def _call(self, work: str, argument: object) -> Any:
        try:
            return self._do(self._tab.evaluate, CALL, [work, argument])
        except Refused as error:
            raise Unrecordable(str(error).split("\n")[0]) from None

    def _do(self, work: Callable, *arguments: object) -> Any:
        return self._thread.submit(work, *arguments).result()

    @cached_property
    def _folder(self) -> Path:
        """What the page of the recorder sees: the page's modules, ONNX Runtime and the graphs, as links."""
        folder = Path(self.ended.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        (folder / "web").symlink_to(WEB, target_is_directory=True)
        (folder / "runtime").symlink_to(self.runtime.resolve(), target_is_directory=True)
        (folder / "index.html").write_text("<!doctype html><title>recorder</title>", encoding="utf-8")
        return folder

    @cached_property
    def _server(self) -> Server:
        return self.ended.enter_context(Server(self._folder))

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        """A thread without an event loop, where alone Playwright works."""
        return self.ended.enter_context(ThreadPoolExecutor(1))

    @cached_property
    def _tab(self) -> Any:
        session = self._do(session_of, ENGINES[MAIN], "webgpu", "software")
        self.ended.callback(self._do, session.close)
        return self._do(session.new_tab)


def _pieces(indices: list[int], weights: list[tuple[int, str]]) -> Iterator[list[int]]:
    """The indices in groups whose weights come from the browser at once."""
    few: list[int] = []
    for i in indices:
        if few and sum(weights[j][0] for j in few) + weights[i][0] > PIECE_BYTES:
            yield few
            few = []
        few.append(i)
    if few:
        yield few


# -- where its weights come from -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """An initializer whose numbers stand in a file of weights."""

    name: str
    kind: int  # of its numbers, in ONNX's terms
    shape: tuple[int, ...]
    path: Path
    sha256: str  # of the file
    start: int  # byte in the file
    length: int  # bytes

    def read(self) -> np.ndarray:
        """Its numbers, read anew each time: all of them at once may be more than there is room for."""
        kind = helper.tensor_dtype_to_np_dtype(self.kind)
        return np.fromfile(self.path, kind, math.prod(self.shape), offset=self.start).reshape(self.shape)

    def leaf(self) -> dict:
        """The formula that stands for its numbers."""
        kind = helper.tensor_dtype_to_np_dtype(self.kind).name
        return _leaf(self.sha256, self.start, self.length, self.shape, kind)


def _leaf(sha256: str, start: int, length: int, shape: tuple[int, ...], kind: str) -> dict:
    return {"stored": {"file": sha256, "from": start, "length": length, "dims": list(shape), "kind": kind}}


def find_weights(weights: list[tuple[int, str]], graphs: dict[str, Path]) -> list[dict | None]:
    """How the numbers of each weight come from the stored initializers of graphs, bit for bit.

    An initializer is looked for as it is stored, in 32 bits where it is stored in 16, and with its axes in every other order; and so is
    what a graph computes from initializers alone, which the runtime does when it loads the graph.

    Args:
        weights: bytes of each one's buffer, and the SHA-256 of what it holds: the weight's numbers, then zeros up to a multiple of 16.
        graphs: the .onnx file of each, with its record of files.

    Returns:
        For each weight a `RecordedWeight` of `web/engine/recorded/recording.js`, or None where no formula gives its numbers.
    """
    stored = {(tensor.sha256, tensor.start): tensor for path in graphs.values() for tensor in _stored_in(path)}
    formulas = [each for path in graphs.values() for each in _formulas(path)]
    missing, found, used = set(weights), {}, set()
    for turned in (False, True):
        # each is turned at last where it was not found as it is: most are, and all orders of one take long
        for i, (name, formula, shape) in sorted(enumerate(formulas), key=lambda each: each[0] in used):
            size = _padded(_bytes_of(formula, shape))
            if size not in {size for size, _ in missing} or (turned and not _has_words(formula)):
                continue
            array = _value(formula, stored)
            for order in _orders(array.ndim, turned):
                key = size, _digest(array.transpose(order).tobytes())
                if key in missing:
                    said = _turned(formula, order) if turned else formula
                    found[key] = {"name": name, "formula": said}
                    missing.remove(key)
                    used.add(i)
                    break
    return [found.get(weight) for weight in weights]


def _orders(count: int, turned: bool) -> list[list[int]]:
    """The order of so many axes as it is, or all others."""
    first, *others = (
        [list(order) for order in itertools.permutations(range(count))] if count <= MOST_AXES else [list(range(count))]
    )
    return others if turned else [first]


def _stored_in(path: Path) -> Iterator[_Stored]:
    digests = {file["name"]: file["sha256"] for file in files_of(path)}
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            file = place["location"]
            where = (path.with_name(file), digests[file], int(place["offset"]), int(place["length"]))
            yield _Stored(tensor.name, tensor.data_type, tuple(tensor.dims), *where)


def _digest(body: bytes) -> str:
    """SHA-256 of what a buffer holds: numbers, then zeros."""
    return hashlib.sha256(body + bytes(_padded(len(body)) - len(body))).hexdigest()


def _padded(length: int) -> int:
    return -(-length // APART) * APART


# -- weights that the runtime computes ---------------------------------------------------------------------------------


def _formulas(path: Path) -> Iterator[tuple[str, dict, tuple[int, ...]]]:
    """Name, formula and shape of each initializer, and of what a graph computes from initializers alone and something else needs.

    A formula is `Formula` of `web/engine/recorded/weights.js`; tensors of which one cannot speak are left out.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in _stored_in(path)}
    for tensor in stored.values():
        yield tensor.name, tensor.leaf(), tensor.shape
        if tensor.kind == TensorProto.FLOAT16:
            yield tensor.name, {"cast": "float32", "of": [tensor.leaf()]}, tensor.shape
    small = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name not in stored}
    made = {name: tensor.leaf() for name, tensor in stored.items()}
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    needed: list[str] = []
    for node in graph.node:
        names = [name for name in node.input if name]
        formulas = []
        if names and names[0] in made and all(name in made or name in small for name in names):
            formulas = _formulas_of(node, made, shapes, small)
        for name, formula in zip(node.output, formulas):
            made[name], shapes[name] = formula
        if not formulas:
            needed += names
    for name in dict.fromkeys(needed):
        if name in made and name not in stored and made[name].get("cast") != "float32":
            yield name, made[name], shapes[name]


def _formulas_of(
    node: onnx.NodeProto, made: dict[str, dict], shapes: dict[str, tuple[int, ...]], small: dict[str, np.ndarray]
) -> list[tuple[dict, tuple[int, ...]]]:
    """Formula and shape of each of a node's outputs; none where there are no such formulas."""
    if node.op_type == "Split":
        return _parts(node, made, shapes, small)
    formula = _formula(node, made, shapes, small)
    return [formula] if formula else []


def _parts(
    node: onnx.NodeProto, made: dict[str, dict], shapes: dict[str, tuple[int, ...]], small: dict[str, np.ndarray]
) -> list[tuple[dict, tuple[int, ...]]]:
    """What a node splits its input into."""
    first, *sizes = node.input
    shape, count = shapes[first], len(node.output)
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0) % len(shape)
    even = -(-shape[axis] // count)  # the last may be smaller
    ends = np.cumsum(small[sizes[0]]).tolist() if sizes else [min(even * (i + 1), shape[axis]) for i in range(count)]
    if not _has_words(made[first]):
        return []
    bounds = zip([0, *ends], ends)
    return [
        ({"slice": [axis, start, end], "of": [made[first]]}, (*shape[:axis], end - start, *shape[axis + 1 :]))
        for start, end in bounds
    ]


def _formula(
    node: onnx.NodeProto, made: dict[str, dict], shapes: dict[str, tuple[int, ...]], small: dict[str, np.ndarray]
) -> tuple[dict, tuple[int, ...]] | None:
    """Formula and shape of a node's only output; None where there is no such formula."""
    first, *others = (name for name in node.input if name)
    shape, own = shapes[first], made[first]
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    lists = [small[name].tolist() for name in others if name in small and small[name].ndim == 1]
    match node.op_type:
        case "Cast" if own.get("stored", {}).get("kind") == "float16" and attributes["to"] == TensorProto.FLOAT:
            return {"cast": "float32", "of": [own]}, shape
        case "Cast" if attributes["to"] == TensorProto.INT64 and _is_int32(own):
            return {"cast": "int64", "of": [own]}, shape
        case _ if not all(_has_words(made[name]) for name in (first, *others) if name in made):
            return None  # a formula has nothing else for pairs, or for numbers of fewer bits
        case "Reshape" if lists:
            dims = np.empty(shape, bool).reshape(lists[0]).shape
            return {"reshape": list(dims), "of": [own]}, dims
        case "Squeeze" | "Unsqueeze" if lists:
            change = np.squeeze if node.op_type == "Squeeze" else np.expand_dims
            dims = change(np.empty(shape, bool), tuple(lists[0])).shape
            return {"reshape": list(dims), "of": [own]}, dims
        case "Slice" if len(lists) in (3, 4) and all(len(numbers) == 1 for numbers in lists) and lists[3:] in ([], [[1]]):
            axis = lists[2][0] % len(shape)
            start, end, _ = slice(lists[0][0], lists[1][0]).indices(shape[axis])
            return {"slice": [axis, start, end], "of": [own]}, (*shape[:axis], end - start, *shape[axis + 1 :])
        case "Add" if others[0] in made and shapes[others[0]] == shape:
            return {"add": "float32", "of": [own, made[others[0]]]}, shape
        case "Concat" if all(name in made for name in others):
            axis = attributes["axis"] % len(shape)
            side = sum(shapes[name][axis] for name in (first, *others))
            return {"concat": axis, "of": [own, *(made[name] for name in others)]}, (*shape[:axis], side, *shape[axis + 1 :])
        case "Gather" if attributes.get("axis", 0) == 0 and _is_int32(made.get(others[0], {})):
            return {"gather": 0, "of": [own, made[others[0]]]}, (*shapes[others[0]], *shape[1:])
        case "Transpose":
            order = list(attributes.get("perm", range(len(shape))[::-1]))
            return {"transpose": order, "of": [own]}, tuple(shape[axis] for axis in order)
    return None


def _turned(formula: dict, order: list[int]) -> dict:
    """What a formula gives with its axes in another order: what is stored is turned first, wherever that comes to the same.

    Of kernels (to, from, rows, columns) whose channels are to come last, taps then lie apart, each in one piece: their sums and parts
    are read as they lie, and formulas that make several weights of one kernel have it turned once.
    """
    others = formula.get("of", ())
    match formula:
        case {"slice": [axis, start, end]}:
            return {"slice": [order.index(axis), start, end], "of": [_turned(others[0], order)]}
        case {"add": kind}:
            return {"add": kind, "of": [_turned(other, order) for other in others]}
        case {"concat": axis}:
            return {"concat": order.index(axis), "of": [_turned(other, order) for other in others]}
        case {"reshape": dims}:
            before = _shape_of(others[0])
            mine, its = ([axis for axis, side in enumerate(sides) if side != 1] for sides in (dims, before))
            if [dims[axis] for axis in mine] == [before[axis] for axis in its]:  # only sides of 1 come or go
                lone = [axis for axis, side in enumerate(before) if side == 1]
                place = dict(zip(mine, its))
                inner = lone + [place[axis] for axis in order if axis in place]
                return {"reshape": [dims[axis] for axis in order], "of": [_turned(others[0], inner)]}
    return {"transpose": order, "of": [formula]} if order != sorted(order) else formula


def _shape_of(formula: dict) -> list[int]:
    """The shape of what a formula of numbers of 32 bits gives."""
    shapes = [_shape_of(other) for other in formula.get("of", ())]
    match formula:
        case {"stored": place}:
            return place["dims"]
        case {"slice": [axis, start, end]}:
            return [*shapes[0][:axis], end - start, *shapes[0][axis + 1 :]]
        case {"reshape": dims}:
            return dims
        case {"transpose": order}:
            return [shapes[0][axis] for axis in order]
        case {"concat": axis}:
            return [*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]]
        case {"gather": _}:
            return [*shapes[1], *shapes[0][1:]]
    return shapes[0]


def _has_words(formula: dict) -> bool:
    """Whether its numbers have 32 bits each."""
    return formula["stored"]["kind"] in ("float32", "int32") if "stored" in formula else formula.get("cast") != "int64"


def _bytes_of(formula: dict, shape: tuple[int, ...]) -> int:
    """Of what a formula gives."""
    return (
        formula["stored"]["length"] if "stored" in formula else math.prod(shape) * (8 if "int64" in formula.values() else 4)
    )


def _is_int32(formula: dict) -> bool:
    return formula.get("stored", {}).get("kind") == "int32" or ("reshape" in formula and _is_int32(formula["of"][0]))


def _value(formula: dict, stored: dict[tuple[str, int], _Stored]) -> np.ndarray:
    """What a formula gives; whole numbers of 64 bits as pairs of 32."""
    given = [_value(other, stored) for other in formula.get("of", ())]
    match formula:
        case {"stored": place}:
            return stored[place["file"], place["from"]].read()
        case {"cast": "float32"}:
            return given[0].astype(np.float32)
        case {"slice": [axis, start, end]}:
            return given[0].take(range(start, end), axis)
        case {"reshape": dims}:
            return given[0].reshape(dims)
        case {"transpose": order}:
            return given[0].transpose(order)
        case {"add": _}:
            return given[0] + given[1]
        case {"concat": axis}:
            return np.concatenate(given, axis)
        case {"gather": axis}:
            return given[0].take(given[1], axis)
    return given[0].astype(np.int64).view(np.int32).reshape(*given[0].shape, 2)


# -- keeping it --------------------------------------------------------------------------------------------------------


def kept(
    folder: Path, precision: str, graphs: dict[str, Path], form: dict, runs: dict, layouts: dict, recorder: Recorder
) -> Path:
    """The recording of a precision in a run's folder; taken down unless it is there already, of the same graphs and by the same code.

    Args:
        folder: of the run, which keeps it under `onnx/recordings/`.
        precision: its name.
        graphs, form, runs, layouts: see `Recorder.take_down`.
        recorder: takes it down where that is necessary.

    Raises:
        Unrecordable, NoBrowser: see `Recorder.take_down`.
    """
    place = folder / "onnx" / "recordings" / precision
    said = {key: form[key] for key in ("options", "options_require", "needs")}
    made_from = {
        "graphs": {graph: [file["sha256"] for file in files_of(path)] for graph, path in graphs.items()},
        "runtime": recorder.version, "form": said, "runs": runs, "layouts": layouts, "recorder": _recorded_by(),
    }  # fmt: skip
    stamp = kept_json(place / STAMP, KEPT)
    if stamp and stamp["made_from"] == made_from:
        words = changed_file(place, stamp["files"])
        if not words:
            return place / NAME
        say(f"{words}; it is made again")
    content = recorder.take_down(graphs, form, runs, layouts)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / precision
        made.mkdir()
        (made / NAME).write_bytes(content)
        file = {"name": NAME, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_json(made / STAMP, {"made_from": made_from, "files": [file]})
        replace_folder(made, place)
    return place / NAME


def _recorded_by() -> dict:
    """What a recording depends on besides its graphs: this code, the script, and the modules of the page that capture."""
    files = page_files()
    modules = linked_from(f"{ENGINE}{name}.js" for name in ("backend", "capture", "manifest", "model_cache"))
    return MADE_BY | {"script": file_sha256(SCRIPT), "modules": digest_of([files[name] for name in sorted(modules)], WEB)}


def read_recording(path: str | Path) -> tuple[dict, bytes]:
    """The description in a recording's file, and the numbers that it holds itself."""
    content = gzip.decompress(Path(path).read_bytes())
    (length,) = struct.unpack_from("<I", content)
    return json.loads(content[4 : 4 + length]), content[4 + length :]


def parts(path: str | Path) -> dict[str, int]:
    """Bytes of each part of a recording before it is compressed, and of the whole file."""
    description, own = read_recording(path)
    said = {"programs, in WGSL": description["programs"], "commands": description["runs"]}
    said |= {"uniforms of commands": description["numbers"], "how weights are made": description["weights"]}
    sizes = {what: len(json.dumps(part, separators=(",", ":"))) for what, part in said.items()}
    return sizes | {"weights that stand in no file": len(own), "all of it, compressed": Path(path).stat().st_size}


MADE_BY = made_by(__name__)
