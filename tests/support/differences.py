"""Differences from a network's weights, as distillation makes them, without training."""

import torch

from moebius_lab.config import DETERMINISTIC
from moebius_lab.model.low_rank import Difference, of_rank
from moebius_lab.model.unet import MoebiusNet


def shapes_of(config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in MoebiusNet(config).named_parameters()}


def difference_for(config, rank: int = 2, **changed: object) -> Difference:
    """One from the deterministic weights, of random numbers."""
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: (0.1 * torch.randn(n, rank, generator=generator), 0.1 * torch.randn(rank, m, generator=generator))
        for name, (n, m) in of_rank(shapes_of(config), rank).items()
    }
    facts = {"network": config.name, "weights": DETERMINISTIC, "sha256": DETERMINISTIC, "made": "in a test", "steps": 3}
    facts |= changed
    return Difference(**facts, factors=factors)
