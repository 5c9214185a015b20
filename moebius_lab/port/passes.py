"""Every pass over an ONNX graph, and the moment at which it runs.

A rewrite that a PyTorch module can express before export is not a pass; those are in `denoiser` and `autoencoder`.

    after_export            after export: all passes of that moment, with onnx_ir's that share equal tensors and drop unused ones
      settle_shapes           shapes that the graph computes become constants
      fuse_depth_to_space     one node puts the four phases of an upsampling together
      fuse_skip_layer_norms   a residual sum and its norm become one node
      forget_where_from       the exporter's notes are removed, except for the names of modules
    halve_arithmetic        before storing, fp16: whatever can compute in 16 bits does
    gather_cells            at load, on the CPU: cells are reordered for `to_tokens` in the way that suits a CPU
    take_out                at load, for comparisons: intermediate tensors become outputs
    settle_sizes            before shapes are inferred: the free axis gets a size

A pass changes the graph in place unless its docstring says otherwise. Those after export work on onnx_ir's model, which the
exporter has in memory; the others on the protobuf messages of a file, whose weights stay on the disk. Constants need no pass:
the exporter's optimizer has made all of them initializers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.external_data_helper import uses_external_data
from onnx_ir.passes import common
from onnxscript.rewriter import pattern
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_layer_normalization

from .. import LabError
from ..config import OPSET, RUNTIME_DOMAIN
from .autoencoder import PUT_TOGETHER
from .denoiser import FROM_TILES, TILE, TO_TILES, token_cells

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules that a node belongs to
INLINE_BYTES = 1024  # a tensor up to this size, a shape or a scalar, stays inside the graph
HALF = ".half"  # ends the name of a tensor that `halve_arithmetic` made one of 16 bits
SHARED_UP_TO = (
    2**18
)  # numbers; of equal tensors up to this size one is stored. The largest table of the published size has 94,208
EXACT = "sinusoids"  # a tensor with this in its name is a table of the timesteps, not a weight: it is stored as it is
SAFE_OPERATORS = {
    "InstanceNormalization",
    "LayerNormalization",
    "SkipLayerNormalization",
    "Softmax",
}  # they sum or exponentiate, so they stay in float32 under fp16
LAYERS = SAFE_OPERATORS | {"Conv", "MatMul", "Gemm", "ConvTranspose"}
FLOAT32_INPUTS = {"Resize": (1, 2)}  # inputs that ONNX defines as float32 whatever the type of the data


# -- after export ------------------------------------------------------------------------------------------------------


def after_export(model: ir.Model) -> None:
    """Run the passes of this moment in order, in place.

    Equal tensors, such as the index tables of all lambda layers of one resolution, are shared by onnx_ir's pass, which keeps a
    copy of every tensor that it compares: hence `SHARED_UP_TO`, 40 MB at the published size instead of 850. The form of the
    pass that keeps digests fails on a weight that lies transposed in memory; on a file it holds one descriptor for each tensor.

    Args:
        model: the exporter's, with the shapes of its tensors.
    """
    settle_shapes(model)
    fuse_depth_to_space(model)
    fuse_skip_layer_norms(model)
    common.DeduplicateInitializersPass(SHARED_UP_TO)(model)
    common.RemoveUnusedNodesPass()(model)  # also the shapes that the fused reshapes read
    forget_where_from(model)


def fuse_depth_to_space(model: ir.Model) -> int:
    """Replace each reshape, transposition and reshape of `PhaseUpsample` by one DepthToSpace, in place.

    The runtime has DepthToSpace for channels last too; a transposition of six axes it has in one layout only.

    Returns:
        How many were replaced.
    """

    def reshapes(op, x, apart, together):
        return op.Reshape(op.Transpose(op.Reshape(x, apart), perm=PUT_TOGETHER), together)

    def one_node(op, x, **_):
        return op.DepthToSpace(x, blocksize=2, mode="DCR")

    return pattern.RewriteRule(reshapes, one_node).apply_to_model(model)


def fuse_skip_layer_norms(model: ir.Model) -> int:
    """Fuse each sum with its LayerNormalization into one `SkipLayerNormalization`, which outputs both, in place.

    norm(a + b) and a + b, where the residual stream of a transformer is normalized: one pass over the tensor and one launch
    instead of two. The operator is ONNX Runtime's (domain com.microsoft). Its CPU, wasm and WebGPU providers all have it;
    only a session on WebGPU does not make the fusion by itself.

    The fusion is onnxscript's, with two repairs. It puts the node where the norm was, which can be after nodes that read the
    sum; and it names the mean and the deviation, which nothing reads and whose types are unknown.

    Args:
        model: exported, with the shapes of its tensors.

    Returns:
        How many were fused: sums of two tensors of one shape (batch, positions, channels).
    """
    count = fuse_skip_layer_normalization(model)
    for node in model.graph:
        if node.op_type == "SkipLayerNormalization":
            for unread in node.outputs[1:3]:
                unread.name = ""
    model.graph.sort()
    return count


def forget_where_from(model: ir.Model) -> None:
    """Remove the exporter's notes, except for scopes: they hold Python's call stack at every node, with this machine's paths.

    They are three quarters of the file, and a published graph would tell everyone where it was made. onnx_ir's
    `ClearMetadataAndDocStringPass` removes the scopes too, which parity needs, and leaves the notes of inputs, outputs and
    weights.
    """
    graph = model.graph
    values = (*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs))
    for noted in (model, graph, *graph, *values):
        for note in set(noted.metadata_props) - {SCOPES}:
            del noted.metadata_props[note]


def settle_shapes(model: ir.Model) -> None:
    """Give every Reshape whose target shape is computed a constant one, with -1 for the axis that is free, in place.

    The exporter computes the number of conditions wherever it writes down a tensor's shape. It is the only free number, so at most one
    axis depends on it; the rest of the computation has no reader left and goes. A shape that the graph computes is work for the CPU, and
    a graph with such work cannot be captured.
    """
    for node in model.graph:
        if node.op_type == "Reshape" and node.inputs[1].const_value is None:
            counted = node.inputs[1].producer()
            like = counted.inputs[0] if counted.op_type == "Shape" else node.outputs[0]
            shape = np.array([dim if isinstance(dim, int) else -1 for dim in like.shape], np.int64)
            target = ir.Value(name=f"{node.outputs[0].name}.shape", const_value=ir.tensor(shape))
            target.const_value.name = target.name
            model.graph.register_initializer(target)
            node.replace_input_with(1, target)


# -- before storing ----------------------------------------------------------------------------------------------------


def halve_arithmetic(graph: GraphProto) -> None:
    """Let every node compute in float16 except norms, softmax and the nodes after the last layer, in place.

    A tensor keeps its name in float32 and is called `half_name` in float16; a Cast is inserted wherever a node needs a tensor
    in the type that it was not made in. Initializers are only renamed where they are read: the caller stores them.
    Norms take sums of squares and softmax takes exponentials, which easily exceed 65504. A layer's own output is kept in
    float16 and has to fit: run the graph on real pictures and look for infinities.

    Args:
        graph: float32, without Constant nodes, as the exporter leaves it.

    Raises:
        LabError: the type of a tensor cannot be inferred.
    """
    kinds = _tensor_types(graph)
    after = _after_last_layer(graph)
    constants = {tensor.name for tensor in graph.initializer}
    made_half: set[str] = set()  # tensors made by a node in float16; all others are made in float32
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
    del graph.value_info[:]  # the types that it states are no longer true


def _after_last_layer(graph: GraphProto) -> set[int]:
    """Indices of the nodes that lead to no layer: guidance and the DDIM step, which add small differences."""
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
    """ONNX element type of every tensor by name, from shape inference."""
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
    """The name in float16 of a tensor that has `name` in float32."""
    return name + HALF


def read_tensor(tensor: TensorProto, folder: Path) -> np.ndarray:
    """The numbers of an initializer, whether they are inside the graph or in a file in `folder`."""
    return numpy_helper.to_array(tensor, base_dir=str(folder) if uses_external_data(tensor) else "")


# -- at load -----------------------------------------------------------------------------------------------------------


def gather_cells(model: ModelProto) -> ModelProto:
    """Replace the six-axis Transpose of `to_tokens` and `to_picture` by a Transpose of two axes and a Gather of rows.

    For ONNX Runtime's CPU provider, when a graph is loaded: it transposes six axes number by number in one thread, but two
    axes in blocks, and it copies rows in all threads. On a GPU one launch is better than two.

    Args:
        model: a graph whose shapes can be inferred; its weights may be missing.

    Returns:
        The model itself if it has no such node, otherwise a copy.
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
    """The permutation of a Transpose; empty for any other node."""
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


def settle_sizes(graph: GraphProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give a graph's inputs fixed shapes, by their names, for what looks at shapes without running it; in place."""
    for value in graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    del graph.value_info[:]  # inferred anew
