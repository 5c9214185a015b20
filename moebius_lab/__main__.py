"""The commands: python -m moebius_lab run | export | inpaint | bundle | serve | benchmark | ..."""

from __future__ import annotations

from . import errors

if __name__ == "__main__":
    errors.watch_process()  # from here on, since what follows takes a moment to import

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import LabError, config
from .config import COVERAGES, JPEG_QUALITY, NETWORKS, NOISE_OFFSET, PRECISIONS, WEIGHTS

if TYPE_CHECKING:
    from .port.graphs import Graphs

RESULTS = Path("notebooks/results")
"""Where the repository keeps measurements from other machines."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; see `errors.run`. A command first imports what it needs."""

    def command() -> int:
        options = _parser().parse_args(arguments)
        return options.command(options)

    return errors.run(command)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabError(f"{message}; `{self.prog} --help` lists what it takes")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m moebius_lab", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", dest="verb")

    run = verbs.add_parser("run", help="execute the notebooks and make the report")
    _add_network(run)
    run.add_argument("--image", default="", help="a picture (default: the first demo photograph)")
    run.add_argument("--mask", default="", help="its mask; white marks the hole")
    own = "(default: each notebook's own)"
    run.add_argument("--precision", default="", help=f"of the graphs: {', '.join(PRECISIONS)} {own}")
    run.add_argument("--backend", default="", help=f"what fills the picture: {', '.join(config.BACKENDS)} {own}")
    run.add_argument("--output-dir", default="build", metavar="FOLDER", help="where everything is written (default: build)")
    run.set_defaults(command=_run)

    export = verbs.add_parser("export", help="export the three ONNX graphs")
    _add_network(export)
    export.add_argument("--output-dir", default="build", metavar="FOLDER", help="where onnx/ is written (default: build)")
    _add_precision(export)
    export.set_defaults(command=_export)

    fetch = verbs.add_parser("fetch", help="fetch published weights, check and convert them")
    fetch.add_argument("weights", choices=tuple(config.PUBLISHED), help="which weights")
    words = "forget the pinned or recorded revision and hashes, and take what the hub has now"
    fetch.add_argument("--unpinned", action="store_true", help=words)
    fetch.set_defaults(command=_fetch)

    fill = verbs.add_parser("inpaint", help="fill the hole of a picture")
    fill.add_argument("image", help="a picture of any size")
    fill.add_argument("mask", help="a picture of the same size; white marks the hole")
    words = "file of the result; .png, .webp and .tif keep exact pixels"
    fill.add_argument("-o", "--output", required=True, metavar="OUT", help=words)
    words = f"1 to 100, for .jpg and .avif (default: {JPEG_QUALITY}) and for .webp (default: lossless)"
    fill.add_argument("--quality", type=int, metavar="N", help=words)
    fill.add_argument("--backend", choices=("torch", "onnx"), default="onnx", help="default: onnx")
    _add_network(fill)
    fill.add_argument(
        "--graphs-dir", default="build", metavar="FOLDER", help="has onnx/, which is made if missing (default: build)"
    )
    _add_precision(fill)
    words = "; ".join(f"{name}: {entry.note}" for name, entry in config.PRESETS.items())
    fill.add_argument(
        "--preset",
        choices=tuple(config.PRESETS),
        default=config.DEFAULT_PRESET,
        help=f"{words} (default: {config.DEFAULT_PRESET})",
    )
    fill.add_argument("--solver", help="ddim, dpm++2m or unipc (default: the preset's, as for the next five)")
    fill.add_argument("--steps", type=int, help="1 to 1000")
    fill.add_argument("--strength", type=float, help="above 0, at most 1: the share of the steps that is run")
    fill.add_argument("--guidance", type=float, help="1 turns it off, which takes half the time")
    words = "shares of the run between which steps are guided, as in 0.5 1"
    fill.add_argument("--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"), help=words)
    fill.add_argument("--init", choices=("image", "noise"), help="where denoising starts")
    fill.add_argument("--noise-offset", type=float, default=NOISE_OFFSET, help=f"default: {NOISE_OFFSET}")
    fill.add_argument("--seed", type=int, default=0, help="default: 0")
    words = f"what is replaced: the whole hole, or a blend as in the release (default: {COVERAGES[0]})"
    fill.add_argument("--coverage", choices=COVERAGES, default=COVERAGES[0], help=words)
    fill.set_defaults(command=_inpaint)

    publish = verbs.add_parser("publish", help="show what would be sent to a model hub, or send it")
    publish.add_argument("repo", metavar="OWNER/NAME", help="the repository on the hub, created if missing")
    _add_network(publish)
    publish.add_argument("--output-dir", default="build", metavar="FOLDER", help="folder of the run (default: build)")
    publish.add_argument("--bundle", default="", metavar="FOLDER", help="the page's folder (default: the run's bundle/)")
    publish.add_argument("--send", action="store_true", help="send it; without this nothing leaves the machine")
    publish.add_argument("--private", action="store_true", help="make the repository private")
    publish.set_defaults(command=_publish, precision="fp32")

    check = verbs.add_parser("check", help="compare a published page and its weights with what its manifest promises")
    check.add_argument("url", metavar="URL", help="address of the page")
    check.add_argument("--precision", default="", help="which to check (default: the first that every browser can run)")
    check.add_argument("--provider", choices=("webgpu", "wasm"), default="webgpu", help="default: webgpu")
    check.add_argument("--adapter", default="auto", help="auto, nvidia or software (default: auto)")
    check.add_argument("--whole", action="store_true", help="run the encoder and decoder too, not only the step")
    check.set_defaults(command=_check)

    bisect = verbs.add_parser("bisect", help="find the first node of a graph at which two backends differ")
    _add_network(bisect)
    bisect.add_argument("--graph", choices=config.GRAPHS, default="step", help=f"{', '.join(config.GRAPHS)} (default: step)")
    names = ", ".join(config.SIDES)
    words = f"two of {names}; differences are measured from the first (default: torch-cpu onnxruntime-cpu)"
    between = {"nargs": 2, "choices": tuple(config.SIDES), "default": ["torch-cpu", "onnxruntime-cpu"]}
    bisect.add_argument("--between", **between, metavar="BACKEND", help=words)
    words = f"one for both or one each, of {', '.join(PRECISIONS)}; PyTorch has fp32 (default: fp32)"
    bisect.add_argument("--precision", nargs="+", default=["fp32"], metavar="PRECISION", dest="precisions", help=words)
    words = "largest difference allowed, as a share of a tensor's largest magnitude (default: by precision)"
    bisect.add_argument("--tolerance", type=float, metavar="SHARE", help=words)
    words = "folder of the run whose graphs it uses (default: build)"
    bisect.add_argument("--output-dir", default="build", metavar="FOLDER", help=words)
    bisect.set_defaults(command=_bisect, precision="fp32")

    site = verbs.add_parser("site", help="make the folder that a static host publishes, within GitHub's limits")
    site.add_argument("folder", metavar="FOLDER", help="a new folder to write")
    site.add_argument("--bundle", default="build/bundle", metavar="FOLDER", help="the page's folder (default: build/bundle)")
    site.add_argument("--report", default="", metavar="FOLDER", help="run whose report to include (default: none)")
    site.set_defaults(command=_site)

    bundle = verbs.add_parser("bundle", help="make the page and its weights as one static folder")
    _add_network(bundle)
    bundle.add_argument("--output-dir", default="build", metavar="FOLDER", help="where bundle/ is written (default: build)")
    words = f"precisions that the page offers (default: {' '.join(config.bundled())})"
    bundle.add_argument("--precisions", nargs="+", default=list(config.bundled()), metavar="PRECISION", help=words)
    words = "where the page fetches weights/ from: another host's URL, ending in a slash (default: next to the page)"
    bundle.add_argument("--weights-base", default="weights/", metavar="URL", help=words)
    bundle.set_defaults(command=_bundle, precision="fp32")

    browser = verbs.add_parser("browser", help="find a Chromium or install one, for notebooks and tests that use a browser")
    browser.set_defaults(command=_browser)

    serve = verbs.add_parser("serve", help="serve a bundle on this computer, with the headers that it needs")
    serve.add_argument("folder", nargs="?", default="build/bundle", help="default: build/bundle")
    serve.add_argument("--port", type=int, default=8080, help="0 picks a free one (default: 8080)")
    serve.set_defaults(command=_serve)

    pictures = verbs.add_parser("pictures", help="remake the README's pictures from the demo network")
    pictures.add_argument("--folder", default="docs", help="where the pictures are written (default: docs)")
    words = "folder of the run whose graphs it uses (default: build)"
    pictures.add_argument("--output-dir", default="build", metavar="FOLDER", help=words)
    pictures.set_defaults(command=_pictures)

    measure = verbs.add_parser("benchmark", help="measure everything that this machine can run")
    _add_network(measure)
    words = "complete after every row; a second call adds to it (default: build/benchmark.json)"
    measure.add_argument("--output", default="build/benchmark.json", metavar="JSON", help=words)
    measure.add_argument("--output-dir", default="build", metavar="FOLDER", help="has onnx/ and measured/ (default: build)")
    for name, known in (
        ("backends", config.CONTENDERS), ("precisions", config.measured()), ("measures", config.MEASURES),
    ):  # fmt: skip
        words = f"any of {', '.join(known)} (default: all)"
        measure.add_argument(f"--{name}", nargs="+", default=tuple(known), metavar="NAME", help=words)
    measure.add_argument("--repeats", type=int, default=7, help="timed rounds (default: 7)")
    words = "seconds for one measurement of one backend (default: 60)"
    measure.add_argument("--patience", type=float, default=60.0, metavar="S", help=words)
    words = "seconds for everything (default: no limit)"
    measure.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help=words)
    measure.set_defaults(command=_benchmark, precision="fp32")

    results = verbs.add_parser("results", help="show measurements, merge them, or make the README's tables")
    results.add_argument("files", nargs="*", metavar="JSON", help="default: all in notebooks/results")
    results.add_argument("--merge", default="", metavar="JSON", help="merge the files, all of one machine, into this one")
    results.add_argument("--readme", default="", metavar="FILE", help="write the tables between the two marks of this file")
    results.set_defaults(command=_results)

    verify = verbs.add_parser("verify-reference", help="compare network and pipeline with reference files")
    verify.add_argument("folder", help="has unet_small.npz, unet_moebius.npz, pipeline_small.npz or some of them")
    verify.add_argument("--salt", default="", metavar="TEXT", help="put before each entry's name when weights are made")
    verify.set_defaults(command=_verify)
    return parser


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="demo", help=f"one of {', '.join(NETWORKS)} (default: demo)")
    parser.add_argument("--weights", default="demo", help=f"{', '.join(WEIGHTS)}, or a folder (default: demo)")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    words = f"{', '.join(PRECISIONS)}, or by graph as in int8,vae_decoder=fp32 (default: fp32)"
    parser.add_argument("--precision", default="fp32", help=words)


def _run(options: argparse.Namespace) -> int:
    from .files import require_room
    from .notebook.report import require_notebooks, run_notebooks
    from .notebook.workbench import prepare

    require_notebooks()
    names = ("image", "mask")
    files = {name: str(Path(getattr(options, name)).resolve()) if getattr(options, name) else "" for name in names}
    weights = options.weights if options.weights in WEIGHTS else str(Path(options.weights).resolve())
    chosen = {name: value for name in ("precision", "backend") if (value := getattr(options, name))}
    bench = prepare(options.network, weights, output_dir=options.output_dir, **files, **chosen)
    present = sum(path.stat().st_size for path in bench.folder.rglob("*") if path.is_file())
    needed = max(bench.disk_needed() - present, 0)
    print(f"{bench.folder}: about {needed / 1e9:.1f} GB of disk space needed", flush=True)
    require_room(bench.folder, needed, "the run")
    bench.require_weights()  # bad ones fail, and published ones are fetched, before work begins
    index = run_notebooks(options.output_dir, {"network": options.network, "weights": weights, **files, **chosen})
    print(f"report: {index}\nresults: {index.parents[1] / 'results.json'}")
    return 0


def _export(options: argparse.Namespace) -> int:
    graphs = _graphs(options, options.output_dir)
    for path in graphs.stored(on_graph=lambda name: print(f"exporting {name}", flush=True)).values():
        print(path)
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from .model.checkpoint import DENOISER_REPO, VAE_REPO, find_weights
    from .model.hub import Hub, default_folder

    if options.unpinned:
        hub = Hub(default_folder())
        with hub.held():
            hub.unpin(DENOISER_REPO, VAE_REPO)
    for part in config.PARTS:
        path = Path(find_weights(options.weights, part, config.MOEBIUS))
        print(f"{path}  {path.stat().st_size / 1e6:.0f} MB")
    return 0


def _graphs(options: argparse.Namespace, folder: str) -> Graphs:
    """For commands that need networks and graphs but no picture."""
    from .port.graphs import Graphs, find_network

    graphs = Graphs(find_network(options.network), options.weights, Path(folder).resolve(), options.precision)
    graphs.folder.mkdir(parents=True, exist_ok=True)
    return graphs


def _publish(options: argparse.Namespace) -> int:
    from .page.publish import plan, upload, weights_base

    graphs = _graphs(options, options.output_dir)
    files = plan(graphs, options.bundle or graphs.folder / "bundle", options.repo)
    for file in files:
        print(f"{file.bytes:>12,}  {file.sha256}  {file.path}")
    print(f"{sum(file.bytes for file in files):>12,}  bytes in {len(files)} files for {options.repo}", flush=True)
    if not options.send:
        print(f"\n{files[0].source}\nNothing was sent. The text above is README.md; add --send to send everything.")
        return 0
    revision = upload(files, options.repo, options.private)
    print(
        f"sent, revision {revision}\nfor the page: python -m moebius_lab bundle --weights-base {weights_base(options.repo, revision)}"
    )
    return 0


def _check(options: argparse.Namespace) -> int:
    from .evidence.check import check_port

    def say(words: str) -> None:
        print(words, flush=True)

    graphs = config.GRAPHS if options.whole else ("step",)
    rows = check_port(options.url, options.precision, options.provider, options.adapter, graphs, say)
    for row in rows:
        verdict = "ok" if row.ok else "DIFFERENT"
        print(f"{row.graph:12} {row.output:13} {row.backend:17} max {row.max_error:.1e}  {row.psnr_db:5.1f} dB  {verdict}")
    return 0 if all(row.ok for row in rows) else 1


def _bisect(options: argparse.Namespace) -> int:
    from .evidence.bisect import between

    def show(done: int, groups: int) -> None:
        print(f"group {done + 1} of at most {groups}", file=sys.stderr, flush=True)

    precisions = options.precisions
    if len(precisions) == 1:  # for the sides that have a choice
        precisions = [(*config.SIDES[side].forms, *precisions)[0] for side in options.between]
    if len(precisions) != 2:
        raise LabError(f"--precision takes one for both sides or one each, not {len(precisions)}")
    graphs = _graphs(options, options.output_dir)
    answer = between(graphs, options.graph, tuple(options.between), tuple(precisions), options.tolerance, show)
    print(answer.words(), answer.table().to_string(), sep="\n")
    return 1 if answer.failed else 0


def _site(options: argparse.Namespace) -> int:
    from .page.publish import write_site

    print(f"{options.folder}  {write_site(options.bundle, options.folder, options.report) / 1e6:.1f} MB")
    return 0


def _inpaint(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from tqdm import tqdm

    from .evidence.inventory import least_step_seconds
    from .inpainting.imaging import check_picture_and_mask, plan_windows
    from .inpainting.loop import Settings, describe_cost, inpaint_picture, preset
    from .inpainting.picture_files import plan_output, read_mask, read_picture

    chosen = {field.name: getattr(options, field.name) for field in fields(Settings)}
    if chosen["guidance_interval"]:
        chosen["guidance_interval"] = tuple(chosen["guidance_interval"])
    settings = preset(options.preset, **{name: value for name, value in chosen.items() if value is not None})
    picture, mask = read_picture(options.image), read_mask(options.mask)
    check_picture_and_mask(picture.rgb, mask)
    output = plan_output(options.output, picture, options.quality)
    remarks = [f"{options.image}: {remark}" for remark in picture.remarks]
    for remark in (*remarks, *output.remarks):
        print(f"moebius_lab: {remark}", file=sys.stderr)
    graphs = _graphs(options, options.graphs_dir)
    backend = graphs.torch_backend if options.backend == "torch" else graphs.onnx_backend
    size = graphs.config.image_size
    cost = describe_cost(plan_windows(mask, size, settings.coverage), size, settings, least_step_seconds(graphs.config))
    print(f"{backend.name}: {cost} or more", file=sys.stderr, flush=True)
    with tqdm(desc=backend.name, unit="step") as bar:

        def show(progress) -> None:
            bar.total = progress.windows * progress.steps
            bar.update()

        filled = inpaint_picture(backend, picture, mask, settings, show)
    output.write(filled)
    print(options.output)
    return 0


def _bundle(options: argparse.Namespace) -> int:
    from .page.bundle import write_bundle

    graphs = _graphs(options, options.output_dir)
    folder = graphs.folder / "bundle"
    manifest = write_bundle(
        graphs, folder, tuple(options.precisions), options.weights_base, lambda name: print(name, flush=True)
    )
    sizes = ", ".join(f"{precision} {form['bytes'] / 1e6:.0f} MB" for precision, form in manifest["precisions"].items())
    print(f"{folder}  version {manifest['version']}: {sizes}")
    return 0


def _browser(options: argparse.Namespace) -> int:
    from .page.browser import bring_chromium

    path = bring_chromium(lambda words: print(words, flush=True))
    if path:
        print(f"browser: {path}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from .page.bundle import read_manifest
    from .page.serve import Server

    read_manifest(options.folder)
    with Server(options.folder, options.port) as server:
        print(f"{server.url}  (end with Ctrl-C)", flush=True)
        server.thread.join()
    return 0


def _pictures(options: argparse.Namespace) -> int:
    from .notebook.pictures import make_pictures
    from .notebook.workbench import prepare

    bench = prepare(output_dir=options.output_dir)
    for name, size in make_pictures(bench, options.folder, lambda name: print(name, flush=True)).items():
        print(f"{size:>9,}  {Path(options.folder, name)}")
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from .evidence.benchmark.run import run
    from .notebook.workbench import prepare

    bench = prepare(options.network, options.weights, output_dir=options.output_dir)
    names = [tuple(getattr(options, name)) for name in ("backends", "precisions", "measures")]
    data = run(bench, options.output, *names, options.repeats, options.patience, options.seconds)
    for row in data["rows"]:
        steps = f", {row['steps']} steps" if row["steps"] else ""
        spread = f"{row['q1']:.4g} to {row['q3']:.4g}, {row['repeats']} rounds"
        print(
            f"{row['what'] + steps:34} {row['backend']:32} {row['form']:16} {row['median']:10.4g} {row['unit']:8} {spread}"
        )
    for entry in data["missing"]:
        print(f"missing: {entry['what']}, {entry['backend']}, {entry['form']}: {entry['reason']}")
    print(options.output)
    return 0


def _results(options: argparse.Namespace) -> int:
    from .evidence.benchmark import results

    files = options.files or sorted(str(path) for path in RESULTS.glob("*.json"))
    if options.merge:
        results.merge(files, options.merge)
        print(options.merge)
        return 0
    listed = results.read_all(files)
    if options.readme:
        results.write_readme(options.readme, listed)
        print(options.readme)
    else:
        print(results.readme_table(listed), end="")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from .evidence.reference import verify_reference

    print(f"{'':44} {'max':>9} {'mean':>9}  tolerance")

    def show(check) -> None:
        verdict = "ok" if check.ok else "DIFFERENT"
        row = f"{check.max_difference:9.2e} {check.mean_difference:9.2e}  {check.tolerance:g}"
        print(f"{check.name:44} {row}  {verdict}", flush=True)

    checks = verify_reference(options.folder, options.salt, show)
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    errors.leave(main())
