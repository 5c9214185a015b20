import asyncio

import pytest
import torch

from moebius_lab.benchmark import Contest, guided_steps, measure
from moebius_lab.browser_runner import BrowserRunner


def test_a_timing_is_the_median_with_quartiles_after_warm_up():
    calls = []
    values = iter([100.0, 1.0, 2.0, 3.0, 4.0, 9.0])  # the first round does not count

    def work() -> float:
        calls.append(1)
        return next(values)

    [timing] = measure("a step", {"a clock of its own": work}, repeats=5, warmup=1)
    assert len(calls) == 6 and (timing.median_ms, timing.q1_ms, timing.q3_ms) == (3.0, 1.5, 6.5)


def test_backends_take_turns():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = measure("turns", works, repeats=3, warmup=1)
    assert order == list("abababab") and [t.backend for t in timings] == ["a", "b"]
    assert all(t.median_ms >= 0 for t in timings)


def test_what_cannot_run_is_listed_with_its_reason():
    contest = Contest()

    def fails():
        raise RuntimeError("no such card\nand more")

    contest.enter("a card", fails)
    contest.enter("this", lambda: ((lambda: None), "seen"))
    assert contest.missing == {"a card": "RuntimeError: no such card"}
    assert list(contest.works) == ["this"] and contest.evidence == {"this": "seen"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is missing depends on the machine")
def test_a_guided_step_on_every_backend_of_a_machine_without_a_card(small, small_bundle):
    runner = BrowserRunner(small_bundle, small.config, "wasm")
    asyncio.run(runner.connect(0.1))
    with guided_steps(small, ("fp32",), runner=runner) as contest:
        timings = measure("guided step", contest.works, repeats=3)
    assert {t.backend for t in timings} == {
        "PyTorch eager, CPU", "ONNX Runtime, CPU, straightforward", "ONNX Runtime, CPU, fp32", runner.name
    }  # fmt: skip
    assert "processor (wasm)" in contest.evidence[runner.name]
    runner.disconnect()
    assert "no CUDA device" in contest.missing["PyTorch eager, CUDA, fp32"]
    assert "onnxruntime-ep-webgpu" in contest.missing["WebGPU native, fp32, NCHW"]
    assert "CPUExecutionProvider" in contest.evidence["ONNX Runtime, CPU, fp32"]
