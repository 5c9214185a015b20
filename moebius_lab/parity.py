"""One comparison and one tolerance table, for every graph, precision and backend.

A float32 graph is held to a largest difference; one with narrower weights or arithmetic is not the same function any
more, and is held to a signal-to-noise ratio (PSNR, the peak being the reference's range).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from diffusers import AutoencoderKL
from torch import nn

from . import LabError
from .backends import GRAPHS, open_session
from .export import OUTPUT_NAMES, example_inputs, torch_graphs
from .unet import MoebiusNet

PICTURE = "picture"  # the row of the whole pipeline, beside the graphs' own

LARGEST_ERROR = {PICTURE: 1.0}  # fp32: in 8-bit levels for the picture, 1e-4 of the output's own unit for a graph
GRAPH_LARGEST_ERROR = 1e-4
UNTRAINED_SLACK = 10.0  # dB less is asked of a whole picture where the network was never trained: its loop amplifies rounding
LEAST_PSNR = {"fp16-storage": 60.0, "fp16": 40.0, "int8": 40.0, "int4": 10.0}  # dB; of a picture, inside the hole

Run = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""A backend for comparisons: graph name and inputs by name -> outputs by name."""


class ParityError(LabError):
    """A graph that does not compute what PyTorch computes."""


@dataclass(frozen=True)
class Row:
    """One line of the parity table."""

    graph: str
    output: str
    precision: str
    backend: str
    max_error: float
    mean_error: float
    relative_error: float  # norm of the difference over norm of the reference
    psnr_db: float  # peak is the reference's range, or 255 of a picture; infinite for equal arrays
    tolerance: str  # what is asked for, in words: "max 1e-04" or "40 dB"
    ok: bool


def compare(
    graph: str, output: str, precision: str, backend: str, got: np.ndarray, reference: np.ndarray, slack: float = 0.0
) -> Row:
    """Compare an output with PyTorch's in float32.

    Args:
        graph: one of `GRAPHS`, or `PICTURE`: 8-bit values, of which only those inside the hole are given where the
            precision is not fp32.
        output: the output's name.
        precision: "fp32" is held to `LARGEST_ERROR`, others to `LEAST_PSNR`.
        backend: what made `got`.
        slack: dB by which `LEAST_PSNR` is lowered.

    Raises:
        ParityError: the shapes differ.
    """
    if got.shape != reference.shape:
        raise ParityError(f"{graph}.{output} on {backend}: shape {got.shape} instead of {reference.shape}")
    a, b = got.astype(np.float64), reference.astype(np.float64)
    d = np.abs(a - b)
    mse = float(np.mean(d * d))
    peak = 255.0 if graph == PICTURE else max(float(b.max() - b.min()), 1e-30)
    psnr = math.inf if mse == 0 else 20 * math.log10(peak) - 10 * math.log10(mse)
    if precision == "fp32":
        limit = LARGEST_ERROR.get(graph, GRAPH_LARGEST_ERROR)
        tolerance, ok = f"max {limit:g}", bool(d.max() <= limit)  # False for NaN as well
    else:
        least = LEAST_PSNR[precision] - slack
        tolerance, ok = f"{least:g} dB", bool(psnr >= least)
    relative = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
    return Row(graph, output, precision, backend, float(d.max()), float(d.mean()), relative, psnr, tolerance, ok)


def reference_outputs(
    net: MoebiusNet, vae: AutoencoderKL, graphs: tuple[str, ...] = GRAPHS
) -> dict[str, dict[str, np.ndarray]]:
    """What PyTorch in float32 makes of `example_inputs`: for each of `graphs` its outputs by name."""
    modules, inputs, references = torch_graphs(net, vae), example_inputs(net.config), {}
    for graph in graphs:
        with torch.inference_mode():
            got = modules[graph](*inputs[graph].values())
        outputs = got if isinstance(got, tuple) else (got,)
        references[graph] = dict(zip(OUTPUT_NAMES[graph], (y.numpy() for y in outputs), strict=True))
    return references


def compare_graphs(
    references: dict[str, dict[str, np.ndarray]], net: MoebiusNet, run: Run, forms: dict[str, str], backend: str
) -> list[Row]:
    """Run every graph of `references` on `example_inputs` and compare each output.

    Args:
        references: from `reference_outputs`.
        net: the network, for its inputs' sizes.
        run: the backend.
        forms: the stored form of each graph, as `precision.per_graph` returns them.
        backend: what to call it in the table.
    """
    inputs = example_inputs(net.config)
    got = {graph: run(graph, {name: tensor.numpy() for name, tensor in inputs[graph].items()}) for graph in references}
    return compare_outputs(references, got, forms, backend)


def compare_outputs(references: dict, got: dict, forms: dict[str, str], backend: str) -> list[Row]:
    """Compare every output in `references`, by graph and name, with the one in `got`; see `compare_graphs`."""
    return [
        compare(graph, name, forms[graph], backend, got[graph][name], y)
        for graph, outputs in references.items()
        for name, y in outputs.items()
    ]


def onnx_run(paths: dict[str, Path]) -> Run:
    """ONNX Runtime on the CPU, on the graphs of `Workbench.stored`; each session lives for one call."""

    def run(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUT_NAMES[graph], open_session(paths[graph]).run(OUTPUT_NAMES[graph], inputs), strict=True))

    return run


def table(rows: list[Row]) -> pd.DataFrame:
    """The rows as a table, with a verdict column."""
    frame = pd.DataFrame([asdict(row) for row in rows])
    return frame.assign(verdict=frame.pop("ok").map({True: "ok", False: "DIFFERENT"}))


def require(rows: list[Row]) -> None:
    """Raise ParityError naming every row past its tolerance."""
    bad = [
        f"{r.graph}.{r.output} in {r.precision} on {r.backend}: max {r.max_error:.2e}, {r.psnr_db:.1f} dB; asked {r.tolerance}"
        for r in rows
        if not r.ok
    ]
    if bad:
        raise ParityError("not equal to PyTorch: " + "; ".join(bad))


# -- where the error is made -------------------------------------------------------------------------------------------


def block_errors(net: MoebiusNet, step_graph: Path) -> pd.Series:
    """Relative error of every ResNet, transformer and sampler of the denoiser, in ONNX Runtime, in the network's order.

    The exporter notes which module each node comes from; the last node of a block is made an output of the graph, and
    the same block's output in PyTorch is what it is compared with. Errors of earlier blocks are in those of later ones.
    """
    expected = _published_blocks(net)
    model = onnx.load(str(step_graph))
    ends = _last_tensors(model, list(expected))
    for name in ends.values():
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    inputs = {name: tensor.numpy() for name, tensor in example_inputs(net.config)["step"].items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blocks.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="blocks.data")
        got = dict(zip(ends, open_session(path).run(list(ends.values()), inputs), strict=True))
    errors = {}
    for block, y in expected.items():
        reference = y[-got[block].shape[0] :].double()  # a batch of one stands for two equal halves
        difference = torch.from_numpy(got[block]).double() - reference
        errors[block] = float(torch.linalg.norm(difference) / torch.linalg.norm(reference))
    return pd.Series(errors, name="relative error")


def _published_blocks(net: MoebiusNet) -> dict[str, torch.Tensor]:
    """Each block's output in PyTorch, under the name that it has in `graph.NoiseGraph`."""
    outputs: dict[str, torch.Tensor] = {}
    hooks = []
    for side, blocks in (("down", net.diff_model.down_blocks), ("up", net.diff_model.up_blocks)):
        for i, block in enumerate(blocks):
            samplers = block.downsamplers if side == "down" else block.upsamplers
            for kind, modules in (("resnets", block.resnets), ("transformers", block.attentions), ("samplers", samplers)):
                for j, module in enumerate(modules):
                    hooks.append(_keep_output(module, outputs, f"noise.{side}.{i}.{kind}.{j}"))
    inputs = example_inputs(net.config)["step"]
    with torch.inference_mode():
        torch_graphs(net, nn.Module())["step"](*inputs.values())
    for hook in hooks:
        hook.remove()
    return outputs


def _keep_output(module: nn.Module, outputs: dict[str, torch.Tensor], name: str):
    return module.register_forward_hook(lambda _module, _inputs, y: outputs.update({name: y.clone()}))


def _last_tensors(model: onnx.ModelProto, blocks: list[str]) -> dict[str, str]:
    """The name of the tensor that each block of modules ends with, by the scopes that the exporter notes at each node."""
    ends = {}
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        for block in blocks:
            if f"'{block}'" in notes.get("pkg.torch.onnx.name_scopes", ""):
                ends[block] = node.output[0]
    return ends
