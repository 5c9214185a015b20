import shutil
import subprocess
import sys

import cases
import numpy as np
import pytest
import torch
from conftest import DATA
from PIL import Image
from safetensors.torch import save_file

from moebius_lab.__main__ import _parser, main
from moebius_lab.config import GRAPHS, SOLVERS
from moebius_lab.inpainting.imaging import feather
from moebius_lab.inpainting.picture_files import read_image, read_mask, read_picture

SMALL = ["--network", "small", "--weights", "deterministic"]


def verbs() -> list[str]:
    [commands] = [action for action in _parser()._actions if action.dest == "verb"]
    return list(commands.choices)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["", *verbs()])
def test_help_comes_before_anything_large_is_imported(verb):
    program = "import runpy, sys; sys.argv[0] = 'moebius_lab'\ntry: runpy.run_module('moebius_lab', run_name='__main__')\n"
    program += "finally: print({'numpy', 'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, *verb.split(), "--help"], capture_output=True, encoding="utf-8")
    usage, *_, large = done.stdout.splitlines()
    assert done.returncode == 0 and usage.startswith(f"usage: python -m moebius_lab {verb}") and large == "set()", (
        done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_inpaint_writes_a_picture_of_the_same_size(small, picture_files, tmp_path, capsys, backend):
    image, mask = map(str, picture_files)
    out = tmp_path / "out.png"
    options = ["-o", str(out), "--backend", backend, "--steps", "3", "--graphs-dir", str(small.folder), *SMALL]
    assert main(["inpaint", image, mask, *options]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out) and "1 window of 128 px, 3 steps, about" in said.err
    before, after, outside = read_image(image), read_image(out), feather(read_mask(mask)) == 0
    assert np.array_equal(after[outside], before[outside]) and not np.array_equal(after, before)


@pytest.mark.slow
def test_presets_and_single_settings_of_inpaint(picture_files, tmp_path, capsys):
    files = [*map(str, picture_files), "-o", str(tmp_path / "out.png"), "--backend", "torch", *SMALL]
    for options, words in (
        ([], "5 steps"), (["--preset", "fastest"], "4 steps"), (["--preset", "as-released", "--steps", "3"], "2 steps"),
        (["--solver", "unipc", "--steps", "2", "--guidance-interval", "0", "0.5"], "2 steps"),
    ):  # fmt: skip
        assert main(["inpaint", *files, *options]) == 0
        assert f"1 window of 128 px, {words}, about" in capsys.readouterr().err
    for options, words in (
        (["--solver", "euler"], f"there is no solver 'euler'; choose one of {', '.join(SOLVERS)}"),
        (["--steps", "1"], "dpm++2m needs at least 2 steps, and 1 would run: raise steps or strength, or choose ddim"),
        (["--guidance-interval", "0.9", "1"], "no step of 5 begins between 0.9 and 1 of the run"),
        (["--guidance-interval", "1", "2"], "not from 1.0 to 2.0"),
    ):
        assert main(["inpaint", *files, *options]) != 0
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


@pytest.mark.slow
def test_the_fastest_preset_takes_the_distilled_demo(picture_files, tmp_path, capsys):
    files = [*map(str, picture_files), "--backend", "torch", "--network", "demo"]
    results = {}
    for name, options in {
        "preset": ["--preset", "fastest"],
        "weights": ["--weights", "demo-fast"],
        "own": ["--preset", "fastest", "--guidance", "1.5"],
    }.items():
        assert main(["inpaint", *files, "-o", str(tmp_path / f"{name}.png"), *options]) == 0, capsys.readouterr()
        results[name] = read_picture(tmp_path / f"{name}.png")
    made = {name: picture.made for name, picture in results.items()}
    assert made["preset"] == made["weights"] and made["preset"]["model"]["weights"] == "demo-fast"
    assert made["preset"]["settings"]["solver"] == "ddim-trailing" and made["preset"]["settings"]["guidance"] == 1
    assert made["own"]["model"]["weights"] == "demo", "guidance of one's own is not that of the distilled weights"
    assert np.array_equal(results["preset"].rgb, results["weights"].rgb)
    assert main(["inpaint", *files, "-o", str(tmp_path / "no.png"), "--weights", "demo-fast", "--preset", "fast"]) != 0
    assert "for these weights; choose one of fastest" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["inpaint", "evaluate"])
def test_the_help_names_every_solver(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert ", ".join(list(SOLVERS)[:-1]) in words and list(SOLVERS)[-1] in words


def test_transparency_comes_back(picture_files, tmp_path):
    image = Image.open(picture_files[0]).convert("RGBA")
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    image.save(tmp_path / "in.png")
    files = [str(tmp_path / "in.png"), str(picture_files[1]), "-o", str(tmp_path / "out.png")]
    assert main(["inpaint", *files, "--backend", "torch", "--steps", "2", *SMALL]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png").getchannel("A")), np.asarray(alpha))


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending, quality, is_exact",
    [(".png", None, True), (".tif", None, True), (".webp", None, True), (".webp", 80, False), (".jpg", None, False)],
)
def test_what_was_not_filled_comes_back_in_the_picture_s_own_profile(picture_files, tmp_path, ending, quality, is_exact):
    pixels = np.asarray(Image.open(picture_files[0]))
    image, out = tmp_path / "in.png", tmp_path / f"out{ending}"
    image.write_bytes(cases.png(pixels, cases.iccp(cases.DISPLAY_P3)))
    asked = [] if quality is None else ["--quality", str(quality)]
    assert (
        main(
            [
                "inpaint",
                str(image),
                str(picture_files[1]),
                "-o",
                str(out),
                "--backend",
                "torch",
                "--steps",
                "2",
                *SMALL,
                *asked,
            ]
        )
        == 0
    )
    outside, back = feather(read_mask(picture_files[1])) == 0, read_picture(out)
    assert back.profile == cases.DISPLAY_P3
    assert np.array_equal(back.stored[outside], pixels[outside]) == is_exact and not np.array_equal(back.stored, pixels)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted([image.name, out.name])


@pytest.mark.slow
def test_what_a_file_cannot_hold_is_said_before_the_model_runs(picture_files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.asarray(Image.open(picture_files[0]))
    (tmp_path / "in.png").write_bytes(cases.png(pixels, cases.iccp(cases.DISPLAY_P3)))
    files = ["in.png", str(picture_files[1]), "-o", "out.bmp", "--backend", "torch", "--steps", "2", *SMALL]
    assert main(["inpaint", *files]) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert "out.bmp: BMP cannot hold this colour profile: the result is in sRGB" in first and rest
    assert main(["inpaint", *files, "--quality", "90"]) == 2
    assert "has no quality" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        ({0: "none.png"}, "no such file"),
        ({1: "mask.png"}, "make them the same size"),
        ({3: "out.xyz"}, "this ending is not a picture format"),
        ({3: "out.psd"}, "this ending is not a picture format"),
        ({3: "out.ico"}, "this ending is not a picture format"),
        ({3: "no/folder/out.png"}, "no such folder"),
        ({5: "0"}, "between 1 and 1000"),
        ({7: "large"}, "choose one of moebius, demo, small"),
        ({9: "demo"}, "belong to the demo network"),
        ({9: "nowhere"}, "nor a folder that exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(picture_files, tmp_path, capsys, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    image, mask = map(str, picture_files)
    options = [image, mask, "-o", "out.png", "--steps", "2", "--network", "small", "--weights", "deterministic"]
    for i, value in change.items():
        options[i] = value
    Image.fromarray(np.full((10, 20), 255, np.uint8)).save("mask.png")  # of another size than the picture
    assert main(["inpaint", *options, "--backend", "torch"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and words in error[0] and not (tmp_path / "out.png").exists()


def test_export_puts_three_graphs_where_it_is_told(small, capsys):
    assert main(["export", "--output-dir", str(small.folder), *SMALL]) == 0  # made by the fixture: nothing to do
    folder = small.folder / "onnx" / "fp32"
    assert capsys.readouterr().out.split() == [str(folder / graph / f"{graph}.onnx") for graph in GRAPHS]


def test_verify_reference_says_by_its_exit_code_whether_it_holds(tmp_path, capsys):
    shutil.copy(DATA / "unet_small.npz", tmp_path)
    assert main(["verify-reference", str(tmp_path)]) == 0
    assert "noise" in capsys.readouterr().out
    assert main(["verify-reference", str(tmp_path), "--salt", "x"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
    assert main(["verify-reference", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("vae", lambda path, state: path.unlink(), "no such file"),
        (
            "denoiser",
            lambda path, state: path.write_bytes(path.read_bytes()[:-1000]),
            "an incomplete or damaged safetensors file",
        ),
        ("denoiser", lambda path, state: save_file({"conv.weight": torch.zeros(3)}, path), "of another network"),
        ("denoiser", lambda path, state: save_file({"down.lora_A.weight": torch.zeros(3)}, path), "a LoRA"),
        ("vae", lambda path, state: save_file({k: torch.cat([v, v]) for k, v in state.items()}, path), "with another width"),
    ],
)
def test_a_run_refuses_weights_before_it_begins(small, tmp_path, capsys, file, spoil, words):
    weights, out = tmp_path / "weights", tmp_path / "out"
    weights.mkdir()
    states = {"denoiser": small.net.state_dict(), "vae": small.vae.state_dict()}
    for part, state in states.items():
        save_file(state, weights / f"{part}.safetensors")
    spoil(weights / f"{file}.safetensors", states[file])
    assert main(["run", "--network", "small", "--weights", str(weights), "--output-dir", str(out)]) == 2
    said = capsys.readouterr().err
    assert words in said and f"{file}.safetensors" in said and not list(out.rglob("*.ipynb"))
