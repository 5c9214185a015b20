"""What products on matrix units cost in accuracy: PyTorch, with every product's operands rounded as `units.js` rounds them.

From the repository's root, at the published size in about three minutes on two cores:

    .venv/bin/python tests/support/measure_matrix_units.py
"""

import sys
from collections.abc import Callable, Iterable
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moebius_lab.config import NETWORKS
from moebius_lab.evidence.parity import reference_outputs
from moebius_lab.port.graphs import Graphs

OPERANDS = {"linear": 0, "conv2d": 0, "einsum": 1, "matmul": 0, "bmm": 0}  # position of the first; the second follows
BIAS = 2  # position, of a linear layer and of a convolution


def half(x: Tensor) -> Tensor:
    return x.half().float()


class MatrixUnits(TorchFunctionMode):
    """Products of numbers of 16 bits, summed in float32; `exact`: each number as two of them, in three products."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        self.products = 0

    def __torch_function__(
        self, function: Callable, types: Iterable, given: tuple = (), named: dict | None = None
    ) -> object:
        named = named or {}
        name = getattr(function, "__name__", "")
        groups = named.get("groups", given[6] if len(given) > 6 else 1)
        if name not in OPERANDS or (name == "conv2d" and groups != 1):  # a depthwise convolution has a kernel of its own
            return function(*given, **named)
        self.products += 1
        at = OPERANDS[name]
        a, b = given[at : at + 2]

        def product(x: Tensor, y: Tensor, biased: bool = True) -> Tensor:
            operands = list(given)
            operands[at : at + 2] = x, y
            if not biased and name in ("linear", "conv2d"):
                operands[BIAS:] = [None, *operands[BIAS + 1 :]]
            return function(*operands, **{key: value for key, value in named.items() if biased or key != "bias"})

        high = half(a), half(b)
        if not self.exact:
            return product(*high)
        return product(*high) + product(high[0], half(b - high[1]), False) + product(half(a - high[0]), high[1], False)


def main() -> int:
    network = NETWORKS[sys.argv[1] if len(sys.argv) > 1 else "moebius"]
    with TemporaryDirectory() as folder:
        graphs = Graphs(network, "deterministic", folder)
        net, vae = graphs.net, graphs.vae
    right = reference_outputs(net, vae)
    for exact in (False, True):
        with MatrixUnits(exact) as units:
            got = reference_outputs(net, vae)
        print(f"{'three products' if exact else '16 bits'}: {units.products} products")
        for run, outputs in right.items():
            apart = max(float(np.abs(got[run][name] - y).max()) for name, y in outputs.items())
            size = max(float(np.abs(y).max()) for y in outputs.values())
            print(f"  {run}: {apart:.1e}, where the largest magnitude is {size:.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
