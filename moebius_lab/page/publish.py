"""A port to a model hub, and its page to static hosting. What would be sent is shown first; see `plan`.

The hub gets

    README.md        the model card, written from the run's own results
    manifest.json    the bundle's: constants, precisions, every file with bytes and SHA-256
    results.json     the run's results, as they were recorded
    LICENSE
    weights/         graphs and weights, named by their hashes

Nothing is sent of a port whose parity was not shown, or was shown of other weights or other code.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import get_token, validate_repo_id

from .. import LabError, __version__
from ..config import OPSET, PUBLISHED
from ..errors import first_line
from ..files import NUMBER, TEXT, DamagedFile, file_sha256, listed, read_json, record
from ..model.checkpoint import DENOISER_REPO, PICKLE, SHIPPED, VAE_REPO
from ..model.hub import Hub, default_folder, explain_network, require_address, require_network
from ..port.graphs import Graphs
from ..port.precision import per_graph
from .bundle import read_manifest, require_whole
from .links import broken_links

PARITY = "03_parity"  # the notebook whose rows have to hold for every precision that is sent
EVIDENCE = record(
    rows=listed(
        record(
            graph=TEXT,
            output=TEXT,
            precision=TEXT,
            backend=TEXT,
            max_error=NUMBER,
            psnr_db=NUMBER,
            tolerance=TEXT,
            verdict=TEXT,
        )
    )
)
"""What that notebook's results hold, as a JSON Schema."""
PAGES_FILE_BYTES, PAGES_SITE_BYTES = 100 * 2**20, 10**9  # what GitHub takes: of one file, and of a published site
LICENCE = Path(__file__).parents[2] / "LICENSE"


class PublishError(LabError):
    """A port that cannot be published, or a hub that does not accept it."""


@dataclass(frozen=True)
class PlannedFile:
    """One file that would be sent."""

    path: str  # in the repository
    source: Path | str  # a file, or the text itself
    bytes: int
    sha256: str


# -- what would be sent ------------------------------------------------------------------------------------------------


def plan(bench: Graphs, bundle: str | Path, repo: str) -> list[PlannedFile]:
    """Every file that `upload` would send, each of them read and its hash compared with the manifest's.

    Args:
        bench: the run whose results are the evidence.
        bundle: the folder of `bundle.write_bundle`.
        repo: owner/name on the hub.

    Raises:
        PublishError: a result is missing, failed, or was made from other weights or code than the bundle; a file of the
            bundle is not what its manifest says; or no name for a repository.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(f"{repo!r} is not the name of a repository ({first_line(error)}); give OWNER/NAME") from None
    if repo.count("/") != 1:
        raise PublishError(f"{repo!r} is not the name of a repository; give OWNER/NAME")
    if not LICENCE.is_file():
        raise PublishError("publishing sends the repository's LICENSE, which the installed package lacks; run it in a clone")
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    results = _results(bench)
    _require_parity(results[PARITY], manifest)
    _require_fresh(bench, manifest)
    with tempfile.TemporaryDirectory() as folder:
        texts = {"README.md": model_card(bench, manifest, results, repo), "results.json": json.dumps(results, indent=1)}
        files = [_planned(path, text, Path(folder)) for path, text in texts.items()]
    files += [_planned("LICENSE", LICENCE), _planned("manifest.json", bundle / "manifest.json")]
    weights = {file["file"]: file for file in _files_of(manifest)}
    for name, file in sorted(weights.items()):
        path = bundle / "weights" / name
        if not path.is_file() or file_sha256(path) != file["sha256"]:
            raise PublishError(f"{path} is not the file that manifest.json names; make the bundle again")
        files.append(PlannedFile(f"weights/{name}", path, file["bytes"], file["sha256"]))
    return files


def _planned(path: str, source: Path | str, folder: Path | None = None) -> PlannedFile:
    if isinstance(source, Path):
        return PlannedFile(path, source, source.stat().st_size, file_sha256(source))
    written = folder / path
    written.write_text(source, encoding="utf-8")
    return PlannedFile(path, source, written.stat().st_size, file_sha256(written))


def _files_of(manifest: dict) -> list[dict]:
    return [file for form in manifest["precisions"].values() for files in form["graphs"].values() for file in files]


def _results(bench: Graphs) -> dict[str, dict]:
    """The run's results that belong to its present weights and code; the comparison with PyTorch has to be among them."""
    folder = bench.folder / "results"
    command = f"python -m moebius_lab run --network {bench.config.name} --weights {bench.weights}"
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            results[path.stem] = read_json(
                path, EVIDENCE if path.stem == PARITY else {"type": "object"}, f"run `{command}` again"
            )
        except DamagedFile as error:
            raise PublishError(str(error)) from None
    if PARITY not in results:
        raise PublishError(f"{folder / PARITY}.json is missing: there is no evidence to publish; run `{command}`")
    fresh = {name: result for name, result in results.items() if result.get("made_from") == bench.fingerprint()}
    if PARITY not in fresh:
        raise PublishError(f"{folder / PARITY}.json was made from other weights or other code; run `{command}` again")
    return fresh


def _of_this_run(manifest: dict) -> dict[str, dict]:
    """The precisions of a bundle, without forms of other weights than the run's."""
    return {name: form for name, form in manifest["precisions"].items() if "distilled" not in form}


def _require_parity(parity: dict, manifest: dict) -> None:
    rows = parity.get("rows", [])
    bad = [f"{row['graph']}.{row['output']} in {row['precision']}" for row in rows if row["verdict"] != "ok"]
    if bad:
        raise PublishError(
            f"parity failed: {'; '.join(bad)}; nothing is published until it holds. Notebook 3 and `bisect` show where it breaks"
        )
    shown = {(row["precision"], row["graph"]) for row in rows}
    missing = [
        f"{form} {graph}"
        for precision in _of_this_run(manifest)
        for graph, form in per_graph(precision).items()
        if (form, graph) not in shown
    ]
    if missing:
        raise PublishError(
            f"parity was not shown for {', '.join(missing)}; leave that precision out of the bundle or compare it"
        )


def _require_fresh(bench: Graphs, manifest: dict) -> None:
    for precision, published in _of_this_run(manifest).items():
        for graph, form in per_graph(precision).items():
            stored = bench.stored_files(graph, form)
            if [file["sha256"] for file in published["graphs"][graph]] != [file["sha256"] for file in stored]:
                raise PublishError(f"the bundle's {graph} in {precision} is not this run's; make the bundle again")


# -- the model card ----------------------------------------------------------------------------------------------------


def model_card(bench: Graphs, manifest: dict, results: dict[str, dict], repo: str) -> str:
    """The repository's README.md: what, licence, how converted, parity and sizes, how to use, citation."""
    image, weights = bench.config.image_size, manifest["weights"]
    parts = [
        _front_matter(weights),
        f"# Moebius inpainting in ONNX, for the browser: {weights}",
        f"Image inpainting with the Moebius network ({bench.config.name}, {image} x {image} px windows, pictures of any size) "
        "as three ONNX graphs that ONNX Runtime runs on WebGPU, WebAssembly or natively. The mask's white is what gets filled.",
        "## Licence\n\n" + _licence(weights),
        "## How it was converted\n\n" + _conversion(bench),
        "## Parity\n\nAgainst PyTorch in float32, same inputs and the same noise. `results.json` has every number.\n\n"
        + _parity_table(results[PARITY]["rows"]),
        "## Sizes\n\n" + _size_table(manifest),
        "## Use\n\n" + _use(manifest, repo),
        "## Citation\n\n" + CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(weights: str) -> str:
    lines = [
        f"license: {'mit' if weights in PUBLISHED else 'apache-2.0'}",
        "library_name: onnx",
        "pipeline_tag: image-to-image",
    ]
    lines += ["tags: [onnx, webgpu, onnxruntime-web, inpainting, image-inpainting]"]
    if weights in PUBLISHED:
        lines += [f"base_model: {DENOISER_REPO}", "base_model_relation: quantized"]
    return "---\n" + "\n".join(lines) + "\n---"


def _licence(weights: str) -> str:
    code = "**Code** (the conversion, its rewrites and the page that runs the graphs): Apache-2.0, in `LICENSE`."
    if weights in PUBLISHED:
        return (
            f"{code}\n\n**Weights**: MIT by the cards of [{DENOISER_REPO}](https://huggingface.co/{DENOISER_REPO}), whose folder "
            f"`{PUBLISHED[weights]}` they are from, and of [{VAE_REPO}](https://huggingface.co/{VAE_REPO}), whose autoencoder they include. "
            f"{WEIGHTS_LICENCE_READ}"
        )
    if weights in SHIPPED:
        return (
            f"{code}\n\n**Weights**: Apache-2.0. A small network of the same design that was trained for this port; its data, photographs "
            "and their authors are credited with the code, in `moebius_lab/demo/README.md` and `moebius_lab/training/sources.json`."
        )
    return f"{code}\n\n**Weights**: where they came from is for their owner to say."


WEIGHTS_LICENCE_READ = (
    "So the cards were read by dllu/rawpuppy (docs/inpainting-research.md, 2026-10-09), by a report on the browser spike of an app called "
    "Nook (2026-09-03), and, of the autoencoder's, by atik-efaz5/PixelForge (docs/experiments/PIXELHACKER_FEASIBILITY.md, 2026-08-27). "
    "The release's own README on GitHub (hustvl/Moebius, commit b88d462 of 2026-08-12) names Apache-2.0 for its code and its weights; so "
    "it was read by dllu/rawpuppy and by atik-efaz5/PixelForge (research/upstream/REPOSITORIES.md, 2026-08-24). Keep both notices."
)
"""Who read what about the licence of the published weights: no hub was reachable for this project."""


def _conversion(bench: Graphs) -> str:
    lines = [
        f"`moebius_lab` {__version__}: PyTorch's exporter, opset {OPSET}, after exact rewrites of the lambda layers; each is "
        "compared with the published form by a test. Guidance and the DDIM step are part of the step graph.",
    ]
    if bench.weights in PUBLISHED:
        lock = Hub(default_folder()).recorded()
        for repo, path in ((DENOISER_REPO, f"{PUBLISHED[bench.weights]}/{PICKLE}"), (VAE_REPO, "vae")):
            for name, facts in lock["files"].items():
                if name.startswith(f"{repo}/{path}") and "made_from" not in facts:
                    revision = lock["revisions"].get(repo, "put there by hand")
                    lines.append(f"- `{name}`, revision `{revision}`, SHA-256 `{facts['sha256']}`")
    elif bench.weights == "deterministic":
        lines.append("- The weights are numbers by recipe, which test the port and paint nothing of use.")
    return "\n".join(lines)


def _parity_table(rows: list[dict]) -> str:
    head = "| precision | graph | output | on | largest difference | PSNR, dB | asked |\n|---|---|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {r['precision']} | {r['graph']} | {r['output']} | {r['backend']} | {r['max_error']:.2g} | {r['psnr_db']:.1f} "
        f"| {r['tolerance']} |"
        for r in rows
    )


def _size_table(manifest: dict) -> str:
    graphs = list(next(iter(manifest["precisions"].values()))["graphs"])
    head = f"| precision | {' | '.join(graphs)} | together, MB | what it is |\n|---|{'---|' * len(graphs)}---|---|\n"
    rows = []
    for name, form in manifest["precisions"].items():
        sizes = [sum(file["bytes"] for file in form["graphs"][graph]) / 1e6 for graph in graphs]
        rows.append(f"| {name} | {' | '.join(f'{size:.1f}' for size in sizes)} | {sum(sizes):.1f} | {form['note']} |")
    return head + "\n".join(rows)


def _use(manifest: dict, repo: str) -> str:
    return (
        f"The page of the port reads `manifest.json` and fetches the graphs from `weights/`; a page of your own is made with "
        f"`python -m moebius_lab bundle --weights-base {weights_base(repo)}`. A graph's files belong into one folder under the "
        "`name` that the manifest gives each. With the session option "
        '`session.disable_quant_qdq` = "1" ONNX Runtime restores the weights of int8 once, when it loads them; without it they '
        "stay 8 bits in memory, and each run restores them.\n\n"
        f"Every file is at most {max(file['bytes'] for file in _files_of(manifest)) / 1e6:.0f} MB and is checked by its SHA-256."
    )


CITATION = """```bibtex
@misc{moebius2026,
  title = {Moebius: 0.2B Lightweight Image Inpainting Framework with 10B-Level Performance},
  author = {Duan, Kangsheng and Xu, Ziyang and Liu, Wenyu and Ruan, Xiaohu and Chen, Xiaoxin and Wang, Xinggang},
  year = {2026}, eprint = {2606.19195}, archivePrefix = {arXiv}
}
```"""


# -- sending -----------------------------------------------------------------------------------------------------------


def weights_base(repo: str, revision: str = constants.DEFAULT_REVISION) -> str:
    """The address under which a page finds the weights of a published port."""
    return hf_hub_url(repo, "weights/", revision=revision)


def upload(files: list[PlannedFile], repo: str, private: bool = False) -> str:
    """Send `files` to the repository, which is created if missing; calling it again resumes a broken upload.

    huggingface_hub's `upload_folder` does the work: since its version 2 it is what `upload_large_folder` was before.

    Returns:
        The revision on the hub.

    Raises:
        PublishError: no token, no permission, no answer.
    """
    require_address(constants.ENDPOINT, "the hub's address, HF_ENDPOINT,")
    require_network()
    if not get_token():
        raise PublishError("publishing needs a token with write access: set HF_TOKEN, or run `hf auth login`")
    api = HfApi(library_name="moebius-lab", library_version=__version__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in files:
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file.source, str):
                place.write_text(file.source, encoding="utf-8")
            else:
                os.symlink(file.source.resolve(), place)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"moebius_lab {__version__}")
        except RepositoryNotFoundError:
            raise PublishError(f"{api.endpoint} does not let this token write to {repo}; check HF_TOKEN") from None
        except (httpx2.HTTPError, OSError, RuntimeError) as error:
            answered = not isinstance(error, httpx2.TransportError)
            words = f"did not take {repo} ({first_line(error)})" if answered else explain_network(error)
            raise PublishError(f"{api.endpoint} {words}; run this again to resume") from None
    return done.oid


# -- the page ----------------------------------------------------------------------------------------------------------


REPORTED = ("report", "pictures", "results.json")
"""Of a run's folder: the report, and what its pages show and link to."""


def write_site(bundle: str | Path, folder: str | Path, run: str | Path = "") -> int:
    """Copy a bundle to the folder that a static host publishes, without weights that are on another origin.

    Args:
        bundle: the folder of `bundle.write_bundle`.
        folder: made; must not exist or be empty.
        run: the folder of a run (`report.run_notebooks`) whose report goes to `report/` next to the page; empty for none.

    Returns:
        The site's bytes.

    Raises:
        PublishError: a file or the whole is more than GitHub Pages takes, or there is no report, or one of its links leads
            nowhere; nothing is written then.
        LabError: a file of the bundle is not the one that its manifest names.
    """
    bundle, folder = Path(bundle), Path(folder)
    manifest = read_manifest(bundle)
    require_whole(bundle, manifest)
    elsewhere = "://" in manifest["weights_base"]
    files = {path: path.relative_to(bundle) for path in sorted(bundle.rglob("*")) if path.is_file()}
    files = {path: place for path, place in files.items() if not (elsewhere and place.parts[0] == "weights")}
    if run:
        files |= _report_files(Path(run))
    advice = "keep the weights on a hub (`bundle --weights-base URL`) or bundle fewer precisions"
    large = [path.name for path in files if path.stat().st_size > PAGES_FILE_BYTES]
    if large:
        raise PublishError(f"{large[0]} is larger than the {PAGES_FILE_BYTES / 1e6:.0f} MB allowed for one file; {advice}")
    total = sum(path.stat().st_size for path in files)
    if total > PAGES_SITE_BYTES:
        raise PublishError(
            f"the site takes {total / 1e6:.0f} MB, more than the {PAGES_SITE_BYTES / 1e6:.0f} allowed; {advice}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise PublishError(f"{folder} is not empty; name a new folder")
    for path, place in files.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / ".nojekyll").touch()
    return total


def _report_files(run: Path) -> dict[Path, Path]:
    """The files of a run's report, each with its place on the site."""
    if not (run / "report" / "index.html").is_file():
        raise PublishError(f"{run} has no report: make one with `python -m moebius_lab run --output-dir {run}`")
    if broken := broken_links(sorted((run / "report").glob("*.html"))):
        raise PublishError(f"the report has links that lead nowhere, {broken[0]}: run the notebooks again")
    named = [run / name for name in REPORTED]
    found = [path for place in named for path in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return {path: path.relative_to(run) for path in found if path.is_file()}
