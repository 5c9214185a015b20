"""One table a concept: a precision, or a backend of the benchmark, is one entry, and nothing else has to know of it."""

import dataclasses

import onnx
import pytest
from onnx import TensorProto

from moebius_lab import config
from moebius_lab.__main__ import main
from moebius_lab.config import CARD, CONTENDERS, FLOAT16, INT8, PRECISIONS, PROCESSOR, Contender, Precision, Way
from moebius_lab.evidence import parity
from moebius_lab.evidence.benchmark.contenders import OPENERS, candidates
from moebius_lab.evidence.benchmark.run import run
from moebius_lab.page.browser import Browser
from moebius_lab.page.bundle import read_manifest, write_bundle
from moebius_lab.port.precision import per_graph


@pytest.fixture
def added(monkeypatch) -> str:
    """A precision of one more entry: 8 bits in the matrices alone."""
    entry = Precision("8 bits in the matrices, 32 elsewhere.", matrices=INT8, least_psnr=45.0, place=9)
    monkeypatch.setitem(PRECISIONS, "int8-matrices", entry)
    return "int8-matrices"


def test_a_precision_that_is_added_is_exported_and_compared(small, added):
    path = small.stored(added)["step"]
    stored = {tensor.name: tensor for tensor in onnx.load(str(path), load_external_data=False).graph.initializer}
    names = [name.removesuffix(".i8") for name, tensor in stored.items() if tensor.data_type == TensorProto.INT8]
    assert names and all(tuple(stored[f"{name}.shape"].dims) == (2,) for name in names)  # matrices ...
    kernels = [tensor for tensor in stored.values() if len(tensor.dims) == 4]
    assert kernels and {tensor.data_type for tensor in kernels} == {TensorProto.FLOAT}  # ... and nothing else
    references = parity.reference_outputs(small.net, small.vae)
    rows = parity.compare_precisions(references, small.net, small.stored, (added,), parity.onnx_run, parity.CPU)
    parity.require(rows)
    assert {(row.precision, row.tolerance) for row in rows} == {(added, "45 dB")} and len(rows) == 7
    assert list(parity.wide_table(rows).columns) == [f"{added}, dB"]


def test_a_precision_that_is_added_is_measured_and_told_of(small, added, tmp_path, capsys):
    data = run(small, tmp_path / "r.json", ("onnxruntime-cpu",), (added,), ("step",), 1)
    assert {(row["backend"], row["form"]) for row in data["rows"]} == {("ONNX Runtime, CPU", added)}
    for command in ("run", "export", "benchmark"):
        assert added in told(command, capsys)


@pytest.mark.slow
def test_a_precision_that_is_added_is_offered_and_runs_on_the_page(small, added, tmp_path):
    assert list(config.offered()) == ["fp16-storage", "fp16", "fp32", "int8", added]
    write_bundle(small, tmp_path / "page", ("int8", added))
    entries = read_manifest(tmp_path / "page")["precisions"]
    assert list(entries) == ["int8", added] and entries[added]["note"] == PRECISIONS[added].note
    assert entries[added]["bytes"] > entries["int8"]["bytes"]
    references = parity.reference_outputs(small.net, small.vae, ("step",))
    with Browser(tmp_path / "page", "wasm", added) as browser:
        parity.require(parity.compare_graphs(references, small.net, browser.run, per_graph(added), "Chromium, wasm"))


def test_a_backend_that_is_added_is_measured_and_told_of(small, tmp_path, monkeypatch, capsys):
    contender = Contender("A second CPU", "ONNX Runtime once more", PROCESSOR, (Way("A second CPU", "onnxruntime"),))
    monkeypatch.setitem(CONTENDERS, "second", contender)
    data = run(small, tmp_path / "r.json", ("second",), ("fp32",), ("step",), 1)
    assert {(row["backend"], row["form"]) for row in data["rows"]} == {("A second CPU", "fp32")}
    assert [row["what"] for row in data["rows"]] == ["guided step", "unguided step"]
    assert "CPUExecutionProvider" in data["evidence"][0]["evidence"] and not data["missing"]
    assert "second" in told("benchmark", capsys)


def told(command: str, capsys) -> str:
    """A command's help on one line."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return "".join(capsys.readouterr().out.split())


def test_no_backend_is_recognised_by_its_name(monkeypatch):
    def listed() -> list[tuple]:
        found = candidates(None, tuple(CONTENDERS), tuple(config.measured()), str, {})
        return [(candidate.form, candidate.open.func, candidate.open.args[0].way.provider) for candidate in found]

    expected, entries = listed(), list(CONTENDERS.values())
    for name in list(CONTENDERS):
        monkeypatch.delitem(CONTENDERS, name)
    for i, entry in enumerate(entries):
        ways = tuple(dataclasses.replace(way, label=f"way {j}") for j, way in enumerate(entry.ways))
        monkeypatch.setitem(CONTENDERS, f"backend {i}", dataclasses.replace(entry, label=f"label {i}", ways=ways))
    assert listed() == expected and len(expected) > 30


def test_the_tables_hold_together():
    assert {entry.autoencoder for entry in PRECISIONS.values()} <= {"", *PRECISIONS}
    assert len({entry.place for entry in config.offered().values()}) == len(config.offered()) and config.bundled()
    favourite = PRECISIONS[config.bundled()[0]]
    assert favourite.place == 1 and not favourite.requires, (
        "every device can be asked for it, so a recording stands for the runtime"
    )
    labels = [way.label for contender in CONTENDERS.values() for way in contender.ways]
    assert len(labels) == len(set(labels))
    for contender in CONTENDERS.values():
        assert contender.where in (PROCESSOR, CARD) and contender.label in {way.label for way in contender.ways}
        assert {way.opened_by for way in contender.ways} <= set(OPENERS)
        assert len({way.provider for way in contender.ways}) == 1
        assert {form for way in contender.ways for form in way.forms} <= set(PRECISIONS)


@pytest.mark.parametrize(
    "fields",
    [
        {"matrices": "int7"},
        {"arithmetic": FLOAT16, "matrices": INT8, "kernels": FLOAT16},
        {"arithmetic": "bfloat16"},
        {"costly": ("step",)},
    ],
)
def test_an_entry_that_nothing_could_store_is_refused(fields):
    with pytest.raises(ValueError, match="choose|arithmetic"):
        Precision("a note", **fields)
