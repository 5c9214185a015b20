"""Every pass over an ONNX graph, and its moment. What a rewrite can say before export, as a module of PyTorch, is no pass: those
are in `denoiser` and `autoencoder`.

    forget_where_from       after export: the exporter's notes go, but for the modules' names
    fuse_skip_layer_norms   after export: a residual sum and the norm of it in one node
    fuse_depth_to_space     after export: the four phases of an upsampling put together by one node
    settle_shapes           after export: shapes that the graph computes become constants
    settle_sizes            for those that only look: the free axis gets a size
    lift_constants          before storing: constants become initializers
    share_tables            before storing: equal tables of indices are stored once
    halve_arithmetic        before storing, fp16: everything in 16 bits that bears it
    gather_cells            at load, on the processor: cells brought into the order of `to_tokens` as a processor would
    take_out                at load, for comparisons: tensors on the way as further outputs

A pass changes the graph in place unless it says otherwise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.external_data_helper import uses_external_data

from .. import LabError
from ..config import OPSET, RUNTIME_DOMAIN
from .autoencoder import PUT_TOGETHER
from .denoiser import FROM_TILES, TILE, TO_TILES, token_cells

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules that a node stands in
INLINE_BYTES = 1024  # a tensor up to this size, a shape or a scalar, stays inside the graph
HALF = ".half"  # ends the name of a tensor that `halve_arithmetic` made one of 16 bits
EXACT = "sinusoids"  # a tensor with this in its name is a table of the timesteps, not a weight: it is stored as it is
SAFE_OPERATORS = {
    "InstanceNormalization",
    "LayerNormalization",
    "SkipLayerNormalization",
    "Softmax",
}  # they sum or exponentiate: float32 in fp16
LAYERS = SAFE_OPERATORS | {"Conv", "MatMul", "Gemm", "ConvTranspose"}
FLOAT32_INPUTS = {"Resize": (1, 2)}  # inputs that ONNX defines as float32, whatever the data is


# -- after export ------------------------------------------------------------------------------------------------------


def forget_where_from(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes from a model except scopes: Python's call stack at every node, with this machine's paths.

    They are three quarters of the file, and a published graph would tell everybody where it was made.
    """
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        kept = [note for note in noted.metadata_props if note.key == SCOPES]
        del noted.metadata_props[:]
        noted.metadata_props.extend(kept)


def fuse_skip_layer_norms(graph: GraphProto) -> int:
    """Fuse each sum with its LayerNormalization, in place: one node `SkipLayerNormalization`, which outputs both.

    norm(a + b) and a + b, where the residual stream of a transformer is normalized: one pass over the tensor and one launch
    instead of two. The operator is ONNX Runtime's (domain com.microsoft); its CPU, wasm and WebGPU providers have it, but
    only WebGPU's session would not make it by itself.

    Args:
        graph: exported, with the shapes of its tensors.

    Returns:
        How many were joined: sums of two tensors of one shape (batch, positions, channels).
    """
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    sums = {node.output[0]: node for node in graph.node if node.op_type == "Add"}
    joined = {}
    for norm in (node for node in graph.node if node.op_type == "LayerNormalization"):
        total = sums.get(norm.input[0])
        a, b = (shapes.get(name, []) for name in total.input) if total else ([], [])
        if len(a) == 3 and a == b:
            epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
            joined[total.name] = helper.make_node(
                "SkipLayerNormalization", [*total.input, *norm.input[1:]], [norm.output[0], "", "", total.output[0]],
                name=norm.name, domain=RUNTIME_DOMAIN, epsilon=epsilon,
            )  # fmt: skip
    gone = {node.name for node in joined.values()}
    nodes = [joined.get(node.name, node) for node in graph.node if node.name not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(joined)


def fuse_depth_to_space(graph: GraphProto) -> None:
    """Let one DepthToSpace do what `PhaseUpsample` says with a reshape, a transposition and a reshape.

    The runtime has the operator for channels last too; of a transposition of six axes it knows no other order.
    """
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for middle in list(graph.node):
        if middle.op_type != "Transpose" or tuple(middle.attribute[0].ints) != PUT_TOGETHER:
            continue
        first, (last,) = producers[middle.input[0]], readers[middle.output[0]]
        node = helper.make_node("DepthToSpace", [first.input[0]], [last.output[0]], middle.name, blocksize=2, mode="DCR")
        graph.node.insert(list(graph.node).index(last), node)
        for old in (first, middle, last):
            graph.node.remove(old)


def settle_shapes(graph: GraphProto) -> None:
    """Let every Reshape whose target shape is computed have a constant one, with -1 for the axis that is free; in place.

    The exporter computes the number of conditions wherever a tensor's shape is written down. It is the only free number, so one axis
    at most depends on it; what is left of the computation has no reader and goes. A shape that the graph computes is work for the
    processor, and a graph with such work cannot be captured.
    """
    known = {tensor.name for tensor in graph.initializer}
    known |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    dims = {value.name: list(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.output)}
    measured = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Shape"
    }  # the shape of another tensor
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in known:
            like = measured.get(node.input[1], node.output[0])
            shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims[like]]
            graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{node.output[0]}.shape"))
            node.input[1] = graph.initializer[-1].name
    _drop_unread(graph)


def settle_sizes(graph: GraphProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give a graph's inputs fixed shapes, by their names, for what looks at shapes without running it; in place."""
    for value in graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    del graph.value_info[:]  # inferred anew


def _drop_unread(graph: GraphProto) -> None:
    """Remove the nodes whose outputs nobody reads, and what only they read."""
    read = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


# -- before storing ----------------------------------------------------------------------------------------------------


def lift_constants(graph: GraphProto) -> None:
    """Turn every Constant node that holds a tensor into an initializer, in place."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def share_tables(graph: GraphProto, folder: Path) -> None:
    """Let equal tables of integers, such as the indices of all lambda layers of one resolution, be one initializer."""
    first: dict[tuple, str] = {}
    names: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64) and math.prod(tensor.dims) * 4 > INLINE_BYTES:
            numbers = hashlib.sha256(read_tensor(tensor, folder).tobytes()).digest()
            names[tensor.name] = first.setdefault((tensor.data_type, *tensor.dims, numbers), tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    kept = [tensor for tensor in graph.initializer if names.get(tensor.name, tensor.name) == tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def halve_arithmetic(graph: GraphProto) -> None:
    """Let every node compute in float16 except norms, softmax and those after the last layer, in place.

    Tensors keep their names in float32 and get `half_name` names in float16; a Cast stands wherever a node needs a tensor in
    the type in which it was not made. Initializers are only renamed at their readers: the caller stores them.
    Norms take sums of squares, and softmax exponentials, where 65504 is easily exceeded. What a layer itself puts out is
    kept in float16 and has to fit: run the graph on real pictures and look for infinities.
    """
    kinds = _tensor_types(graph)
    after = _after_last_layer(graph)
    constants = {tensor.name for tensor in graph.initializer}
    made_half: set[str] = set()  # tensors that a half node made; all others were made in float32
    casts: set[str] = set()
    nodes: list[NodeProto] = []

    def is_float(name: str) -> bool:
        return kinds.get(name) == TensorProto.FLOAT

    def read(name: str, half: bool) -> str:
        """The name under which a node reads `name`; adds a Cast before it where the types differ."""
        if not name or not is_float(name):
            return name
        wanted = half_name(name) if half else name
        if name not in constants and half != (name in made_half) and wanted not in casts:
            source, to = (name, TensorProto.FLOAT16) if half else (half_name(name), TensorProto.FLOAT)
            nodes.append(helper.make_node("Cast", [source], [wanted], to=to))
            casts.add(wanted)
        return wanted

    for index, node in enumerate(list(graph.node)):
        full = node.op_type in SAFE_OPERATORS or index in after or any(EXACT in name for name in node.input)
        copy = NodeProto()
        copy.CopyFrom(node)
        keep = FLOAT32_INPUTS.get(node.op_type, ())
        full = full or (node.op_type == "Cast" and not is_float(node.output[0]))
        copy.input[:] = [read(name, not full and i not in keep) for i, name in enumerate(node.input)]
        if not full:
            for i, name in enumerate(node.output):
                if is_float(name):
                    copy.output[i] = half_name(name)
                    made_half.add(name)
            for attribute in copy.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        nodes.append(copy)
    for output in graph.output:
        read(output.name, False)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # the types it states are no longer true


def _after_last_layer(graph: GraphProto) -> set[int]:
    """Indices of the nodes from which no layer is reached: guidance and the DDIM step, which add small differences."""
    leads_to_layer: set[str] = set()  # names of tensors
    after = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type in LAYERS or leads_to_layer.intersection(node.output):
            leads_to_layer.update(node.input)
        else:
            after.add(index)
    return after


def _tensor_types(graph: GraphProto) -> dict[str, int]:
    """ONNX element type of every tensor, by name; a float32 network's operators are typed by shape inference."""
    shell = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME_DOMAIN, 1)])
    inferred = onnx.shape_inference.infer_shapes(shell).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    unknown = [name for node in graph.node for name in node.output if name and not kinds.get(name)]
    if unknown:
        raise LabError(f"the type of {unknown[0]} cannot be inferred: is every operator of opset {OPSET}?")
    return kinds


def half_name(name: str) -> str:
    """What a tensor is called in float16 where its name is the one in float32."""
    return name + HALF


def read_tensor(tensor: TensorProto, folder: Path) -> np.ndarray:
    """The numbers of an initializer, wherever they lie: inside the graph, or in a file in `folder`."""
    return numpy_helper.to_array(tensor, base_dir=str(folder) if uses_external_data(tensor) else "")


# -- at load -----------------------------------------------------------------------------------------------------------


def gather_cells(model: ModelProto) -> ModelProto:
    """Let a Transpose of two axes and a Gather of rows do what `to_tokens` and `to_picture` say with a Transpose of six axes.

    For ONNX Runtime's CPU provider, when a graph is loaded: of six axes it moves one number after another, in one thread; two
    it transposes in blocks, and rows it copies in all threads. A GPU would rather have one launch than two.

    Args:
        model: a graph whose shapes can be inferred; its weights need not be there.

    Returns:
        The model itself where it has no such node, else a copy.
    """
    if not any(transposed_axes(node) in (TO_TILES, FROM_TILES) for node in model.graph.node):
        return model
    model = shape_inference.infer_shapes(model)
    graph = model.graph
    shapes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in graph.value_info}
    nodes, tables = [], {}
    for node in graph.node:
        axes, name, source = transposed_axes(node), node.output[0], next(iter(node.input), "")
        if axes not in (TO_TILES, FROM_TILES):
            nodes.append(node)
            continue
        to_tiles = axes == TO_TILES
        B, C, g, *_ = shapes[source if to_tiles else name]
        cells = token_cells(g * TILE)
        rows = f"cells.{g}" if to_tiles else f"cells.{g}.back"
        flat = [B, C, len(cells)] if to_tiles else [B, len(cells), C]
        shape = [B, TILE, TILE, g, g, C] if to_tiles else [B, C, g, TILE, g, TILE]
        tables[rows] = cells if to_tiles else cells.argsort()
        tables |= {f"{name}.flat": torch.tensor(flat), f"{name}.shape": torch.tensor(shape)}
        swap, gather = ("Transpose", [], {"perm": (0, 2, 1)}), ("Gather", [rows], {"axis": 1})
        middle = [swap, gather] if to_tiles else [gather, swap]
        for i, (operator, more, attributes) in enumerate(
            [("Reshape", [f"{name}.flat"], {}), *middle, ("Reshape", [f"{name}.shape"], {})]
        ):
            result = name if i == 3 else f"{name}.{i}"
            nodes.append(helper.make_node(operator, [source, *more], [result], **attributes))
            source = result
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(table.numpy(), name) for name, table in tables.items())
    return model


def transposed_axes(node: NodeProto) -> tuple[int, ...]:
    """The order of a Transpose; of any other node nothing."""
    return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())


@dataclass(frozen=True)
class Piece:
    """A tensor of a graph, or the part of it from `start` to before `stop` along one axis."""

    tensor: str
    widened: bool  # put out in float32, from float16
    axis: int = 0
    start: int = 0
    stop: int | None = None  # None: all of it


def take_out(model: ModelProto, pieces: Iterable[Piece]) -> list[str]:
    """Make tensors on the way further outputs, in place; returns the name of each piece's output.

    Whole tensors are outputs as they are; others pass through a Slice, a Cast or both, which lose nothing.
    """
    graph, names = model.graph, []
    known = {value.name for value in graph.output}
    for i, piece in enumerate(pieces):
        name = piece.tensor
        if piece.stop is not None:
            ends = {"start": piece.start, "stop": piece.stop, "axis": piece.axis}
            graph.initializer.extend(
                numpy_helper.from_array(np.array([at], np.int64), f"taken.{i}.{end}") for end, at in ends.items()
            )
            inputs = [name, *(f"taken.{i}.{end}" for end in ends)]
            name = f"taken.{i}.piece"
            graph.node.append(helper.make_node("Slice", inputs, [name], f"take_{name}"))
        if piece.widened:
            graph.node.append(helper.make_node("Cast", [name], [f"taken.{i}"], f"take_taken.{i}", to=TensorProto.FLOAT))
            name = f"taken.{i}"
        if name not in known:
            graph.output.append(onnx.ValueInfoProto(name=name))
        names.append(name)
    return names


def tensor_types_and_shapes(model: ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """ONNX element type and shape of every tensor that a node puts out, by name; of what ONNX cannot infer, none.

    Args:
        model: a graph with fixed shapes, in any form; its weights need not be there.
    """
    shell = ModelProto()
    shell.CopyFrom(model)
    del shell.graph.node[:]
    del shell.graph.value_info[:]  # what another program noted may no longer be true
    for node in model.graph.node:
        if node.op_type == "SkipLayerNormalization":  # of which ONNX knows nothing: all it puts out is as what it reads
            shell.graph.node.extend(helper.make_node("Identity", node.input[:1], [name]) for name in node.output if name)
        else:
            shell.graph.node.append(node)
    inferred = shape_inference.infer_shapes(shell).graph
    found = {}
    for value in (*inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[value.name] = tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim)
    return found
