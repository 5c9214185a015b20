"""What a graph needs of the device that runs it, read off the graph without running it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from .passes import settle_sizes, tensor_types_and_shapes

SHAPE_ONLY = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True)
class Needs:
    """Bytes that a graph takes on its device, by its own shapes and types. A runtime may take more."""

    largest: int  # of one tensor, stored or computed: what a binding must hold
    activations: int  # alive at once, at most
    weights: int  # as they are stored
    widened: int  # the same where 16-bit weights are made 32 bits when the graph is loaded


def graph_needs(path: str | Path, sizes: dict[str, int]) -> Needs:
    """What a stored graph needs.

    A tensor lives from the node that makes it to the last that reads it; weights and what is made of them alone are no activations, and
    nodes that only change a shape make nothing. Nodes run in the order in which they stand.

    Args:
        path: of the .onnx file; its weights need not be there.
        sizes: of the axes that the graph leaves free, by their names.
    """
    model = onnx.load(str(path), load_external_data=False)
    settle_sizes(model.graph, {value.name: _shape(value, sizes) for value in model.graph.input})
    bytes_of = dict(_tensors(model))
    stored = {tensor.name: bytes_of[tensor.name] for tensor in model.graph.initializer}
    halves = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    more = sum(stored[node.input[0]] for node in model.graph.node if node.op_type == "Cast" and node.input[0] in halves)
    weights = sum(stored.values())
    return Needs(max(bytes_of.values()), _most_alive(model, bytes_of), weights, weights + more)


def _shape(value: ValueInfoProto, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _tensors(model: ModelProto) -> Iterator[tuple[str, int]]:
    """Every tensor of the graph with its bytes."""
    for tensor in model.graph.initializer:
        yield tensor.name, _bytes(tensor.data_type, tensor.dims)
    for value in model.graph.input:
        yield value.name, _bytes(value.type.tensor_type.elem_type, _shape(value, {}))
    for name, (kind, shape) in tensor_types_and_shapes(model).items():
        yield name, _bytes(kind, shape)


def _bytes(kind: int, shape: Iterable[int]) -> int:
    return helper.tensor_dtype_to_np_dtype(kind).itemsize * math.prod(shape)


def _most_alive(model: ModelProto, bytes_of: dict[str, int]) -> int:
    constant = {tensor.name for tensor in model.graph.initializer}
    same: dict[str, str] = {}  # a tensor that is another in a different shape
    last: dict[str, int] = {}
    for i, node in enumerate(model.graph.node):
        if all(name in constant or not name for name in node.input):
            constant |= set(node.output)
        elif node.op_type in SHAPE_ONLY:
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        last |= {same.get(name, name): i for name in (*node.input, *node.output)}
    last |= {same.get(output.name, output.name): len(model.graph.node) for output in model.graph.output}
    alive = {value.name: bytes_of[value.name] for value in model.graph.input}
    most = sum(alive.values())
    for i, node in enumerate(model.graph.node):
        made = [name for name in node.output if name in bytes_of and name not in constant and name not in same]
        alive |= {name: bytes_of[name] for name in made}
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, i) > i}
    return most
