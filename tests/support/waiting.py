"""Waiting for what nothing tells of: files, processes, requests that a server was sent."""

import time
from collections.abc import Callable


def until(holds: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something holds, and fail where it does not in this time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
