"""Distillation: what a student is to say, that it learns it, and the command from pictures to weights that fill one."""

import json
import math
import time

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image

from moebius_lab import LabError
from moebius_lab.config import CONDITIONAL_IDS, DETERMINISTIC, DISTILLED_SOLVER, FASTEST, TINY, UNCONDITIONAL_IDS
from moebius_lab.inpainting.loop import Settings, inpaint, preset
from moebius_lab.model.checkpoint import load_checkpoint, presets_of
from moebius_lab.model.low_rank import DIFFERENCE, read_difference
from moebius_lab.model.sampler import first_state, next_state, solver_steps
from moebius_lab.notebook.workbench import prepare
from moebius_lab.training import distillation
from moebius_lab.training.distillation import STAGES, Lesson, Schedule, Student, Work, with_difference
from moebius_lab.training.fast_forms import use_fast_forms
from moebius_lab.training.speed import random_pool

CPU = torch.device("cpu")


@pytest.fixture
def network():
    return use_fast_forms(load_checkpoint(DETERMINISTIC, TINY))


def lesson_of(stage, network, guidance=2.0, evaluations=4, substeps=4) -> Lesson:
    fine = Schedule.of(solver_steps(DISTILLED_SOLVER, evaluations * substeps), CPU)
    return Lesson(stage, network, guidance, Schedule.of(solver_steps(DISTILLED_SOLVER, evaluations), CPU), fine, substeps)


@pytest.mark.parametrize(("evaluations", "substeps"), [(4, 4), (3, 5), (1, 8)])
def test_a_schedule_steps_as_the_solver_does_and_back(evaluations, substeps):
    steps = solver_steps(DISTILLED_SOLVER, evaluations)
    coarse = Schedule.of(steps, CPU)
    fine = Schedule.of(solver_steps(DISTILLED_SOLVER, evaluations * substeps), CPU)
    assert coarse.timesteps[0] == 999 and torch.equal(fine.timesteps[::substeps], coarse.timesteps)
    x, e = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, step in enumerate(steps):
        at = torch.tensor([i])
        expected = next_state(
            first_state(x), e, torch.tensor(step.state_weights), torch.tensor(step.noise_weights)[:, None]
        )[:1]
        got = coarse.next(x, e, at)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(coarse.noise_that_leads(x, got, at), e, atol=1e-3, rtol=1e-3)


def test_where_the_noise_is_the_same_everywhere_many_steps_lead_where_one_does():
    """A teacher that always says the same noise: its small steps end where one large step with that noise ends."""
    said = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    lesson = lesson_of("steps", lambda rows, t, ids: said.expand(len(rows), -1, -1, -1))
    latent, rest, i = torch.randn(4, 4, 16, 16), torch.zeros(4, 5, 16, 16), torch.arange(4)
    torch.testing.assert_close(lesson.target(latent, rest, i), said.expand(4, -1, -1, -1), atol=2e-3, rtol=0)


def test_the_first_stage_asks_for_what_guidance_says(network):
    lesson = lesson_of("guidance", network, guidance=3.0)
    latent, rest, i = torch.randn(2, 4, 16, 16), torch.rand(2, 5, 16, 16), torch.tensor([0, 7])
    t = lesson.fine.timesteps[i]
    with torch.no_grad():
        u, c = (
            network(torch.cat([latent, rest], 1), t, torch.tensor([ids] * 2)) for ids in (UNCONDITIONAL_IDS, CONDITIONAL_IDS)
        )
    assert not torch.allclose(u, c)
    torch.testing.assert_close(lesson.target(latent, rest, i), 3 * c - 2 * u, atol=1e-4, rtol=1e-4)


def test_a_student_begins_as_its_teacher_and_is_the_merged_network(network):
    student = Student(network, 2)
    inputs = torch.randn(2, 9, 16, 16), torch.tensor([3, 900]), torch.tensor([CONDITIONAL_IDS] * 2)
    with torch.no_grad():
        assert torch.equal(student(*inputs), network(*inputs))
        for up in student.up.values():
            up.normal_()
        merged = with_difference(network, student.factors())
        torch.testing.assert_close(student(*inputs), merged(*inputs))
        assert not torch.allclose(merged(*inputs), network(*inputs))


def work_in(folder, network, **changed) -> Work:
    pool, kept_back = random_pool(64, 16, CPU), random_pool(16, 16, CPU)
    return Work(network, pool, kept_back, folder, 4, batch=8, **changed)


@pytest.mark.slow
def test_a_student_learns_what_a_teacher_with_another_difference_says(network, tmp_path):
    torch.manual_seed(0)
    taught = {name: (0.05 * torch.randn_like(up), down) for name, (up, down) in Student(network, 4).factors().items()}
    lesson = lesson_of("guidance", with_difference(network, taught), guidance=1.0)
    _, log, done = work_in(tmp_path, network, most_steps=30).learn(lesson)
    assert done and log["steps"] == 30 and log["after"] < 0.8 * log["before"], log


@pytest.mark.slow
def test_a_cut_run_goes_on_and_a_finished_one_stays(network, tmp_path):
    assert work_in(tmp_path, network, deadline=time.time()).run() is None
    assert (tmp_path / "guidance.pt").exists()
    factors, log = work_in(tmp_path, network, most_steps=3).run()
    assert [log[stage]["steps"] for stage in STAGES] == [3, 3]
    again, same = work_in(tmp_path, network, most_steps=3).run()  # nothing is left to do
    assert same == log and all(torch.equal(a, b) for name in factors for a, b in zip(factors[name], again[name]))


def run_command(monkeypatch, *words) -> int:
    monkeypatch.setattr("sys.argv", ["distillation", *map(str, words)])
    return distillation.main()


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The words that every distillation here begins with, and two pictures to learn from."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(distillation, "MASKS", 8)
    monkeypatch.setattr(distillation, "BANK", 16)
    monkeypatch.setattr(distillation, "KEPT_BACK", 4)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 140, 150, 3), dtype=np.uint8)
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(pictures / f"{i}.png")
    places = ["--data", pictures, "--work-dir", tmp_path / "work", "-o", tmp_path / "fast"]
    sizes = ["--batch", 2, "--pool", 4, "--steps", 2, "--most-bytes", 30_000]
    return ["--network", "tiny", "--weights", DETERMINISTIC, *places, *sizes]


@pytest.mark.slow
def test_the_command_makes_weights_that_fill_a_picture_in_four_evaluations(command, tmp_path, monkeypatch, picture_files):
    assert run_command(monkeypatch, *command, "--stop-after", 0) == 0
    assert not (tmp_path / "fast").exists()
    assert run_command(monkeypatch, *command) == 0
    fast = tmp_path / "fast"
    difference = read_difference(fast / DIFFERENCE)
    assert difference.weights == DETERMINISTIC and "4 steps of ddim-trailing, guidance 2 distilled" in difference.made
    assert (fast / DIFFERENCE).stat().st_size < 60_000
    log = json.loads((fast / "distillation.json").read_text(encoding="utf-8"))
    assert all(log[stage]["steps"] == 2 and math.isfinite(log[stage]["after"]) for stage in STAGES)
    bench = prepare("tiny", str(fast), *map(str, picture_files), str(tmp_path / "run"))
    settings = preset(FASTEST, presets_of(str(fast)))
    assert settings == Settings(DISTILLED_SOLVER, 4, 1.0, 1.0, init="noise", harmonize=True) and settings.evaluations() == 4
    filled = inpaint(bench.torch_backend, bench.image, bench.mask, settings)
    assert (filled != bench.image).any()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--weights", "demo"], "demo weights belong to the demo network"),
        (["--weights", "nowhere"], "neither"),
        (["--evaluations", 0], "must be at least 1"),
        (["--most-bytes", 10], "no difference fits"),
    ],
)
def test_bad_input_is_told(command, changed, words, monkeypatch):
    with pytest.raises(LabError, match=words):
        run_command(monkeypatch, *command, *changed)


def test_a_difference_does_not_replace_what_it_is_added_to(command, tmp_path, monkeypatch):
    assert run_command(monkeypatch, *command) == 0
    with pytest.raises(LabError, match="folder of its own"):
        run_command(monkeypatch, *command, "--weights", tmp_path / "fast")


def test_a_folder_of_whole_weights_is_no_place_for_a_difference(command, tmp_path, monkeypatch):
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "denoiser.safetensors").write_bytes(b"")
    with pytest.raises(LabError, match="folder of its own"):
        run_command(monkeypatch, *command)


def test_a_folder_without_pictures_is_told(command, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabError, match="no picture and no album"):
        run_command(monkeypatch, *command, "--data", tmp_path / "empty")
