import hashlib
import shutil
from collections import namedtuple

import numpy as np
import onnx
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from moebius_lab import LabError
from moebius_lab.config import PRECISIONS
from moebius_lab.port import precision

RNG = np.random.default_rng(0)


def write_graph(path, scale=1.0, widths=(16, 96, 96)):
    """image (1, 16, 12, 12) -> Conv -> InstanceNormalization -> MatMul -> doubled, with one table and one Constant."""
    a, b, c = widths
    kernel, bias = RNG.standard_normal((b, a, 3, 3)) * scale, RNG.standard_normal(b)
    matrix, table = RNG.standard_normal((144, c)) / 12, RNG.standard_normal((100, c))
    weights = {
        "kernel": kernel,
        "bias": bias,
        "matrix": matrix,
        "time.sinusoids": table,
        "one": np.ones(b),
        "zero": np.zeros(b),
    }
    shapes = {"flat": [1, b, 144]}
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("InstanceNormalization", ["y", "one", "zero"], ["normed"]),
        helper.make_node("Reshape", ["normed", "flat"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "matrix"], ["product"]),
        helper.make_node("Cast", ["timestep"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["time.sinusoids", "index"], ["row"]),
        helper.make_node("Add", ["product", "row"], ["sum"]),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32([2.0]))),
        helper.make_node("Mul", ["sum", "two"], ["out"]),
    ]
    inits = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    inits += [numpy_helper.from_array(np.int64(v), k) for k, v in shapes.items()]
    ends = [("image", [1, a, 12, 12]), ("timestep", [1])]
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, b, c])], inits,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path), save_as_external_data=True, location=path.name + ".data", size_threshold=1024)
    return path


@pytest.fixture
def graph_file(tmp_path):
    return write_graph(tmp_path / "net.onnx")


def run(path, image=None):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(1).standard_normal((1, 16, 12, 12)).astype(np.float32) if image is None else image
    return session.run(None, {"image": image, "timestep": np.float32([57])})[0]


@pytest.mark.parametrize(
    ("kind", "error"), [("fp32", 0), ("fp16-storage", 4e-3), ("fp16", 2e-2), ("int8", 1e-1), ("int4", 1)]
)
def test_every_precision_runs_with_float32_ends_and_its_own_error(graph_file, tmp_path, kind, error):
    files = precision.store(graph_file, kind, tmp_path / kind)
    onnx.checker.check_model(str(tmp_path / kind / "net.onnx"))
    got, expected = run(tmp_path / kind / "net.onnx"), run(graph_file)
    assert got.dtype == np.float32 and files[0].name == "net.onnx"
    assert np.abs(got - expected).max() <= error
    assert (kind == "fp32") == bool(np.array_equal(got, expected))


def test_stored_types_and_bytes(graph_file, tmp_path):
    sizes, types = {}, {}
    for kind in PRECISIONS:
        files = precision.store(graph_file, kind, tmp_path / kind)
        sizes[kind] = sum(file.bytes for file in files[1:])
        model = onnx.load(str(tmp_path / kind / "net.onnx"), load_external_data=False)
        types[kind] = {t.name: t.data_type for t in model.graph.initializer}
    assert sizes["fp16-storage"] < 0.7 * sizes["fp32"] and sizes["int8"] < 0.6 * sizes["fp32"]  # the table stays
    assert types["fp16-storage"]["kernel.f16"] == TensorProto.FLOAT16 and types["fp16-storage"]["bias"] == TensorProto.FLOAT
    assert types["int8"]["matrix.i8"] == TensorProto.INT8
    assert all(t["time.sinusoids"] == TensorProto.FLOAT for t in types.values())
    assert types["fp16"]["one"] == TensorProto.FLOAT and types["fp16"]["kernel.half"] == TensorProto.FLOAT16


def test_no_precision_is_recognised_by_its_name(graph_file, tmp_path, monkeypatch):
    """What is stored follows from the entry's fields: under another name it is the same, byte for byte."""
    entries = dict(PRECISIONS)
    for i, (name, entry) in enumerate(entries.items()):
        monkeypatch.setitem(PRECISIONS, f"form {i}", entry)
        assert precision.store(graph_file, f"form {i}", tmp_path / "new" / name) == precision.store(
            graph_file, name, tmp_path / "old" / name
        )
    assert precision.per_graph("form 2") == precision.per_graph("fp16") | {"step": "form 2"}


@pytest.mark.parametrize(("size", "largest"), [(128, 127), (32, 7)])
def test_a_group_s_error_is_at_most_half_its_scale(size, largest):
    array = (RNG.standard_normal((5, 77)) * np.array([[1], [10], [0], [1e-3], [1]])).astype(np.float32)
    integers, scale = precision.quantize_groups(array, size, largest)
    assert scale.dtype == np.float16 and np.abs(integers).max() == largest
    restored = (integers * scale[:, None].astype(np.float32)).reshape(-1)[: array.size]
    allowed = np.repeat(scale.astype(np.float32), size)[: array.size] / 2
    assert (np.abs(restored - array.reshape(-1)) <= allowed * 1.001).all()


def test_nibbles_hold_two_numbers_a_byte():
    packed = precision.pack_nibbles(np.array([[-7, 7, 0, 1]], np.int8))
    assert packed.tolist() == [[1 | 8 << 4, 15 | 9 << 4]]


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_are_restored_in_the_shape_and_order_of_the_weight(tmp_path, monkeypatch, kind, bits):
    source = write_graph(tmp_path / "net.onnx", widths=(16, 96, 95))  # 144 x 95 numbers fill no whole groups
    monkeypatch.setattr(precision, "NIBBLES_FROM", 1)  # every weight of this small graph
    precision.store(source, kind, tmp_path / "out")
    expected = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(source)).graph.initializer}
    model = onnx.load(str(tmp_path / "out" / "net.onnx"))
    for name in ("kernel", "matrix"):
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"image": np.zeros((1, 16, 12, 12), np.float32), "timestep": np.float32([3])}
    for name, got in zip(("kernel", "matrix"), session.run(["kernel", "matrix"], feeds)):
        step = np.abs(expected[name]).max() / (2 ** (bits - 1) - 1)
        assert got.shape == expected[name].shape and np.abs(got - expected[name]).max() < 0.51 * step


def test_a_depthwise_kernel_keeps_16_bits_in_int8(small):
    model = onnx.load(str(small.stored("int8")["step"]), load_external_data=False)
    depthwise = [t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[1] == 1 and t.dims[0] * 9 >= 4096]
    assert depthwise and {t.data_type for t in depthwise} == {TensorProto.FLOAT16}


def test_norms_run_in_float32_when_arithmetic_is_float16(tmp_path):
    source = write_graph(tmp_path / "net.onnx", scale=60.0)  # squares of what the convolution gives exceed 65504
    precision.store(source, "fp16", tmp_path / "half")
    got, expected = run(tmp_path / "half" / "net.onnx"), run(source)
    assert np.isfinite(got).all() and np.abs(got - expected).max() < 2e-2


def test_float16_storage_is_lossless_where_the_narrowest_type_says_so(tmp_path):
    source = write_graph(tmp_path / "net.onnx")
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            assert precision.narrowest_type(array) == "float16"
    (tmp_path / "rounded").mkdir()
    onnx.save(model, str(tmp_path / "rounded" / "net.onnx"))
    precision.store(tmp_path / "rounded" / "net.onnx", "fp16-storage", tmp_path / "stored")
    assert np.array_equal(run(tmp_path / "stored" / "net.onnx"), run(tmp_path / "rounded" / "net.onnx"))


def test_narrowest_type():
    array = RNG.standard_normal(1000).astype(np.float32)
    assert precision.narrowest_type(array) == "float32"
    assert precision.narrowest_type(array.astype(bfloat16).astype(np.float32) * 2.0**-20) == "bfloat16"
    assert precision.narrowest_type(np.float32([1e5])) == "float32"


def test_files_are_small_ordered_and_hashed(graph_file, tmp_path):
    files = precision.store(graph_file, "fp32", tmp_path / "out", max_chunk_bytes=70_000)
    assert [f.name for f in files] == ["net.onnx", "net.000.bin", "net.001.bin", "net.002.bin"]
    for file in files:
        data = (tmp_path / "out" / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        assert len(data) <= 70_000
    assert np.array_equal(run(tmp_path / "out" / "net.onnx"), run(graph_file))


def test_bad_input_is_refused_before_anything_is_written(graph_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(LabError, match="precision 'fp8' is unknown; choose one of fp32, "):
        precision.store(graph_file, "fp8", out)
    with pytest.raises(LabError, match="choose another folder"):
        precision.store(graph_file, "fp32", tmp_path)
    with pytest.raises(LabError, match="more than a file's 1000: allow larger files"):
        precision.store(graph_file, "fp32", out, max_chunk_bytes=1000)
    monkeypatch.setattr(precision, "PROTOBUF_LIMIT", 500)
    with pytest.raises(LabError, match="protobuf allows 500: split the graph"):
        precision.store(graph_file, "fp32", out)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(1, 0, 1))
    with pytest.raises(LabError, match="free some space or choose another disk"):
        precision.store(graph_file, "fp32", out)
    assert not out.exists()


def test_a_weight_beyond_float16_is_named(tmp_path):
    source = write_graph(tmp_path / "net.onnx", scale=1e6)
    with pytest.raises(LabError, match="weight kernel has numbers beyond 65504"):
        precision.store(source, "fp16-storage", tmp_path / "out")
