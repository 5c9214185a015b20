"""Kept files: their digests, room for them on the disk, written whole or not at all, checked before they are trusted.

A file that can be made again is read by `kept_json`, which says in one line that it is damaged and gives None. A file that belongs
to somebody is read by `read_json`, which raises. What a file has to hold is stated as a JSON Schema; `record` and `listed` keep it short.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import fastjsonschema
import numpy as np
from tqdm import tqdm

from . import LabError
from .errors import first_line

TEXT, NUMBER, COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


class DamagedFile(LabError):
    """A kept file that does not hold what was written into it."""


# -- shapes ------------------------------------------------------------------------------------------------------------


def record(**properties: dict) -> dict:
    """The JSON Schema of an object that has at least these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


def mapping(values: dict) -> dict:
    """The JSON Schema of an object with any names, all of whose values fit one schema."""
    return {"type": "object", "additionalProperties": values}


def listed(items: dict, count: int | None = None) -> dict:
    """The JSON Schema of an array whose items all fit one schema; `count` of them where that is given."""
    return {"type": "array", "items": items} | ({} if count is None else {"minItems": count, "maxItems": count})


STORED_FILE = record(name=TEXT, bytes=COUNT, sha256=SHA256)
"""One file of a stored graph, as `files.json` and the page's manifest list it."""


def misfit(value: object, shape: dict) -> str:
    """Where and how `value` departs from a JSON Schema, in a few words; empty where it fits."""
    try:
        _validator(json.dumps(shape))(value)
    except fastjsonschema.JsonSchemaValueException as error:
        if error.rule == "required":
            missing = [name for name in error.rule_definition if name not in error.value]
            return f"{missing[0]!r} is a required property" if len(missing) == 1 else "entries are missing"
        where = f"${error.name.removeprefix('data')}"
        if error.rule == "additionalProperties":
            return f"{where} has entries that are not known"
        return f"{where} should have {error.rule} {error.rule_definition!r}"
    return ""


@lru_cache
def _validator(shape: str) -> Callable[[object], object]:
    """What checks a value against a JSON Schema, as text."""
    return fastjsonschema.compile(json.loads(shape), use_default=False, detailed_exceptions=True)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_json(path: str | Path, shape: dict, advice: str) -> object:
    """What a JSON file holds.

    Args:
        path: the file.
        shape: the JSON Schema that it has to fit.
        advice: what to do about a file that does not, to end the message with.

    Raises:
        DamagedFile: no such file, no JSON, or not of this shape.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror}); {advice}") from None
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not JSON ({first_line(error)}); {advice}") from None
    if words := misfit(value, shape):
        raise DamagedFile(f"{path} is damaged ({words}); {advice}")
    return value


def kept_json(path: str | Path, shape: dict) -> object | None:
    """What a JSON file holds that can be made again; None where it is missing or, which is said, damaged."""
    if not Path(path).exists():
        return None
    try:
        return read_json(path, shape, "it is made again")
    except DamagedFile as error:
        say(str(error))
        return None


def read_arrays(
    path: str | Path, advice: str, shapes: dict[str, tuple[int | None, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, each compared with its checksum.

    Args:
        path: the file.
        advice: see `read_json`.
        shapes: of each array that has to be there, with None for a side of any length; others are left out then.

    Raises:
        DamagedFile: no such file, not a whole one, or an array is missing or has another shape.
    """
    try:
        with np.load(path) as kept:
            arrays = {name: kept[name] for name in shapes or kept.files}
    except Exception as error:  # damage shows as any exception of zip, zlib, the header's parser and numpy
        words = getattr(error, "strerror", None) or first_line(error)
        raise DamagedFile(f"{path} is damaged or not a file of arrays ({words}); {advice}") from None
    for name, shape in (shapes or {}).items():
        found = arrays[name].shape
        if len(found) != len(shape) or any(wanted not in (None, side) for wanted, side in zip(shape, found)):
            raise DamagedFile(f"{path} is damaged ({name} has shape {found}, not {shape}); {advice}")
    return arrays


def say(line: str) -> None:
    """One line to standard error that leaves progress bars whole."""
    tqdm.write(line, file=sys.stderr)


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A place next to `path` to write to; what stands there becomes `path` when the block ends, and goes if it fails.

    The folder is made if missing. The place's name ends in `.part`: name the format where a library goes by the ending. A link
    keeps leading to the file, and the file keeps its permissions.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield part
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file whole or not at all; text as UTF-8."""
    with written_whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file whole or not at all; numbers of other libraries become floats."""
    write_whole(path, json.dumps(value, indent=1, default=float) + "\n")


def replace_folder(made: Path, folder: Path) -> None:
    """Put a folder that is finished into the place of another, which goes; where another process was quicker, its own stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(made, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


# -- digests and room --------------------------------------------------------------------------------------------------


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; read again only when the file's size or time has changed."""
    facts = os.stat(path)
    return _file_sha256(os.path.abspath(path), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_file(folder: Path, files: list[dict]) -> str:
    """The first of `files` (`STORED_FILE`) that is not in `folder` as it was written, and how; empty where all are whole."""
    for file in files:
        path = folder / file["name"]
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != file["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, not {file['bytes']}"
        if file_sha256(path) != file["sha256"]:
            return f"{path} is damaged (its SHA-256 is not the recorded one)"
    return ""


def digest_of(paths: list[Path], folder: Path) -> str:
    """SHA-256 over the names, relative to `folder`, and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def require_room(folder: str | Path, needed: float, what: str) -> None:
    """Raise LabError unless `needed` bytes are free where `folder` is or will be."""
    folder = Path(folder)
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        words = f"{what} needs {needed / 1e6:.0f} MB but only {free / 1e6:.0f} MB are free"
        raise LabError(f"{folder}: {words}; free some space or choose another disk")
