"""How a graph's weights are stored, and in which arithmetic they run: two separate choices. `config.PRECISIONS` lists the forms.

| precision | a weight in the file | arithmetic | what is lost |
|---|---|---|---|
| fp32 | float32 | float32 | nothing |
| fp16-storage | float16 and a Cast | float32 | rounding to 11 bits, once: 71 dB a step at full size; nothing where `narrowest_type` says float16 |
| fp16 | float16 | float16, except norms, softmax and what follows the last layer | rounding at every operation |
| int8 | int8, one float16 scale for 128 numbers; float16 where a channel has fewer | float32 | rounding to 8 bits, once |
| int4 | 4 bits in the large matrices, one float16 scale for 32 numbers; int8 elsewhere | float32 | rounding to 4 bits, once |

The published Places2 denoiser has 32 bits and its autoencoder 16. The lossless form is therefore
"fp32,vae_encoder=fp16-storage,vae_decoder=fp16-storage". A denoiser published in 16 bits would not be lossless either, though it
would lose less (74 dB): the rewrites fold norms into convolutions, which makes new numbers of both.

Each precision is a form of one graph. For the port as a whole, fp16 means the denoiser: the autoencoder's activations are
known to exceed 65504 in half precision, and per picture its encoder runs only twice and its decoder once, so it is stored in
16 bits and computes in 32.

int4 is an experiment: it halves int8's files and does not preserve the picture (`notes.md` has the numbers).

The runtimes fold a Cast, Reshape or Transpose of a constant when they load a graph. They fold DequantizeLinear only with the session option
`session.disable_quant_qdq` = "1"; without it, it runs at every call, and the CPU provider may replace it by a coarser
product. `sessions` lets them fold, for speed; the page does not, to save memory and start sooner (`Precision.options`).

Weights are written next to the graph, to files of at most `max_chunk_bytes`, in the order in which the graph lists them, so that
a page can fetch them in parallel, resume a download, and check each by its SHA-256.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from ml_dtypes import bfloat16
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .. import LabError
from ..config import FLOAT16, GRAPHS, INT4, INT8, PRECISIONS, Precision
from ..files import STORED_FILE, listed, read_json, record, require_room
from .passes import EXACT, INLINE_BYTES, half_name, halve_arithmetic, read_tensor

CHUNK_BYTES = 64_000_000  # largest file of weights
PROTOBUF_LIMIT = 2**31 - 1  # bytes; no protobuf message may be longer
NARROW_FROM = 4096  # numbers; a smaller tensor stays float32: it takes little room and may be a bias or a scale
ALIGNMENT = 64  # bytes; every tensor starts at a multiple of this in its file
NIBBLES_FROM = 65_536  # numbers; int4 stores tensors of at least this size in 4 bits
BITS = {INT8: 8, INT4: 4}  # of each type that is stored as integers with a scale
GROUP = {8: 128, 4: 32}  # how many numbers share a scale, by their bits

STAMP = "files.json"  # next to a stored graph: every file's name, bytes and SHA-256, the graph's own first


@dataclass(frozen=True)
class StoredFile:
    """One file that `store` wrote."""

    name: str  # relative to the folder
    bytes: int
    sha256: str


def per_graph(precision: str) -> dict[str, str]:
    """The form of each graph, given one word for all of them or a list such as "int8,vae_decoder=fp32".

    Raises:
        LabError: an unknown precision or graph, or a graph without a precision.
    """
    forms: dict[str, str] = {}
    for graph, _, form in (part.strip().rpartition("=") for part in precision.split(",")):
        if form not in PRECISIONS:
            raise LabError(f"precision {form!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        if graph and graph not in GRAPHS:
            raise LabError(f"there is no graph {graph!r}; the graphs are {', '.join(GRAPHS)}")
        if graph:
            forms[graph] = form
        else:
            forms |= {name: form if name == "step" else PRECISIONS[form].autoencoder or form for name in GRAPHS}
    missing = [graph for graph in GRAPHS if graph not in forms]
    if missing:
        raise LabError(
            f"{precision!r} gives {missing[0]} no precision; start with one for all graphs, as in int8,vae_decoder=fp32"
        )
    return {graph: forms[graph] for graph in GRAPHS}


def store(graph: str | Path, precision: str, folder: str | Path, max_chunk_bytes: int = CHUNK_BYTES) -> list[StoredFile]:
    """Write a copy of a graph with its weights in `precision`.

    Only one tensor is in memory at a time. The graph's inputs and outputs are float32 in every precision.

    Args:
        graph: an .onnx file, with its weights inside or in files next to it.
        precision: one of `PRECISIONS`.
        folder: made if missing, and not the graph's own; NAME.onnx and NAME.000.bin, NAME.001.bin, ... are written to it.
        max_chunk_bytes: largest file of weights.

    Returns:
        The graph's file first, then the files of weights in the order of their numbers.

    Raises:
        LabError: the precision is unknown; a weight is larger than a file may be; the graph exceeds protobuf's 2 GB without
            its weights; the disk has too little room. In these cases nothing is written. Also if 16 bits cannot represent
            a weight, which shows only when it is read: then the folder is incomplete.
    """
    graph, folder = Path(graph), Path(folder)
    if precision not in PRECISIONS:
        raise LabError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if folder.resolve() == graph.parent.resolve():
        raise LabError(f"{folder} holds the graph itself: choose another folder")
    model = onnx.load(str(graph), load_external_data=False)
    sources = {tensor.name: tensor for tensor in model.graph.initializer}
    entry = PRECISIONS[precision]
    plan = _plan(model.graph, entry)
    _check_fit(model, plan, graph, max_chunk_bytes)
    _check_room(plan, folder)
    if entry.arithmetic == FLOAT16:
        halve_arithmetic(model.graph)

    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    chunks = _Chunks(folder, graph.stem, max_chunk_bytes)
    made, nodes = [], []
    for name, form in plan.items():
        array = read_tensor(sources[name], graph.parent)
        for tensor_name, stored, extra in _stored_forms(name, array, form, wanted):
            made.append(chunks.add(tensor_name, stored))
            nodes += extra
    del model.graph.initializer[:]
    model.graph.initializer.extend(made)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)
    body = model.SerializeToString()
    (folder / graph.name).write_bytes(body)
    return [StoredFile(graph.name, len(body), hashlib.sha256(body).hexdigest()), *chunks.close()]


def files_of(graph: str | Path) -> list[dict]:
    """Name, bytes and SHA-256 of a stored graph's files, its own first, as recorded when it was made.

    Args:
        graph: the .onnx file, as `Graphs.stored` returns it.

    Raises:
        LabError: the record is missing or damaged.
    """
    advice = "make the graph again with `python -m moebius_lab export`"
    return read_json(Path(graph).with_name(STAMP), record(files=listed(STORED_FILE)), advice)["files"]


def narrowest_type(array: np.ndarray) -> str:
    """The narrowest of "float16", "bfloat16" and "float32" that holds every number of a float32 array exactly.

    It reveals weights that were published in 16 bits and widened since, unless a rewrite changed their numbers;
    fp16-storage is lossless for a tensor for which this is "float16".
    """
    for name, dtype in (("float16", np.float16), ("bfloat16", bfloat16)):
        with np.errstate(over="ignore"):
            if np.array_equal(array, array.astype(dtype).astype(np.float32)):
                return name
    return "float32"


def narrowest_types(arrays: Iterable[np.ndarray]) -> dict[str, float]:
    """The share of numbers in arrays of each `narrowest_type`; only float32 arrays are counted."""
    counts: dict[str, int] = {}
    for array in arrays:
        if array.dtype == np.float32:
            kind = narrowest_type(array)
            counts[kind] = counts.get(kind, 0) + array.size
    return {kind: count / sum(counts.values()) for kind, count in counts.items()}


def float_weights(graph: Path) -> Iterator[np.ndarray]:
    """The float32 tensors of a graph and of its files of weights, except tables (`EXACT`) and single numbers."""
    for tensor in onnx.load(str(graph)).graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) > 1 and EXACT not in tensor.name:
            yield numpy_helper.to_array(tensor)


def quantize_groups(array: np.ndarray, size: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Round to integers, symmetrically, with one scale for every `size` neighbours in memory: array ~ scale x integer.

    Args:
        array: float32 of any shape; the last group is padded with zeros.
        size: how many numbers make a group.
        largest: the largest magnitude of an integer, 127 for 8 bits and 7 for 4.

    Returns:
        (int8 (groups, size) in -largest..largest, float16 scales (groups,)). A number's error is at most half its group's
        scale, which is the group's largest magnitude / `largest`, rounded up to 16 bits.
    """
    groups = np.pad(array.reshape(-1), (0, -array.size % size)).reshape(-1, size)
    exact = np.abs(groups).max(axis=1) / largest
    scale = exact.astype(np.float16)
    scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    scale[scale == 0] = 1
    return np.rint(groups / scale[:, None].astype(np.float32)).astype(np.int8), scale


def pack_nibbles(integers: np.ndarray) -> np.ndarray:
    """int8 (groups, size) in -8..7 -> uint8 (groups, size / 2): a group's first half in the low bits; 8 is added to each number."""
    low, high = np.split((integers + 8).astype(np.uint8), 2, axis=1)
    return low | high << 4


# -- how each tensor is stored -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """How one initializer is stored: `kind` is "same", "cast", "half" or a key of `BITS`."""

    kind: str
    bytes: int
    transposed: bool = False  # stored with its output channels first, so that a group stays within one channel


def _plan(graph: GraphProto, precision: Precision) -> dict[str, _Form]:
    outputs_last = _matrices_with_outputs_last(graph)
    plan = {}
    for tensor in graph.initializer:
        count = math.prod(tensor.dims)
        weight = tensor.data_type == TensorProto.FLOAT and EXACT not in tensor.name
        large = weight and len(tensor.dims) > 1 and count >= NARROW_FROM
        if precision.arithmetic == FLOAT16 and weight:
            plan[tensor.name] = _Form("half", 2 * count)
            continue
        kind = _suited(tensor, count, precision, outputs_last) if large else ""
        if kind == FLOAT16:
            plan[tensor.name] = _Form("cast", 2 * count)
        elif kind in BITS:
            bits = BITS[kind]
            size = GROUP[bits]
            groups = -(-count // size)
            plan[tensor.name] = _Form(kind, groups * (size * bits // 8 + 2), tensor.name in outputs_last)
        else:
            plan[tensor.name] = _Form("same", count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return plan


def _suited(tensor: TensorProto, count: int, precision: Precision, outputs_last: set[str]) -> str:
    """The type in which a large weight is stored: the precision's own, or a wider one if that does not suit the weight."""
    kind = precision.matrices if len(tensor.dims) == 2 else precision.kernels
    if kind in BITS and _channel_length(tensor, outputs_last) < GROUP[BITS[INT8]]:
        return FLOAT16  # depthwise kernels: a group would mix channels of different scales
    return INT8 if kind == INT4 and count < NIBBLES_FROM else kind


def _channel_length(tensor: TensorProto, outputs_last: set[str]) -> int:
    """How many numbers belong to one output channel."""
    return math.prod(tensor.dims) // tensor.dims[-1 if tensor.name in outputs_last else 0]


def _matrices_with_outputs_last(graph: GraphProto) -> set[str]:
    """Names of the two-dimensional weights (in, out); all others, such as kernels of convolutions, have their outputs first."""
    dims = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    names = set()
    for node in graph.node:
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type in ("MatMul", "Gemm") and not transposed and dims.get(node.input[1]) == 2:
            names.add(node.input[1])
    return names


def _stored_forms(
    name: str, array: np.ndarray, form: _Form, wanted: set[str]
) -> Iterator[tuple[str, np.ndarray, list[NodeProto]]]:
    """The tensors that replace initializer `name`, each as (name, numbers, nodes that restore the initializer from it)."""
    if form.kind == "same":
        yield name, array, []
    elif form.kind == "cast":
        yield name + ".f16", _to_half(name, array), [helper.make_node("Cast", [name + ".f16"], [name], to=TensorProto.FLOAT)]
    elif form.kind == "half":  # `halve_arithmetic` decided which nodes read which form
        if name in wanted:
            yield name, array, []
        if half_name(name) in wanted:
            yield half_name(name), _to_half(name, array), []
    else:
        yield from _grouped(name, array.T if form.transposed else array, BITS[form.kind], form.transposed)


def _grouped(name: str, array: np.ndarray, bits: int, transposed: bool) -> Iterator[tuple[str, np.ndarray, list[NodeProto]]]:
    """An array in groups of integers, and the nodes that restore it and undo its transposition."""
    integers, scale = quantize_groups(array, GROUP[bits], 2 ** (bits - 1) - 1)
    packed, shape, cut = f"{name}.i{bits}", f"{name}.shape", array.size % GROUP[bits] != 0
    nodes = []
    if bits == 4:
        yield packed, pack_nibbles(integers), []
        yield f"{name}.mask", np.uint8(15), []
        yield f"{name}.four", np.uint8(4), []
        yield f"{name}.eight", np.full(len(scale), 8, np.uint8), []
        nodes += [
            helper.make_node("BitwiseAnd", [packed, f"{name}.mask"], [f"{name}.low"]),
            helper.make_node("BitShift", [packed, f"{name}.four"], [f"{name}.high"], direction="RIGHT"),
            helper.make_node("Concat", [f"{name}.low", f"{name}.high"], [f"{name}.both"], axis=1),
        ]
    else:
        yield packed, integers, []
    source = [f"{name}.both", f"{name}.scale.f32", f"{name}.eight"] if bits == 4 else [packed, f"{name}.scale.f32"]
    flat = f"{name}.flat" if cut else f"{name}.groups"
    nodes += [
        helper.make_node("Cast", [f"{name}.scale"], [f"{name}.scale.f32"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", source, [f"{name}.groups"], axis=0),
    ]
    if cut:
        for key, value in (("line", [-1]), ("first", [0]), ("last", [array.size])):
            yield f"{name}.{key}", np.array(value, np.int64), []
        nodes += [
            helper.make_node("Reshape", [f"{name}.groups", f"{name}.line"], [f"{name}.padded"]),
            helper.make_node("Slice", [f"{name}.padded", f"{name}.first", f"{name}.last"], [flat]),
        ]
    nodes.append(helper.make_node("Reshape", [flat, shape], [f"{name}.T" if transposed else name]))
    if transposed:
        nodes.append(helper.make_node("Transpose", [f"{name}.T"], [name], perm=[1, 0]))
    yield shape, np.array(array.shape, np.int64), []
    yield f"{name}.scale", scale, nodes


def _to_half(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = array.astype(np.float16)
    if not np.array_equal(np.isfinite(stored), np.isfinite(array)):
        raise LabError(f"weight {name} has numbers beyond 65504, too large for 16 bits: store this graph in fp32 or int8")
    return stored


# -- files -------------------------------------------------------------------------------------------------------------


def _check_fit(model: ModelProto, plan: dict[str, _Form], graph: Path, max_chunk_bytes: int) -> None:
    largest = max(plan, key=lambda name: plan[name].bytes, default=None)
    if largest and plan[largest].bytes > max_chunk_bytes:
        size = plan[largest].bytes
        raise LabError(f"weight {largest} takes {size} bytes, more than a file's {max_chunk_bytes}: allow larger files")
    inline = sum(form.bytes for form in plan.values() if form.bytes <= INLINE_BYTES)
    structure = sum(node.ByteSize() for node in model.graph.node) + inline
    if structure > PROTOBUF_LIMIT:
        limit = f"protobuf allows {PROTOBUF_LIMIT}: split the graph"
        raise LabError(f"{graph} takes {structure} bytes without its weights; {limit}")


def _check_room(plan: dict[str, _Form], folder: Path) -> None:
    needed = int(sum(form.bytes for form in plan.values()) * 1.02) + 8_000_000  # the graph itself, alignment
    require_room(folder, needed, "a stored graph")


class _Chunks:
    """Files of weights, filled one after another, each hashed as it is written.

    `onnx_ir.save` can split weights too (`max_shard_size_bytes`), but asks for the shapes of all tensors before it writes the
    first, while a quantized weight here exists only as long as it is written; it aligns to 4096 bytes or not at all, and its
    files would have to be read again to be hashed.
    """

    def __init__(self, folder: Path, stem: str, limit: int) -> None:
        self.folder, self.stem, self.limit = folder, stem, limit
        self.done: list[StoredFile] = []
        self.file, self.hash, self.size = None, hashlib.sha256(), 0

    def add(self, name: str, array: np.ndarray) -> TensorProto:
        """Write a tensor's numbers and return the initializer that refers to them; a small initializer holds them itself."""
        if array.nbytes <= INLINE_BYTES:
            return numpy_helper.from_array(array, name)
        padding = -self.size % ALIGNMENT
        if self.file and self.size + padding + array.nbytes > self.limit:
            self._finish()
            padding = 0
        if not self.file:
            self.file = open(self.folder / self._name(), "wb")
        self._write(b"\0" * padding)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._name()), ("offset", self.size), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._write(np.ascontiguousarray(array).tobytes())
        return tensor

    def close(self) -> list[StoredFile]:
        if self.file:
            self._finish()
        return self.done

    def _name(self) -> str:
        return f"{self.stem}.{len(self.done):03}.bin"

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)

    def _finish(self) -> None:
        self.file.close()
        self.done.append(StoredFile(self._name(), self.size, self.hash.hexdigest()))
        self.file, self.hash, self.size = None, hashlib.sha256(), 0
