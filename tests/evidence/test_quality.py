"""Quality against evaluations: what was measured is what this code measures, and the words follow the numbers."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from moebius_lab import LabError
from moebius_lab.config import PRESETS
from moebius_lab.evidence import quality
from moebius_lab.evidence.evaluation import SEEDS, demo_backend, held_out_pairs
from moebius_lab.evidence.perceptual import PerceptualDistance
from moebius_lab.inpainting.loop import preset


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(quality.QUALITY.read_text(encoding="utf-8"))


def test_every_preset_was_measured_on_every_held_out_picture_with_every_seed(committed):
    assert set(committed["pictures"]) == set(held_out_pairs())
    names, known = [quality.name_of(name) for name in PRESETS], quality.ways()
    for rows in committed["pictures"].values():
        assert not quality.missing(rows, names)
        assert len({(row["way"], row["seed"]) for row in rows}) == len(rows)
        assert all(row["evaluations"] == known[row["way"]][0].evaluations() for row in rows)
    assert sum(not quality.missing(rows, known) for rows in committed["pictures"].values()) >= 20  # what curves are of
    assert quality.missing(rows[1:], known)


def test_a_way_is_guided_when_its_name_says_so():
    known = quality.ways()
    evaluations = {name: settings.evaluations() for name, (settings, _) in known.items()}
    assert evaluations["ddim, 6 steps, guided wholly"] == 12 and evaluations["unipc, 6 steps, guided never"] == 6
    assert evaluations["dpm++2m, 6 steps, guided late"] == evaluations["dpm++2m, 6 steps, guided early"] == 9
    for name in PRESETS:
        settings, seeds = known[quality.name_of(name)]
        assert settings == replace(preset(name), init="noise") and seeds == SEEDS


def test_presets_are_chosen_on_other_pictures_than_they_are_reported_on(committed):
    rows = quality.table(committed)
    choosing, reported = (set(rows[rows.choosing == side].picture) for side in (True, False))
    assert len(choosing) == len(reported) == 16 and not choosing & reported


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["ONNX Runtime", "PyTorch"])  # what --device cpu and --device cuda take
def test_the_committed_rows_are_what_the_shipped_weights_give(demo, committed, runtime):
    name, backend = "bison", demo.onnx_backend if runtime == "ONNX Runtime" else demo_backend()
    rows = quality.measure_picture(backend, *held_out_pairs()[name], PerceptualDistance(), ["fast"])
    known = {row["seed"]: row for row in committed["pictures"][name] if row["way"] == "fast"}
    assert [row["seed"] for row in rows] == list(SEEDS)
    for row in rows:
        assert row["psnr_db"] == pytest.approx(known[row["seed"]]["psnr_db"], abs=0.02)
        assert row["texture"] == pytest.approx(known[row["seed"]]["texture"], rel=0.02)
    assert rows[0]["to_longest_db"] == pytest.approx(known[0]["to_longest_db"], abs=0.2)
    resumed = quality.measure_picture(backend, *held_out_pairs()[name], PerceptualDistance(), ["fast"], rows)
    assert resumed == rows


def test_the_answer_follows_the_numbers(committed):
    rows = quality.table(committed)
    told = quality.answer(rows)
    assert "9 evaluations instead of 38" in told
    ways = (quality.RELEASED, *quality.LIKE.values(), "fast")
    same = pd.concat([rows[rows.way == quality.RELEASED].assign(way=way) for way in ways])
    equal = quality.answer(same)
    assert equal.startswith("**As good as the release by these measures.**") and "both harmonized +0.000 dB PSNR" in equal
    worse = quality.answer(same.assign(texture=same.texture + 0.1 * (same.way == quality.LIKE["fast"])))
    assert worse.startswith("**Not within what is allowed: texture, both as the network makes them.**")


def test_the_default_preset_keeps_the_release_s_measures_on_pictures_that_it_was_not_chosen_on(committed):
    rows = quality.table(committed)
    assert quality.answer(rows[~rows.choosing]).startswith("**As good as the release by these measures.**")
    table = quality.summary(rows)
    assert table.loc["fast", "evaluations"] == 9 and "±" in table.loc["fast", quality.TITLES["psnr_db"]]


def test_without_a_card_the_option_for_one_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    arguments = ["quality", "--device", "cuda", "--report", str(tmp_path / "q.json"), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(LabError, match="leave out --device"):
        quality.main()
    assert not list(tmp_path.iterdir())


def test_without_the_option_onnx_runtime_fills_on_the_cpu_and_a_card_is_given_pytorch(tmp_path, monkeypatch):
    stored, asked = [], []
    monkeypatch.setattr(quality.Graphs, "stored", lambda self, kind: stored.append(kind) or {})
    monkeypatch.setattr(quality, "OnnxBackend", lambda graphs, *others: "ONNX Runtime")
    monkeypatch.setattr(quality, "demo_backend", lambda weights, device: asked.append(device) or "PyTorch")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)  # put back afterwards
    fills = {}

    class Here:
        """A pool whose processes are this one; keeps which way it should have started them."""

        def __init__(self, jobs, context):
            fills["context"] = context and context.get_start_method()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, task, name, device, folder, names, known):
            fills["backend"] = quality.filling_backend(device, folder)
            raise InterruptedError

    monkeypatch.setattr(quality, "ProcessPoolExecutor", Here)
    common = ["quality", "--report", str(tmp_path / "q.json"), "--output-dir", str(tmp_path)]
    for more, expected in (
        ([], {"context": None, "backend": "ONNX Runtime"}),
        (["--device", "cuda:1"], {"context": "spawn", "backend": "PyTorch"}),
    ):
        stored.clear()
        quality.filling_backend.cache_clear()
        monkeypatch.setattr("sys.argv", common + more)
        with pytest.raises(InterruptedError):
            quality.main()
        assert fills == expected and bool(stored) == (not more)
    assert asked == [1, "cuda:1"]
    quality.filling_backend.cache_clear()
