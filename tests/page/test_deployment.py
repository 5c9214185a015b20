"""The page over time: what a new version on the server, a reload, a second tab and a lost network make of it."""

import json
import threading
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from moebius_lab.page.bundle import read_manifest, write_bundle
from moebius_lab.page.serve import Handler, Server


@pytest.fixture
def folder(small, tmp_path) -> Path:
    """A bundle of version A."""
    write_bundle(small, tmp_path / "page", ("int8",))
    return tmp_path / "page"


@pytest.fixture
def context(chromium):
    context = chromium.new_context()
    context.set_default_timeout(60_000)
    yield context
    context.close()


def deploy(bench, folder: Path) -> str:
    """Replace the bundle by one with other weights; returns the name of its version."""
    write_bundle(bench, folder, ("fp32",))
    return read_manifest(folder)["version"]


def visit(context: BrowserContext, url: str) -> Page:
    """Open the page and wait until its worker has kept it."""
    page = context.new_page()
    page.goto(url)
    kept(page)
    return page


def kept(page: Page) -> None:
    """Wait until the page says that it is stored, and its own version is: an older one may be what it means."""
    expect(page.locator("#offline-text")).to_contain_text("is stored too", use_inner_text=False)
    own = f"(await caches.keys()).find((name) => name.startsWith('moebius-page ') && name.endsWith('{version(page)}'))"
    until(page, f"{own} && (await (await caches.open({own})).keys()).length")  # they come all at once


def version(page: Page) -> str:
    return page.evaluate("document.querySelector('script[type=module]').src.match(/page-(\\w+)/)[1]")


def versions_kept(page: Page) -> set[str]:
    return {name.split()[-1] for name in page.evaluate("caches.keys()") if name.startswith("moebius-page ")}


def until(page: Page, condition: str) -> None:
    """Wait, at most a minute, for a JavaScript expression that may await."""
    page.evaluate(f"""async () => {{
      for (const end = performance.now() + 60_000; !({condition}); ) {{
        if (performance.now() > end) throw new Error('it did not come true');
        await new Promise((done) => setTimeout(done, 50));
      }}
    }}""")


def folders_asked(server: Server) -> set[str]:
    return {part for path in server.requests for part in path.split("/") if part.startswith("page-")}


def test_one_reload_brings_a_new_version_and_an_older_tab_goes_on_with_its_own(small, folder, context):
    with Server(folder, prefix="/project/", isolated=False) as server:
        first = read_manifest(folder)["version"]
        page, older = visit(context, server.url), visit(context, server.url)
        assert version(page) == version(older) == first
        second = deploy(small, folder)
        assert second != first and not (folder / f"page-{first}").exists()

        server.requests.clear()
        page.reload()
        assert version(page) == second and page.evaluate("crossOriginIsolated")
        assert folders_asked(server) == {f"page-{second}"}
        kept(page)
        page.click("#load")
        expect(page.locator("#load-text")).to_contain_text("Ready")

        server.requests.clear()
        older.click("#load")  # its worker and modules are not on the server any more, its weights neither
        notice = older.locator(".notice[role=alert]")
        expect(notice).to_contain_text("A newer version of this page was published")
        assert not folders_asked(server), (first, second, server.requests)
        assert versions_kept(older) == {first, second}
        notice.get_by_role("button", name="Reload the page").click()
        expect(older.locator(f"script[src*='{second}']")).to_have_count(1)
        older.click("#load")
        expect(older.locator("#load-text")).to_contain_text("Ready")
    page.reload()
    assert version(page) == second and page.title()
    expect(page.locator("#choice")).to_be_enabled()


def test_versions_that_no_tab_runs_are_removed(small, folder, context):
    with Server(folder) as server:
        first = read_manifest(folder)["version"]
        page = visit(context, server.url)
        assert versions_kept(page) == {first}
        second = deploy(small, folder)
        page.reload()
        kept(page)
        until(page, f"!(await caches.keys()).some((name) => name.endsWith('{first}'))")
        assert versions_kept(page) == {second}


def test_a_version_that_is_half_deployed_is_not_kept(small, folder, context):
    with Server(folder) as server:
        first = read_manifest(folder)["version"]
        page = visit(context, server.url)
        index = (folder / "index.html").read_bytes()
        deploy(small, folder)
        new = (folder / "index.html").read_bytes()
        (folder / "index.html").write_bytes(index)  # copied last
        page.evaluate("navigator.serviceWorker.ready.then((each) => each.update())")
        until(page, "!(await navigator.serviceWorker.ready).installing")
        assert versions_kept(page) == {first}
        page.reload()
        assert version(page) == first  # all of it is kept here, whatever the server has
        expect(page.locator("#choice")).to_be_enabled()
        (folder / "index.html").write_bytes(new)
        page.reload()
        assert version(page) != first


def test_a_page_and_a_manifest_of_two_versions_are_not_used_together(folder, context):
    other = json.dumps(read_manifest(folder) | {"version": "0" * 16})
    with Server(folder) as server:
        page = context.new_page()
        page.route("**/manifest.json*", lambda route: route.fulfill(body=other, content_type="application/json"))
        page.goto(server.url)
        notice = page.locator(".notice[role=alert]")
        expect(notice).to_contain_text("A newer version of this page was published")
        page.unroute("**/manifest.json*")
        notice.get_by_role("button", name="Reload the page").click()
        expect(page.locator("#choice")).to_be_enabled()


@pytest.mark.parametrize("missing", ["interface/style.css", "interface/main.js"])
def test_a_page_whose_modules_are_gone_says_so(folder, context, missing):
    with Server(folder) as server:
        (folder / read_manifest(folder)["page"] / missing).unlink()
        page = context.new_page()
        page.goto(server.url)
        if missing == "interface/main.js":
            expect(page.get_by_text("If nothing more appears here")).to_be_visible()
        else:
            page.route("**/main.js", lambda route: route.abort())
            page.reload()
            expect(page.get_by_text("If nothing more appears here")).to_be_visible()


def test_a_server_that_hangs_gives_way_to_what_is_kept(folder, context):
    hangs, over = threading.Event(), threading.Event()

    class Hanging(Handler):
        def do_GET(self) -> None:
            if not hangs.is_set():
                return super().do_GET()
            over.wait(600)
            self.close_connection = True

    with Server(folder, handler=Hanging) as server:
        page = visit(context, server.url)
        hangs.set()
        page.goto(server.url)
        expect(page.locator("#choice")).to_be_enabled()
        over.set()
