"""What a result was made from: the sources that a module's imports lead to, and the versions of the libraries that they use.

    MADE_BY = made_by(__name__)  # at the end of a module that makes what is kept

No list is kept by hand: an import that is added to a module is followed from then on.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from .files import digest_of

PACKAGE = Path(__file__).parent


def made_by(module: str) -> dict[str, object]:
    """What the results of a module depend on besides its inputs: its sources' digest, and versions by library.

    Called while the module is loaded: what runs later is the code of then, also where a file is edited meanwhile.

    Args:
        module: its `__name__`.
    """
    paths = sources((module.removeprefix(f"{PACKAGE.name}."),))
    return {"code": digest_of(paths, PACKAGE), "libraries": libraries(paths)}


def facts_digest(*facts: object) -> str:
    """SHA-256 of anything that JSON can say."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# -- sources -----------------------------------------------------------------------------------------------------------


def sources(modules: tuple[str, ...], package: Path = PACKAGE) -> list[Path]:
    """The files of `modules` and of all modules of the package that they import, directly or not, in functions too.

    Args:
        modules: names below the package, as in "graph" or "training.vae".
        package: the package's folder.
    """
    found: set[Path] = set()
    waiting = [_file_of(package, name.split(".")) for name in modules]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _own_imports(path, package)
    return sorted(found)


def _file_of(package: Path, parts: list[str]) -> Path | None:
    """The file of a module below the package; None where there is none of that name."""
    path = package.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if parts and file.is_file()), None)


def _own_imports(path: Path, package: Path) -> set[Path]:
    """The files that a module's imports run: the modules, and the packages that they lie in."""
    here = list(path.relative_to(package).parent.parts)
    names: list[list[str]] = []
    for node in _imports(path.read_bytes()):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            elif node.module and node.module.split(".")[0] == package.name:
                base = node.module.split(".")[1:]
            else:
                continue
            names += [base, *(base + [alias.name] for alias in node.names)]
        else:
            names += [parts[1:] for alias in node.names if (parts := alias.name.split("."))[0] == package.name]
    files = {package / "__init__.py"}
    for parts in names:
        files |= {file for end in range(1, len(parts) + 1) if (file := _file_of(package, parts[:end]))}
    return files


@cache
def _imports(source: bytes) -> dict[ast.Import | ast.ImportFrom, bool]:
    """Every import of a Python source, and whether it stands at the top, where loading runs it."""
    tree = ast.parse(source)
    top = set(tree.body)
    return {node: node in top for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}


def package_files() -> list[Path]:
    """Every file of the package as it is shipped: Python, the page, the demo."""
    return [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


# -- libraries ---------------------------------------------------------------------------------------------------------


def libraries(paths: list[Path], optional: bool = False) -> dict[str, str]:
    """The version of each library that these files import when they are loaded, and of Python.

    Args:
        paths: Python files.
        optional: also what they import later, in a function, where it may be missing.
    """
    names = {name for path in paths for name in _libraries_of(path, optional)}
    return {"python": platform.python_version()} | {name: library_version(name) for name in sorted(names)}


def _libraries_of(path: Path, optional: bool) -> set[str]:
    """First parts of the names that a file imports, without Python's own and the package's."""
    found: set[str] = set()
    for node, at_once in _imports(path.read_bytes()).items():
        if not at_once and not optional:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {PACKAGE.name}


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def library_version(name: str) -> str:
    """The version of the distribution that brings a module, or of the distribution of that name; "none" without one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "; ".join(version(distribution) for distribution in sorted(set(_distributions().get(name, ())))) or "none"
