"""What the page compares itself with on a reader's device: inputs that both sides compute, and some of PyTorch's answers.

A large input is noise that is the same in every language; see `noise`, and the function of that name in web/measuring/measuring.js. Of
every output `KEPT` numbers stand in the file, evenly spread: enough to show a wrong program, and few enough to be fetched.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ..config import GUIDANCE, LATENT_CHANNELS, RUNS, STATE_ROWS, STEP_UNGUIDED, NetworkConfig
from ..files import COUNT, NUMBER, listed, mapping, record
from ..inpainting.backends import step_feeds
from ..model.sampler import solver_steps
from ..port.export import OUTPUT_NAMES, torch_graphs
from ..port.graphs import Graphs
from ..provenance import made_by

KEPT = 64  # numbers of an output
UNIT = math.sqrt(3)  # makes noise that is uniform in [-1, 1) one of unit variance

_DIMS = listed(COUNT)
NOISE, HOLE, DATA = (
    record(dims=_DIMS, **more) for more in ({"seed": COUNT, "scale": NUMBER}, {"hole": COUNT}, {"data": listed(NUMBER)})
)
REFERENCE = mapping(
    record(
        inputs=mapping({"anyOf": [NOISE, HOLE, DATA]}),
        outputs=mapping(record(size=COUNT, every=COUNT, values=listed(NUMBER), range=NUMBER)),
    )
)
"""The file by `config.RUNS`, as a JSON Schema. An input is noise, a mask whose hole leaves so many cells on every side, or written down;
of an output `values` are the numbers at each multiple of `every`, and `range` is the distance from the least of all its numbers to the largest."""


def noise(count: int, seed: int) -> np.ndarray:
    """White noise, uniform in [-1, 1): float32 (count,). MurmurHash3's finalizer of each position plus the seed."""
    h = np.arange(count, dtype=np.uint32) + np.uint32(seed)
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return ((h ^ (h >> 16)) / 2**31 - 1).astype(np.float32)


def described_inputs(network: NetworkConfig) -> dict[str, dict[str, dict]]:
    """The inputs of each of `config.RUNS` by name, as `REFERENCE` has them."""
    s, S = network.latent_size, network.image_size
    step = solver_steps("dpm++2m", 6)[4]
    large = {
        "state": {"dims": [len(STATE_ROWS), LATENT_CHANNELS, s, s], "seed": 1, "scale": UNIT},
        "mask": {"dims": [1, 1, s, s], "hole": s // 4},
        "masked_latents": {"dims": [1, LATENT_CHANNELS, s, s], "seed": 1_000_000, "scale": UNIT},
    }
    arrays = [torch.from_numpy(made(large[name])) for name in ("state", "mask", "masked_latents")]
    found = {
        "vae_encoder": {"image": {"dims": [1, 3, S, S], "seed": 2_000_000, "scale": 1.0}},
        "vae_decoder": {
            "latent": {"dims": [1, LATENT_CHANNELS, s, s], "seed": 3_000_000, "scale": UNIT / network.vae.scaling_factor}
        },
    }
    for run, guidance in (("step", GUIDANCE), (STEP_UNGUIDED, 1.0)):
        feeds = step_feeds(*arrays, step, guidance).items()
        found[run] = {name: large.get(name) or {"dims": list(x.shape), "data": x.flatten().tolist()} for name, x in feeds}
    return {run: found[run] for run in RUNS}


def made(described: dict) -> np.ndarray:
    """An input from its description: float32."""
    dims = described["dims"]
    if "data" in described:
        return np.array(described["data"], np.float32).reshape(dims)
    if "seed" in described:
        return (noise(math.prod(dims), described["seed"]) * np.float32(described["scale"])).reshape(dims)
    margin = described["hole"]
    mask = np.zeros(dims, np.float32)
    mask[..., margin : dims[-2] - margin, margin : dims[-1] - margin] = 1
    return mask


def kept(output: np.ndarray) -> dict:
    """Of an output what the file has of it."""
    flat = output.ravel()
    every = max(flat.size // KEPT, 1)
    return {
        "size": flat.size,
        "every": every,
        "values": [float(value) for value in flat[::every]],
        "range": float(flat.max() - flat.min()),
    }


def reference(graphs: Graphs) -> dict:
    """Inputs, and what PyTorch in float32 makes of them: the published form of every graph. Computed once in a folder."""

    def compute() -> dict:
        modules, found = torch_graphs(graphs.net, graphs.vae), {}
        for run, inputs in described_inputs(graphs.config).items():
            with torch.inference_mode():
                got = modules[RUNS[run]](*(torch.from_numpy(made(x)) for x in inputs.values()))
            outputs = got if isinstance(got, tuple) else (got,)
            named = zip(OUTPUT_NAMES[RUNS[run]], outputs, strict=True)
            found[run] = {"inputs": inputs, "outputs": {name: kept(y.numpy()) for name, y in named}}
        return found

    return graphs.once("page_reference", compute, REFERENCE, MADE_BY)


MADE_BY = made_by(__name__)
