import json
import time
from contextlib import ExitStack

import pytest
import torch

from moebius_lab import LabError, footprint, inventory, profiles
from moebius_lab.__main__ import main
from moebius_lab.benchmark import Candidate, Entrant, _Run, measure, run, summary
from moebius_lab.export import operator_counts
from moebius_lab.inpaint import Settings
from moebius_lab.profiles import (
    CARD,
    LIMIT_CHAIN,
    PROCESSOR,
    limit_feeds,
    limit_graphs,
    operator_times,
    write_limits,
)
from moebius_lab.results import Results


def test_a_timing_is_the_median_with_quartiles_after_warm_up():
    calls = []
    values = iter([100.0, 1.0, 2.0, 3.0, 4.0, 9.0])  # the first round does not count

    def work() -> float:
        calls.append(1)
        return next(values)

    times, missing = measure("a step", {"a clock of its own": work}, repeats=5, warmup=1)
    row = summary("a step", ("clock", "fp32"), times["a clock of its own"])
    assert len(calls) == 6 and not missing
    assert (row.median, row.q1, row.q3, row.repeats, row.unit) == (3.0, 2.0, 4.0, 5, "ms")
    assert summary("once", ("clock", "fp32"), [7.0]).q1 == 7.0


def test_backends_take_turns():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    times, _ = measure("turns", works, repeats=3, warmup=1)
    assert order == list("abababab") and list(times) == ["a", "b"]
    assert all(len(values) == 3 and min(values) >= 0 for values in times.values())


def test_a_slow_backend_has_fewer_rounds_and_one_that_is_too_slow_says_so():
    def broken():
        raise RuntimeError("no such card\nand more")

    works = {"slow": lambda: time.sleep(0.1), "slower": lambda: time.sleep(0.3), "quick": lambda: None, "broken": broken}
    times, missing = measure("x", works, repeats=5, warmup=1, patience=0.25)
    assert {key: len(values) for key, values in times.items()} == {"slow": 2, "quick": 5}
    assert missing["broken"] == "RuntimeError: no such card" and "longer than the 0 s allowed" in missing["slower"]
    late, reasons = measure("x", {"a": lambda: None}, deadline=time.monotonic() - 1)
    assert not late and reasons == {"a": "the time limit of the whole run was over"}


def test_what_cannot_be_opened_is_listed_with_its_reason(small, tmp_path):
    def fails(stack):
        raise LabError("no such card")

    results = Results(tmp_path / "r.json", {"machine": {}, "network": "small", "weights": "w", "made_from": "m"})
    one = _Run(small, results, 3, 1.0, time.monotonic() + 60)
    with ExitStack() as stack:
        one.open([Candidate("a card", "fp32", fails), Candidate("this", "fp32", lambda s: Entrant("this", "fp32", PROCESSOR, "seen"))], stack)
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [(m["backend"], m["reason"]) for m in written["missing"]] == [("a card", "no such card")]
    assert written["evidence"] == [{"backend": "this", "form": "fp32", "evidence": "seen"}]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="what is missing depends on the machine")
def test_one_command_measures_and_lists_what_is_missing(small, tmp_path, capsys):
    output = tmp_path / "all.json"
    arguments = ["--network", "small", "--weights", "deterministic", "--output-dir", str(small.folder), "--output", str(output)]
    arguments += ["--backends", "torch-cuda", "torch-cpu", "onnxruntime-cpu", "webgpu-native", "--precisions", "fp32"]
    arguments += ["--measures", "step", "limits", "profile", "--repeats", "2"]
    assert main(["benchmark", *arguments]) == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    found = {(row["what"], row["backend"]) for row in data["rows"]}
    for backend in ("PyTorch eager, CPU", "ONNX Runtime, CPU"):
        assert {(what, backend) for what in ("guided step", "large matrix product", "large copy")} <= found
    assert all(row["median"] > 0 and row["q1"] <= row["median"] <= row["q3"] for row in data["rows"])
    missing = {entry["backend"]: entry["reason"] for entry in data["missing"]}
    assert "no CUDA device" in missing["PyTorch eager, CUDA"] and "onnxruntime-ep-webgpu" in missing["WebGPU, native"]
    assert "CPUExecutionProvider" in {entry["backend"]: entry["evidence"] for entry in data["evidence"]}["ONNX Runtime, CPU"]
    profile = [entry for entry in data["profiles"] if entry["backend"] == "ONNX Runtime, CPU"]
    assert {"MatMul", "Conv"} <= {entry["operator"] for entry in profile} and all(entry["ms"] > 0 for entry in profile)
    assert "missing: guided step, PyTorch eager, CUDA" in capsys.readouterr().out


def test_a_whole_picture_is_not_begun_where_it_would_take_too_long(small, tmp_path):
    results = Results(tmp_path / "r.json", {"machine": {}, "network": "small", "weights": "w", "made_from": "m"})
    results.add("rows", [vars(summary("guided step", (name, "fp32"), [ms])) for name, ms in (("slow", 9000.0), ("quick", 1.0))])
    one = _Run(small, results, 3, 60.0, time.monotonic() + 60)
    filled = []
    one.lacks("guided step", ("slowest", "fp32"), "one run takes 80 s, longer than the 60 s allowed")
    names = ("slow", "quick", "slowest")
    one.entrants = [Entrant(name, "fp32", PROCESSOR, "", fill=lambda s, name=name: filled.append(name)) for name in names]
    one.pictures(Settings(), repeats=2, warmup=0)
    assert filled == ["quick", "quick"]
    reasons = {entry["backend"]: entry["reason"] for entry in results.data["missing"] if entry["steps"] == 19}
    assert "19 steps take about 171 s" in reasons["slow"] and "one run takes 80 s" in reasons["slowest"]
    assert results.data["rows"][-1]["what"] == "whole picture" and results.data["rows"][-1]["steps"] == 19


def test_unknown_names_are_refused(small, tmp_path):
    with pytest.raises(LabError, match="backend 'abacus' is unknown; choose from torch-cuda"):
        run(small, tmp_path / "r.json", backends=("abacus",))
    with pytest.raises(LabError, match="measurement 'beauty' is unknown"):
        run(small, tmp_path / "r.json", measures=("beauty",))


@pytest.mark.slow
def test_wasm_in_chromium_is_measured(small, tmp_path, monkeypatch):
    monkeypatch.setitem(profiles.LIMIT_SIDES, PROCESSOR, 256)  # for speed; so small, the difference may drown in the spread
    monkeypatch.setattr(profiles, "COPIED", (256, 256))
    data = run(small, tmp_path / "r.json", ("chromium-wasm",), ("fp32",), ("step", "limits", "profile"), 2)
    rows = {(row["what"], row["backend"]): row for row in data["rows"]}
    for backend in ("Chromium, wasm, 1 thread", "Chromium, wasm, all threads"):
        assert rows["guided step", backend]["median"] > 0
        for what in ("large matrix product", "large copy"):
            reasons = [entry["reason"] for entry in data["missing"] if (entry["what"], entry["backend"]) == (what, backend)]
            assert (what, backend) in rows or reasons == ["too short to be told from the spread of two runs"]
    assert {entry["where"] for entry in data["profiles"]} == {PROCESSOR} and len(data["profiles"]) > 10


@pytest.mark.slow
def test_from_the_cache_to_ready_and_a_first_visit(small, tmp_path):
    data = run(small, tmp_path / "r.json", ("chromium-wasm", "torch-cuda"), ("int8",), ("load",))
    assert not data["evidence"] and not data["missing"]  # nothing was opened that is not measured
    rows = {row["what"]: row for row in data["rows"]}
    ready, whole = rows["from the cache to ready"], rows["first visit, 100 Mbit/s: to the first picture"]
    assert (ready["unit"], whole["unit"]) == ("ms", "s") and whole["median"] > ready["median"] / 1000 > 0
    parts = ("page and runtime, computed", "weights, computed")
    computed = sum(rows[f"first visit, 100 Mbit/s: {part}"]["median"] for part in parts)
    assert whole["median"] == pytest.approx(computed + (ready["median"] + rows["first picture"]["median"]) / 1000)


# -- profiles and limits -----------------------------------------------------------------------------------------------


def test_a_profile_is_summed_by_operator_without_the_first_run():
    def run_at(ts, conv, product):
        return [
            {"cat": "Node", "name": "c_kernel_time", "ts": ts + 1, "dur": conv, "args": {"op_name": "Conv"}},
            {"cat": "Node", "name": "m_kernel_time", "ts": ts + 2, "dur": product, "args": {"op_name": "MatMul"}},
            {"cat": "Session", "name": "model_run", "ts": ts, "dur": 50, "args": {}},
        ]

    card = [{"cat": "Api", "name": f"n{i}&Conv&Conv2dMM", "ts": i, "dur": d, "args": {}} for i, d in enumerate((9000, 100, 300))]
    events = run_at(0, 9999, 9999) + run_at(100, 10, 30) + run_at(200, 20, 50) + card
    times = {(t.operator, t.where): (t.calls, t.ms) for t in operator_times(json.dumps(events), 2)}
    assert times == {("Conv", PROCESSOR): (1, 0.015), ("MatMul", PROCESSOR): (1, 0.04), ("Conv", CARD): (1, 0.2)}
    with pytest.raises(LabError, match="holds 3 runs, not 4"):
        operator_times(events, 3)


def test_limit_graphs_repeat_one_operator_and_transfer_next_to_nothing(tmp_path):
    paths = write_limits(tmp_path)
    for where in (CARD, PROCESSOR):
        for limit, operator in (("product", "MatMul"), ("copy", "Add")):
            for name, times in zip(limit_graphs(limit, where), LIMIT_CHAIN[limit]):
                counted = operator_counts(paths[name])
                assert counted[operator] == times and paths[name].stat().st_size < 10_000
                assert limit_feeds(name)["x"].nbytes < 20_000


# -- memory ------------------------------------------------------------------------------------------------------------


def test_activations_alive_at_once(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),  # the same memory
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),  # b, c and d at once, x gone
        helper.make_node("ReduceSum", ["d"], ["y"], keepdims=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [10, 10]), ("y", [1, 1]))]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [4, 25])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(tmp_path / "g.onnx"))
    assert inventory.peak_activations(tmp_path / "g.onnx") == 3 * 400


@pytest.mark.slow
def test_the_peak_of_a_process_of_its_own(small):
    found = footprint._child_peak(small, "onnxruntime-cpu", "fp32")
    assert 100 < found["process"] < 4000  # MB
    with pytest.raises(LabError, match="no CUDA device|native WebGPU"):
        footprint._child_peak(small, "webgpu-native", "fp32")
