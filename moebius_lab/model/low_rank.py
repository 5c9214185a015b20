"""Low-rank differences: what distillation changes in a network, as a file of a few megabytes that is merged into weights there are.

A weight W, seen as a matrix of its outputs by everything else, becomes

    W + up down        up (outputs, r), down (r, inputs x kernel)

which is LoRA (Hu et al. 2021) without layers of its own: what runs is an ordinary network. A file holds `NAME.up` and `NAME.down` of every
changed weight in float16, and says which weights it was made for. A folder that holds one is a set of weights like any other;
see `checkpoint.find_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import LabError
from ..files import written_whole

DIFFERENCE = "difference.safetensors"
"""Name of the file in a folder of weights."""
FACTS = ("network", "weights", "sha256", "made", "steps")
BYTES = 2  # of a number in the file
MOST_RANK = 64


@dataclass(frozen=True)
class Difference:
    """What is added to a denoiser's weights."""

    network: str  # name of the network
    weights: str  # what it is added to: a name in `config.WEIGHTS`, or a folder
    sha256: str  # of their denoiser's file; "deterministic" where there is none
    made: str  # how, in words
    steps: int  # that the network takes with it, without guidance
    factors: dict[str, tuple[Tensor, Tensor]]  # up and down by the weight's name, float32


def matrices(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every weight that can be changed: all of two dimensions and more, but for the table of conditions."""
    return {
        name: (shape[0], math.prod(shape[1:]))
        for name, shape in sorted(shapes.items())
        if len(shape) >= 2 and not name.startswith("embedding_layer.")
    }


def of_rank(shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, tuple[int, int]]:
    """Those of `matrices` for which a difference of this rank is smaller than half of the weight itself."""
    return {name: (n, m) for name, (n, m) in matrices(shapes).items() if 2 * rank * (n + m) <= n * m}


def largest_rank(shapes: Mapping[str, tuple[int, ...]], most_bytes: float) -> int:
    """The largest rank, the same for every weight, with which a file stays within so many bytes of numbers.

    Raises:
        LabError: not even rank 1 does.
    """
    for rank in range(MOST_RANK, 0, -1):
        fitting = of_rank(shapes, rank)
        if fitting and BYTES * rank * sum(n + m for n, m in fitting.values()) <= most_bytes:
            return rank
    raise LabError(f"no difference fits into {most_bytes / 1e6:.1f} MB; allow more (`--most-bytes`)")


def change(up: Tensor, down: Tensor, weight: Tensor) -> Tensor:
    """The weight with its difference added, in the weight's shape."""
    return weight + (up @ down).view(weight.shape)


def merged(state: Mapping[str, Tensor], difference: Difference) -> dict[str, Tensor]:
    """A state dict with the difference added; every entry keeps its type.

    Raises:
        LabError: the difference names a weight that is not there, or one of another shape.
    """
    result = dict(state)
    for name, (up, down) in difference.factors.items():
        weight = state.get(name)
        if weight is None or (up.shape[0], down.shape[1]) != (weight.shape[0], weight[0].numel()):
            raise LabError(f"the difference changes {name}, which these weights do not have in that shape")
        result[name] = change(up, down, weight.float()).to(weight.dtype)
    return result


def write_difference(path: Path, difference: Difference) -> None:
    """Write a difference whole, numbers in float16."""
    tensors = {}
    for name, (up, down) in difference.factors.items():
        tensors |= {f"{name}.up": up, f"{name}.down": down}
    halves = {name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as part:
        save_file(halves, part, metadata={fact: str(getattr(difference, fact)) for fact in FACTS})


def read_difference(path: Path) -> Difference:
    """The difference in a file.

    Raises:
        LabError: it is damaged, or another kind of file.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            names = list(file.keys())
            ups = {name.removesuffix(".up"): file.get_tensor(name).float() for name in names if name.endswith(".up")}
            downs = {name.removesuffix(".down"): file.get_tensor(name).float() for name in names if name.endswith(".down")}
    except (SafetensorError, OSError) as error:
        raise LabError(f"{path}: an incomplete or damaged difference ({str(error).splitlines()[0]}); get it again") from None
    told = set(FACTS) <= set(facts) and facts["steps"].isdecimal() and int(facts["steps"]) > 0
    if not told or not ups or set(ups) != set(downs) or len(ups) + len(downs) != len(names):
        raise LabError(f"{path}: not a difference that `python -m moebius_lab.training.distillation` made")
    for name in ups:
        if ups[name].ndim != 2 or downs[name].ndim != 2 or ups[name].shape[1] != downs[name].shape[0]:
            raise LabError(f"{path}: the two factors of {name} do not go together; get it again")
    if not all(torch.isfinite(tensor).all() for tensor in (*ups.values(), *downs.values())):
        raise LabError(f"{path}: its numbers are not finite; get it again")
    kept = {fact: facts[fact] for fact in FACTS} | {"steps": int(facts["steps"])}
    return Difference(**kept, factors={name: (ups[name], downs[name]) for name in ups})
