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
from .config import (
    COVERAGES,
    JPEG_QUALITY,
    MOST_VARIANTS,
    NETWORKS,
    NOISE_OFFSET,
    PRECISIONS,
    TOLERANCE,
    TRAIN_TIMESTEPS,
    WEIGHTS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from .inpainting.batch import Widening
    from .inpainting.loop import Settings
    from .port.graphs import Graphs

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

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
    for declare in (
        _declare_run,
        _declare_export,
        _declare_fetch,
        _declare_inpaint,
        _declare_publish,
        _declare_check,
        _declare_engines,
        _declare_bisect,
        _declare_site,
        _declare_bundle,
        _declare_browser,
        _declare_serve,
        _declare_pictures,
        _declare_benchmark,
        _declare_evaluate,
        _declare_results,
        _declare_verify,
    ):
        declare(verbs)
    return parser


def _any_of(names: Iterable[str]) -> str:
    """Names as in "a, b or c"."""
    *names, last = names
    return f"{', '.join(names)} or {last}"


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="demo", help=f"one of {', '.join(NETWORKS)} (default: demo)")
    parser.add_argument("--weights", default="demo", help=f"{', '.join(WEIGHTS)}, or a folder (default: demo)")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    words = f"{', '.join(PRECISIONS)}, or by graph as in int8,vae_decoder=fp32 (default: fp32)"
    parser.add_argument("--precision", default="fp32", help=words)


def _graphs(options: argparse.Namespace, folder: str | Path) -> Graphs:
    """For commands that need networks and graphs but no picture."""
    from .port.graphs import Graphs, find_network

    graphs = Graphs(find_network(options.network), options.weights, Path(folder).resolve(), options.precision)
    graphs.folder.mkdir(parents=True, exist_ok=True)
    return graphs


def _declare_run(verbs: Verbs) -> None:
    parser = verbs.add_parser("run", help="execute the notebooks and make the report")
    _add_network(parser)
    parser.add_argument("--image", default="", help="a picture (default: the first demo photograph)")
    parser.add_argument("--mask", default="", help="its mask; white marks the hole")
    own = "(default: each notebook's own)"
    parser.add_argument("--precision", default="", help=f"of the graphs: {', '.join(PRECISIONS)} {own}")
    parser.add_argument("--backend", default="", help=f"what fills the picture: {', '.join(config.BACKENDS)} {own}")
    parser.add_argument(
        "--output-dir", default="build", metavar="FOLDER", help="where everything is written (default: build)"
    )
    parser.set_defaults(command=_run)


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


def _declare_export(verbs: Verbs) -> None:
    parser = verbs.add_parser("export", help="export the three ONNX graphs")
    _add_network(parser)
    parser.add_argument("--output-dir", default="build", metavar="FOLDER", help="where onnx/ is written (default: build)")
    _add_precision(parser)
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    graphs = _graphs(options, options.output_dir)
    for path in graphs.stored(on_graph=lambda name: print(f"exporting {name}", flush=True)).values():
        print(path)
    return 0


def _declare_fetch(verbs: Verbs) -> None:
    parser = verbs.add_parser("fetch", help="fetch published weights, check and convert them")
    parser.add_argument("weights", choices=tuple(config.PUBLISHED), help="which weights")
    words = "forget the pinned or recorded revision and hashes, and take what the Hugging Face Hub has now"
    parser.add_argument("--unpinned", action="store_true", help=words)
    parser.set_defaults(command=_fetch)


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


def _declare_publish(verbs: Verbs) -> None:
    parser = verbs.add_parser("publish", help="show what would be sent to a model hub, or send it")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository on the Hugging Face Hub, created if missing")
    _add_network(parser)
    parser.add_argument("--output-dir", default="build", metavar="FOLDER", help="folder of the run (default: build)")
    parser.add_argument("--bundle", default="", metavar="FOLDER", help="the page's folder (default: the run's bundle/)")
    parser.add_argument("--send", action="store_true", help="send it; without this nothing leaves the machine")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.set_defaults(command=_publish, precision="fp32")


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


def _declare_check(verbs: Verbs) -> None:
    from .page.driving import ADAPTERS

    parser = verbs.add_parser("check", help="compare a published page and its weights with what its manifest promises")
    parser.add_argument("url", metavar="URL", help="address of the page")
    parser.add_argument("--precision", default="", help="which to check (default: the first that every browser can run)")
    parser.add_argument("--provider", choices=config.PROVIDERS, default="webgpu", help="default: webgpu")
    parser.add_argument("--adapter", default="auto", help=f"{_any_of(('auto', *ADAPTERS))} (default: auto)")
    parser.add_argument("--whole", action="store_true", help="run the encoder and decoder too, not only the step")
    parser.set_defaults(command=_check)


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


def _declare_engines(verbs: Verbs) -> None:
    from .page.engines import ENGINES

    parser = verbs.add_parser("engines", help="compare every browser, provider and precision of the page with PyTorch")
    _add_network(parser)
    words = f"any of {', '.join(config.offered())} (default: all)"
    parser.add_argument("--precisions", nargs="+", default=tuple(config.offered()), metavar="NAME", help=words)
    words = f"any of {', '.join(config.PROVIDERS)} (default: both)"
    parser.add_argument(
        "--providers", nargs="+", default=config.PROVIDERS, choices=config.PROVIDERS, metavar="NAME", help=words
    )
    words = f"any of {', '.join(ENGINES)} (default: all)"
    parser.add_argument("--engines", nargs="+", default=(), metavar="NAME", help=words)
    parser.add_argument("--output-dir", default="build", metavar="FOLDER", help="has onnx/ and bundle/ (default: build)")
    parser.set_defaults(command=_engines, precision="fp32")


def _engines(options: argparse.Namespace) -> int:
    from .evidence.engines import compare_in_engines, every_case
    from .evidence.parity import reference_outputs
    from .page.bundle import write_bundle
    from .page.engines import ENGINES, engine_of

    names = tuple(options.engines) or tuple(ENGINES)
    for name in names:
        engine_of(name)  # an unknown one fails before anything is made
    graphs = _graphs(options, options.output_dir)
    for precision in options.precisions:
        graphs.stored(precision, lambda graph: print(f"exporting {graph}", file=sys.stderr, flush=True))
    write_bundle(graphs, graphs.folder / "bundle", tuple(options.precisions))
    references = reference_outputs(graphs.net, graphs.vae)
    cases = every_case(options.precisions, options.providers, names)
    found = compare_in_engines(graphs, references, graphs.folder / "bundle", cases)
    print(found.table().to_string(), *(f"{name}: {words}" for name, words in found.evidence.items()), sep="\n")
    return 0 if found.ok else 1


def _declare_bisect(verbs: Verbs) -> None:
    parser = verbs.add_parser("bisect", help="find the first node of a graph at which two backends differ")
    _add_network(parser)
    parser.add_argument("--graph", choices=config.GRAPHS, default="step", help=f"{', '.join(config.GRAPHS)} (default: step)")
    names = ", ".join(config.SIDES)
    words = f"two of {names}; differences are measured from the first (default: torch-cpu onnxruntime-cpu)"
    between = {"nargs": 2, "choices": tuple(config.SIDES), "default": ["torch-cpu", "onnxruntime-cpu"]}
    parser.add_argument("--between", **between, metavar="BACKEND", help=words)
    words = f"one for both or one each, of {', '.join(PRECISIONS)}; PyTorch has fp32 (default: fp32)"
    parser.add_argument("--precision", nargs="+", default=["fp32"], metavar="PRECISION", dest="precisions", help=words)
    words = "largest difference allowed, as a share of a tensor's largest magnitude (default: by precision)"
    parser.add_argument("--tolerance", type=float, metavar="SHARE", help=words)
    words = "folder of the run whose graphs it uses (default: build)"
    parser.add_argument("--output-dir", default="build", metavar="FOLDER", help=words)
    parser.set_defaults(command=_bisect, precision="fp32")


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


def _declare_site(verbs: Verbs) -> None:
    parser = verbs.add_parser("site", help="make the folder that a static host publishes, within GitHub's limits")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder to write")
    parser.add_argument(
        "--bundle", default="build/bundle", metavar="FOLDER", help="the page's folder (default: build/bundle)"
    )
    parser.add_argument("--report", default="", metavar="FOLDER", help="run whose report to include (default: none)")
    parser.set_defaults(command=_site)


def _site(options: argparse.Namespace) -> int:
    from .page.publish import write_site

    print(f"{options.folder}  {write_site(options.bundle, options.folder, options.report) / 1e6:.1f} MB")
    return 0


def _declare_inpaint(verbs: Verbs) -> None:
    parser = verbs.add_parser("inpaint", help="fill the hole of a picture, or of all pictures of a folder; extend pictures")
    parser.add_argument("image", help="a picture of any size, or a folder of pictures")
    words = "a picture of the same size; white marks the hole (not needed to extend a picture)"
    parser.add_argument("mask", nargs="?", default="", help=words)
    words = "for a folder of pictures: the folder of their masks, or one mask for all; docs/commands.md says how names are matched"
    parser.add_argument("--masks", default="", metavar="FOLDER", help=words)
    words = "file of the result; .png, .webp and .tif keep exact pixels. Of a folder: the folder of the results"
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=words)
    words = "of a folder's results: png, webp, tif, jpg, ..., or same for each picture's own (default: png)"
    parser.add_argument("--format", default="", metavar="ENDING", help=words)
    words = "results with one seed after another, named OUT-1, OUT-2 and so on (default: 1)"
    parser.add_argument("--variants", type=int, default=1, metavar="N", help=words)
    words = "enlarge the canvas by px and fill the new area: left=, top=, right=, bottom="
    parser.add_argument("--extend", nargs="+", metavar="SIDE=PX", help=words)
    words = "the same, to an aspect ratio such as 16:10, with the picture in the middle"
    parser.add_argument("--extend-to", default="", metavar="RATIO", help=words)
    words = f"1 to 100, for .jpg and .avif (default: {JPEG_QUALITY}) and for .webp (default: lossless)"
    parser.add_argument("--quality", type=int, metavar="N", help=words)
    _add_selection(parser)
    parser.add_argument("--backend", choices=("torch", "onnx"), default="onnx", help="default: onnx")
    _add_network(parser)
    parser.add_argument(
        "--graphs-dir", default="build", metavar="FOLDER", help="has onnx/, which is made if missing (default: build)"
    )
    _add_precision(parser)
    _add_settings(parser)
    parser.set_defaults(command=_inpaint)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    words = "select what should go by a click, instead of a mask: the pixels of that colour, or an object"
    parser.add_argument("--select", type=int, nargs=2, metavar=("X", "Y"), help=words)
    words = f"0 to 255, by how much each channel may differ from the pixel's (default: {TOLERANCE})"
    parser.add_argument("--tolerance", type=int, default=TOLERANCE, metavar="N", help=words)
    words = "segmentation model, EfficientSAM or SAM as ONNX: --select takes the object there; twice for encoder and decoder"
    parser.add_argument("--segmenter", action="append", default=[], metavar="FILE", help=words)
    parser.add_argument("--grow", type=int, default=0, metavar="PX", help="by which the selection grows (default: 0)")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    words = "; ".join(f"{name}: {entry.note}" for name, entry in config.PRESETS.items())
    parser.add_argument(
        "--preset",
        choices=tuple(config.PRESETS),
        help=f"{words} (default: {config.DEFAULT_PRESET}, or the one of distilled weights). The demo's fastest is distilled: 4 evaluations",
    )
    words = "a PNG that was made here: its settings are the defaults, in place of a preset's"
    parser.add_argument("--settings-of", default="", metavar="PNG", help=words)
    parser.add_argument(
        "--solver",
        help=f"{_any_of(config.SOLVERS)} (default: the preset's, as for the next five and --harmonize)",
    )
    parser.add_argument("--steps", type=int, help=f"1 to {TRAIN_TIMESTEPS}")
    parser.add_argument("--strength", type=float, help="above 0, at most 1: the share of the steps that is run")
    parser.add_argument("--guidance", type=float, help="1 turns it off, which takes half the time")
    words = "shares of the run between which steps are guided, as in 0.5 1"
    parser.add_argument("--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"), help=words)
    parser.add_argument("--init", choices=config.INITS, help="where denoising starts")
    parser.add_argument(
        "--noise-offset",
        type=float,
        help=f"weight of the one random number per channel that is added to the starting noise (default: {NOISE_OFFSET}, as released)",
    )
    parser.add_argument("--seed", type=int, help="of the noise; another seed gives another fill (default: 0)")
    words = f"what is replaced: the whole hole, or a blend as in the release (default: {COVERAGES[0]})"
    parser.add_argument("--coverage", choices=COVERAGES, help=words)
    words = "keep the fill's colours within those around it, and bring its fine texture nearer to theirs"
    parser.add_argument("--harmonize", action=argparse.BooleanOptionalAction, help=words)


def _inpaint(options: argparse.Namespace) -> int:
    from .inpainting.batch import widening

    settings = _chosen_settings(options)
    if not 1 <= options.variants <= MOST_VARIANTS:
        raise LabError(f"variants must be 1 to {MOST_VARIANTS}, not {options.variants}")
    chosen_widening = widening(options.extend, options.extend_to)
    fill = _inpaint_folder if Path(options.image).is_dir() else _inpaint_one
    return fill(options, settings, chosen_widening)


def _chosen_settings(options: argparse.Namespace) -> Settings:
    """A preset or what an earlier result was made with, with the options that were given in place of their values.

    Distilled weights replace `options.weights` where the preset *fastest* asks for them.
    """
    from dataclasses import fields, replace

    from .inpainting.loop import Settings, preset, settings_of
    from .inpainting.picture_files import read_picture
    from .model.checkpoint import presets_of

    chosen = {field.name: getattr(options, field.name) for field in fields(Settings)}
    if chosen["guidance_interval"]:
        chosen["guidance_interval"] = tuple(chosen["guidance_interval"])
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if options.settings_of:
        made = read_picture(options.settings_of).made
        if made is None:
            raise LabError(
                f"{options.settings_of}: it does not say with what settings it was made; name a PNG that was made here"
            )
        return replace(settings_of(made), **chosen)
    of_own = chosen.keys() & vars(config.PRESETS[config.FASTEST]).keys()
    if options.preset == config.FASTEST and not of_own:
        options.weights = config.DISTILLED.get(options.weights, options.weights)
    presets = presets_of(options.weights)
    return preset(options.preset or next(iter(presets)), presets, **chosen)


def _inpaint_one(options: argparse.Namespace, settings: Settings, chosen_widening: Widening | None) -> int:
    from tqdm import tqdm

    from .evidence.inventory import least_step_seconds
    from .inpainting.batch import Job, read_job, results_of, variant
    from .inpainting.extending import plan_filling
    from .inpainting.loop import describe_cost, inpaint_picture
    from .inpainting.picture_files import plan_output

    image = Path(options.image)
    if options.masks or options.format:
        raise LabError(f"--masks and --format go with a folder of pictures, and {image} is none")
    if not (options.mask or options.select) and chosen_widening is None:
        raise LabError("name a mask or --select something, or extend the picture with --extend or --extend-to")
    if options.mask and options.select:
        raise LabError("the hole is a mask or what is selected, not both; leave one of them out")
    job = Job(image, Path(options.mask) if options.mask else None, results_of(Path(options.output), options.variants))
    picture, mask, extension = read_job(job, chosen_widening, _selecting(options) if options.select else None)
    outputs = [plan_output(path, picture, options.quality) for path in job.results]
    remarks = [f"{options.image}: {remark}" for remark in picture.remarks]
    for remark in (*remarks, *outputs[0].remarks):
        print(f"moebius_lab: {remark}", file=sys.stderr)
    graphs = _graphs(options, options.graphs_dir)
    backend = graphs.torch_backend if options.backend == "torch" else graphs.onnx_backend
    size = graphs.config.image_size
    windows = plan_filling(mask, size, settings.coverage, extension)
    cost = describe_cost(windows, size, settings, least_step_seconds(graphs.config))
    each = " for each variant" if options.variants > 1 else ""
    print(f"{backend.name}: {cost} or more{each}", file=sys.stderr, flush=True)
    with tqdm(desc=backend.name, unit="step") as bar:

        def show(progress) -> None:
            bar.total = progress.windows * progress.steps * options.variants
            bar.update()

        for i, output in enumerate(outputs):
            varied, model = variant(settings, i), {"weights": options.weights, "precision": options.precision}
            output.write(inpaint_picture(backend, picture, mask, varied, show, extension=extension, model=model))
            tqdm.write(str(output.path))
    return 0


def _selecting(options: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """What makes a mask of a picture from the click of --select."""
    from .inpainting.segmenter import Segmenter
    from .inpainting.selection import grow, wand

    segmenter = Segmenter(*options.segmenter) if options.segmenter else None

    def select(image: np.ndarray) -> np.ndarray:
        point = tuple(options.select)
        chosen = segmenter.select(image, point) if segmenter else wand(image, point, options.tolerance)
        return grow(chosen, options.grow)

    return select


def _inpaint_folder(options: argparse.Namespace, settings: Settings, chosen_widening: Widening | None) -> int:
    """0 where every picture has its results, 1 where some failed, which stops none of the others."""
    from tqdm import tqdm

    from .files import say
    from .inpainting.batch import SAME, fill_folder, plan_folder
    from .inpainting.picture_files import FORMATS

    if options.select:
        raise LabError(f"--select goes with one picture, and {options.image} is a folder")
    if options.mask:
        raise LabError(f"{options.image} is a folder: name that of its masks with --masks")
    if not options.masks and chosen_widening is None:
        raise LabError("name the folder of the masks with --masks, or extend the pictures with --extend or --extend-to")
    ending = options.format if options.format in ("", SAME) else f".{options.format.lower().removeprefix('.')}"
    if ending not in ("", SAME, *FORMATS):
        raise LabError(f"{options.format!r} is no format to write; use {SAME} or one of {', '.join(FORMATS)}")
    results, masks = Path(options.output), Path(options.masks) if options.masks else None
    jobs = plan_folder(Path(options.image), masks, results, ending or ".png", options.variants)
    results.mkdir(parents=True, exist_ok=True)
    graphs = _graphs(options, options.graphs_dir)
    backend = graphs.torch_backend if options.backend == "torch" else graphs.onnx_backend
    wanted = sum(len(job.missing) for job in jobs)
    print(f"{backend.name}: {len(jobs)} pictures, {wanted} results to make", file=sys.stderr, flush=True)
    with tqdm(total=wanted, desc=backend.name, unit="result") as bar:

        def made(path: Path) -> None:
            tqdm.write(str(path))
            bar.update()

        def failed(picture: Path, why: str) -> None:
            say(f"moebius_lab: {why}")
            bar.update(next(len(job.missing) for job in jobs if job.picture == picture))

        def show(job, i: int, progress) -> None:
            done, steps = progress.window * progress.steps + progress.step, progress.windows * progress.steps
            bar.set_postfix_str(f"{job.results[i].name}, step {done} of {steps}")

        def remark(words: str) -> None:
            say(f"moebius_lab: {words}")

        model = {"weights": options.weights, "precision": options.precision}
        calls = (made, failed, remark, show)
        outcome = fill_folder(jobs, backend, settings, options.quality, chosen_widening, model, *calls)
    print(f"{results}: {outcome.words()}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _declare_bundle(verbs: Verbs) -> None:
    parser = verbs.add_parser("bundle", help="make the page and its weights as one static folder")
    _add_network(parser)
    parser.add_argument("--output-dir", default="build", metavar="FOLDER", help="where bundle/ is written (default: build)")
    words = f"precisions that the page offers (default: {' '.join(config.bundled())})"
    parser.add_argument("--precisions", nargs="+", default=list(config.bundled()), metavar="PRECISION", help=words)
    words = "where the page fetches weights/ from: another host's URL, ending in a slash (default: next to the page)"
    parser.add_argument("--weights-base", default="weights/", metavar="URL", help=words)
    words = "leave out the recordings, with which visitors who have WebGPU need no ONNX Runtime; making them takes a headless Chromium"
    parser.add_argument("--no-recordings", dest="recordings", action="store_false", help=words)
    words = "leave out distilled weights, which the page takes for the preset fastest where there are some and weights/ lies next to it"
    parser.add_argument("--no-distilled", dest="distilled", action="store_false", help=words)
    parser.set_defaults(command=_bundle, precision="fp32")


def _bundle(options: argparse.Namespace) -> int:
    from .page.bundle import write_bundle

    graphs = _graphs(options, options.output_dir)
    folder = graphs.folder / "bundle"
    elsewhere = "://" in options.weights_base
    manifest = write_bundle(
        graphs,
        folder,
        tuple(options.precisions),
        options.weights_base,
        lambda name: print(name, flush=True),
        recordings=options.recordings,
        distilled=graphs.distilled if options.distilled and not elsewhere else None,
    )
    sizes = ", ".join(f"{precision} {form['bytes'] / 1e6:.0f} MB" for precision, form in manifest["precisions"].items())
    print(f"{folder}  version {manifest['version']}: {sizes}")
    return 0


def _declare_browser(verbs: Verbs) -> None:
    from .page.engines import ENGINES

    parser = verbs.add_parser("browser", help="find the browsers that notebooks and tests use, or install them")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"{_any_of(ENGINES)} (default: all)")
    parser.set_defaults(command=_browser)


def _browser(options: argparse.Namespace) -> int:
    from .page.engines import ENGINES, bring

    for name, path in bring(lambda words: print(words, flush=True), options.engines or ENGINES).items():
        print(f"{ENGINES[name].label}: {path}")
    return 0


def _declare_serve(verbs: Verbs) -> None:
    parser = verbs.add_parser("serve", help="serve a bundle on this computer, with the headers that it needs")
    parser.add_argument("folder", nargs="?", default="build/bundle", help="default: build/bundle")
    parser.add_argument("--port", type=int, default=8080, help="0 picks a free one (default: 8080)")
    parser.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    from .page.bundle import read_manifest
    from .page.serve import Server

    read_manifest(options.folder)
    with Server(options.folder, options.port) as server:
        print(f"{server.url}  (end with Ctrl-C)", flush=True)
        server.thread.join()
    return 0


def _declare_pictures(verbs: Verbs) -> None:
    parser = verbs.add_parser("pictures", help="remake the README's pictures from the demo network")
    parser.add_argument("--folder", default="docs", help="where the pictures are written (default: docs)")
    words = "folder of the run whose graphs it uses (default: build)"
    parser.add_argument("--output-dir", default="build", metavar="FOLDER", help=words)
    parser.set_defaults(command=_pictures)


def _pictures(options: argparse.Namespace) -> int:
    from .notebook.pictures import make_pictures
    from .notebook.workbench import prepare

    bench = prepare(output_dir=options.output_dir)
    for name, size in make_pictures(bench, options.folder, lambda name: print(name, flush=True)).items():
        print(f"{size:>9,}  {Path(options.folder, name)}")
    return 0


def _declare_benchmark(verbs: Verbs) -> None:
    parser = verbs.add_parser("benchmark", help="measure everything that this machine can run")
    _add_network(parser)
    words = "complete after every row; a second call adds to it (default: build/benchmark.json)"
    parser.add_argument("--output", default="build/benchmark.json", metavar="JSON", help=words)
    parser.add_argument("--output-dir", default="build", metavar="FOLDER", help="has onnx/ and measured/ (default: build)")
    for name, known in (
        ("backends", config.CONTENDERS), ("precisions", config.measured()), ("measures", config.MEASURES),
    ):  # fmt: skip
        words = f"any of {', '.join(known)} (default: all)"
        parser.add_argument(f"--{name}", nargs="+", default=tuple(known), metavar="NAME", help=words)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (default: 7)")
    words = "seconds for one measurement of one backend (default: 60)"
    parser.add_argument("--patience", type=float, default=60.0, metavar="S", help=words)
    words = "seconds for everything, half of them at most to open what is measured (default: no limit)"
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help=words)
    parser.set_defaults(command=_benchmark, precision="fp32")


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


def _declare_evaluate(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "evaluate", help="measure the port and its baselines on a folder of pictures, on a Dask cluster"
    )
    parser.add_argument(
        "pictures", metavar="PICTURES", help="a folder, with those in it; NAME_mask in it counts as a mask, not as a picture"
    )
    words = "folder of the run: parts/, summary.json, worst.png; the same command again goes on where it stopped"
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=words)
    words = "folder with a mask for every picture, NAME or NAME_mask (default: holes are drawn)"
    parser.add_argument("--masks", default="", metavar="FOLDER", help=words)
    words = f"holes that are drawn, each kind on every square: {', '.join(config.MASK_KINDS)} (default: all)"
    kinds = {"nargs": "+", "default": list(config.MASK_KINDS), "dest": "kinds"}
    parser.add_argument("--mask-kind", **kinds, metavar="KIND", help=words)
    least, most = config.PAPER_SHARE
    words = f"shares of a square that a drawn hole takes (default: {least} {most}, as the paper's)"
    parser.add_argument("--share", type=float, nargs=2, default=config.PAPER_SHARE, metavar=("LEAST", "MOST"), help=words)
    words = "squares from each picture: the largest in the middle, then some at random (default: 1)"
    parser.add_argument("--squares", type=int, default=1, metavar="N", help=words)
    parser.add_argument("--size", type=int, default=0, metavar="PX", help="side of a square (default: the network's)")
    words = f"{', '.join(config.FILLERS)}, with a precision as in onnx:int8 (default: torch onnx:fp32)"
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx:fp32"], metavar="BACKEND", help=words)
    words = f"{', '.join(config.SOLVERS)}; each backend samples with every one (default: the preset's)"
    parser.add_argument("--solvers", nargs="+", default=[], metavar="SOLVER", help=words)
    words = f"any of {', '.join(config.BASELINES)}, which go into the table too; with no name, none does (default: {' '.join(config.USUAL_BASELINES)})"
    parser.add_argument("--baselines", nargs="*", default=list(config.USUAL_BASELINES), metavar="NAME", help=words)
    _add_network(parser)
    words = "has onnx/, which is made if missing (default: build)"
    parser.add_argument("--graphs-dir", default="build", metavar="FOLDER", help=words)
    words = f"steps and guidance; every fill starts from noise (default: {config.DEFAULT_PRESET}, or the one of distilled weights)"
    parser.add_argument("--preset", choices=tuple(config.PRESETS), help=words)
    parser.add_argument("--steps", type=int, default=0, help="instead of the preset's")
    parser.add_argument("--seed", type=int, default=0, help="of squares, holes and noise (default: 0)")
    words = "folder with the TorchScript files for FID and LPIPS, which docs/commands.md names (default: build/metrics)"
    parser.add_argument("--metrics-dir", default="build/metrics", metavar="FOLDER", help=words)
    words = f"holes that one task fills (default: {config.HOLES_A_TASK})"
    parser.add_argument("--batch", type=int, default=config.HOLES_A_TASK, metavar="N", help=words)
    words = "processes on this computer; 0 for none but this one (default: by cores and memory)"
    parser.add_argument("--workers", type=int, metavar="N", help=words)
    words = "a Dask cluster that exists, as in tcp://host:8786; its workers see the same paths"
    parser.add_argument("--scheduler", default="", metavar="ADDRESS", help=words)
    parser.set_defaults(command=_evaluate, precision="fp32")


def _evaluate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .evidence.dataset.evaluation import evaluate, make_plan

    graphs = _graphs(options, options.graphs_dir)
    names = ("masks", "kinds", "squares", "seed", "steps", "batch")
    chosen = {name: getattr(options, name) for name in names} | {"size": options.size or graphs.config.image_size}
    chosen |= {"preset": options.preset} if options.preset else {}
    plan, remarks = make_plan(graphs, options.pictures, options.metrics_dir, share=tuple(options.share), **chosen)
    for remark in remarks:
        print(f"moebius_lab: {remark}", file=sys.stderr, flush=True)
    with tqdm(desc="holes", unit="hole", smoothing=0.02) as bar:

        def show(progress) -> None:
            if not bar.total and progress.dashboard:
                tqdm.write(f"dashboard: {progress.dashboard}", file=sys.stderr)
            bar.total = progress.of
            bar.update(progress.done - bar.n)

        told = evaluate(
            plan,
            options.backends,
            options.solvers,
            options.baselines,
            options.output,
            options.workers,
            options.scheduler,
            show,
        )
    print(told)
    return 0


def _declare_results(verbs: Verbs) -> None:
    words = (
        "show measurements, merge them, or make the README's tables; `results add JSON` files what a reader's page measured"
    )
    parser = verbs.add_parser("results", help=words)
    parser.add_argument(
        "files", nargs="*", metavar="JSON", help="default: all in notebooks/results; or add, and a reader's file"
    )
    parser.add_argument("--merge", default="", metavar="JSON", help="merge the files, all of one machine, into this one")
    parser.add_argument("--readme", default="", metavar="FILE", help="write the tables between the two marks of this file")
    words = "where a file that is added came from, in a few words (default: the page's own)"
    parser.add_argument("--source", default="", metavar="TEXT", help=words)
    parser.set_defaults(command=_results)


def _results(options: argparse.Namespace) -> int:
    from .evidence.benchmark import devices, results

    if options.files[:1] == ["add"]:
        if len(options.files) < 2:
            raise LabError("name the file to add, as the page saved it: `results add FILE`")
        for file in options.files[1:]:
            print(devices.add(file, RESULTS, options.source))
        print("`python -m moebius_lab results --readme README.md` puts it into the README's tables")
        return 0
    files = options.files or sorted(str(path) for path in RESULTS.glob("*.json"))
    if options.merge:
        results.merge(files, options.merge)
        print(options.merge)
        return 0
    listed = results.read_all(files)
    if options.readme:
        results.write_readme(options.readme, devices.readme_text(listed))
        print(options.readme)
    else:
        print(devices.readme_text(listed), end="")
    return 0


def _declare_verify(verbs: Verbs) -> None:
    parser = verbs.add_parser("verify-reference", help="compare network and pipeline with reference files")
    parser.add_argument("folder", help="has unet_small.npz, unet_moebius.npz, pipeline_small.npz or some of them")
    parser.add_argument("--salt", default="", metavar="TEXT", help="put before each entry's name when weights are made")
    parser.set_defaults(command=_verify)


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
