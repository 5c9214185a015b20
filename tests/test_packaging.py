import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import LONGEST_FIRST
from PIL import Image
from programs import node

from moebius_lab.notebook.pictures import LIMIT
from moebius_lab.page import bundle
from moebius_lab.provenance import libraries

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>!~\[; ]", name)[0]).lower()


def test_every_dependency_is_pinned():
    pinned = {normal(name) for name in PINS}
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    missing = {normal(name) for name in PROJECT["dependencies"] + extras} - pinned
    assert not missing
    assert PINS["torch"] == "2.13.0" and "torch==2.13.0" in PROJECT["dependencies"]
    assert not {"torchvision", "timm", "transformers"} & pinned


BROUGHT_OTHERWISE = {
    "onnxruntime_ep_webgpu": "ONNX Runtime's plugin for a graphics card, of which no version is pinned",
    "triton": "comes with PyTorch for CUDA",
}
"""Modules that the package imports where they are, and why no dependency stands for them."""


def modules_of(names: list[str]) -> set[str]:
    """The modules that these distributions bring, by their names in pyproject.toml."""
    wanted = {normal(name) for name in names}
    return {module for module, found in packages_distributions().items() if wanted & set(map(normal, found))}


def test_every_import_of_the_package_is_declared():
    """At the top of a module what every installation has; in a function also what an extra brings."""
    paths, python = list((ROOT / "moebius_lab").rglob("*.py")), {"python"}
    always = modules_of(PROJECT["dependencies"])
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    at_once, ever = set(libraries(paths)) - python, set(libraries(paths, optional=True)) - python
    assert len(at_once) > 30 and at_once < ever
    assert at_once - always - set(BROUGHT_OTHERWISE) == set()
    assert ever - always - modules_of(extras) == set(BROUGHT_OTHERWISE)


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    extras = ",".join(sorted(PROJECT["optional-dependencies"]))
    assert pip == ["-c constraints.txt", f"-e .[{extras}]"]
    assert "python=3.11" in environment["dependencies"] and PROJECT["requires-python"] == ">=3.11"
    assert f"'.[{extras}]'" in (ROOT / "Makefile").read_text(encoding="utf-8")


def programs() -> dict[str, str]:
    """Every Python program of the repository by its place: modules, tests, and each notebook's cells as one."""
    modules = [path for folder in ("moebius_lab", "tests") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in modules}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        found[path.name] = "\n".join(cell for cell in cells if not cell.startswith("%"))
    return found


def without_encoding(program: str) -> list[str]:
    """The calls that read or write text in whatever encoding the machine is set to."""
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if is_of_text(call) and "encoding" not in {k.arg for k in call.keywords}]


def is_of_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "open":
        given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        modes = [str(a.value) for a in given if isinstance(a, ast.Constant) and re.fullmatch("[rwaxbt+]{1,3}", str(a.value))]
        opens_a_file = isinstance(call.func, ast.Name) or modes or not given  # Image.open and the like have other arguments
        return bool(opens_a_file) and not any("b" in mode for mode in modes)
    return name in ("read_text", "write_text") or "text=True" in [ast.unparse(keyword) for keyword in call.keywords]


@pytest.mark.parametrize(
    ("call", "bad"),
    [
        ("path.read_text()", True),
        ("path.write_text(words)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open(mode='wb')", False),
        ("Image.open(path)", False),
        ("subprocess.run(command, text=True)", True),
    ],
)
def test_what_counts_as_text_without_an_encoding(call, bad):
    assert bool(without_encoding(call)) == bad


def test_every_text_names_its_encoding():
    assert not {place: calls for place, program in programs().items() if (calls := without_encoding(program))}


@pytest.mark.parametrize("name", ["my build", "it's", 'a "b" $HOME `c`', "run {draft}; d & e"])
def test_the_makefile_takes_folders_of_any_name(name):
    done = subprocess.run(
        ["make", "-n", "run", "demo", f"OUTPUT={name.replace('$', '$$')}", f"WEIGHTS={name.replace('$', '$$')}"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    commands = [shlex.split(line) for line in done.stdout.splitlines() if " -m moebius_lab " in line]
    verbs = {command[3]: command for command in commands}
    for verb in ("run", "bundle"):
        given = dict(zip(verbs[verb][4::2], verbs[verb][5::2]))
        assert given == {"--network": "demo", "--weights": name, "--output-dir": name}
    assert verbs["serve"][4:] == [f"{name}/bundle"] and "browser" in verbs


def test_the_suite_begins_with_files_that_there_are():
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert {f"test_{name}" for name in LONGEST_FIRST} <= there


@pytest.mark.parametrize("verb", [("check",), ("format", "--check")], ids=" ".join)
def test_python_is_linted_and_formatted(verb):
    command = [sys.executable, "-m", "ruff", *verb, "--no-cache", "--quiet", str(ROOT)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-6000:]


FORMATTED = ("moebius_lab/**/*.js", "moebius_lab/**/*.ts", "moebius_lab/**/*.css", "tests/web/**/*.mjs")


def test_javascript_and_styles_are_formatted():
    prettier = bundle.npm_packages(development=True) / "prettier" / "bin" / "prettier.cjs"
    done = node(str(prettier), "--check", *FORMATTED, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {path for pattern in FORMATTED for path in ROOT.glob(pattern)}
    assert files == {
        path
        for folder in ("moebius_lab", "tests")
        for ending in ("js", "mjs", "ts", "css")
        for path in (ROOT / folder).rglob(f"*.{ending}")
    }


def test_a_commit_is_formatted_by_the_versions_that_the_tests_have():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    entries = {hook["id"]: hook for hook in hooks}
    assert entries["ruff-format"]["entry"] == ".venv/bin/python -m ruff format"
    pinned = json.loads((bundle.WEB / "package.json").read_text(encoding="utf-8"))["devDependencies"]["prettier"]
    assert entries["prettier"]["additional_dependencies"] == [f"prettier@{pinned}"]
    files = re.compile(entries["prettier"]["files"])
    assert (
        files.search("moebius_lab/page/web/interface/main.js")
        and files.search("moebius_lab/page/web/interface/types.ts")
        and files.search("moebius_lab/page/web/interface/style.css")
        and files.search("tests/web/interface/mask.test.mjs")
        and not files.search("package.json")
    )


def test_every_file_of_the_package_is_in_the_wheel():
    package, listed = ROOT / "moebius_lab", tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = listed["tool"]["setuptools"]["package-data"]["moebius_lab"]
    shipped = {path for pattern in patterns for path in package.glob(pattern)} | set(package.rglob("*.py"))
    tracked = subprocess.run(["git", "-C", str(package), "ls-files", "-z"], capture_output=True, encoding="utf-8").stdout
    assert tracked and not [name for name in tracked.split("\0") if name and package / name not in shipped]


def test_the_layout_names_every_module():
    layout = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    _, _, tree = layout.partition("\nmoebius_lab/ ")
    named = re.findall(r"(?<![\w/.])(\w+\.py)\b", tree.partition("```")[0])
    kept = [
        path.name
        for path in (ROOT / "moebius_lab").rglob("*.py")
        if path.name != "__init__.py" and "training" not in path.parts
    ]
    assert sorted(named) == sorted(kept)


def test_tracked_files_hold_no_machine_paths_and_stay_small():
    files = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, encoding="utf-8").stdout
    paths = [ROOT / name for name in files.split("\0") if name]
    assert paths and sum(path.stat().st_size for path in paths if path.exists()) < 40 * 2**20
    home = re.compile(rb"/(?:work|root|home)/[a-z]")
    for path in paths:
        if path.exists() and path.suffix in {".py", ".md", ".ipynb", ".json", ".toml", ".yml", ".txt", ""}:
            assert not home.search(path.read_bytes()), path


def test_no_tracked_file_holds_a_merge_that_was_not_finished():
    """Looked for are the marks at which git's two sides begin and end."""
    begin, end = "<" * 7, ">" * 7
    found = subprocess.run(
        ["git", "grep", "-l", "-E", f"^({begin}|{end}) "], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")


def test_the_readme_names_the_pages_and_pictures_of_docs_and_the_pictures_are_small():
    named = set(re.findall(r"docs/[\w.]+", (ROOT / "README.md").read_text(encoding="utf-8"))) - {"docs/"}
    kept = {f"docs/{path.name}" for path in (ROOT / "docs").iterdir()}
    pictures = {name for name in kept if not name.endswith(".md")}
    assert named == kept and len(pictures) == 6
    for name in pictures:
        assert min(Image.open(ROOT / name).size) > 200
    assert sum((ROOT / name).stat().st_size for name in pictures) <= LIMIT
