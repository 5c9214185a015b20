"""A folder of pictures: which file goes with which, what is made, and what is said of those that cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import segmenter
from PIL import Image

from moebius_lab import LabError
from moebius_lab.__main__ import main
from moebius_lab.inpainting.batch import plan_folder, results_of
from moebius_lab.inpainting.imaging import ImageError, feather
from moebius_lab.inpainting.loop import settings_of
from moebius_lab.inpainting.picture_files import read_image, read_mask, read_picture
from moebius_lab.inpainting.selection import grow, wand

TINY = ["--network", "tiny", "--weights", "deterministic", "--backend", "torch", "--solver", "ddim", "--steps", "2"]


def write(path: Path, shape: tuple[int, ...], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


def write_mask(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 2, width // 3 : width // 2] = 255
    Image.fromarray(mask).save(path)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_names_are_matched_by_rule(tmp_path):
    touch(tmp_path, "in/a.jpg", "in/b.PNG", "in/c.webp", "in/notes.txt", "in/.hidden.png", "in/more/d.png")
    touch(tmp_path, "masks/a.png", "masks/a-mask.png", "masks/b_mask.gif", "masks/c-mask.webp", "masks/c_mask.png")
    jobs = plan_folder(tmp_path / "in", tmp_path / "masks", tmp_path / "out")
    assert [(job.picture.name, job.mask.name, job.results[0].name) for job in jobs] == [
        ("a.jpg", "a.png", "a.png"), ("b.PNG", "b_mask.gif", "b.png"), ("c.webp", "c-mask.webp", "c.png")
    ]  # fmt: skip
    own = plan_folder(tmp_path / "in", tmp_path / "masks", tmp_path / "out", "same", 2)
    assert [path.name for job in own for path in job.results][:4] == ["a-1.jpg", "a-2.jpg", "b-1.PNG", "b-2.PNG"]
    one = plan_folder(tmp_path / "in", tmp_path / "masks/a.png", tmp_path / "out")
    assert {job.mask.name for job in one} == {"a.png"} and len(one) == 3


def test_masks_beside_their_pictures_are_no_pictures(tmp_path):
    touch(tmp_path, "a.png", "a-mask.png", "b.png", "b_mask.png", "c.png")
    jobs = plan_folder(tmp_path, tmp_path, tmp_path / "out")
    assert [(job.picture.name, job.mask and job.mask.name) for job in jobs] == [
        ("a.png", "a-mask.png"), ("b.png", "b_mask.png"), ("c.png", None)
    ]  # fmt: skip
    assert "put c-mask.png into" in jobs[2].fault


def test_what_the_names_leave_open_is_a_fault_of_that_picture_alone(tmp_path):
    touch(tmp_path, "in/a.png", "in/a.jpg", "in/b.png", "in/c.png", "masks/a.png", "masks/b.png", "masks/b.jpg")
    faults = [job.fault for job in plan_folder(tmp_path / "in", tmp_path / "masks", tmp_path / "out")]
    assert faults[0] == "" and "the name of that of a.jpg; rename one" in faults[1]
    assert "b.jpg and b.png could both be its mask" in faults[2] and "there is no mask for it; put c.png into" in faults[3]


def test_folders_that_cannot_be_worked_on(tmp_path):
    touch(tmp_path, "in/a.png", "empty/notes.txt", "masks/a.png")
    for pictures, masks, results, words in (
        ("in", "none", "out", "there is no such folder"), ("empty", "masks", "out", "there is no picture in this folder"),
        ("in", "masks", "in", "results would lie among"), ("in", "masks", "masks", "results would lie among"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=words):
            plan_folder(tmp_path / pictures, tmp_path / masks, tmp_path / results)


def test_variants_are_numbered_before_the_ending():
    assert results_of(Path("x/a.b.png"), 1) == (Path("x/a.b.png"),)
    assert results_of(Path("x/a.b.png"), 2) == (Path("x/a.b-1.png"), Path("x/a.b-2.png"))


def test_forty_pictures_of_which_five_are_bad(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        write(Path(f"in/{i:02}.png"), (40 + i, 50, 3), i)
        write_mask(Path(f"masks/{i:02}.png"), 40 + i, 50)
    Path("in/03.png").write_bytes(Path("in/03.png").read_bytes()[:500])  # cut short
    Path("in/07.png").write_text("no picture", encoding="utf-8")
    Path("masks/11.png").unlink()
    write_mask(Path("masks/19.png"), 10, 10)  # of another size
    Image.new("L", (50, 62)).save("masks/22.png")  # nothing is painted
    command = ["inpaint", "in", "--masks", "masks", "-o", "out", *TINY]
    assert main(command) == 1
    said = capsys.readouterr()
    failures = [line for line in said.err.splitlines() if line.startswith("moebius_lab: ")]
    assert [line.split(":")[1].strip() for line in failures] == [f"in/{i}.png" for i in ("03", "07", "11", "19", "22")]
    for line, words in zip(failures, ("damaged or cut short", "not a picture", "no mask", "same size", "is empty")):
        assert words in line
    assert said.err.splitlines()[-1] == "out: 35 made, 0 there before, 5 pictures failed"
    assert len(said.out.split()) == len(list(Path("out").iterdir())) == 35
    for name in ("00.png", "39.png"):
        before, after = read_image(Path("in", name)), read_image(Path("out", name))
        outside = feather(read_mask(Path("masks", name))) == 0
        assert np.array_equal(before[outside], after[outside]) and not np.array_equal(before, after)

    times = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    Path("out/30.png").unlink()
    write(Path("in/07.png"), (47, 50, 3))
    assert main(command) == 1  # only what is missing is made
    assert capsys.readouterr().err.splitlines()[-1] == "out: 2 made, 34 there before, 4 pictures failed"
    assert {path: path.stat().st_mtime_ns for path in times if path.name != "30.png"} == {
        path: time for path, time in times.items() if path.name != "30.png"
    }


@pytest.mark.slow
def test_variants_formats_and_extension_of_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("in/a.jpg"), (50, 60, 3))
    write(Path("in/b.png"), (50, 60, 3))
    assert main(["inpaint", "in", "--extend", "left=20", "-o", "out", "--format", "same", "--variants", "2", *TINY]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a-1.jpg", "a-2.jpg", "b-1.png", "b-2.png"]
    first, second = read_image("out/b-1.png"), read_image("out/b-2.png")
    assert first.shape == (50, 80, 3) and np.array_equal(first[:, 20:], read_image("in/b.png"))
    assert not np.array_equal(first, second)
    capsys.readouterr()
    write_mask(Path("mask.png"), 50, 60)
    again = ["inpaint", "in/b.png", "mask.png", "--extend", "left=20", "-o", "b.png", "--variants", "2", *TINY]
    assert main(again) == 0
    assert capsys.readouterr().out.split() == ["b-1.png", "b-2.png"]
    assert (read_image("b-1.png")[:, 20:] != read_image("in/b.png")).any()  # a hole of its own is filled as well
    seeded = ["inpaint", "in/b.png", "--extend", "left=20", "-o", "c.png", "--seed", "1", *TINY]
    assert main(seeded) == 0 and np.array_equal(read_image("c.png"), second)  # a folder's variants are seeds


@pytest.mark.slow
def test_a_picture_says_what_it_was_made_with_and_brings_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("a.png"), (50, 60, 3))
    write_mask(Path("mask.png"), 50, 60)
    files = ["inpaint", "a.png", "mask.png", "-o"]
    assert main([*files, "first.png", *TINY, "--seed", "7", "--guidance-interval", "0.5", "1"]) == 0
    made = read_picture("first.png").made
    assert made["settings"] == json.loads(json.dumps(vars(settings_of(made)))) and made["settings"]["seed"] == 7
    assert made["model"] == {"network": "tiny", "weights": "deterministic", "precision": "fp32", "backend": "PyTorch"}
    assert made["format"] == 1 and len(made["code"]) == 16
    assert Image.open("first.png").text["moebius_lab"].startswith('{"format": 1')
    network = TINY[: TINY.index("--solver")]
    assert main([*files, "again.png", *network, "--settings-of", "first.png"]) == 0
    assert np.array_equal(read_image("again.png"), read_image("first.png"))
    assert main([*files, "other.png", *network, "--settings-of", "first.png", "--seed", "8"]) == 0
    assert read_picture("other.png").made["settings"] == made["settings"] | {"seed": 8}
    with pytest.raises(LabError, match="written by another version"):
        settings_of(made | {"settings": {"steps": 3}})


@pytest.mark.slow
def test_a_click_is_as_good_as_a_mask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = np.full((60, 70, 3), 90, np.uint8)
    picture[20:35, 30:50] = (200, 30, 30)
    Image.fromarray(picture).save("a.png")
    Image.fromarray(grow(wand(picture, (40, 25), 24), 3).astype(np.uint8) * 255).save("mask.png")
    assert main(["inpaint", "a.png", "mask.png", "-o", "by-mask.png", *TINY]) == 0
    assert main(["inpaint", "a.png", "--select", "40", "25", "--grow", "3", "-o", "by-click.png", *TINY]) == 0
    assert np.array_equal(read_image("by-mask.png"), read_image("by-click.png"))
    assert (read_image("by-click.png") != picture).any()
    segmenter.reddish("red.onnx")
    segmented = ["inpaint", "a.png", "--select", "32", "22", "--segmenter", "red.onnx", "--grow", "3"]
    assert main([*segmented, "-o", "by-object.png", *TINY]) == 0
    assert np.array_equal(read_image("by-object.png"), read_image("by-mask.png"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["in", "-o", "out"], "name the folder of the masks with --masks"),
        (["in", "m.png", "-o", "out"], "is a folder: name that of its masks with --masks"),
        (["in/a.png", "-o", "x.png"], "name a mask or --select something"),
        (["in/a.png", "in/a.png", "--select", "1", "1", "-o", "x.png"], "not both"),
        (["in/a.png", "--select", "60", "0", "-o", "x.png"], "is not a pixel of the picture"),
        (["in/a.png", "--select", "1", "1", "--segmenter", "in/a.png", "-o", "x.png"], "not an ONNX model that can be run"),
        (["in", "--masks", "in", "--select", "1", "1", "-o", "out"], "goes with one picture"),
        (["in/a.png", "in/a.png", "-o", "x.png", "--settings-of", "in/a.png"], "does not say with what settings"),
        (["in/a.png", "--masks", "in", "-o", "x.png"], "go with a folder of pictures"),
        (["in", "--masks", "in", "-o", "out", "--format", "xyz"], "is no format to write"),
        (["in", "--masks", "in", "-o", "out", "--variants", "0"], "variants must be 1 to 1000"),
        (["in/a.png", "--extend", "left=20", "--extend-to", "1:1", "-o", "x.png"], "not both"),
        (["in/a.png", "--extend", "middle=20", "-o", "x.png"], "write, once a side, left=200"),
        (["in/a.png", "--extend", "left=-3", "-o", "x.png"], "write, once a side, left=200"),
        (["in/a.png", "--extend", "left=0", "-o", "x.png"], "1 px or more"),
        (["in/a.png", "--extend-to", "wide", "-o", "x.png"], "is not an aspect ratio"),
        (["in/a.png", "--extend-to", "6:5", "-o", "x.png"], "is 6:5 already"),
        (["in/a.png", "--extend", "left=9000000", "-o", "x.png"], "too large"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write(Path("in/a.png"), (50, 60, 3))
    assert main(["inpaint", *arguments, *TINY]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and words in error[0] and not Path("out").exists()
