"""Every backend answers as PyTorch does; here those that need no export. In the loop: test_loop.py, test_browser_backend.py."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import moebius_lab
from moebius_lab.evidence.benchmark.contenders import TorchGraphs
from moebius_lab.inpainting.backends import LOOP_OUTPUTS, GraphBackend
from moebius_lab.model.sampler import solver_steps
from moebius_lab.notebook.browser_backend import BrowserRunner
from moebius_lab.notebook.workbench import Workbench, prepare
from moebius_lab.port.export import OUTPUT_NAMES, example_inputs, torch_graphs
from moebius_lab.port.sessions import OnnxBackend


class Modules(GraphBackend):
    """The least that a runtime has to define: the published modules, by the names of inputs and outputs, in arrays nobody may write into."""

    name = "modules"

    def __init__(self, bench: Workbench) -> None:
        self.config, self.modules = bench.config, torch_graphs(bench.net, bench.vae)

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert all(x.dtype == np.float32 for x in inputs.values())
        with torch.inference_mode():
            outputs = self.modules[graph](**{name: torch.tensor(x) for name, x in inputs.items()})
        named = zip(OUTPUT_NAMES[graph], outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
        arrays = {name: y.numpy() for name, y in named}
        for array in arrays.values():
            array.flags.writeable = False
        return arrays


@pytest.fixture(scope="module")
def bench(picture_files, tmp_path_factory) -> Workbench:
    return prepare("tiny", "deterministic", *map(str, picture_files), str(tmp_path_factory.mktemp("run")))


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")  # PyTorch warns of arrays that are read-only
@pytest.mark.parametrize(
    "make", [Modules, lambda bench: TorchGraphs(bench, "cpu", torch.float32)], ids=["modules", "benchmark"]
)
def test_a_runtime_that_defines_run_is_a_backend(bench, make):
    backend, published = make(bench), bench.torch_backend
    inputs = example_inputs(bench.config)
    image, latent = inputs["vae_encoder"]["image"], inputs["vae_decoder"]["latent"]
    step = (*list(inputs["step"].values())[:3], solver_steps("dpm++2m", 6)[2])
    pairs = [*zip(backend.encode(image), published.encode(image), strict=True)]
    pairs += [(backend.step(*step, guidance), published.step(*step, guidance)) for guidance in (2.0, 1.0)]
    pairs.append((backend.decode(latent), published.decode(latent)))
    for got, expected in pairs:
        assert got.dtype == torch.float32 and got.shape == expected.shape
        assert torch.allclose(got, expected, rtol=0, atol=1e-5)
        got += 1  # it belongs to the caller


def test_inputs_are_taken_by_name_in_any_order(bench):
    inputs = {name: x.numpy() for name, x in example_inputs(bench.config)["step"].items()}
    backend = TorchGraphs(bench, "cpu", torch.float32)
    turned = backend.run("step", dict(reversed(inputs.items())))["next_state"]
    assert np.array_equal(turned, backend.run("step", inputs)["next_state"])


def test_the_loop_reads_outputs_that_the_graphs_have():
    assert list(LOOP_OUTPUTS) == list(OUTPUT_NAMES)
    assert all(set(LOOP_OUTPUTS[graph]) <= set(names) for graph, names in OUTPUT_NAMES.items())


def test_the_three_methods_over_run_stand_once():
    package = Path(moebius_lab.__file__).parent
    places = {path: ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}
    classes = [(path, node) for path, tree in places.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = {
        (path.name, node.name): {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        for path, node in classes
    }
    having = {place for place, names in methods.items() if names >= {"encode", "step", "decode"}}
    assert having == {("backends.py", name) for name in ("Backend", "GraphBackend", "TorchBackend")}
    assert all(issubclass(kind, GraphBackend) for kind in (OnnxBackend, TorchGraphs, BrowserRunner))
