"""The photographs that ship with the package, each with its mask."""

from __future__ import annotations

from pathlib import Path

from ..model.checkpoint import DEMO_FOLDER


def demo_photographs() -> dict[str, tuple[Path, Path]]:
    """The photographs shipped with the package, by name: each with its ready mask."""
    photos = sorted((DEMO_FOLDER / "photos").glob("*.jpg"))
    return {photo.stem: (photo, photo.with_name(photo.stem + "_mask.png")) for photo in photos}
