"""The door of the commands: what a person can act on is one line and an exit code; what is our own fault shows."""

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from waiting import until

from moebius_lab import errors
from moebius_lab.__main__ import main

pytestmark = pytest.mark.slow  # commands in processes of their own

ROOT = Path(__file__).parents[1]
LONG = "a" * 300
SMALL = ["--network", "small", "--weights", "deterministic"]


def one_line(capsys, code: int, *arguments: str) -> str:
    """What a command says that ends with `code`: a single line on standard error, after what it says of its progress."""
    assert main(list(arguments)) == code
    said = [
        line for line in capsys.readouterr().err.splitlines() if line.strip() and not re.search("step/s| window of ", line)
    ]
    assert len(said) == 1 and said[0].startswith("moebius_lab: "), said
    return said[0]


def start(*arguments: str, cwd: Path, program: str = "", **environment: str) -> subprocess.Popen:
    """`python -m moebius_lab` with arguments, or a program that takes its place, in a process of its own.

    Ctrl-C and a hang-up reach it also where the tests themselves run in a shell's background or under nohup, which ignore them.
    """
    command = [sys.executable, *(["-c", program] if program else ["-m", "moebius_lab"]), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    heard = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


# -- which errors ------------------------------------------------------------------------------------------------------


def overflow_numpy():
    with np.errstate(over="raise"):
        return np.float32(1e38) * np.float32(1e38)


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda folder: open(folder / "none", encoding="utf-8"), "none: there is no such file or folder; check"),
        (lambda folder: (folder / "file" / "x").mkdir(), "file/x: a part of this path is a file"),
        (lambda folder: open(folder, encoding="utf-8"), "this is a folder; name a file"),
        (lambda folder: (folder / "file").mkdir(), "file: this already exists"),
        (lambda folder: folder.rmdir(), "this folder is not empty"),
        (lambda folder: (folder / LONG).touch(), "aaa: this name is too long"),
        (lambda folder: (folder / "circle").open(encoding="utf-8"), "circle: its symbolic links form a loop"),
        (lambda folder: os.rename(folder / "none", folder / "other"), "none and .*other: there is no such file"),
        (lambda folder: os.write(os.open("/dev/full", os.O_WRONLY), b"x"), "the disk is full; free some space"),
        (lambda folder: [0] * 2**62, "not enough memory; close"),
        (lambda folder: torch.empty(2**48), "not enough memory; close"),
        (lambda folder: 2.0**10000, "a number is out of range .*default"),
        (lambda folder: overflow_numpy(), "overflow encountered .*; use settings closer to the default"),
        (lambda folder: "caf\udce9".encode(), r"'caf\\udce9' contains characters.*rename"),
        (lambda folder: b"caf\xe9".decode(), "should be text.*UTF-8"),
        (lambda folder: __import__("no_such_package"), "the package 'no_such_package' is not installed.*pip install"),
    ],
)
def test_what_a_person_can_act_on_is_one_line(tmp_path, capsys, fail, words):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    assert errors.run(lambda: fail(tmp_path)) == 2
    said = capsys.readouterr().err
    assert re.match(f"moebius_lab: .*{words}", said) and said.count("\n") == 1, said


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.EDQUOT])
def test_errors_of_the_system_that_no_test_can_cause_have_a_remedy(number):
    said = errors.explain(OSError(number, os.strerror(number), "place"))
    assert said.startswith("place: ") and ";" in said and "\n" not in said


@pytest.mark.parametrize("fault", [KeyError("x"), TypeError("x"), AttributeError("x"), ValueError("x"), RuntimeError("x"), AssertionError(), ImportError("cannot import name 'x' from 'moebius_lab.config'"), ModuleNotFoundError("x", name="moebius_lab.nothing")])  # fmt: skip
def test_a_fault_of_ours_passes_through(fault):
    def fail():
        raise fault

    with pytest.raises(type(fault)):
        errors.run(fail)


@pytest.mark.parametrize("variable, value", [("HF_HUB_ETAG_TIMEOUT", "abc"), ("HF_HUB_DOWNLOAD_TIMEOUT", "1.5")])
def test_a_number_in_the_environment_that_is_none(tmp_path, variable, value):
    _, said = start("fetch", "places2", cwd=tmp_path, **{variable: value}).communicate()
    words = f"moebius_lab: {variable}={value}: huggingface_hub expects another number there; correct it or unset it"
    assert said.decode().splitlines() == [words]


def test_a_fault_of_ours_shows_its_traceback(tmp_path):
    program = (
        "import moebius_lab.__main__ as m; m._results = lambda options: {}['missing']; m.errors.leave(m.main(['results']))"
    )
    process = start(cwd=tmp_path, program=program)
    said = process.communicate()[1].decode()
    assert process.returncode == 1 and "Traceback" in said and "KeyError: 'missing'" in said


# -- every command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_places(tmp_path, monkeypatch) -> Path:
    """A current folder with a file `file`, a picture and its mask."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(picture).save("picture.png")
    hole = np.zeros((40, 60), np.uint8)
    hole[10:20, 10:20] = 255
    Image.fromarray(hole).save("mask.png")
    return tmp_path


FILL = ["inpaint", "picture.png", "mask.png", "-o", "o.png", "--backend", "torch", "--steps", "2", *SMALL]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inpaint", f"{LONG}.png", *FILL[2:]], "too long"),
        (["inpaint", "file/x.png", *FILL[2:]], "file"),
        ([*FILL[:2], f"{LONG}.png", *FILL[3:]], "too long"),
        ([*FILL, "-o", f"{LONG}.png"], "too long"),
        ([*FILL, "--graphs-dir", "file"], "file: this already exists|file: a part"),
        ([*FILL, "--graphs-dir", "file/x"], "a part of this path is a file"),
        ([*FILL, "--graphs-dir", LONG], "too long"),
        ([*FILL, "--weights", LONG], "too long|nor a folder"),
        ([*FILL, "--noise-offset", "1e38"], "not finite.*closer to the default"),
        ([*FILL, "--noise-offset", "inf"], "finite"),
        ([*FILL, "--seed", str(2**70)], "seed"),
        ([*FILL, "--steps", "two"], "invalid int value.*inpaint --help"),
        (["export", "--output-dir", "file", *SMALL], "file: this already exists"),
        (["export", "--output-dir", f"file/{LONG}", *SMALL], "too long|a part of this path"),
        (["bundle", "--output-dir", "file", *SMALL], "file: this already exists"),
        (["run", "--output-dir", "file", *SMALL], "file: this already exists"),
        (["run", "--output-dir", LONG, *SMALL], "too long"),
        (["run", "--image", f"{LONG}.png", "--mask", "mask.png", *SMALL], "too long"),
        (["bisect", "--output-dir", "file", *SMALL], "file: this already exists"),
        (["bisect", "--output-dir", LONG, *SMALL], "too long"),
        (["bisect", "--between", "torch-cpu", *SMALL], "2 arguments.*bisect --help"),
        (["benchmark", "--output-dir", "file", *SMALL], "file: this already exists"),
        (["publish", "a/b", "--output-dir", "file", *SMALL], "file: this already exists"),
        (["site", "new", "--bundle", LONG], "too long"),
        (["site", "new", "--bundle", "file"], "file"),
        (["serve", "file"], "file"),
        (["serve", LONG], "too long"),
        (["results", LONG], "too long"),
        (["results", "."], "no such file|folder"),
        (["verify-reference", "file"], "file"),
        (["verify-reference", LONG], "too long|no such"),
        (["check", "file"], "is not an address"),
        (["fetch", "nothing"], "invalid choice.*fetch --help"),
        (["nothing"], "invalid choice.*--help"),
        ([], "required: COMMAND.*--help"),
    ],
)
def test_every_command_says_in_one_line_what_cannot_be_used(bad_places, capsys, arguments, words):
    before = sorted(path.name for path in bad_places.iterdir())
    assert re.search(words, one_line(capsys, 2, *arguments))
    assert sorted(path.name for path in bad_places.iterdir()) in (before, sorted([*before, "build"]))


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none(small_bundle, capsys, port):
    assert f"port {port} cannot be used" in one_line(capsys, 2, "serve", str(small_bundle), "--port", port)


# -- signals and pipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("SIGINT", "argparse"),
        ("SIGINT", "numpy"),
        ("SIGINT", "torch"),
        ("SIGINT", "diffusers"),
        ("SIGTERM", "torch"),
        ("SIGHUP", "numpy"),
    ],
)
def test_a_signal_while_importing_is_one_line(bad_places, name, at):
    """The signal comes in the middle of the import of `at`, from a hook that Python takes along at its start."""
    (bad_places / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {at!r}: os.kill(os.getpid(), signal.{name})\n"
        "sys.meta_path.insert(0, Hook())",
        encoding="utf-8",
    )
    process = start(*FILL, cwd=bad_places, PYTHONPATH=f"{bad_places}{os.pathsep}{ROOT}")
    said = process.communicate(timeout=120)[1].decode().splitlines()
    assert process.returncode == 128 + getattr(signal, name) and len(said) == 1 and "nothing had started" in said[0], said


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_at_work_leaves_no_temporary_folders(bad_places, name):
    """The signal comes when the first file in such a folder is opened, from a hook that Python takes along at its start."""
    (bad_places / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def hook(event, arguments):\n"
        "    global came\n"
        "    if event == 'open' and 'out/tmp' in str(arguments[0]) and not came:\n"
        "        came = True\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "came = False\n"
        "sys.addaudithook(hook)",
        encoding="utf-8",
    )
    environment = {"TMPDIR": str(bad_places), "PYTHONPATH": f"{bad_places}{os.pathsep}{ROOT}"}
    process = start("export", "--output-dir", "out", *SMALL, cwd=bad_places, **environment)
    out, said = (text.decode().splitlines() for text in process.communicate(timeout=600))
    assert out[0].startswith("exporting ")
    assert process.returncode == 128 + getattr(signal, name) and "what was finished is kept" in said[-1]
    assert "Traceback" not in "".join(said) and not list(bad_places.rglob("tmp*"))


NOTEBOOK = (
    "import sys; from pathlib import Path; from moebius_lab import errors; errors.watch_process()\n"
    "from moebius_lab.notebook import report\n"
    "report.SOURCE_FOLDER = Path('notebooks')\n"
    "errors.leave(errors.run(lambda: report.run_notebooks('out', {}, ('a',)) and 0))"
)
"""A run of the one notebook `notebooks/a.ipynb`."""


def write_cell(folder: Path, code: str) -> None:
    (folder / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(notebook, folder / "notebooks" / "a.ipynb")


def runs(process: str) -> bool:
    with contextlib.suppress(OSError):
        return Path("/proc", process, "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_notebook_runs_ends_its_kernel_without_red_lines(tmp_path, name):
    marker = tmp_path / "kernel"
    code = f"import os, pathlib, time; pathlib.Path({str(marker)!r}).write_text(str(os.getpid()), encoding='utf-8'); time.sleep(100)"
    write_cell(tmp_path, code)
    process = start(cwd=tmp_path, program=NOTEBOOK)
    until(lambda: marker.is_file() and marker.read_text(encoding="utf-8"))
    kernel = marker.read_text(encoding="utf-8")
    assert runs(kernel)
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 128 + getattr(signal, name), said
    assert "what was finished is kept" in said.splitlines()[-1] and "Traceback" not in said and "ERROR" not in said
    until(lambda: not runs(kernel))


@pytest.mark.slow
def test_a_kernel_that_dies_is_one_line(tmp_path):
    write_cell(tmp_path, "import os; os._exit(9)")
    process = start(cwd=tmp_path, program=NOTEBOOK)
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 2 and "a.ipynb: its process ended in the middle of a cell" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from moebius_lab import errors; errors.watch_process()\n"
        "os.kill(os.getpid(), signal.SIGHUP); print('went on')"
    )
    assert start(cwd=tmp_path, program=program).communicate()[0] == b"went on\n"


def test_a_reader_of_the_output_that_goes_away_is_no_error(tmp_path):
    process = start(
        "--help", cwd=tmp_path, program="import runpy; runpy.run_module('moebius_lab', run_name='__main__', alter_sys=True)"
    )
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() in (0, 141) and said == b""


@pytest.mark.parametrize(("stdout", "code", "words"), [("/dev/full", 2, "the disk is full"), ("closed", 0, "")])
def test_output_that_cannot_be_written(tmp_path, stdout, code, words):
    redirected = ">&-" if stdout == "closed" else f"> {stdout}"
    command = f'"{sys.executable}" -m moebius_lab results "{ROOT}"/notebooks/results/*.json {redirected}'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == (1 if words else 0), done.stderr


# -- names and locales -------------------------------------------------------------------------------------------------

LOCALES = {
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "strict UTF-8": {"PYTHONIOENCODING": "utf-8:strict"},
    "cp1252": {"PYTHONIOENCODING": "cp1252:strict"},
}


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("name", ["caf\u00e9 \u4e2d.png".encode(), b"caf\xe9.png"], ids=["UTF-8", "bytes"])
def test_printing_a_path_never_fails(bad_places, locale, name):
    program = "import sys; from moebius_lab import errors; errors.watch_process(); print(*sys.argv[1:]); errors.leave(0)"
    process = start(os.fsdecode(name), cwd=bad_places, program=program, **LOCALES[locale])
    out, said = process.communicate()
    assert process.returncode == 0 and not said
    assert out in (name + b"\n", os.fsdecode(name).encode("ascii", "backslashreplace") + b"\n", name.decode("utf-8", "replace").encode("cp1252", "backslashreplace") + b"\n")  # fmt: skip


@pytest.mark.parametrize("locale", ["ASCII", "strict UTF-8"])
def test_pictures_whose_names_are_no_text_are_filled(bad_places, locale):
    picture, output = b"caf\xe9.png", b"caf\xe9 out.png"
    shutil.copy("picture.png", os.fsdecode(picture))
    arguments = ["inpaint", os.fsdecode(picture), "mask.png", "-o", os.fsdecode(output), *FILL[5:]]
    process = start(*arguments, cwd=bad_places, **LOCALES[locale])
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0 and out == output + b"\n" and Path(os.fsdecode(output)).is_file(), said


@pytest.mark.slow
def test_a_report_is_written_in_an_ascii_locale(tmp_path):
    write_cell(tmp_path, "print('caf\u00e9 \u2192 \u4e2d')")
    process = start(cwd=tmp_path, program=NOTEBOOK, **LOCALES["ASCII"])
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0 and "Error" not in said, said
    assert "caf\u00e9 \u2192 \u4e2d" in (tmp_path / "out" / "report" / "a.html").read_text(encoding="utf-8")


# -- an installed package ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"), [(["run", *SMALL], "clone the repository"), (["publish", "a/b", *SMALL], "in a clone")]
)
def test_without_the_repository_the_commands_that_need_it_say_so(tmp_path, arguments, words):
    """The package alone, as a wheel leaves it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "moebius_lab").symlink_to(ROOT / "moebius_lab")
    process = start(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    said = process.communicate()[1].decode().splitlines()
    assert process.returncode == 2 and len(said) == 1 and words in said[0], said
    assert not list((tmp_path).glob("build/*"))
