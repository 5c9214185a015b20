"""A constant has one home: no module, notebook or page states again what config.py states."""

import ast
import re

import nbformat
import pytest

from moebius_lab import config
from moebius_lab.notebook.report import SOURCE_FOLDER
from moebius_lab.page import bundle
from moebius_lab.provenance import PACKAGE

NAMES = {name for name, value in vars(config).items() if isinstance(value, int | float)}
TELLING = {config.BETA_START, config.BETA_END, config.STRENGTH, config.NOISE_OFFSET, config.RUNTIME_DOMAIN}
TELLING |= {network.vae.scaling_factor for network in config.NETWORKS.values()}
"""Values that nothing else has by chance, but the training's optimizers."""


def programs() -> dict[str, ast.Module]:
    """The Python outside config.py and the training, each notebook's cells as one program."""
    modules = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.name != "config.py" and "training" not in path.parts
    }
    notebooks = {
        path.name: "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        for path in SOURCE_FOLDER.glob("*.ipynb")
    }
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    return {name: compile(program, name, "exec", flags) for name, program in (modules | notebooks).items()}


def second_homes(tree: ast.Module) -> set[str]:
    """What a program states again: a number under a name of config.py, a telling value, a number of an opset."""
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, int | float)
        ):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name) and target.id in NAMES}
        elif isinstance(node, ast.Constant) and type(node.value) in (str, float) and node.value in TELLING:
            found.add(repr(node.value))
        elif isinstance(node, ast.Call):
            arguments = node.args[1:2] if ast.unparse(node.func).endswith("make_opsetid") else []
            arguments += [keyword.value for keyword in node.keywords if keyword.arg == "opset_version"]
            found |= {f"opset {a.value}" for a in arguments if isinstance(a, ast.Constant) and a.value == config.OPSET}
    return found


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("PREVIEW_SHARE = 0.1", True),
        ("x = helper.make_opsetid('', 18)", True),
        ("export(m, opset_version=18)", True),
        ("helper.make_opsetid('com.microsoft', 1)", True),
        ("solver_steps('ddim', 20, 0.99)", True),
        ("solver_steps(SOLVER, STEPS, STRENGTH)", False),
        ("helper.make_opsetid(RUNTIME_DOMAIN, 1)", False),
    ],
)
def test_a_second_home_is_found(line, bad):
    assert bool(second_homes(ast.parse(line))) == bad


def test_no_python_states_a_constant_again():
    assert {name: found for name, tree in programs().items() if (found := second_homes(tree))} == {}


def test_the_page_takes_constants_from_the_manifest():
    numbers = {repr(value) for value in TELLING if isinstance(value, float)}
    for path in bundle.WEB.rglob("*.js"):
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not NAMES & set(re.findall(r"\b(?:const|let)\s+([A-Z_]+)\b", code)), path.name
        assert not numbers & set(re.findall(r"(?<![\w.])\d+\.\d+", code)), path.name
    shares = {key: value for key, value in bundle.constants(config.SMALL).items() if key.endswith("_share")}
    assert shares == {"preview_share": config.PREVIEW_SHARE, "brush_share": config.BRUSH_SHARE}
