"""What readers measured on their own devices: what is taken, what is not, and the table."""

import json

import pytest

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.config import RUNS
from moebius_lab.evidence.benchmark import devices, results
from moebius_lab.port.export import OUTPUT_NAMES

CARD = {"name": "a card", "vendor": "v", "architecture": "a", "description": "", "fallback": False}


def measured(step: float = 20.0, **machine) -> dict:
    named = {"backend": "Firefox, WebGPU, captured", "form": "fp16"}
    row = named | {"unit": "ms", "repeats": 9, "steps": 0}
    rows = [row | {"what": what, "median": step, "q1": step - 1, "q3": step + 1} for what in results.RUN_NAMES.values()]
    for run, graph in RUNS.items():
        for name in OUTPUT_NAMES[graph]:
            rows.append(
                row
                | {"what": f"largest difference, {run}.{name}", "unit": "", **dict.fromkeys(("median", "q1", "q3"), 1e-3)}
            )
            rows.append(
                row | {"what": f"signal to noise, {run}.{name}", "unit": "dB", **dict.fromkeys(("median", "q1", "q3"), 66.0)}
            )
    return {
        "format": 1, "source": "the page", "date": "2026-01-02 03:04 UTC", "network": "moebius", "weights": "deterministic",
        "image_size": 512, "release_steps": 0, "made_from": "0123456789abcdef", "code": "0123456789abcdef", "method": "by hand",
        "machine": {
            "system": "Linux", "processor": "not told", "cores": 8, "memory_gib": None, "cards": [CARD],
            "browser": {"engine": "Firefox", "version": "153.0"}, "runtime": "1.30.0", "threads": 0, "features": [], "limits": {},
            "workspace": 1,
        } | machine,
        "rows": rows, "missing": [], "evidence": [named | {"evidence": "all of it"}], "profiles": [],
    }  # fmt: skip


def saved(path, data: dict):
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def changed(**entries):
    return lambda data: data | entries


def of_machine(**entries):
    return lambda data: data | {"machine": data["machine"] | entries}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(source=None), "damaged|no measurement"),
        (changed(person="me"), r"\$ has entries that are not known"),
        (of_machine(user_agent="me"), r"\$.machine has entries that are not known"),
        (of_machine(system="see https://somebody.example"), "is no fact of a device"),
        (of_machine(features=["x" * 2000]), "is no fact of a device"),
        (changed(network="mine"), "network"),
        (changed(code="no digest"), "code"),
        (changed(date="yesterday"), "date"),
        (lambda data: data | {"rows": data["rows"][1:]}, "it lacks 'encode'"),
        (lambda data: data | {"rows": data["rows"][:-2]}, "it lacks 'largest difference, vae_decoder.image'"),
        (
            lambda data: data | {"rows": [data["rows"][0] | {"median": 0}, *data["rows"][1:]]},
            "'encode' has no times in order",
        ),
        (lambda data: {name: value for name, value in data.items() if name != "source"}, "was not made by the page"),
    ],
)
def test_what_is_no_measurement_of_a_device_is_refused(tmp_path, change, words):
    with pytest.raises(LabError, match=words):
        devices.add(saved(tmp_path / "r.json", change(measured())), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_file_is_named_by_what_it_holds_and_replaces_no_other(tmp_path):
    path = saved(tmp_path / "r.json", measured())
    filed = devices.add(path, tmp_path)
    assert filed.name == "2026-01-02-a-card-firefox-153-moebius-fp16.json"
    assert devices.add(path, tmp_path) == filed
    saved(path, measured(30))
    with pytest.raises(LabError, match="another measurement of the same day"):
        devices.add(path, tmp_path)
    saved(path, measured(cards=[]))
    assert devices.add(path, tmp_path).name == "2026-01-02-processor-8-cores-firefox-153-moebius-fp16.json"


def test_the_command_files_it_and_the_readme_shows_devices_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, data in {"slow": measured(500, cards=[]), "quick": measured(20)}.items():
        assert main(["results", "add", str(saved(tmp_path / f"{name}.json", data))]) == 0
    again = ["results", "add", str(tmp_path / "quick.json"), "--source"]
    assert main([*again, "a friend"]) == 2 and "another measurement of the same day" in capsys.readouterr().err
    quick_file = tmp_path / "notebooks/results/2026-01-02-a-card-firefox-153-moebius-fp16.json"
    quick_file.unlink()
    assert main([*again, "a friend"]) == 0 and results.read(quick_file)["source"] == "a friend"
    assert main(["results", "add"]) == 2 and "name the file to add" in capsys.readouterr().err
    assert main(["results"]) == 0
    said = capsys.readouterr().out
    quick, slow = (line for line in said.splitlines() if line.startswith("| moebius"))
    assert quick.startswith(
        "| moebius | a card | Firefox 153, Linux | WebGPU, captured | fp16 | 20 | 20 | 20 | 20 | 1.0e-03 | 66 |"
    )
    assert (
        "| processor, 8 cores |" in slow
        and "| 2026-01-02 03:04 UTC | the page | 01234567 |" in slow
        and "| a friend | 01234567 |" in quick
    )
    files = results.read_all(sorted((tmp_path / "notebooks/results").glob("*.json")))
    assert results.newest(files) == [] and results.readme_table(files).strip() == ""
    assert devices.devices([]).empty
