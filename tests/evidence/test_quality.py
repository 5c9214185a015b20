"""Quality against evaluations: what was measured is what this code measures, and the words follow the numbers."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from moebius_lab.config import PRESETS
from moebius_lab.evidence import quality
from moebius_lab.evidence.evaluation import SEEDS, held_out_pairs
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
def test_the_committed_rows_are_what_the_shipped_weights_give(demo, committed):
    name = "bison"
    rows = quality.measure_picture(demo.onnx_backend, *held_out_pairs()[name], PerceptualDistance(), ["fast"])
    known = {row["seed"]: row for row in committed["pictures"][name] if row["way"] == "fast"}
    assert [row["seed"] for row in rows] == list(SEEDS)
    for row in rows:
        assert row["psnr_db"] == pytest.approx(known[row["seed"]]["psnr_db"], abs=0.02)
        assert row["texture"] == pytest.approx(known[row["seed"]]["texture"], rel=0.02)
    assert rows[0]["to_longest_db"] == pytest.approx(known[0]["to_longest_db"], abs=0.2)
    resumed = quality.measure_picture(demo.onnx_backend, *held_out_pairs()[name], PerceptualDistance(), ["fast"], rows)
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
