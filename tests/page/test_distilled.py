"""A page that has distilled weights for the preset *fastest* besides the network's own."""

from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from differences import difference_for
from playwright.sync_api import Page, expect
from test_page import drag, fill, load_picture, mask_of, photograph, visits

from moebius_lab.__main__ import main
from moebius_lab.config import DISTILLED, FASTEST, TINY
from moebius_lab.evidence import parity
from moebius_lab.evidence.check import check_port
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.loop import inpaint, settings_of
from moebius_lab.inpainting.picture_files import read_picture
from moebius_lab.model.low_rank import DIFFERENCE, write_difference
from moebius_lab.page import bundle
from moebius_lab.page.browser import Browser
from moebius_lab.page.bundle import read_manifest, require_whole, write_bundle
from moebius_lab.page.publish import PublishError, _require_parity
from moebius_lab.page.serve import Server
from moebius_lab.port.graphs import Graphs
from moebius_lab.port.precision import per_graph

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FORM = "fp16-storage"


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Graphs:
    """TINY's deterministic weights and a difference that stands for three steps of distillation."""
    folder = tmp_path_factory.mktemp("distilled")
    write_difference(folder / DIFFERENCE, difference_for(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(folder / "assets"))
        yield Graphs(TINY, str(folder), folder, FORM)


@pytest.fixture(scope="module")
def folder(tiny, distilled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "bundle"
    write_bundle(tiny, folder, ("fp16", "fp32", FORM), distilled=distilled)
    return folder


@pytest.fixture(scope="module")
def site(folder):
    with Server(folder) as server:
        yield server


@pytest.fixture
def visit(site, chromium):
    yield from visits(site, chromium)


def test_the_form_has_a_step_of_its_own_and_shares_the_rest(folder):
    manifest = read_manifest(folder)
    require_whole(folder, manifest)
    assert list(manifest["precisions"]) == [FORM, "fp16", "fp32", f"{FORM}{bundle.DISTILLED_FORM}"]
    own, other = (manifest["precisions"][name] for name in (FORM, f"{FORM}{bundle.DISTILLED_FORM}"))
    assert (
        other["distilled"] | {"weights": ""} == {"weights": "", "preset": FASTEST, "like": FORM} and "distilled" not in own
    )
    assert own["graphs"]["vae_encoder"] == other["graphs"]["vae_encoder"]
    assert {file["sha256"] for file in own["graphs"]["step"]}.isdisjoint(file["sha256"] for file in other["graphs"]["step"])
    assert own["recording"]["sha256"] != other["recording"]["sha256"]
    assert manifest["presets"][FASTEST]["steps"] == 3 and list(manifest["presets"]) == ["fast", FASTEST, "as-released"]


@pytest.mark.parametrize(("engine", "provider"), [("chromium", "wasm"), ("firefox", "webgpu")])
def test_its_numbers_are_those_of_the_distilled_weights(folder, distilled, tiny, engine_here, engine, provider):
    engine_here(engine, provider)
    references = parity.reference_outputs(distilled.net, tiny.vae)
    with Browser(folder, provider, f"{FORM}{bundle.DISTILLED_FORM}", "software", engine=engine) as browser:
        rows = parity.compare_graphs(references, distilled.net, browser.run, per_graph(FORM), browser.name)
        assert browser.loaded["recorded"] == (provider == "webgpu")
        own = parity.reference_outputs(tiny.net, tiny.vae)
        others = parity.compare_graphs(own, tiny.net, browser.run, per_graph(FORM), browser.name)
    assert all(row.ok for row in rows) and not all(row.ok for row in others)


def saved(page: Page):
    with page.expect_download() as download:
        page.click("#save")
    return read_picture(download.value.path())


def test_the_preset_takes_its_weights_and_others_the_network_s_own(visit, site, distilled, tiny):
    page = visit()
    assert page.locator("#choice option").count() == 2, "nobody chooses weights by name"
    photo = photograph(128, 128)
    load_picture(page, photo)
    drag(page, (60, 60), (90, 60))
    page.select_option("#choice", label=page.locator("#choice option", has_text=FORM).inner_text())
    fill(page)
    assert saved(page).made["model"]["weights"] == "deterministic"

    page.click("#edit")
    page.select_option("#preset", FASTEST)
    expect(page.locator("#preset-note")).to_contain_text("distilled")
    expect(page.locator("#load")).to_contain_text("Resume")
    site.requests.clear()
    page.click("#run")
    expect(page.locator("#prompt-text")).to_contain_text("are here already")
    page.click("#prompt-yes")
    expect(page.locator("#keep")).to_be_enabled(timeout=240_000)
    fetched = [path for path in site.requests if "/weights/" in path]
    assert fetched and all("/step-" in path for path in fetched)
    result = saved(page)
    assert result.made["model"] | {"backend": ""} == {
        "network": "tiny", "weights": Path(distilled.weights).name, "precision": FORM, "backend": "",
    }  # fmt: skip
    mask = mask_of(page)
    settings = settings_of(result.made)
    expected = inpaint(distilled.onnx_backend, np.asarray(photo), mask, settings)
    assert settings.steps == 3 and np.abs(result.rgb.astype(int) - expected).max() <= 1
    assert (result.rgb != photo)[feather(mask) > 200].any()

    page.click("#edit")
    page.select_option("#preset", "as-released")
    site.requests.clear()
    expect(page.locator("#load")).to_have_text("Start the model")
    fill(page, steps=1)
    assert saved(page).made["model"]["weights"] == "deterministic"
    assert not [path for path in site.requests if "/weights/" in path]


def test_a_measurement_is_of_the_network_s_own_weights(visit):
    page = visit()
    page.select_option("#preset", FASTEST)
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    page.click("#measure")
    page.click("#prompt-yes")
    save = page.locator("dialog[open] .primary")
    expect(save).to_be_visible(timeout=240_000)
    with page.expect_download() as measured:
        save.click()
    text = measured.value.path().read_text(encoding="utf-8")
    assert FORM in text and bundle.DISTILLED_FORM not in text
    expect(page.locator("#preset option:checked")).to_have_text("Fastest")


def test_it_can_be_checked_where_it_is_published(site):
    told = []
    rows = check_port(site.url, f"{FORM}{bundle.DISTILLED_FORM}", "wasm", "none", on_progress=told.append)
    assert rows and all(row.ok for row in rows) and any(bundle.DISTILLED_FORM in words for words in told)


def test_publishing_asks_no_evidence_of_it(folder):
    manifest = read_manifest(folder)
    rows = [
        {"graph": graph, "precision": form, "output": "y", "verdict": "ok"}
        for name in ("fp16", "fp32", FORM)
        for graph, form in per_graph(name).items()
    ]
    _require_parity({"rows": rows}, manifest)
    with pytest.raises(PublishError, match="parity was not shown"):
        _require_parity({"rows": rows[:2]}, manifest)


def test_the_command_adds_it_where_such_weights_ship(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        bundle, "write_bundle", lambda *_, distilled, **__: asked.append(distilled) or {"version": "", "precisions": {}}
    )
    command = ["bundle", "--output-dir", str(tmp_path)]
    more = [
        [],
        ["--no-distilled"],
        ["--weights-base", "https://weights.example/"],
        ["--network", "tiny", "--weights", "deterministic"],
    ]
    for options in more:
        assert main([*command, *options]) == 0
    assert [graphs and graphs.weights for graphs in asked] == [DISTILLED["demo"], None, None, None]
    assert asked[0].folder == tmp_path / "distilled"
