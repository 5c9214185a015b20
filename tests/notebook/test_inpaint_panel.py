"""The panel without a front end, on the SMALL network."""

import io
import threading
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from differences import difference_for
from PIL import Image

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.config import DEMO, DETERMINISTIC, FASTEST, MOEBIUS, PRESETS, TINY
from moebius_lab.inpainting.extending import Extension
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.loop import Cancelled, Settings, inpaint, preset, settings_of
from moebius_lab.inpainting.picture_files import read_picture
from moebius_lab.model.checkpoint import presets_of
from moebius_lab.model.low_rank import DIFFERENCE, write_difference
from moebius_lab.notebook.inpaint_panel import Inpaint, backends_of
from moebius_lab.notebook.mask_painter import MaskPainter
from moebius_lab.notebook.workbench import prepare
from moebius_lab.port.graphs import Graphs


@pytest.fixture(scope="module")
def backend(tmp_path_factory, picture_files):
    image, mask = map(str, picture_files)
    return prepare("small", "deterministic", image, mask, str(tmp_path_factory.mktemp("panel"))).torch_backend


@pytest.fixture
def painter(picture_files):
    return MaskPainter(*picture_files)


@pytest.fixture
def panel(painter, backend):
    return Inpaint(painter, {"PyTorch": backend}, Settings(steps=3))


def shown(panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel._view.value))).astype(int)


def test_the_result_is_the_loops_picture_for_the_settings_of_the_controls(panel, painter, backend):
    panel.seed.value, panel.guidance.value, panel.coverage.value, panel.harmonize.value = 5, 1.5, "as-released", True
    picture = panel.run(timeout=60)
    chosen = Settings(steps=3, seed=5, guidance=1.5, coverage="as-released", harmonize=True)
    expected = inpaint(backend, painter.image, painter.mask, chosen)
    np.testing.assert_array_equal(np.asarray(picture), expected)
    assert panel.result is picture and Inpaint(painter, {"PyTorch": backend}).coverage.value == "whole"
    assert "PyTorch: filled in" in panel._message.value and panel._bar.value == panel._bar.max
    assert not panel._run_button.disabled and panel._cancel_button.disabled


def test_a_preset_sets_the_controls_and_with_another_setting_it_is_none(panel):
    for name in PRESETS:
        panel.preset.value = name
        assert panel._chosen_settings() == preset(name)
    panel.harmonize.value = not panel.harmonize.value
    assert panel.preset.value == ""
    panel.harmonize.value = not panel.harmonize.value
    assert panel.preset.value == name


def test_an_extended_picture_is_filled_and_its_old_pixels_stay(painter, backend):
    wider = painter.extended(Extension(left=40, bottom=20))
    panel = Inpaint(wider, {"PyTorch": backend}, Settings(steps=2, strength=1.0))
    filled = np.asarray(panel.run(timeout=60))
    expected = inpaint(backend, wider.image, wider.mask, Settings(steps=2, strength=1.0), extension=wider.extension)
    np.testing.assert_array_equal(filled, expected)
    outside = feather(painter.mask) == 0
    assert np.array_equal(filled[: painter.mask.shape[0], 40:][outside], painter.image[outside])


def test_the_slider_uncovers_the_result_from_the_left(panel, painter):
    after = np.asarray(panel.run(timeout=60)).astype(int)
    middle = shown(panel)
    panel._slider.value = 0
    all_after = shown(panel)
    panel._slider.value = 100
    all_before = shown(panel)
    assert np.abs(all_after[:, 4:] - after[:, 4:]).mean() < 6  # JPEG
    assert np.abs(all_before[:, :-4] - painter.image[:, :-4]).mean() < 6
    half = after.shape[1] // 2
    assert np.abs(middle[:, : half - 8] - all_before[:, : half - 8]).mean() < 3
    assert np.abs(middle[:, half + 8 :] - all_after[:, half + 8 :]).mean() < 3


def test_a_run_reports_progress_and_previews_and_leaves_the_kernel_free(panel):
    texts, pictures = [], []
    panel._message.observe(lambda change: texts.append(change["new"]), "value")
    panel._view.observe(lambda change: pictures.append(change["new"]), "value")
    looked = threading.Event()  # the run's own thread waits for it after its first step
    panel._bar.observe(lambda change: looked.wait(60), "value")
    panel.start()
    assert panel._thread.is_alive()
    with pytest.raises(LabError, match="in progress"):
        panel.start()
    looked.set()
    panel.wait(60)
    assert any("step 2 of 2" in text for text in texts)
    assert len(pictures) >= 2  # a preview on the way, then the result
    assert panel.steps.value == 3


def test_cancelling_stops_before_the_next_step_and_keeps_the_last_result(panel):
    first = panel.run(timeout=60)
    panel.steps.value = 400
    begun, told = threading.Event(), threading.Event()

    def stay_at_the_second_step(change):
        if change["new"] == 2:
            begun.set()
            told.wait(60)

    panel._bar.observe(stay_at_the_second_step, "value")
    panel.start()
    assert begun.wait(60)
    panel.cancel()
    told.set()
    with pytest.raises(Cancelled, match="after 2 of 396 steps"):
        panel.wait(60)
    panel._bar.unobserve(stay_at_the_second_step, "value")
    assert panel.result is first and "cancelled after" in panel._message.value
    assert not panel._run_button.disabled
    panel.steps.value = 3
    np.testing.assert_array_equal(np.asarray(panel.run(timeout=60)), np.asarray(first))


def test_what_goes_wrong_is_shown_in_the_panel_and_raised_by_wait(painter):
    def no_such_backend():
        raise LabError("graph.onnx: there is no such file; export it")

    panel = Inpaint(painter, {"broken": no_such_backend})
    with pytest.raises(LabError, match="no such file"):
        panel.run(timeout=10)
    assert "export it" in panel._message.value and 'role="alert"' in panel._message.value
    assert panel._bar.bar_style == "danger" and panel._view.layout.display == "none"


def test_an_empty_mask_is_refused_with_advice_before_anything_runs(panel, painter):
    painter.clear()
    with pytest.raises(LabError, match="paint white"):
        panel.start()
    panel._run_button.click()
    assert "the mask is empty" in panel._message.value and panel._thread is None
    with pytest.raises(LabError, match="nothing was started"):
        panel.wait()
    with pytest.raises(LabError, match="at least one backend"):
        Inpaint(painter, {})


def test_a_backend_given_as_a_function_is_made_once_when_it_is_first_used(painter, backend):
    made = []

    def make():
        made.append(1)
        return backend

    panel = Inpaint(painter, {"first": backend, "late": make}, Settings(steps=2))
    panel.run(timeout=60)
    assert made == []
    panel.backend.value = "late"
    panel.run(timeout=60)
    panel.run(timeout=60)
    assert made == [1]


def test_several_holes_are_previewed_together(backend):
    rng = np.random.default_rng(0)
    painter = MaskPainter(rng.integers(0, 255, (140, 400, 3), dtype=np.uint8))
    painter.rectangle((20, 40), (60, 80))
    painter.rectangle((330, 40), (370, 80))
    panel = Inpaint(painter, {"PyTorch": backend}, Settings(steps=2))
    texts = []
    panel._message.observe(lambda change: texts.append(change["new"]), "value")
    panel.run(timeout=60)
    assert any("window 2 of 2" in text for text in texts)
    assert any("2 windows of 128 px, 2 steps" in text for text in texts)  # before it begins
    untouched = np.asarray(panel.result)[:, 150:250]
    np.testing.assert_array_equal(untouched, painter.image[:, 150:250])


def test_a_still_shows_the_hole_and_then_before_and_after(panel, painter):
    assert panel.picture().size == (painter.image.shape[1], painter.image.shape[0])
    panel.run(timeout=60)
    assert panel.picture().size == (2 * painter.image.shape[1], painter.image.shape[0])
    assert panel._repr_mimebundle_()["image/jpeg"].startswith(b"\xff\xd8")


# -- weights of a preset's own -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Graphs:
    return Graphs(TINY, DETERMINISTIC, tmp_path_factory.mktemp("own"))


@pytest.fixture
def distilled(tmp_path, monkeypatch) -> Graphs:
    """TINY's weights with a difference that stands for three steps of distillation."""
    folder = tmp_path / "tiny-fast"
    folder.mkdir()
    write_difference(folder / DIFFERENCE, difference_for(TINY))
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return Graphs(TINY, str(folder), tmp_path / "graphs")


def test_the_fastest_preset_runs_on_the_distilled_weights_and_others_on_the_network_s_own(painter, own, distilled):
    panel = Inpaint(painter, backends_of(own, distilled))
    said, counts = [], {}
    panel._message.observe(lambda change: said.append(change["new"]), "value")
    for weights in panel._backends["PyTorch"]:
        make = weights.make

        def counted(tell, make=make, name=weights.name):
            counts[name] = counts.get(name, 0) + 1
            return make(tell)

        weights.make = counted
    panel.run(timeout=60)
    assert counts == {DETERMINISTIC: 1} and panel.filled.made["model"]["weights"] == DETERMINISTIC
    assert "net" not in vars(distilled), "weights are loaded when they are first needed"

    panel.preset.value, panel.seed.value = FASTEST, 5
    chosen = preset(FASTEST, presets_of(distilled.weights), seed=5)
    assert panel._chosen_settings() == chosen and (panel.steps.value, panel.guidance.value) == (3, 1)
    picture = panel.run(timeout=60)
    np.testing.assert_array_equal(np.asarray(picture), inpaint(distilled.torch_backend, painter.image, painter.mask, chosen))
    assert panel.filled.made["settings"] == vars(chosen)
    assert panel.filled.made["model"] == {
        "network": "tiny", "weights": "tiny-fast", "precision": "fp32", "backend": "PyTorch",
    }  # fmt: skip
    assert any("Loading the model with the weights tiny-fast" in text for text in said)
    assert "PyTorch, tiny-fast: filled in" in said[-1]

    panel.guidance.value = 1.5
    assert panel.preset.value == ""
    changed = np.asarray(panel.run(timeout=60))
    expected = inpaint(own.torch_backend, painter.image, painter.mask, replace(chosen, guidance=1.5))
    np.testing.assert_array_equal(changed, expected)
    assert panel.filled.made["model"]["weights"] == DETERMINISTIC and "tiny-fast" not in said[-1]

    panel.guidance.value = 1.0
    assert panel.preset.value == FASTEST, "the settings are the preset's again"
    np.testing.assert_array_equal(np.asarray(panel.run(timeout=60)), np.asarray(picture))
    panel.preset.value = ""
    panel.run(timeout=60)
    assert panel.filled.made["model"]["weights"] == DETERMINISTIC, "a reader who says custom gets the network's own"
    assert counts == {DETERMINISTIC: 1, "tiny-fast": 1}


def test_what_runs_is_what_the_controls_said_at_the_start(painter, own, distilled):
    panel = Inpaint(painter, backends_of(own, distilled), preset(FASTEST, presets_of(distilled.weights)))
    assert panel.preset.value == FASTEST
    entered, told = threading.Event(), threading.Event()

    def hold(change):
        entered.set()
        told.wait(60)

    panel._message.observe(hold, "value")
    panel.start()
    assert entered.wait(60)
    panel._message.unobserve(hold, "value")
    panel.preset.value = "as-released"
    told.set()
    panel.wait(60)
    assert panel.filled.made["model"]["weights"] == "tiny-fast" and panel.filled.made["settings"]["steps"] == 3


def test_a_preset_is_named_by_what_it_is_on_the_chosen_backend(painter, backend, own, distilled):
    panel = Inpaint(painter, {"plain": backend} | backends_of(own, distilled), preset(FASTEST))
    assert panel.preset.value == FASTEST and panel.steps.value == 4
    of_distilled = preset(FASTEST, presets_of(distilled.weights))
    panel.backend.value = "PyTorch"
    assert panel.preset.value == FASTEST and panel._chosen_settings() == of_distilled
    panel.backend.value = "plain"
    assert panel.preset.value == FASTEST and panel._chosen_settings() == preset(FASTEST)
    panel.run(timeout=60)
    assert panel.filled.made["model"]["weights"] == "", "nobody said whose weights a plain backend has"
    panel.backend.value, panel.harmonize.value = "PyTorch", False
    assert panel.preset.value == ""
    panel.backend.value = "plain"
    assert panel._chosen_settings() == replace(of_distilled, harmonize=False), "settings of one's own stay"
    panel.harmonize.value = True
    assert panel.preset.value == "", "the other backend's preset is none here"
    panel.backend.value = "PyTorch"
    assert panel.preset.value == FASTEST


def test_distilled_weights_that_could_not_be_had_are_asked_for_again(painter, own, distilled):
    panel = Inpaint(painter, backends_of(own, distilled))
    panel.preset.value = FASTEST
    kept = Path(distilled.weights) / DIFFERENCE
    content = kept.read_bytes()
    kept.unlink()
    with pytest.raises(LabError, match="tiny-fast"):
        panel.run(timeout=60)
    assert 'role="alert"' in panel._message.value and panel.filled is None
    panel.preset.value = "fast"
    panel.run(timeout=60)
    kept.write_bytes(content)
    panel.preset.value = FASTEST
    panel.run(timeout=60)
    assert panel.filled.made["model"]["weights"] == "tiny-fast"


def test_weights_of_which_a_distilled_form_ships_bring_it_and_others_do_not(tmp_path):
    for kind in backends_of(Graphs(DEMO, "demo", tmp_path, "fp16")).values():
        assert [weights.name for weights in kind] == ["demo", "demo-fast"]
        assert [weights.presets for weights in kind] == [PRESETS, presets_of("demo-fast")]
    assert {name: kind[1].precision for name, kind in backends_of(Graphs(DEMO, "demo", tmp_path, "fp16")).items()} == {
        "PyTorch": "fp32", "ONNX Runtime": "fp16",
    }  # fmt: skip
    for graphs in (Graphs(TINY, DETERMINISTIC, tmp_path), Graphs(MOEBIUS, "places2", tmp_path)):
        assert all(len(kind) == 1 and kind[0].presets == PRESETS for kind in backends_of(graphs).values())
    assert not list(tmp_path.iterdir()), "nothing is made before it is used"


@pytest.mark.slow
def test_onnx_runtime_makes_the_step_of_the_distilled_weights_once_and_says_so(painter, tiny, distilled):
    panel, said = Inpaint(painter, backends_of(tiny, distilled)), []
    panel._message.observe(lambda change: said.append(change["new"]), "value")
    panel.backend.value, panel.preset.value = "ONNX Runtime", FASTEST
    first = np.asarray(panel.run(timeout=300))
    making = [text for text in said if "Making the graph" in text]
    assert len(making) == 1 and "Making the graph step of the weights tiny-fast" in making[0]
    assert [path.name for path in distilled.folder.glob("onnx/*/*")] == ["step"], "the autoencoder is the network's own"
    chosen = preset(FASTEST, presets_of(distilled.weights))
    expected = inpaint(distilled.torch_backend, painter.image, painter.mask, chosen)
    assert np.abs(first.astype(int) - expected).max() <= 1
    model = panel.filled.made["model"]
    assert model["weights"] == "tiny-fast" and model["backend"].startswith("ONNX Runtime")
    panel.run(timeout=60)
    assert [text for text in said if "Making the graph" in text] == making


@pytest.mark.slow
def test_the_demo_s_fastest_preset_is_that_of_the_command(painter, picture_files, tmp_path):
    result = tmp_path / "filled.png"
    command = ["inpaint", *map(str, picture_files), "-o", str(result), "--backend", "torch", "--network", "demo"]
    assert main([*command, "--preset", FASTEST]) == 0
    expected = read_picture(result)
    panel = Inpaint(painter, backends_of(prepare("demo", "demo", output_dir=str(tmp_path))))
    panel.preset.value = FASTEST
    panel.run(timeout=120)
    assert panel._chosen_settings() == settings_of(expected.made) and panel.filled.made["model"] == expected.made["model"]
    assert panel.filled.made["model"]["weights"] == "demo-fast"
    np.testing.assert_array_equal(panel.filled.rgb, expected.rgb)
