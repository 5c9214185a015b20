"""What graphs need of a device: read off small graphs, and within WebGPU's defaults at the published size."""

from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from moebius_lab.config import GRAPHS, LARGEST_BINDING, MOEBIUS, WEBGPU_DEFAULTS
from moebius_lab.model.checkpoint import make_vae
from moebius_lab.model.unet import MoebiusNet
from moebius_lab.page.bundle import needs
from moebius_lab.port.export import export_graph
from moebius_lab.port.needs import graph_needs


def saved(path, nodes: list, inputs: dict, output: str, stored: list):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "g", ends, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_activations_alive_at_once_and_the_largest_tensor(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),  # the same memory
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),  # b, c and d at once, x gone
        helper.make_node("ReduceSum", ["d"], ["y"], keepdims=1),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [4, 25])
    needs = graph_needs(saved(tmp_path / "g.onnx", nodes, {"x": ["n", 10]}, "y", [shape]), {"n": 10})
    assert needs.activations == 3 * 400 and needs.largest == 400 and needs.weights == needs.widened == 16


def test_weights_of_16_bits_may_be_widened_and_a_weight_may_be_the_largest_tensor(tmp_path):
    weight = helper.make_tensor("w.f16", TensorProto.FLOAT16, [10, 50], [1.0] * 500)
    nodes = [
        helper.make_node("Cast", ["w.f16"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    needs = graph_needs(saved(tmp_path / "g.onnx", nodes, {"x": [1, 10]}, "y", [weight]), {})
    assert (needs.weights, needs.widened, needs.largest) == (1000, 2000, 2000)
    assert needs.activations == 40 + 200  # what is made of weights alone is none


@pytest.mark.slow
def test_at_the_published_size_no_tensor_exceeds_a_binding_of_webgpu_s_defaults(tmp_path):
    config = replace(MOEBIUS, layers_per_block=1)  # of the denoiser: blocks repeat each other's shapes
    net, vae = MoebiusNet(config).eval(), make_vae(config)
    paths = {graph: export_graph(graph, net, vae, tmp_path / graph) for graph in GRAPHS}
    found = {graph: graph_needs(path, {"n": 2}) for graph, path in paths.items()}
    assert {graph: each.largest == LARGEST_BINDING for graph, each in found.items()} == {  # of the autoencoder, 128 channels at 512 px
        "vae_encoder": True, "step": False, "vae_decoder": True,
    }  # fmt: skip
    together = needs(paths.values(), config)
    assert all(together["limits"][name] <= least for name, least in WEBGPU_DEFAULTS.items())
    assert together["activations"] == found["vae_decoder"].activations == 6 * LARGEST_BINDING  # 8 before it had parts
