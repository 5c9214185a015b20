from pathlib import Path

import pytest

from moebius_lab.page.links import broken_links

ROOT = Path(__file__).parents[2]
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "moebius_lab").rglob("*.md")])


@pytest.mark.slow
def test_the_project_s_own_texts_lead_somewhere():
    assert {"README.md", "notes.md"} <= {path.name for path in MARKDOWN}
    assert broken_links(MARKDOWN) == []


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("other.html", True),
        ("other.html#a-part", True),
        ("other.html#1-%C2%B7-first", True),
        ("other.html#nowhere", False),
        ("missing.html", False),
        ("a%20picture.png", True),
        ("folder/", True),
        ("empty/#here", False),
        ("#here", True),
        ("#there", False),
        ("text.md#a-heading-with-signs", True),
        ("text.md#a-heading", False),
        ("https://example.org/nothing", True),
        ("mailto:somebody@example.org", True),
        ("data:,words", True),
    ],
)
def test_links_are_followed_on_this_computer(tmp_path, link, leads):
    (tmp_path / "other.html").write_text('<h2 id="a-part">A</h2><h2 id="1-%C2%B7-first">B</h2>', encoding="utf-8")
    (tmp_path / "text.md").write_text("# A heading, with signs!\n", encoding="utf-8")
    (tmp_path / "a picture.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").touch()
    page = tmp_path / "page.html"
    page.write_text(f'<p id="here"><a href="{link}">words</a></p>', encoding="utf-8")
    assert broken_links([page]) == ([] if leads else [f"{page}: {link}"])


def test_pictures_and_markdown_are_followed_too(tmp_path):
    text = tmp_path / "text.md"
    text.write_text('![a](gone.png)\n\n<img src="gone.jpg">\n\n[b](text.md)\n', encoding="utf-8")
    assert sorted(broken_links([text])) == [f"{text}: gone.jpg", f"{text}: gone.png"]
