"""The panel without a front end, on the SMALL network."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from moebius_lab import LabError
from moebius_lab.config import PRESETS
from moebius_lab.inpainting.extending import Extension
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.loop import Cancelled, Settings, inpaint, preset
from moebius_lab.notebook.inpaint_panel import Inpaint
from moebius_lab.notebook.mask_painter import MaskPainter
from moebius_lab.notebook.workbench import prepare


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
