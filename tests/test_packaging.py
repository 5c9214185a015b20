import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from PIL import Image

from moebius_lab.pictures import LIMIT

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>!~\[; ]", name)[0]).lower()


def test_every_dependency_is_pinned():
    pinned = {normal(name) for name in PINS}
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    missing = {normal(name) for name in PROJECT["dependencies"] + extras} - pinned
    assert not missing
    assert PINS["torch"] == "2.13.0" and "torch==2.13.0" in PROJECT["dependencies"]
    assert not {"torchvision", "timm", "transformers"} & pinned


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    extras = ",".join(sorted(PROJECT["optional-dependencies"]))
    assert pip == ["-c constraints.txt", f"-e .[{extras}]"]
    assert "python=3.11" in environment["dependencies"] and PROJECT["requires-python"] == ">=3.11"
    assert f"'.[{extras}]'" in (ROOT / "Makefile").read_text()


def test_code_is_linted():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_readme_tree_names_every_module():
    readme = (ROOT / "README.md").read_text()
    missing = [path.name for path in (ROOT / "moebius_lab").glob("*.py") if path.name not in readme]
    assert not [name for name in missing if name != "__init__.py"]


def test_tracked_files_hold_no_machine_paths_and_stay_small():
    files = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True).stdout
    paths = [ROOT / name for name in files.split("\0") if name]
    assert paths and sum(path.stat().st_size for path in paths if path.exists()) < 40 * 2**20
    home = re.compile(rb"/(?:work|root|home)/[a-z]")
    for path in paths:
        if path.exists() and path.suffix in {".py", ".md", ".ipynb", ".json", ".toml", ".yml", ".txt", ""}:
            assert not home.search(path.read_bytes()), path


def test_the_readme_s_pictures_are_there_and_small():
    named = set(re.findall(r"docs/[\w.]+", (ROOT / "README.md").read_text())) - {"docs/"}
    kept = {f"docs/{path.name}" for path in (ROOT / "docs").iterdir()}
    assert named == kept and len(kept) == 6
    for name in kept:
        assert min(Image.open(ROOT / name).size) > 200
    assert sum((ROOT / name).stat().st_size for name in kept) <= LIMIT
