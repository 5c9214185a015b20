"""Ways in which a kept file may be damaged."""

import json
from pathlib import Path

import pytest

DAMAGES = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros in the middle": lambda data: data[: len(data) // 3] + bytes(len(data) // 3) + data[len(data) // 3 * 2 :],
    "another JSON": lambda data: b'[{"format": 99}]',
    "values of other types": lambda data: spoilt(data),
}
damages = pytest.mark.parametrize("damage", DAMAGES)


def spoilt(data: bytes) -> bytes:
    """A JSON object with every value replaced; what is no JSON object, turned over."""
    try:
        return json.dumps(dict.fromkeys(json.loads(data), 7)).encode()
    except (ValueError, TypeError):
        return data[::-1]


def spoil(path: Path, damage: str) -> None:
    """Damage a file in one of those ways."""
    before = path.read_bytes()
    path.write_bytes(DAMAGES[damage](before))
    assert path.read_bytes() != before
