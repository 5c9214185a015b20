"""Passes on small graphs made by hand, and what they leave of the graphs that the exporter makes."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from moebius_lab.config import PRECISIONS, RUNTIME_DOMAIN
from moebius_lab.port import passes
from moebius_lab.port.precision import store

RNG = np.random.default_rng(0)


def model_of(nodes: list[NodeProto], inputs: dict, outputs: dict, weights: dict[str, np.ndarray]) -> ModelProto:
    """A model; inputs and outputs are float32 with these shapes."""
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in end.items()] for end in (inputs, outputs)]
    graph = helper.make_graph(nodes, "test", *ends, [numpy_helper.from_array(w, name) for name, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def after_export(model: ModelProto) -> ModelProto:
    changed = ir.from_proto(model)
    passes.after_export(changed)
    made = ir.to_proto(changed)
    onnx.checker.check_model(made)
    return made


def run(model: ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, inputs)


def test_equal_tables_of_integers_are_stored_once():
    table = np.arange(4000, dtype=np.int32)
    nodes = [helper.make_node("Gather", ["x", name], [f"y_{name}"]) for name in "abc"]
    tables = {"a": table, "b": table, "c": table + 1}
    made = after_export(model_of(nodes, {"x": [4001]}, {f"y_{name}": [4000] for name in "abc"}, tables))
    assert sorted(tensor.name for tensor in made.graph.initializer) == ["a", "c"]
    x = RNG.standard_normal(4001).astype(np.float32)
    assert all(np.array_equal(y, x[t]) for y, t in zip(run(made, x=x), tables.values()))


def test_a_weight_that_is_transposed_in_memory_is_compared_too():
    """As the exporter has some weights: the form of the pass that compares digests fails on them."""
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in "ab"]
    weight = RNG.standard_normal((6, 40)).astype(np.float32)
    model = ir.from_proto(model_of(nodes, {"x": [1, 40]}, {"y_a": [1, 6], "y_b": [1, 6]}, dict.fromkeys("ab", weight.T)))
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(torch.from_numpy(weight).T, name=value.name)
    passes.after_export(model)
    (tensor,) = ir.to_proto(model).graph.initializer
    assert np.array_equal(numpy_helper.to_array(tensor), weight.T)


def residual(*read_before: NodeProto) -> ModelProto:
    """x (1, 5, 8) -> x + 2 x -> LayerNormalization, whose output is added to what `read_before`, "early", makes of the sum."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("Add", ["x", "twice"], ["sum"]),
        *read_before,
        helper.make_node("LayerNormalization", ["sum", "scale", "shift"], ["norm"], epsilon=1e-5, axis=-1),
        helper.make_node("Add", ["norm", "early"], ["y"]),
    ]
    weights = {name: RNG.standard_normal(8).astype(np.float32) for name in ("scale", "shift")}
    return model_of(nodes, {"x": [1, 5, 8]}, {"y": [1, 5, 8]}, weights)


def test_a_sum_and_its_norm_become_one_node_though_another_reads_the_sum_first(tmp_path):
    """onnxscript's fusion leaves that reader before the node that makes what it reads, and outputs without a type."""
    model = residual(helper.make_node("Relu", ["sum"], ["early"]))
    made = after_export(model)
    assert Counter(node.op_type for node in made.graph.node) == {"Add": 2, "SkipLayerNormalization": 1, "Relu": 1}
    fused = next(node for node in made.graph.node if node.domain == RUNTIME_DOMAIN)
    assert list(fused.output) == ["norm", "", "", "sum"] and len(fused.input) == 4
    x = RNG.standard_normal((1, 5, 8)).astype(np.float32)
    (got,), (expected,) = run(made, x=x), run(model, x=x)
    assert np.abs(got - expected).max() < 1e-6
    onnx.save(made, tmp_path / "net.onnx")
    for precision in PRECISIONS:
        store(tmp_path / "net.onnx", precision, tmp_path / precision)
        (got,) = run(onnx.load(tmp_path / precision / "net.onnx"), x=x)
        assert np.abs(got - expected).max() < 1e-2


def test_a_norm_of_something_else_than_a_sum_of_two_such_tensors_stays():
    model = residual(helper.make_node("Relu", ["sum"], ["early"]))
    model.graph.node[1].input[0] = "scale"  # a row that is added to every position
    assert not any(node.domain for node in after_export(onnx.shape_inference.infer_shapes(model)).graph.node)


def test_what_the_passes_leave_of_exported_graphs(small):
    """No Constant, which `halve_arithmetic` does not know; no weight or table that nobody reads, or that is there twice."""
    for path in (*small.stored().values(), small.stored("straightforward")["step"]):
        graph = onnx.load(path).graph
        read = {name for node in graph.node for name in node.input}
        assert not any(node.op_type == "Constant" for node in graph.node)
        assert {tensor.name for tensor in graph.initializer} <= read
        tensors = Counter((t.data_type, *t.dims, numpy_helper.to_array(t).tobytes()) for t in graph.initializer)
        assert max(tensors.values()) == 1


def test_a_fused_node_stands_in_the_modules_that_its_norm_stood_in(small):
    nodes = onnx.load(small.stored()["step"], load_external_data=False).graph.node
    fused = [node for node in nodes if node.op_type == "SkipLayerNormalization"]
    assert len(fused) == 29
    for node in fused:
        (note,) = node.metadata_props
        assert note.key == passes.SCOPES and "norms" in note.value
