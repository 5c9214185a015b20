"""One comparison and one tolerance table, for every graph, precision and backend.

A float32 graph is held to a largest difference. One with narrower weights or arithmetic is no longer the same function, and
is held to a signal-to-noise ratio instead (PSNR, with the reference's range as the peak).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from diffusers import AutoencoderKL
from torch import nn

from .. import LabError
from ..config import GRAPHS, PRECISIONS, RUNS
from ..errors import reasons
from ..model.unet import MoebiusNet
from ..port.export import OUTPUT_NAMES, example_feeds, example_inputs, torch_graphs
from ..port.passes import SCOPES
from ..port.precision import per_graph
from ..port.sessions import open_session, webgpu_session
from .inventory import graph_gflop
from .loops import PYTORCH, Loop

CPU = "ONNX Runtime, CPU"
LOOP = "loop"  # rows of the latents on the way
PICTURE = "picture"  # the row of the whole pipeline, in addition to those of the graphs
BROWSER_SECONDS = 180.0  # for one run of a graph in a browser; beyond it the row is left out, and the reason given

LARGEST_ERROR = {PICTURE: 1.0}  # fp32: in 8-bit levels for the picture, 1e-4 of the output's own unit for a graph
GRAPH_LARGEST_ERROR = 1e-4
UNTRAINED_SLACK = (
    10.0  # dB less is asked of a whole picture where the network was never trained: its loop amplifies rounding
)

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


def exact(precision: str) -> bool:
    """Whether graphs in this precision are the same function as PyTorch's in float32, except for the order of sums."""
    return PRECISIONS[precision].least_psnr is None


def compare(
    graph: str, output: str, precision: str, backend: str, got: np.ndarray, reference: np.ndarray, slack: float = 0.0
) -> Row:
    """Compare an output with PyTorch's in float32.

    Args:
        graph: one of `config.RUNS`; or `LOOP`: latents, whose error limit grows with the largest of them; or `PICTURE`:
            8-bit values, only those inside the hole if the precision is not fp32.
        output: the output's name.
        precision: held to its `least_psnr`, or to `LARGEST_ERROR` if it has none.
        backend: what made `got`.
        slack: dB by which `least_psnr` is lowered.

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
    if exact(precision):
        limit = LARGEST_ERROR.get(graph, GRAPH_LARGEST_ERROR)
        if graph == LOOP:  # latents of an untrained network leave unit variance far behind
            limit *= max(1.0, float(np.abs(b).max()))
        tolerance, ok = f"max {limit:.2g}", bool(d.max() <= limit)  # False for NaN as well
    else:
        least = PRECISIONS[precision].least_psnr - slack
        tolerance, ok = f"{least:g} dB", bool(psnr >= least)
    relative = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
    return Row(graph, output, precision, backend, float(d.max()), float(d.mean()), relative, psnr, tolerance, ok)


def reference_outputs(
    net: MoebiusNet, vae: AutoencoderKL, graphs: tuple[str, ...] = GRAPHS
) -> dict[str, dict[str, np.ndarray]]:
    """What PyTorch in float32 makes of `example_inputs`: for each of `config.RUNS` of these graphs its outputs by name."""
    modules, inputs, references = torch_graphs(net, vae), example_inputs(net.config), {}
    for run, graph in runs_of(graphs).items():
        with torch.inference_mode():
            got = modules[graph](*inputs[run].values())
        outputs = got if isinstance(got, tuple) else (got,)
        references[run] = dict(zip(OUTPUT_NAMES[graph], (y.numpy() for y in outputs), strict=True))
    return references


def runs_of(graphs: Iterable[str]) -> dict[str, str]:
    """The entries of `config.RUNS` for these graphs: the step is run both guided and unguided."""
    return {run: graph for run, graph in RUNS.items() if graph in graphs}


def compare_graphs(
    references: dict[str, dict[str, np.ndarray]], net: MoebiusNet, run: Run, forms: dict[str, str], backend: str
) -> list[Row]:
    """Run every graph of `references`, in each of its variants, on `example_inputs` and compare each output.

    Args:
        references: from `reference_outputs`.
        net: the network, for its inputs' sizes.
        run: the backend.
        forms: the stored form of each graph, as `precision.per_graph` returns them.
        backend: its name in the table.
    """
    feeds = example_feeds(net.config)
    got = {way: run(RUNS[way], feeds[way]) for way in references}
    return compare_outputs(references, got, forms, backend)


def compare_outputs(references: dict, got: dict, forms: dict[str, str], backend: str) -> list[Row]:
    """Compare every output in `references`, by `config.RUNS` and name, with the one in `got`; see `compare_graphs`."""
    return [
        compare(run, name, forms[RUNS[run]], backend, got[run][name], y)
        for run, outputs in references.items()
        for name, y in outputs.items()
    ]


def compare_precisions(
    references: dict[str, dict[str, np.ndarray]],
    net: MoebiusNet,
    stored: Callable[[str], dict[str, Path]],
    precisions: tuple[str, ...],
    make_run: Callable[[dict[str, Path]], Run],
    backend: str,
) -> list[Row]:
    """Compare every graph in every form that `precisions` need; a form that two of them share runs once.

    Args:
        references: from `reference_outputs`.
        net: the network, for its inputs' sizes.
        stored: `Graphs.stored`.
        precisions: see `precision.per_graph`.
        make_run: `onnx_run` or `webgpu_run`.
        backend: its name in the table.
    """
    rows, done = [], set()
    for precision in precisions:
        forms = {graph: form for graph, form in per_graph(precision).items() if (graph, form) not in done}
        done |= set(forms.items())
        expected = {run: references[run] for run in runs_of(forms)}
        rows += compare_graphs(expected, net, make_run(stored(precision)), forms, backend)
    return rows


def compare_in_time(
    references: dict[str, dict[str, np.ndarray]],
    net: MoebiusNet,
    run: Run,
    forms: dict[str, str],
    backend: str,
    seconds: float = BROWSER_SECONDS,
) -> tuple[list[Row], dict[str, str]]:
    """`compare_graphs` for backends that may take minutes: the step's time and each graph's arithmetic decide what runs.

    Args:
        seconds: allowed for one run of a graph. The step always runs.

    Returns:
        The rows, and the reason for each graph that was left out.
    """
    gflop = graph_gflop(net.config)
    start = time.perf_counter()
    rows = compare_graphs({"step": references["step"]}, net, run, forms, backend)
    a_step, left_out = time.perf_counter() - start, {}
    for graph in (graph for graph in references if graph != "step"):
        expected = a_step * gflop[graph] / gflop["step"]
        if expected <= seconds:
            rows += compare_graphs({graph: references[graph]}, net, run, forms, backend)
        else:
            left_out[graph] = (
                f"not run: the step took {a_step:.0f} s, and by its arithmetic {graph} would take {expected:.0f} s, "
                f"more than the {seconds:.0f} s allowed here"
            )
    return rows, left_out


def onnx_run(paths: dict[str, Path]) -> Run:
    """ONNX Runtime on the CPU, on the graphs of `Graphs.stored`; each session lives for one call."""
    return _native_run(paths, open_session)


def webgpu_run(paths: dict[str, Path]) -> Run:
    """ONNX Runtime's native WebGPU provider; without one, a call raises LabError, as `sessions.webgpu_session` does."""
    return _native_run(paths, webgpu_session)


def _native_run(paths: dict[str, Path], open_: Callable[[Path], onnxruntime.InferenceSession]) -> Run:
    def run(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUT_NAMES[graph], open_(paths[graph]).run(OUTPUT_NAMES[graph], inputs), strict=True))

    return run


def compare_loops(loops: dict[str, Loop], hole: np.ndarray, slack: float = 0.0) -> list[Row]:
    """Compare the sampling loop of ONNX Runtime with PyTorch's in fp32, and narrower precisions with fp32.

    Args:
        loops: `Loops.loop` of "PyTorch", "fp32" and any other precision, all from the same noise.
        hole: bool (H, W): the pixels in which a narrower precision's picture is compared.
        slack: see `compare`.

    Returns:
        For each precision, the latents after the first and last steps, and the picture.
    """
    rows = []
    for form, loop in loops.items():
        if form == PYTORCH:
            continue
        against, where = (PYTORCH, ...) if exact(form) else ("fp32", hole)
        reference = loops[against]
        for step in (1, loop.steps):
            output, got, expected = f"latents after step {step}", loop.latents[step - 1], reference.latents[step - 1]
            rows.append(compare(LOOP, output, form, CPU, got, expected, slack))
        output = "picture" if exact(form) else "picture's hole"
        rows.append(
            compare(PICTURE, f"{output}, against {against}", form, CPU, loop.picture[where], reference.picture[where], slack)
        )
    return rows


def table(rows: list[Row]) -> pd.DataFrame:
    """The rows as a table, with a verdict column."""
    frame = pd.DataFrame([asdict(row) for row in rows])
    return frame.assign(verdict=frame.pop("ok").map({True: "ok", False: "DIFFERENT"}))


def wide_table(rows: list[Row]) -> pd.DataFrame:
    """The rows laid out for reading: graphs, outputs and backends down, precisions across.

    A cell shows what was measured and what was required: for fp32 the largest difference, else the signal-to-noise ratio.
    """
    forms = [form for form in PRECISIONS if any(row.precision == form for row in rows)]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row.graph, row.output, row.backend), {})[row.precision] = _measured(row)
    order = [
        list(dict.fromkeys(names)) for names in ((*RUNS, LOOP, PICTURE), *zip(*((row.output, row.backend) for row in rows)))
    ]
    index = pd.MultiIndex.from_tuples(
        sorted(cells, key=lambda key: [known.index(name) for known, name in zip(order, key)]),
        names=["graph", "output", "on"],
    )
    heads = {form: f"{form}, {'largest difference' if exact(form) else 'dB'}" for form in forms}
    return pd.DataFrame([[cells[key].get(form, "") for form in forms] for key in index], index, list(heads.values()))


def _measured(row: Row) -> str:
    asked = row.tolerance.removeprefix("max ").removesuffix(" dB")
    got, sign = (f"{row.max_error:.2g}", ("≤", ">")) if exact(row.precision) else (f"{row.psnr_db:.1f}", ("≥", "<"))
    # no-break spaces: a narrow page breaks between columns, not inside a cell
    return f"{got}\u00a0{sign[0]}\u00a0{asked}" if row.ok else f"DIFFERENT: {got}\u00a0{sign[1]}\u00a0{asked}"


def answer(rows: list[Row], missing: dict[str, str]) -> str:
    """Whether it is still the same model, as far as `rows` show it, in Markdown.

    Args:
        rows: all that was compared.
        missing: what was not compared, and why.
    """
    same = [row for row in rows if exact(row.precision) and row.graph in RUNS]
    bad = [row for row in rows if not row.ok]
    parts = []
    if same:
        worst = {row.backend: max(r.max_error for r in same if r.backend == row.backend) for row in same}
        where = ", ".join(f"{error:.1e} ({backend})" for backend, error in worst.items())
        verdict = "no" if any(row in bad for row in same) else "yes"
        parts.append(f"In float32, {verdict}: the graphs differ from PyTorch by at most {where}.")
    for row in rows:
        if row.graph == PICTURE and exact(row.precision):
            parts.append(f"The filled picture differs by at most {row.max_error:.0f} of 255 levels ({row.backend}).")
    least: dict[str, float] = {}
    for row in rows:
        if not exact(row.precision) and row.graph in GRAPHS:
            least[row.precision] = min(least.get(row.precision, math.inf), row.psnr_db)
    if least:
        parts.append(
            "Narrower weights make another function: "
            + ", ".join(f"{form} at least {db:.0f} dB" for form, db in least.items())
            + "."
        )
    if bad:
        parts.append(f"**{len(bad)} of {len(rows)} comparisons are past what was asked.**")
    if missing:
        parts.append(f"**Not compared here:** {reasons(missing)}.")
    return " ".join(parts)


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

    The exporter notes which module each node comes from. The last node of a block becomes an output of the graph and is
    compared with the same block's output in PyTorch. A block's error includes those of the blocks before it.
    """
    expected = _published_blocks(net)
    model = onnx.load(str(step_graph))
    ends = _last_tensors(model, list(expected))
    for name in ends.values():
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    inputs = example_feeds(net.config)["step"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blocks.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="blocks.data")
        got = dict(zip(ends, open_session(path).run(list(ends.values()), inputs), strict=True))
    errors = {}
    for block, y in expected.items():
        reference = y[-got[block].shape[0] :].double()  # a batch of one represents two equal halves
        difference = torch.from_numpy(got[block]).double() - reference
        errors[block] = float(torch.linalg.norm(difference) / torch.linalg.norm(reference))
    return pd.Series(errors, name="relative error")


def _published_blocks(net: MoebiusNet) -> dict[str, torch.Tensor]:
    """Each block's output in PyTorch, under the name that it has in `denoiser.NoiseGraph`."""
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
    """The name of the tensor that each block of modules ends with, from the scopes that the exporter notes at each node."""
    ends = {}
    for node in model.graph.node:
        scopes = next((note.value for note in node.metadata_props if note.key == SCOPES), "")
        for block in blocks:
            if f"'{block}'" in scopes:
                ends[block] = node.output[0]
    return ends
