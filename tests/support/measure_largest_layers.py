"""The largest layers of the published decoder at full size, on a device with WebGPU's default limits: Firefox on lavapipe.

    PYTHONPATH=tests/support python tests/support/measure_largest_layers.py build/largest

The last upsampling, whose result takes 256 MiB, and the ResNet block that reads it, with deterministic weights: our graph, which has it in
two parts, against the published form in PyTorch. Squares of 8 x 8 px of the input are of one value, and one pixel of every such square of
the output is compared, so that little has to pass the browser's remote control. A measurement, no test: it takes minutes.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from moebius_lab.config import GRAPHS, LARGEST_BINDING, MOEBIUS, OPSET, TINY, WEBGPU_DEFAULTS
from moebius_lab.files import write_json
from moebius_lab.model.checkpoint import deterministic_weights, make_vae
from moebius_lab.page.browser import Browser
from moebius_lab.page.bundle import write_bundle
from moebius_lab.port.autoencoder import rewritten
from moebius_lab.port.graphs import Graphs
from moebius_lab.port.needs import graph_needs
from moebius_lab.port.passes import after_export
from moebius_lab.port.precision import STAMP, store

SQUARE = 8  # px


class LargestLayers(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.upsample, self.resnet = decoder.up_blocks[2].upsamplers[0], decoder.up_blocks[3].resnets[0]

    def forward(self, x):
        """(1, 256, 32, 32) -> (1, 128, 64, 64), of layers at 256 and 512 px."""
        x = F.interpolate(x, scale_factor=SQUARE, mode="nearest")
        return self.resnet(self.upsample(x), None)[:, :, ::SQUARE, ::SQUARE]


def stored(module: nn.Module, x: torch.Tensor, folder: Path, name: str) -> Path:
    """The module as the page's graphs are made."""
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (x,),
            input_names=["x"],
            output_names=["y"],
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    after_export(program.model)
    source = folder / "exported" / f"{name}.onnx"
    source.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(source), external_data=True)
    files = store(source, "fp32", folder / name)
    write_json(folder / name / STAMP, {"files": [asdict(file) for file in files]})
    return folder / name / f"{name}.onnx"


def nothing(folder: Path) -> Path:
    """A graph that takes no time, in place of those that a page loads."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    body = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "nothing", ends[:1], ends[1:])
    source = folder / "exported" / "nothing.onnx"
    source.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), source)
    files = store(source, "fp32", folder / "nothing")
    write_json(folder / "nothing" / STAMP, {"files": [asdict(file) for file in files]})
    return folder / "nothing" / "nothing.onnx"


def main(folder: Path, engine: str = "firefox") -> None:
    vae = make_vae(MOEBIUS)
    vae.load_state_dict(deterministic_weights(vae))
    x = torch.randn(1, 256, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = LargestLayers(vae.decoder)(x).numpy()
    path = stored(LargestLayers(rewritten(vae).decoder).eval(), x, folder, "largest")
    print("largest tensor", graph_needs(path, {}).largest, "of", LARGEST_BINDING, flush=True)
    graphs = dict.fromkeys(GRAPHS, nothing(folder)) | {"largest": path}
    manifest = write_bundle(Graphs(TINY, "deterministic", folder), folder / "bundle", ("fp32",), graphs=graphs)
    print("needs", json.dumps(manifest["precisions"]["fp32"]["needs"]), flush=True)
    with Browser(folder / "bundle", "webgpu", "fp32", "software", engine=engine) as browser:
        began = time.perf_counter()
        got = browser.run("largest", {"x": x.numpy()})["y"]
        seconds = time.perf_counter() - began
        print(browser.name, browser.loaded["device"], browser.loaded["limits"], f"{seconds:.0f} s", flush=True)
        assert all(browser.loaded["limits"][name] == value for name, value in WEBGPU_DEFAULTS.items())
    print(f"largest difference {abs(got - expected).max():.1e} of values up to {abs(expected).max():.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
