"""The folders are dependency lists: each imports only from those above it, and nothing imports in a circle."""

import ast
import re
from pathlib import Path

import pytest

import moebius_lab
from moebius_lab.page.modules import ENGINE, WEB, page_files
from moebius_lab.provenance import package_files

PACKAGE = Path(moebius_lab.__file__).parent
ROOMS = ("core", "model", "inpainting", "port", "page", "evidence", "notebook", "training", "commands")
"""From top to bottom. The core is what lies in the package itself; the commands may import everything."""
COMMANDS = {"__main__"}


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, module: str, known: set[str]) -> set[str]:
    """Modules of the package that a module's source imports, in whatever form, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {module_of(alias.name.split(".")[1:], known) for alias in node.names if is_own(alias.name)}
        elif isinstance(node, ast.ImportFrom) and (node.level or is_own(node.module)):
            here = module.split(".")[: -node.level] if node.level else []
            named = node.module.split(".") if node.module else []
            base = here + (named if node.level else named[1:])
            found |= {module_of([*base, alias.name], known) for alias in node.names}
    return found & known


def is_own(name: str) -> bool:
    return name.split(".")[0] == PACKAGE.name


def module_of(parts: list[str], known: set[str]) -> str:
    """The module that such an import runs: one of that name, one that has the name in it, or the folder's own."""
    whole, base = ".".join(parts), ".".join(parts[:-1])
    return next((name for name in (whole, base) if name in known), ".".join([*parts[:-1], "__init__"]))


def room(module: str) -> int:
    folder, dot, _ = module.partition(".")
    return ROOMS.index(folder if dot else "commands" if module in COMMANDS else "core")


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    return {module: imports(source, module, set(sources)) for module, source in sources.items()}


def climbs(edges: dict[str, set[str]]) -> list[str]:
    return [f"{a} imports {b}" for a, targets in edges.items() for b in sorted(targets) if room(b) > room(a)]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, in order; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for target in sorted(edges[module] - {module}):
            if found := walk(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in edges if (found := walk(module, []))), [])


def test_imports_go_down_only_and_in_no_circle():
    sources = {module: path.read_text(encoding="utf-8") for module, path in modules().items()}
    edges = graph(sources)
    assert sum(map(len, edges.values())) > 100  # the graph is really drawn
    assert climbs(edges) == []
    assert circle(edges) == []


def test_a_climb_and_a_circle_are_seen():
    sources = {
        "config": "",
        "model.unet": "from ..page import serve",
        "page.serve": "from .bundle import x",
        "page.bundle": "",
    }
    assert climbs(graph(sources)) == ["model.unet imports page.serve"]
    assert circle(graph(sources)) == []
    turned = sources | {"page.bundle": "def f():\n    from . import serve"}
    assert sorted(circle(graph(turned))) == ["page.bundle", "page.serve"]


@pytest.mark.parametrize(
    "line",
    [
        "from ..page import serve",
        "from ..page.serve import Server",
        "from moebius_lab.page import serve",
        "from moebius_lab.page.serve import Server",
        "import moebius_lab.page.serve",
        "def f():\n    import moebius_lab.page.serve as server",
    ],
)
def test_an_import_is_seen_in_whatever_form(line):
    assert imports(line, "model.unet", {"model.unet", "page.serve"}) == {"page.serve"}


@pytest.mark.parametrize("line", ["import torch", "from torch import nn", "from moebius_laboratory.page import serve"])
def test_what_others_wrote_is_no_module_of_the_package(line):
    assert imports(line, "model.unet", {"model.unet", "page.serve", "torch"}) == set()


def test_every_folder_says_in_a_line_what_it_is():
    for folder in {path.parent for path in modules().values()} - {PACKAGE}:
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert doc and len(doc.splitlines()[0]) > 20, folder


# -- the page's folders ------------------------------------------------------------------------------------------------

RUNTIME = "onnxruntime-web"
"""Whose types the engine names; the module itself comes from a URL."""


def specifiers(source: str) -> set[str]:
    """What a JavaScript module imports or takes types from, in whatever form that names it."""
    return set(re.findall(r"""\b(?:from|import)\s*\(?\s*['"`]([^'"`\s]+)['"`]""", source))


@pytest.mark.parametrize(
    "source",
    [
        "import { a } from './x.js';",
        "import {\n  a,\n} from './x.js';",
        "import './x.js';",
        "export * from './x.js';",
        "await import('./x.js')",
        "/** @typedef {import('./x.js').X} X */",
        "/** @import { X } from './x.js' */",
        'import a from "./x.js";',
    ],
)
def test_an_import_of_javascript_is_seen_in_whatever_form(source):
    assert specifiers(source) == {"./x.js"}


def targets(name: str) -> set[Path]:
    """The files that a module of the page imports or takes types from, other than the runtime's types."""
    source = (WEB / name).read_text(encoding="utf-8")
    found = {(WEB / name).parent.joinpath(other).resolve() for other in specifiers(source) - {RUNTIME}}
    return {path.with_suffix(".ts") if path.with_suffix(".ts") in TYPES else path for path in found}


TYPES = {path.resolve() for path in WEB.rglob("types.ts")}
"""Which no browser loads, so that they are no files of the page; modules name them with the ending of modules."""


def test_the_engine_imports_only_its_neighbours():
    """It is sent to a worker or a notebook's page as that folder: nothing else of the page is there."""
    modules = [name for name in page_files() if name.startswith(ENGINE)]
    folder = {WEB.resolve() / name for name in modules} | {WEB.resolve() / ENGINE / "types.ts"}
    edges = {name: targets(name) for name in modules}
    assert sum(map(len, edges.values())) > 20  # the graph is really drawn
    assert {name: found - folder for name, found in edges.items() if found - folder} == {}


def test_the_interface_imports_modules_that_there_are():
    files = {WEB.resolve() / name for name in page_files()} | TYPES
    edges = {name: targets(name) for name in page_files() if name.endswith(".js") and not name.startswith(ENGINE)}
    assert any("engine" in path.parts for found in edges.values() for path in found)
    assert {name: found - files for name, found in edges.items() if found - files} == {}


def test_what_dates_a_result_of_the_page_holds_both_folders():
    assert {WEB / name for name in page_files()} < set(package_files())
    assert {Path(name).parent.as_posix() for name in page_files()} == {
        ".",
        "engine",
        "engine/kernels",
        "engine/recorded",
        "interface",
        "measuring",
    }
