"""What a training resumes from, written so that a process that is ended while it writes loses nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from ..files import written_whole


def save(state: dict, path: Path) -> None:
    """Write a checkpoint that `torch.load(path, weights_only=True)` reads; until it is whole, the one before stays."""
    with written_whole(path) as part:
        torch.save(state, part)
