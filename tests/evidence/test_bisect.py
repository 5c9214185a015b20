"""Where two runs part: faults that are planted in a graph have to be found, each at its own node."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.config import GRAPHS, PRECISIONS, SIDES
from moebius_lab.evidence import bisect
from moebius_lab.evidence.bisect import Flow, GraphRun, InBrowser, Native, Outline, TorchRun, find_parting
from moebius_lab.files import file_sha256
from moebius_lab.port.export import example_inputs, exported_module, torch_graphs
from moebius_lab.port.passes import Piece, take_out
from moebius_lab.port.precision import STAMP, store
from moebius_lab.port.sessions import open_session

MOST = 256_000_000  # bytes at once, of which TINY's step has 26 million
TOLERANCE = PRECISIONS["fp32"].node_tolerance


def stamp(path: Path) -> Path:
    """Write the record of a graph's files, as `Graphs.stored` does."""
    files = [path, *sorted(path.parent.glob("*.bin"))]
    entries = [{"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files]
    path.with_name(STAMP).write_text(json.dumps({"files": entries}), encoding="utf-8")
    return path


def planted(
    source: Path, folder: Path, change: Callable[[ModelProto], object], precision: str = "fp32"
) -> tuple[Path, object]:
    """A stored graph of 32 bits once more, with something changed in it, in a precision; and what `change` returns."""
    model = onnx.load(str(source), load_external_data=False)
    found = change(model)
    copy, made = folder / "changed" / source.name, folder / precision
    copy.parent.mkdir()
    for weights in source.parent.glob("*.bin"):
        shutil.copy(weights, copy.parent)
    onnx.save(model, copy)
    store(copy, precision, made)
    return stamp(made / source.name), found


def onnx_side(tiny, path: Path, graph: str = "step") -> GraphRun:
    feeds = {name: x.numpy() for name, x in example_inputs(tiny.config)[graph].items()}
    return GraphRun("ONNX Runtime", path, Native(open_session), feeds)


def torch_side(tiny, outline: Outline, graph: str = "step") -> TorchRun:
    modules = exported_module(graph, tiny.net, tiny.vae), torch_graphs(tiny.net, tiny.vae)[graph]
    return TorchRun("PyTorch", *modules, graph, example_inputs(tiny.config)[graph], outline)


def parting(tiny, path: Path, graph: str = "step") -> bisect.Answer:
    """A changed graph against the one that `tiny` has."""
    reference = onnx_side(tiny, tiny.stored("fp32")[graph], graph)
    other = onnx_side(tiny, path, graph)
    return find_parting(graph, reference, other, other.outline, TOLERANCE, MOST)


def nodes_of(model: ModelProto, operator: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def attribute(node: NodeProto, name: str) -> onnx.AttributeProto:
    return next(a for a in node.attribute if a.name == name)


def insert_after(model: ModelProto, tensor: str, operators: list[tuple[str, float]]) -> list[str]:
    """Let the readers of a tensor read what operators with a constant make of it, one after another; the names of the results."""
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if tensor in node.output)
    names = [tensor] + [f"planted.{i}" for i in range(len(operators))]
    for node in nodes:
        node.input[:] = [names[-1] if name == tensor else name for name in node.input]
    more = []
    for (operator, number), source, name in zip(operators, names, names[1:]):
        model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), f"{name}.number"))
        more.append(helper.make_node(operator, [source, f"{name}.number"], [name], name=f"node_{name}"))
    del model.graph.node[:]
    model.graph.node.extend(nodes[: at + 1] + more + nodes[at + 1 :])
    return names[1:]


# -- healthy runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("graph", "least"), list(zip(GRAPHS, (40, 120, 55))))
def test_modules_of_pytorch_end_in_the_tensors_that_are_compared_with_them(tiny, graph, least):
    answer = bisect.between(tiny, graph, ("torch-cpu", "onnxruntime-cpu"))
    assert answer.first is None and answer.compared == answer.common >= least
    assert answer.worst.share < 2e-5  # a module that was taken for another would differ by all of its magnitude
    assert all(c.share < 1e-5 for c in answer.outputs) and not list(tiny.folder.glob("tmp*"))
    assert "No tensor differs" in answer.words() and answer.node is None and answer.table().index[0] == answer.worst.name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_keeps_within_its_tolerance(tiny, precision):
    answer = bisect.between(tiny, "step", ("torch-cpu", "onnxruntime-cpu"), ("fp32", precision))
    assert answer.first is None and answer.tolerance == PRECISIONS[precision].node_tolerance
    assert answer.worst.share < answer.tolerance / 2


def test_the_same_weights_in_the_same_arithmetic_are_held_to_rounding():
    assert bisect.tolerance_of("int8", "int8") == bisect.tolerance_of("fp32", "fp32") == TOLERANCE
    assert bisect.tolerance_of("fp16", "fp16") == bisect.tolerance_of("fp32", "fp16") == PRECISIONS["fp16"].node_tolerance
    assert bisect.tolerance_of("int8", "fp16-storage") == PRECISIONS["int8"].node_tolerance


# -- planted faults ----------------------------------------------------------------------------------------------------


def raise_epsilon(operator: str, which: int) -> Callable[[ModelProto], NodeProto]:
    def change(model: ModelProto) -> NodeProto:
        node = nodes_of(model, operator)[which]
        attribute(node, "epsilon").f = 0.01
        return node

    return change


@pytest.mark.parametrize(
    ("operator", "which"),
    [("InstanceNormalization", 3), ("LayerNormalization", 5), ("SkipLayerNormalization", 8), ("SkipLayerNormalization", 16)],
)
def test_a_wrong_epsilon_is_found_at_its_node(tiny, tmp_path, operator, which):
    path, node = planted(tiny.stored("fp32")["step"], tmp_path, raise_epsilon(operator, which))
    answer = parting(tiny, path)
    assert answer.node.name == node.name and answer.first.name == node.output[0]
    assert len(answer.suspects) == 1 and all(c.share < 1e-6 for c in answer.inputs) and answer.inputs
    words = answer.words()
    assert f"They part at node {answer.suspects[0]} of" in words and "the difference is made here" in words
    assert {*answer.table().index} >= {node.output[0], node.input[0]}


def test_a_wrong_epsilon_is_found_against_pytorch_by_the_module(tiny, tmp_path):
    path, node = planted(tiny.stored("fp32")["step"], tmp_path, raise_epsilon("InstanceNormalization", 3))
    other = onnx_side(tiny, path)
    answer = find_parting("step", torch_side(tiny, other.outline), other, other.outline, TOLERANCE, MOST)
    suspects = [other.outline.nodes[i].name for i in answer.suspects]
    assert node.name in suspects and len(suspects) <= 8
    assert answer.module in other.outline.scopes[[n.name for n in other.outline.nodes].index(node.name)]
    assert answer.inputs and all(c.share < 1e-5 for c in answer.inputs) and "made here" in answer.words()
    assert f"the module {answer.module}" in answer.words() and "was not compared" in answer.words()


@pytest.mark.parametrize(
    ("order", "a", "b", "seen"),
    [
        ([0, 3, 5, 2, 4, 1], 1, 2, "of its largest magnitude"),  # rows and columns of equal sides
        ([0, 1, 3, 2, 4], 2, 3, "has another shape"),
    ],
)
def test_a_swapped_axis_is_found_at_its_node(tiny, tmp_path, order, a, b, seen):
    def swap(model: ModelProto) -> NodeProto:
        node = next(node for node in nodes_of(model, "Transpose") if list(attribute(node, "perm").ints) == order)
        axes = attribute(node, "perm").ints
        axes[a], axes[b] = axes[b], axes[a]
        return node

    path, node = planted(tiny.stored("fp32")["step"], tmp_path, swap)
    answer = parting(tiny, path)
    assert answer.node.name == node.name and len(answer.suspects) == 1
    assert seen in answer.words() and "made here" in answer.words()


@pytest.mark.parametrize(
    ("times", "precisions", "operator"),
    [
        (6e4, ("fp32", "fp16"), "Mul"),
        (6e4, ("fp16", "fp16"), "Mul"),
        (6e4, ("fp32", "int8"), ""),
        (1e3, ("fp32", "fp16"), ""),
    ],
)
def test_an_overflow_in_16_bits_is_found_at_its_node(tiny, tmp_path, times, precisions, operator):
    """A tensor of magnitude 4 or so is made large and small again: the same function, but in 16 bits."""

    def enlarge(model: ModelProto) -> str:
        source = nodes_of(model, "Conv")[20].output[0]
        return insert_after(model, source, [("Mul", times), ("Mul", 1 / times)])[0]

    paths = []
    for i, precision in enumerate(precisions):
        (tmp_path / str(i)).mkdir()
        path, large = planted(tiny.stored("fp32")["step"], tmp_path / str(i), enlarge, precision)
        paths.append(path)
    reference, other = (onnx_side(tiny, path) for path in paths)
    answer = find_parting("step", reference, other, other.outline, bisect.tolerance_of(*precisions), MOST)
    if operator:
        assert answer.node.op_type == operator and answer.first.name == large
        assert "NaN or infinite" in answer.first.remarks() and math.isinf(answer.first.largest)
        assert "is not finite" in answer.words() and "made here" in answer.words()
    else:
        assert answer.first is None


def test_a_difference_that_later_nodes_take_back_is_found_all_the_same(tiny, tmp_path):
    """Which a search by halves would miss: all that follows agrees."""

    def shift(model: ModelProto) -> list[str]:
        return insert_after(model, nodes_of(model, "Relu")[4].output[0], [("Add", 0.0), ("Add", 0.0)])

    healthy, names = planted(tiny.stored("fp32")["step"], tmp_path, shift)
    model = onnx.load(str(healthy), load_external_data=False)
    for name, number in zip(names, (1.0, -1.0)):
        [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == f"{name}.number"]
        tensor.CopyFrom(numpy_helper.from_array(np.array(number, np.float32), tensor.name))
    other = tmp_path / "other" / healthy.name
    shutil.copytree(healthy.parent, other.parent)
    onnx.save(model, other)
    sides = onnx_side(tiny, healthy), onnx_side(tiny, stamp(other))
    answer = find_parting("step", *sides, sides[1].outline, TOLERANCE, MOST)
    assert answer.first.name == names[0] and answer.first.largest == pytest.approx(1)
    assert all(c.share < TOLERANCE for c in answer.outputs)


def test_a_wrong_rewrite_is_seen_in_the_outputs_where_all_modules_agree(tiny, tmp_path):
    other = onnx_side(tiny, tiny.stored("fp32")["step"])
    side = torch_side(tiny, other.outline)
    side.published.register_forward_hook(lambda module, inputs, outputs: tuple(y * 1.01 for y in outputs))
    answer = find_parting("step", side, other, other.outline, TOLERANCE, MOST)
    assert answer.first is None and answer.failed
    assert "No tensor differs" in answer.words() and "at the rewrites too" in answer.words()


def test_a_difference_that_grows_on_the_way_is_no_single_node_s(tiny):
    answer = bisect.between(tiny, "step", ("onnxruntime-cpu", "onnxruntime-cpu"), ("fp32", "fp16"), tolerance=5e-3)
    assert answer.first and "has grown on the way" in answer.words()


# -- groups ------------------------------------------------------------------------------------------------------------


def test_a_tensor_larger_than_a_group_comes_in_parts():
    flows = [Flow("a", "a", False, (4, 8), 0), Flow("b", "b", False, (1, 256, 512, 512), 1), Flow("c", "c", False, (), 2)]
    groups = bisect.groups_of(flows, 64_000_000)
    assert all(sum(part.bytes for part in group) <= 64_000_000 for group in groups) and len(groups) == 5
    parts = [part for group in groups for part in group]
    assert [part.name for part in parts] == ["a", *"b" * (len(parts) - 2), "c"]
    large = parts[1:-1]
    assert [part.start for part in large[1:]] == [part.stop for part in large[:-1]] and large[0].start == 0
    assert large[-1].stop == 512 and [part.last for part in large] == [False] * (len(large) - 1) + [True]
    assert sum(part.bytes for part in large) == 4 * 256 * 512 * 512
    assert [part.name for group in bisect.groups_of(flows[:1], 1) for part in group] == ["a"] * 8  # one row is the least


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["onnx", "torch"])
def test_small_groups_and_parts_give_the_same_answer(tiny, tmp_path, reference):
    path, node = planted(tiny.stored("fp32")["step"], tmp_path, raise_epsilon("InstanceNormalization", 0))
    other = onnx_side(tiny, path)
    side = onnx_side(tiny, tiny.stored("fp32")["step"]) if reference == "onnx" else torch_side(tiny, other.outline)
    seen = []
    answers = [
        find_parting("step", side, other, other.outline, TOLERANCE, most, lambda done, groups: seen.append(groups))
        for most in (MOST, 10_000)
    ]
    assert answers[0].groups == 1 and answers[1].groups >= 4 and len(seen) == 1 + answers[1].groups
    assert answers[0].suspects == answers[1].suspects and answers[0].first.name == answers[1].first.name
    assert answers[0].first.reference == answers[1].first.reference
    assert node.name in [other.outline.nodes[i].name for i in answers[1].suspects]


def test_pieces_are_cut_and_widened_in_the_graph():
    """As a page needs them, which reads float32 alone."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 6]) for name in "xy"]
    casts = [
        helper.make_node("Cast", "x", "h", to=TensorProto.FLOAT16),
        helper.make_node("Cast", "h", "y", to=TensorProto.FLOAT),
    ]
    model = helper.make_model(helper.make_graph(casts, "halves", ends[:1], ends[1:]))
    pieces = [Piece("h", True), Piece("h", True, 1, 2, 5), Piece("y", False, 0, 1, 2), Piece("y", False)]
    names = take_out(model, pieces)
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    got = ReferenceEvaluator(model).run(names, {"x": x})
    rounded = x.astype(np.float16).astype(np.float32)
    for y, expected in zip(got, (rounded, rounded[:, 2:5], rounded[1:2], rounded), strict=True):
        assert y.dtype == np.float32 and np.array_equal(y, expected)
    assert names[-1] == "y" and len(model.graph.output) == 4  # it is one already


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_what_is_unusual_about_numbers_is_said():
    def remarks(*numbers: float) -> list[str]:
        return bisect.range_of(np.array(numbers, np.float32)).remarks()

    assert remarks(0, 1, -2) == []
    assert remarks(1, np.inf, np.nan) == ["2 of 3 NaN or infinite"]
    assert remarks(1, 65504, 40000) == ["2 of 3 near overflow in 16 bits"]
    assert remarks(1, -65505) == ["1 of 2 beyond 16 bits"]
    assert remarks(1, 1e-6, 0, 1e-39) == ["25% denormal", "25% denormal in 16 bits"]
    assert remarks(*[1.0] * 1000, 2, 1e-6) == []  # too few to matter
    assert remarks(3, 3, 3) == ["constant"] and remarks(3) == []
    nothing = bisect.range_of(np.full(2, np.nan, np.float32))
    assert nothing.magnitude == 0 and nothing.words() == "nothing finite"


def test_a_comparison_in_blocks_is_that_of_the_whole(monkeypatch):
    a = np.linspace(-3, 5, 1000, dtype=np.float32).reshape(10, 100)
    b = a + np.float32(0.5) * (a > 4.9)
    whole = bisect.compare("x", a, b)
    monkeypatch.setattr(bisect, "BLOCK", 77)
    assert bisect.compare("x", a, b) == whole
    assert whole.largest == pytest.approx(0.5) and whole.share == pytest.approx(0.1)
    assert bisect.compare("x", a, np.where(a > 4.9, np.nan, a)).share == math.inf
    assert bisect.compare("x", a, a.reshape(100, 10)).words() == "has another shape"
    zeros = np.zeros(3, np.float32)
    assert bisect.compare("x", zeros, zeros).share == 0 and bisect.compare("x", zeros, zeros + 1).share == math.inf


# -- browsers and the command ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("side", ["chromium-wasm", "chromium-webgpu-captured"])
def test_a_fault_is_found_in_a_browser(tiny, tmp_path, side):
    graph = "vae_encoder"
    path, node = planted(tiny.stored("fp32")[graph], tmp_path, raise_epsilon("InstanceNormalization", 0))
    reference = onnx_side(tiny, tiny.stored("fp32")[graph], graph)
    folder = tmp_path / "browser"
    folder.mkdir()
    other = GraphRun(side, path, InBrowser(tiny, "fp32", SIDES[side], folder), reference.feeds)
    answer = find_parting(graph, reference, other, other.outline, TOLERANCE, MOST)
    assert answer.node.name == node.name and len(answer.suspects) == 1
    assert re.search(r"Chromium [\d.]+, .*(wasm|captured).*: \d+ on (CPU|WebGpu)$", answer.evidence[1])


BISECT = ["bisect", "--network", "tiny", "--weights", "deterministic"]


def test_the_command_says_where_two_runs_part_and_by_its_exit_code_that_they_do(tiny, capsys):
    command = [*BISECT, "--output-dir", str(tiny.folder), "--graph", "vae_encoder"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "vae_encoder: ONNX Runtime, CPU, fp32, against PyTorch eager, CPU, fp32" in said.out and "group 1 of" in said.err
    assert main([*command, "--precision", "int8", "--tolerance", "1e-9"]) == 1
    said = capsys.readouterr().out
    assert "They part at node" in said and "ONNX Runtime, CPU, int8, against PyTorch eager, CPU, fp32" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--between", "torch-cpu", "torch-cpu"], "choose two backends, or two precisions"),
        (["--between", "torch-cpu", "safari"], "choose from"),
        (["--precision", "int8", "fp32"], "torch-cpu computes in fp32"),
        (["--precision", "int3"], "choose one of"),
        (["--precision", "fp32", "fp16", "int8"], "one each, not 3"),
        (["--between", "torch-cpu", "chromium-wasm", "--precision", "fp16"], "cannot run fp16"),
        (["--graph", "unet"], "choose from"),
        (["--tolerance", "-1"], "at least 0"),
        (["--tolerance", "nan"], "at least 0"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(tmp_path, capsys, options, words):
    assert main([*BISECT, "--output-dir", str(tmp_path), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line and not list(tmp_path.iterdir())


def test_every_side_has_what_opens_it():
    assert {side.opened_by for side in SIDES.values()} == {*bisect.OPENERS, bisect.TORCH}
    with pytest.raises(LabError, match="no backend 'safari'"):
        bisect.between(None, "step", ("safari", "torch-cpu"))
