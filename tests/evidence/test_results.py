import json
from pathlib import Path

import pytest

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.evidence.benchmark import devices, results
from moebius_lab.evidence.benchmark.results import Results, Row

ROOT = Path(__file__).parents[2]
HEAD = {
    "date": "2026-01-02 03:04 UTC", "network": "small", "weights": "deterministic", "release_steps": 19, "made_from": "m",
    "method": "by hand", "machine": {"processor": "a processor", "cores": 2, "cards": []},
}  # fmt: skip


def row(what: str, backend: str, median: float, steps: int = 0) -> dict:
    return vars(Row(what, backend, "fp32", "ms", median, median - 1, median + 1, 5, steps))


def write(path: Path, *rows: dict, **head) -> Path:
    made = Results(path, HEAD | head)
    made.add("rows", list(rows))
    return path


def test_rows_are_kept_over_runs_replaced_by_name_and_never_mixed_with_others(tmp_path):
    path = write(tmp_path / "r.json", row("guided step", "a", 10), row("guided step", "b", 20))
    again = Results(path, HEAD)
    again.add("missing", [{"what": "guided step", "backend": "c", "form": "fp32", "steps": 0, "reason": "no card"}])
    again.add("rows", [row("guided step", "b", 30), row("guided step", "c", 40)])
    data = results.read(path)
    assert {r["backend"]: r["median"] for r in data["rows"]} == {"a": 10, "b": 30, "c": 40} and data["missing"] == []
    with pytest.raises(LabError, match="measurements of another code; write to another file"):
        Results(path, HEAD | {"made_from": "x"})
    assert results.read(path) == data


OTHER = {
    "machine": {"processor": "another", "cores": 4, "cards": []},
    "network": "demo",
    "weights": "demo",
    "made_from": "x",
    "code": "x",
}


def test_files_of_one_machine_merge_and_others_are_refused(tmp_path):
    first = write(tmp_path / "1.json", row("guided step", "a", 10), row("guided step", "b", 20))
    second = write(tmp_path / "2.json", row("guided step", "b", 25), row("whole picture", "b", 900, 19))
    assert main(["results", str(first), str(second), "--merge", str(tmp_path / "whole.json")]) == 0
    rows = results.read(tmp_path / "whole.json")["rows"]
    assert [(r["what"], r["median"]) for r in rows] == [("guided step", 10), ("guided step", 25), ("whole picture", 900)]
    assert OTHER.keys() == results.SAME.keys()
    for key, value in OTHER.items():
        other = write(tmp_path / f"{key}.json", row("guided step", "a", 1), **{key: value})
        with pytest.raises(LabError, match=f"of another {results.SAME[key]}"):
            results.merge([first, other], tmp_path / "no.json")
        with pytest.raises(LabError, match=f"measurements of another {results.SAME[key]}"):
            Results(first, HEAD | {key: value})


def tables(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.startswith("| backend")]


def test_the_readme_has_tables_of_one_file_each(tmp_path):
    card = {"processor": "p", "cores": 8, "cards": [{"name": "A card"}]}
    peak = vars(Row("peak memory, page", results.CAPTURED, "fp32", "MB", 2482.2, 2482.2, 2482.2, 1))
    ready = vars(Row("from the cache to ready", results.CAPTURED, "int8", "ms", 4496.3, 4000, 5000, 3))
    quick = row("guided step", "quick", 10), row("whole picture", "quick", 900, 19)
    paths = [
        write(tmp_path / "1.json", row("guided step", "slow", 2000), *quick, date="2026-01-02 03:04 UTC"),
        write(tmp_path / "2.json", row("guided step", "quick", 2), peak, ready, machine=card, code="ab" * 32),
        write(
            tmp_path / "3.json", quick[1], row("guided step", "quick", 3), date="2026-01-03 00:00 UTC", made_from="cd" * 32
        ),
        write(tmp_path / "later.json", row("guided step", "quick", 4), date="2026-01-04 00:00 UTC"),  # no whole picture
    ]
    files = results.read_all(paths)
    text = results.readme_table(files)
    assert len(tables(text)) == 4, "not one table has rows of two files"
    assert text.index("**small on A card, 8 cores, 2026-01-02 03:04 UTC, code abababab**") < text.index(
        "**small on a processor, 2 cores, 2026-01-03 00:00 UTC, code cdcdcdcd**"
    )
    assert (
        text.index("<details>")
        < text.index("**small on a processor, 2 cores, 2026-01-04 00:00 UTC, code not recorded**")
        < text.index("**small on a processor, 2 cores, 2026-01-02 03:04 UTC, code not recorded**")
        < text.index("</details>")
    )
    lines = text.splitlines()
    assert lines.index("| quick | fp32 | 10 (9 to 11) | 0.9 |") < lines.index("| slow | fp32 | 2,000 (1,999 to 2,001) |  |")
    assert "| load and memory | backend | fp32 | int8 |" in lines
    assert (
        f"| from the cache to ready | {results.CAPTURED} |  | 4.5 s |" in lines
        and f"| peak memory, page | {results.CAPTURED} | 2.48 GB |  |" in lines
    )
    assert text.count("Method: by hand") == 4
    assert results.table(files).groupby("run").size().to_dict() == {
        results.run_name(data): len(data["rows"]) for data in files
    }
    parts = [row("encode", "quick", 38), row("decode", "quick", 74), row("encode", "slow", 1)]
    far = [
        vars(Row(f"{results.DIFFERENCE}, {run}", "quick", "fp32", "", y, y, y, 1))
        for run, y in (("step", 2e-5), ("vae_encoder", 7e-6))
    ]
    chosen = row(results.CHOOSING, results.REPLACED, 2750)
    wider = write(tmp_path / "4.json", row("guided step", "slow", 20), *quick, *parts, *far, chosen)
    text_of_parts = results.readme_table(results.read_all([wider]))
    assert "| picture of 19 steps, s | two encodings and a decoding, s | largest difference from PyTorch |" in text_of_parts
    assert "| quick | fp32 | 10 (9 to 11) | 0.9 | 0.15 | 2.0e-05 |" in text_of_parts
    assert "| slow | fp32 | 20 (19 to 21) |  |  |  |" in text_of_parts
    assert f"| kernels, first visit | {results.REPLACED} | 2.75 s |" in text_of_parts
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n", encoding="utf-8")
    assert main(["results", *map(str, paths), "--readme", str(readme)]) == 0
    made = readme.read_text(encoding="utf-8")
    assert text in made and "old" not in made and made.endswith("after\n")


def test_captured_runs_are_called_so_in_every_committed_file():
    """Chromium captures where it can, and chooses kernels, unless told not to, and load and memory never tell it."""
    captured = {way.label for contender in results.CONTENDERS.values() for way in contender.ways} - {results.DISPATCHED}
    for path in (ROOT / "notebooks" / "results").glob("*.json"):
        for entry in results.read(path)["rows"]:
            if entry["what"] in results.COSTS and "Chromium, WebGPU" in entry["backend"]:
                assert entry["backend"] in captured, (path.name, entry["what"])


def test_the_readme_is_what_the_committed_results_make():
    files = results.read_all(sorted((ROOT / "notebooks" / "results").glob("*.json")))
    made = devices.readme_text(files)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    between = readme.split(results.BEGIN)[1].split(results.END)[0]
    assert between.strip() == made.strip(), "run `python -m moebius_lab results --readme README.md`"


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON"), ("[]", "no file of measurements"), (json.dumps({"format": 0}), "of form 1")]
)
def test_files_that_are_none_are_refused(tmp_path, text, words):
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=words):
        results.read(tmp_path / "r.json")
    with pytest.raises(LabError, match="there are no results"):
        results.read_all([])
