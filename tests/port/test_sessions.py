import onnx
import pytest
import torch
from onnx import TensorProto, helper

from moebius_lab.port.sessions import open_session


@pytest.fixture
def graph(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def threads_of(*arguments, **options) -> int:
    return open_session(*arguments, **options).get_session_options().intra_op_num_threads


def test_who_limits_pytorch_s_threads_limits_those_of_onnx_runtime(graph, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "any: PyTorch has read it")
    assert threads_of(graph) == torch.get_num_threads()
    assert threads_of(graph, threads=3) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_of(graph) == 0  # one a core, as ONNX Runtime chooses
