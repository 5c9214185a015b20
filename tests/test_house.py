"""The folders are dependency lists: each imports only from those above it, and nothing imports in a circle."""

import ast
from pathlib import Path

import moebius_lab

PACKAGE = Path(moebius_lab.__file__).parent
ROOMS = ("core", "model", "inpainting", "port", "page", "evidence", "notebook", "training", "commands")
"""From top to bottom. The core is what lies in the package itself; the commands may import everything."""
COMMANDS = {"__main__"}


def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, module: str, known: set[str]) -> set[str]:
    """Modules of the package that a module's source imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = module.split(".")[: -node.level]
            base = package + (node.module.split(".") if node.module else [])
            for name in node.names:
                whole = ".".join([*base, name.name])
                found.add(
                    whole if whole in known else ".".join(base) if ".".join(base) in known else ".".join([*base, "__init__"])
                )
    return found & known


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


def test_every_folder_says_in_a_line_what_it_is():
    for folder in {path.parent for path in modules().values()} - {PACKAGE}:
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert doc and len(doc.splitlines()[0]) > 20, folder
