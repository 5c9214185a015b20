"""Links of pages and Markdown files on this computer, followed: what a reader of a published report would click."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mistune
from bs4 import BeautifulSoup

PAGES = {".html", ".md"}


def broken_links(files: Iterable[str | Path]) -> list[str]:
    """Every link and picture in HTML and Markdown files that leads nowhere on this computer, as "FILE: LINK".

    A link to a folder leads to its index.html or README.md; one with a fragment needs an element with that id, in Markdown a
    heading as GitHub names it. Links that begin with a scheme (https, mailto, data) are not followed.

    Args:
        files: .html and .md files.
    """
    broken = []
    for file in map(Path, files):
        for link in _links(file):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = file.parent / unquote(parts.path) if parts.path else file
            if target.is_dir():
                target = next((page for name in ("index.html", "README.md") if (page := target / name).is_file()), target)
            if not target.exists() or not _has_anchor(target, parts.fragment):
                broken.append(f"{file}: {link}")
    return broken


def _html(file: Path) -> BeautifulSoup:
    text = file.read_text(encoding="utf-8")
    return BeautifulSoup(mistune.html(text) if file.suffix == ".md" else text, "html.parser")


def _links(file: Path) -> list[str]:
    page = _html(file)
    return [tag[name] for name in ("href", "src") for tag in page.find_all(attrs={name: True})]


def _has_anchor(file: Path, fragment: str) -> bool:
    """Whether a browser finds the fragment, as written or decoded; a file that is not a page is not searched."""
    if not fragment or file.suffix not in PAGES:
        return True
    page = _html(file)
    anchors = {tag["id"] for tag in page.find_all(id=True)}
    if file.suffix == ".md":
        headings = page.find_all(["h1", "h2", "h3", "h4", "h5", "h6"])
        letters = ("".join(c for c in h.get_text().lower() if c.isalnum() or c in " -_") for h in headings)
        anchors |= {text.replace(" ", "-") for text in letters}
    return bool(anchors & {fragment, unquote(fragment)})
