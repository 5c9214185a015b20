"""What a network is made of: parameters, arithmetic, activations and operators, by part."""

from __future__ import annotations

import time
from collections import Counter

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from ..config import CONDITION_TOKENS, INPUT_CHANNELS, RUNS, NetworkConfig
from ..model.checkpoint import make_vae
from ..model.unet import MoebiusNet
from ..port.export import example_inputs, torch_graphs

PARTS = {
    "MixFFN": (".ff",),
    "self-lambda": (".attn1",),
    "cross-lambda": (".attn2",),
    "ResNet blocks": (".resnets.",),
    "samplers": (".downsamplers.", ".upsamplers."),
    "proj_in, proj_out": (".proj_in", ".proj_out"),
}
"""Name of each part and the pieces of module names that belong to it; the first that occurs decides."""
OTHER = "embeddings, norms, first and last convolution"


def part_of(name: str) -> str:
    """The part that a parameter or module name belongs to."""
    for part, pieces in PARTS.items():
        if any(piece in name for piece in pieces):
            return part
    return OTHER


class _Recorder(TorchDispatchMode):
    """Counts operators and the bytes that they return, by part."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = ModuleTracker()
        self.operators: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators[func.overloadpacket.__name__] += 1
        part = part_of(max(self.tracker.parents, key=len) + ".")
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                size = tensor.numel() * tensor.element_size()
                self.bytes[part] += size
                self.largest[part] = max(self.largest[part], size)
        return out


def network_inventory(config: NetworkConfig, batch: int = 2) -> tuple[pd.DataFrame, Counter[str]]:
    """Take stock of a denoiser without weights or arithmetic, on PyTorch's meta device.

    Args:
        config: the network.
        batch: pictures at once; 2 is one guided step.

    Returns:
        A table with a row per part: parameters, share, weights (MB, float32), GFLOP a step (multiply-adds count two;
        convolutions and matrix products only), activations written and the largest of them (MB, float32); and how often
        each PyTorch operator runs.
    """
    with torch.device("meta"):
        net = MoebiusNet(config).eval()
        s = config.latent_size
        inputs = (
            torch.empty(batch, INPUT_CHANNELS, s, s),
            torch.empty(batch),
            torch.empty(batch, CONDITION_TOKENS, dtype=torch.int64),
        )
    parameters = Counter()
    for name, parameter in net.named_parameters():
        parameters[part_of(name)] += parameter.numel()
    recorder, flops = _Recorder(), FlopCounterMode(display=False)
    with torch.no_grad():
        with flops:
            net(*inputs)
        with recorder.tracker, recorder:
            net(*inputs)
    work = _flops_by_part(flops)
    total = sum(parameters.values())
    rows = [
        {
            "part": part,
            "parameters": parameters[part],
            "share": parameters[part] / total,
            "weights_MB": parameters[part] * 4 / 1e6,
            "GFLOP": work[part] / 1e9,
            "activations_MB": recorder.bytes[part] / 1e6,
            "largest_MB": recorder.largest[part] / 1e6,
        }
        for part in [*PARTS, OTHER]
    ]
    return pd.DataFrame(rows).set_index("part"), recorder.operators


def graph_gflop(config: NetworkConfig) -> dict[str, float]:
    """GFLOP of each of `config.RUNS` in its published form: convolutions and matrix products, multiply-adds count two."""
    with torch.device("meta"):
        modules = torch_graphs(MoebiusNet(config), make_vae(config))
    work = {}
    for run, inputs in example_inputs(config).items():
        with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
            modules[RUNS[run]](*(tensor.to("meta") for tensor in inputs.values()))
        work[run] = counter.get_total_flops() / 1e9
    return work


def least_step_seconds(config: NetworkConfig) -> float:
    """Seconds that a guided step takes here at least: its arithmetic at the rate of a matrix product, the best of five."""
    a, seconds = torch.ones(1024, 1024), []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return graph_gflop(config)["step"] * min(seconds) / (2 * 1024**3 / 1e9)


def _flops_by_part(counter: FlopCounterMode) -> Counter[str]:
    """Sum the counter's totals over the outermost modules that belong to a part; what is left is `OTHER`."""
    counts = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    work: Counter[str] = Counter()
    for name in counts:
        part, parent = part_of(name + "."), name.rpartition(".")[0]
        if part != OTHER and part_of(parent) != part:
            work[part] += counts[name]
    work[OTHER] = counter.get_total_flops() - sum(work.values())
    return work
