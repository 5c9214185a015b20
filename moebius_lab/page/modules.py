"""The page's own files, as they stand in `web/`, and what a module of them needs at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

WEB = Path(__file__).with_name("web")
PAGE_SUFFIXES = {".html", ".css", ".js", ".svg", ".webmanifest"}
ENGINE = "engine/"
"""The folder of `web/`, and of the page in a bundle, whose modules run the model and need no others."""
KERNELS = f"{ENGINE}kernels/"
"""Its folder of modules that only a worker with a graphics device loads, once the model is there."""
RECORDED = f"{ENGINE}recorded/"
"""Its folder of modules that only a worker loads which plays a recording."""
TYPES = re.compile(r"/\*\* @import .*? \*/", re.DOTALL)
"""What a module names for whoever checks its types: nothing is loaded for it."""


def page_files() -> dict[str, Path]:
    """The page's own files by their names below `web/`, with slashes, in order."""
    files = sorted(file for file in WEB.rglob("*") if file.suffix in PAGE_SUFFIXES)
    return {file.relative_to(WEB).as_posix(): file for file in files}


def linked_from(entries: Iterable[str]) -> set[str]:
    """Of `page_files`, these and what they name or import at once: the rest is loaded by `import()` when used."""
    files, found, waiting = page_files(), set(), list(entries)
    while waiting:
        name = waiting.pop()
        if name in found or name not in files:
            continue
        found.add(name)
        source = TYPES.sub("", files[name].read_text(encoding="utf-8"))
        if name.endswith(".html"):
            waiting += re.findall(r'\b(?:href|src)="([\w./]+\.(?:js|css))"', source)
        else:
            linked = re.findall(r"\bfrom '(\.[^']+)'|^import '(\.[^']+)'", source, re.MULTILINE)
            waiting += [os.path.normpath(Path(name).parent / (a or b)).replace(os.sep, "/") for a, b in linked]
    return found
