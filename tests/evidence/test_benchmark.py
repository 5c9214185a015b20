import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.config import CONTENDERS, RUNS
from moebius_lab.evidence.benchmark import contenders, footprint, profiles, results
from moebius_lab.evidence.benchmark import run as benchmark
from moebius_lab.evidence.benchmark.contenders import Candidate, Entrant, candidates
from moebius_lab.evidence.benchmark.profiles import (
    CARD,
    LIMIT_CHAIN,
    PROCESSOR,
    limit_feeds,
    limit_graphs,
    operator_times,
    write_limits,
)
from moebius_lab.evidence.benchmark.results import STEP, Results
from moebius_lab.evidence.benchmark.run import _Run, answer, measure, run, summary
from moebius_lab.evidence.parity import reference_outputs
from moebius_lab.inpainting.loop import Settings
from moebius_lab.port.export import example_feeds, operator_counts


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


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def takes(self, seconds: float):
        """Work that takes so long."""

        def work() -> None:
            self.now += seconds

        return work


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(benchmark, "time", clock)
    return clock


def test_backends_take_turns(clock):
    order = []
    takes = {"a": clock.takes(0.002), "b": clock.takes(0.003)}
    times, missing = measure(
        "turns", {name: lambda name=name: (order.append(name), takes[name]())[1] for name in "ab"}, repeats=3, warmup=1
    )
    assert order == list("abababab") and not missing
    assert times == {"a": pytest.approx([2, 2, 2]), "b": pytest.approx([3, 3, 3])}


def test_a_slow_backend_has_fewer_rounds_and_one_that_is_too_slow_says_so(clock):
    def broken():
        raise RuntimeError("no such card\nand more")

    works = {"slow": clock.takes(100), "slower": clock.takes(300), "quick": clock.takes(0), "broken": broken}
    times, missing = measure("x", works, repeats=5, warmup=1, patience=250)
    assert {key: len(values) for key, values in times.items()} == {"slow": 2, "quick": 5}
    assert missing == {
        "broken": "RuntimeError: no such card",
        "slower": "one run takes 300 s, longer than the 250 s allowed",
    }
    late, reasons = measure("x", {"a": clock.takes(0)}, deadline=clock.now - 1)
    assert not late and reasons == {"a": "the time limit of the whole run was over"}
    times, missing = measure("x", {"a": clock.takes(10)}, repeats=5, warmup=0, deadline=clock.now + 25)
    assert len(times["a"]) == 3 and not missing  # rounds that have begun are counted


def test_what_cannot_be_opened_is_listed_with_its_reason(small, tmp_path):
    def fails(stack):
        raise LabError("no such card")

    results = Results(tmp_path / "r.json", {"machine": {}, "network": "small", "weights": "w", "made_from": "m"})
    one = _Run(small, results, 3, 1.0, time.monotonic() + 60)
    with ExitStack() as stack:
        one.open(
            [
                Candidate("a card", "fp32", fails),
                Candidate("this", "fp32", lambda s: Entrant("this", "fp32", PROCESSOR, "seen")),
            ],
            stack,
        )
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [(m["backend"], m["reason"]) for m in written["missing"]] == [("a card", "no such card")]
    assert written["evidence"] == [{"backend": "this", "form": "fp32", "evidence": "seen"}]


def test_half_of_the_time_is_left_for_what_is_open(small, tmp_path, clock):
    def opens(name: str):
        def open_(stack):
            clock.now += 20
            return Entrant(name, "fp32", PROCESSOR, "", works={STEP: clock.takes(1)})

        return Candidate(name, "fp32", open_)

    results = Results(tmp_path / "r.json", {"machine": {}, "network": "small", "weights": "w", "made_from": "m"})
    one = _Run(small, results, 3, 60.0, clock.now + 100)
    with ExitStack() as stack:
        one.open([opens(name) for name in "abcde"], stack, clock.now + 50)
        one.time(STEP, one.works(STEP), 3)
    assert [(row["backend"], row["median"]) for row in results.data["rows"]] == [(name, 1000) for name in "abc"]
    assert [m["backend"] for m in results.data["missing"]] == ["d", "e"]
    assert all("half of the time limit" in m["reason"] for m in results.data["missing"])


def test_differences_from_pytorch_are_taken_of_every_graph_and_what_fails_is_listed(small, tmp_path):
    references = reference_outputs(small.net, small.vae)
    inputs = example_feeds(small.config)

    def off(graph: str, feeds: dict) -> dict:
        """PyTorch's outputs with one number changed by a quarter, and of the decoder's none."""
        if graph == "vae_decoder":
            raise LabError("out of memory")
        [run] = (run for run, known in inputs.items() if RUNS[run] == graph and known.keys() == feeds.keys()
                 and all(np.array_equal(known[name], feeds[name]) for name in known))  # fmt: skip
        changed = {name: y.copy() for name, y in references[run].items()}
        list(changed.values())[-1].flat[7] += 0.25
        return changed

    results = Results(tmp_path / "r.json", {"machine": {}, "network": "small", "weights": "w", "made_from": "m"})
    one = _Run(small, results, 3, 1.0, time.monotonic() + 60)
    one.entrants = [Entrant("off", "fp32", PROCESSOR, "", outputs=off), Entrant("a step alone", "fp32", PROCESSOR, "")]
    one.differences()
    found = {row["what"].partition(", ")[2]: row["median"] for row in results.data["rows"]}
    assert found.keys() == RUNS.keys() - {"vae_decoder"} and list(found.values()) == pytest.approx([0.25] * 3, rel=1e-3)
    assert [(m["what"], m["reason"]) for m in results.data["missing"]] == [
        ("largest difference from PyTorch, vae_decoder", "out of memory")
    ]


def test_a_choice_of_kernels_is_told_by_kind_of_work():
    choices = {
        "product 1a": "64x128x16 8x8",
        "product 2b": "64x128x16 8x8",
        "product 3c": "the runtime's",
        "layer norm 4d": "",
    }
    choices |= {"all of step": "", "all of vae_encoder": "the runtime's"}
    assert (
        contenders.chosen(choices)
        == "all of vae_encoder: 1 the runtime's; layer norm: 1 ours; product: 2 64x128x16 8x8, 1 the runtime's"
    )
    assert contenders.chosen({}) == ""


@pytest.fixture
def small_limits(monkeypatch):
    """Small tensors to measure a backend's limits with, for speed: the difference may drown in the spread. Notebook 5 takes whole ones."""
    monkeypatch.setitem(profiles.LIMIT_SIDES, PROCESSOR, 256)
    for module in (profiles, contenders):
        monkeypatch.setattr(module, "COPIED", (256, 256))


def has_limits(data: dict, backend: str) -> bool:
    """Whether a backend's limits were measured, or it is said that the machine was too busy to tell them."""
    found = {row["what"] for row in data["rows"] if row["backend"] == backend}
    busy = {
        entry["what"] for entry in data["missing"]
        if (entry["backend"], entry["reason"]) == (backend, "too short to be told from the spread of two runs")
    }  # fmt: skip
    return {"large matrix product", "large copy"} <= found | busy


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="what is missing depends on the machine")
def test_one_command_measures_and_lists_what_is_missing(small, tmp_path, capsys, small_limits):
    output = tmp_path / "all.json"
    arguments = [
        "--network",
        "small",
        "--weights",
        "deterministic",
        "--output-dir",
        str(small.folder),
        "--output",
        str(output),
    ]
    arguments += ["--backends", "torch-cuda", "torch-cpu", "onnxruntime-cpu", "webgpu-native"]
    arguments += ["--precisions", "straightforward", "fp32", "--measures", "step", "limits", "profile", "--repeats", "2"]
    assert main(["benchmark", *arguments]) == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    found = {(row["what"], row["backend"]) for row in data["rows"]}
    for backend in ("PyTorch eager, CPU", "ONNX Runtime, CPU"):
        assert ("guided step", backend) in found and has_limits(data, backend)
    steps = {(row["backend"], row["form"]) for row in data["rows"] if row["what"] == "guided step"}
    assert {("ONNX Runtime, CPU", "straightforward"), ("ONNX Runtime, CPU", "fp32")} <= steps
    assert "times as long in ONNX Runtime, CPU." in answer(data)
    assert all(row["median"] > 0 and row["q1"] <= row["median"] <= row["q3"] for row in data["rows"])
    missing = {entry["backend"]: entry["reason"] for entry in data["missing"]}
    assert "no CUDA device" in missing["PyTorch eager, CUDA"] and "onnxruntime-ep-webgpu" in missing["WebGPU, native"]
    assert "CPUExecutionProvider" in {entry["backend"]: entry["evidence"] for entry in data["evidence"]}["ONNX Runtime, CPU"]
    profile = [entry for entry in data["profiles"] if entry["backend"] == "ONNX Runtime, CPU"]
    assert {"MatMul", "Conv"} <= {entry["operator"] for entry in profile} and all(entry["ms"] > 0 for entry in profile)
    assert "missing: guided step, PyTorch eager, CUDA" in capsys.readouterr().out


def test_a_whole_picture_is_not_begun_where_it_would_take_too_long(small, tmp_path):
    results = Results(tmp_path / "r.json", {"machine": {}, "network": "small", "weights": "w", "made_from": "m"})
    results.add(
        "rows", [vars(summary("guided step", (name, "fp32"), [ms])) for name, ms in (("slow", 9000.0), ("quick", 1.0))]
    )
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
def test_wasm_in_chromium_is_measured(small, tmp_path, small_limits):
    data = run(small, tmp_path / "r.json", ("chromium-wasm",), ("fp32",), ("step", "limits", "profile"), 2)
    rows = {(row["what"], row["backend"]): row for row in data["rows"]}
    for backend in ("Chromium, wasm, 1 thread", "Chromium, wasm, all threads"):
        assert rows["guided step", backend]["median"] > 0 and has_limits(data, backend)
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


@pytest.mark.slow
def test_a_visit_with_a_recording_and_one_on_which_onnx_runtime_is_asked(tiny, tiny_bundle, monkeypatch):
    monkeypatch.setattr(footprint, "LOADS", 1)
    webgpu, quick = CONTENDERS["chromium-webgpu"], Settings(steps=1, strength=1.0, guidance=1.0, init="noise")
    rows = {
        row.what: row
        for recorded in (True, False)
        for row in footprint._visit(tiny, tiny_bundle, webgpu, "fp32", recorded, quick)
    }
    assert {results.READY, results.ASKED_READY, "first picture"} <= rows.keys() and results.KNOWN not in rows
    assert {row.backend for row in rows.values()} == {results.CAPTURED}  # a software adapter keeps the runtime's kernels
    assert rows[results.ASKED_READY].repeats == footprint.LOADS and rows[results.READY].median > 0


# -- profiles and limits -----------------------------------------------------------------------------------------------


def test_a_profile_is_summed_by_operator_without_the_first_run():
    def run_at(ts, conv, product):
        return [
            {"cat": "Node", "name": "c_kernel_time", "ts": ts + 1, "dur": conv, "args": {"op_name": "Conv"}},
            {"cat": "Node", "name": "m_kernel_time", "ts": ts + 2, "dur": product, "args": {"op_name": "MatMul"}},
            {"cat": "Session", "name": "model_run", "ts": ts, "dur": 50, "args": {}},
        ]

    card = [
        {"cat": "Api", "name": f"n{i}&Conv&Conv2dMM", "ts": i, "dur": d, "args": {}} for i, d in enumerate((9000, 100, 300))
    ]
    events = run_at(0, 9999, 9999) + run_at(100, 10, 30) + run_at(200, 20, 50) + card
    times = {(t.operator, t.where): (t.calls, t.ms) for t in operator_times(json.dumps(events), 2)}
    assert times == {("Conv", PROCESSOR): (1, 0.015), ("MatMul", PROCESSOR): (1, 0.04), ("Conv", CARD): (1, 0.2)}
    with pytest.raises(LabError, match="holds 3 runs, not 4"):
        operator_times(events, 3)


def test_commands_are_summed_by_kind_of_work_whoever_wrote_them():
    def command(label, ours, count, ms):
        return {"label": label, "ours": ours, "count": count, "milliseconds": ms}

    before = [command("Softmax", False, 1, 0.1), command("MatMul", False, 3, 4.0), command("Gemm", False, 1, 1.0)]
    after = [command("product", True, 2, 1.5), command("MatMul", False, 1, 0.5), command("tokens", True, 1, 0.25)]
    names = ("kind", "before, commands", "before, ms", "after, commands", "after, ms")
    rows = [tuple(row[name] for name in names) for row in profiles.by_kind({"before": before, "after": after})]
    assert rows == [("products", 4, 5.0, 3, 2.0), ("the rest", 1, 0.1, 0, 0), ("moving numbers", 0, 0, 1, 0.25)]
    labels = [label for labels in profiles.KINDS.values() for label in labels]
    assert len(labels) == len(set(labels))


def test_limit_graphs_repeat_one_operator_and_transfer_next_to_nothing(tmp_path):
    paths = write_limits(tmp_path)
    for where in (CARD, PROCESSOR):
        for limit, operator in (("product", "MatMul"), ("copy", "Add")):
            for name, times in zip(limit_graphs(limit, where), LIMIT_CHAIN[limit]):
                counted = operator_counts(paths[name])
                assert counted[operator] == times and paths[name].stat().st_size < 10_000
                assert limit_feeds(name)["x"].nbytes < 20_000


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_peak_of_a_process_of_its_own(small):
    found = footprint._child_peak(small, "onnxruntime-cpu", "fp32")
    assert 100 < found["process"] < 4000  # MB
    with pytest.raises(LabError, match="no CUDA device|native WebGPU"):
        footprint._child_peak(small, "webgpu-native", "fp32")


@pytest.mark.slow
def test_a_profile_in_another_thread_than_the_one_of_the_imports_says_nothing(small, tmp_path):
    """As notebook 5 measures: what Kineto wrote to standard error stood red in the report."""
    program = (
        "import asyncio, dataclasses, sys; from moebius_lab.evidence.benchmark.run import run_beside; from moebius_lab.notebook.workbench import prepare\n"
        "bench = prepare('small', 'deterministic', output_dir=sys.argv[1])\n"
        "data = asyncio.run(run_beside(bench, sys.argv[2], ('torch-cpu',), ('fp32',), ('profile',), 1))\n"
        "print(len(data['profiles']))"
    )
    arguments = [sys.executable, "-c", program, str(small.folder), str(tmp_path / "r.json")]
    done = subprocess.run(arguments, capture_output=True, encoding="utf-8", env=os.environ | {"TQDM_DISABLE": "1"})
    assert int(done.stdout) > 3 and not done.stderr, done.stderr


def test_the_answer_says_what_was_measured_and_what_is_missing():
    def row(what, backend, form, ms, steps=0):
        return vars(summary(what, (backend, form), [ms], steps=steps))

    data = {
        "release_steps": 19,
        "rows": [
            row("guided step", "a", "fp32", 100.0), row("guided step", "a", "straightforward", 150.0), row("guided step", "b", "int8", 40.0),
            row("whole picture", "a", "fp32", 2000.0, 19), row("whole picture", "b", "int8", 1000.0, 19), row("whole picture", "b", "int8", 1.0, 5),
        ],
        "missing": [{"what": "guided step", "backend": "Chromium, WebGPU", "form": "fp32", "steps": 0, "reason": "no card"}],
    }  # fmt: skip
    text = answer(data)
    for words in (
        "took 40 ms (b, int8)",
        "The 19 steps are 86% of a whole picture's time (median of 2 backends and forms)",
        "1.5 times as long in a.",
        "Not measured here: Chromium, WebGPU;",
    ):
        assert words in text
    for busy in (each for each in data["rows"] if each["what"] == "guided step"):
        busy["median"] *= 3
    assert "too busy to tell their share" in answer(data) and "%" not in answer(data)
    assert answer({"release_steps": 19, "rows": [], "missing": []}).startswith("Nothing was measured here")


def test_runs_in_chromium_are_called_by_what_was_done_in_every_measurement():
    """Load and memory let the page capture the graphs and choose their kernels, as it does by itself, and say so."""
    webgpu, wasm = CONTENDERS["chromium-webgpu"], CONTENDERS["chromium-wasm"]
    assert {webgpu.seen(captured) for captured in (True, False)} == {results.CAPTURED, results.DISPATCHED}
    assert webgpu.seen(True, replaced=True) == webgpu.label == results.REPLACED
    assert wasm.label == wasm.seen(False) == "Chromium, wasm, all threads"
    asked = {way.kernels for contender in CONTENDERS.values() if contender.experiment for way in contender.ways}
    assert asked == {"matrix", "matrix exact"}  # which the page does not take by itself
    listed = {candidate.backend for candidate in candidates(None, ("chromium-webgpu",), ("fp32",), Path, {})}
    assert listed == {results.CAPTURED, results.DISPATCHED, results.REPLACED}
