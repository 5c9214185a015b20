"""A published port seen from outside: every file against its hash, its page in a browser, one run of each graph compared."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2

from .. import LabError
from ..config import DETERMINISTIC, GRAPHS, NETWORKS
from ..files import misfit, require_room
from ..model.checkpoint import SHIPPED, load_checkpoint, load_vae
from ..model.hub import explain_network, require_address, require_network
from ..page.browser import Browser
from ..page.bundle import PRECACHE, checked_manifest
from ..port.export import example_feeds
from . import parity

TIMEOUT = 30  # seconds without a byte
RECOMPUTABLE = (*SHIPPED, DETERMINISTIC)  # weights that are on every machine, so that PyTorch can be the reference


class CheckError(LabError):
    """A published port that is not what its manifest says, or cannot be reached."""


def check_port(
    url: str,
    precision: str = "",
    provider: str = "webgpu",
    adapter: str = "auto",
    graphs: tuple[str, ...] = ("step",),
    on_progress: Callable[[str], object] = lambda words: None,
) -> list[parity.Row]:
    """Download everything that a visitor would, compare the hashes, and run the page's own engine on it.

    A graph runs once, the step guided and not, in the browser and in ONNX Runtime, on `export.example_inputs`. The reference is PyTorch in float32
    where the weights are on every machine, else ONNX Runtime on the downloaded files.

    Args:
        url: of the page: its folder or its index.html.
        precision: one that is published; empty for the first of the manifest that the browser can run with `provider`.
        provider: "webgpu" or "wasm"; there is no falling back.
        adapter: see `driving.chosen_adapter`.
        graphs: which are run; the hashes of all three are compared in any case.
        on_progress: called with a line for each thing that was found good.

    Returns:
        The comparisons, which may have failed: see `parity.Row.ok`.

    Raises:
        CheckError: no page, no manifest, a missing file, one with other bytes, or a host that lets no page read it.
        LabError: the browser's own words of why the page cannot run the model.
    """
    base = _folder(url)
    require_network()
    with httpx2.Client(timeout=TIMEOUT, follow_redirects=True) as client, tempfile.TemporaryDirectory() as name:
        fetch = _Fetch(client, base)
        manifest = _manifest(fetch)
        form = precision or _first_precision(manifest, provider)
        if form not in manifest["precisions"]:
            raise CheckError(f"precision {form!r} is not published; choose one of {', '.join(manifest['precisions'])}")
        _check_page(fetch, manifest)
        on_progress(f"the page's {fetch.count} files are there")
        paths = _download(fetch, manifest, form, Path(name))
        weights = sum(file["bytes"] for files in manifest["precisions"][form]["graphs"].values() for file in files)
        on_progress(f"{weights / 1e6:.1f} MB of weights in {form} have the hashes of the manifest")
        distilled = manifest["precisions"][form].get("distilled", {})
        config, weights = NETWORKS[manifest["network"]], distilled.get("weights", manifest["weights"])
        compared = dict.fromkeys(graphs, distilled.get("like", form))
        runs = parity.runs_of(graphs)
        feeds = example_feeds(config)
        inputs = {run: feeds[run] for run in runs}
        natively = parity.onnx_run(paths)
        native = {run: natively(runs[run], feeds) for run, feeds in inputs.items()}
        if weights in RECOMPUTABLE:
            references = parity.reference_outputs(load_checkpoint(weights, config), load_vae(weights, config), graphs)
            rows = parity.compare_outputs(references, native, compared, "ONNX Runtime")
            on_progress("the reference is PyTorch in float32")
        else:
            references, rows = native, []
            on_progress("the reference is ONNX Runtime on the downloaded files")
        with Browser(base, provider, form, adapter) as browser:
            on_progress(f"Chromium {browser.version}: {browser.evidence}")
            seen = {run: browser.run(runs[run], feeds) for run, feeds in inputs.items()}
        return rows + parity.compare_outputs(references, seen, compared, f"Chromium, {provider}")


def _folder(url: str) -> str:
    require_address(url, "the page's address")
    parts = urlsplit(url)
    path = parts.path if not parts.path.endswith(".html") else parts.path.rpartition("/")[0]
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}/"


class _Fetch:
    """GET requests as the page would make them: with its origin, and the right to read the answer checked."""

    def __init__(self, client: httpx2.Client, base: str) -> None:
        self.client, self.base, self.count = client, base, 0
        self.origin = "{0.scheme}://{0.netloc}".format(urlsplit(base))

    def get(self, name: str) -> bytes:
        """A small file of the page."""
        return b"".join(self._pieces(self.base + name))

    def require(self, url: str, file: dict, target: Path | None = None) -> None:
        """Fetch a file, keep it at `target` if that is given, and compare it with its entry in the manifest."""
        digest, size = hashlib.sha256(), 0
        with target.open("wb") if target else nullcontext() as kept:
            for piece in self._pieces(url):
                digest.update(piece)
                size += len(piece)
                if kept:
                    kept.write(piece)
        if (size, digest.hexdigest()) != (file["bytes"], file["sha256"]):
            got, said = f"{size} bytes, SHA-256 {digest.hexdigest()[:16]}...", f"{file['bytes']}, {file['sha256'][:16]}..."
            raise CheckError(f"{url} has {got}; the manifest says {said}: publish it again")

    def _pieces(self, url: str) -> Iterator[bytes]:
        try:
            with self.client.stream("GET", url, headers={"Origin": self.origin}) as answer:
                if answer.status_code != 200:
                    raise CheckError(f"{url} answers {answer.status_code}; publish all of it again")
                self._may_be_read(url, answer)
                yield from answer.iter_bytes()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise CheckError(f"{url} {explain_network(error)}") from None
        self.count += 1

    def _may_be_read(self, url: str, answer: httpx2.Response) -> None:
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        allowed = answer.headers.get("Access-Control-Allow-Origin")
        if origin != self.origin and allowed not in ("*", self.origin):
            raise CheckError(
                f"{url}: {origin} does not let pages of {self.origin} read it; it has to send Access-Control-Allow-Origin"
            )


def _manifest(fetch: _Fetch) -> dict:
    url, content = fetch.base + "manifest.json", fetch.get("manifest.json")
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        raise CheckError(f"{url} is not the manifest of a port; give the address of its page") from None
    try:
        checked_manifest(manifest, url)
    except LabError as error:
        raise CheckError(f"{error}; or check it with the version that made it") from None
    if manifest["network"] not in NETWORKS:
        raise CheckError(f"{url}: network {manifest['network']!r} is unknown here; check it with the version that made it")
    return manifest


def _first_precision(manifest: dict, provider: str) -> str:
    for form, facts in manifest["precisions"].items():
        if provider in facts["providers"] and not facts["requires"]:
            return form
    raise CheckError(f"no published precision runs on {provider} everywhere; name one with --precision")


def _check_page(fetch: _Fetch, manifest: dict) -> None:
    precache = fetch.get("precache.js").decode(errors="replace")
    try:
        listed = json.loads(precache.partition("=")[2].strip().rstrip(";"))
        words = misfit(listed, PRECACHE)
    except (ValueError, RecursionError):
        words = "no JSON"
    if words:
        raise CheckError(f"{fetch.base}precache.js is damaged ({words}); publish it again")
    if listed["version"] != manifest["version"]:
        raise CheckError(f"{fetch.base}: page and manifest are of different versions; publish both again")
    for name in listed["files"]:
        fetch.get(name)
    for build in manifest["runtime"]["builds"].values():
        fetch.require(fetch.base + build["wasm"]["file"], build["wasm"])
    for form in manifest["precisions"].values():
        if recording := form.get("recording"):
            fetch.require(fetch.base + recording["file"], recording)


def _download(fetch: _Fetch, manifest: dict, form: str, folder: Path) -> dict[str, Path]:
    graphs = manifest["precisions"][form]["graphs"]
    if set(graphs) != set(GRAPHS):
        raise CheckError(f"{fetch.base}manifest.json should list {', '.join(GRAPHS)} in {form}; publish it again")
    require_room(folder, sum(file["bytes"] for files in graphs.values() for file in files), f"{form} of {fetch.base}")
    host = urljoin(fetch.base, manifest["weights_base"])
    for graph, files in graphs.items():
        (folder / graph).mkdir()
        for file in files:
            fetch.require(urljoin(host, file["file"]), file, folder / graph / file["name"])
    return {graph: folder / graph / files[0]["name"] for graph, files in graphs.items()}
