"""README's pictures, remade by one command: python -m moebius_lab pictures.

Everything in them is run: held-out photographs are filled, the page and the widgets are driven in Chromium.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from .. import LabError, config
from ..config import MOEBIUS
from ..evidence import parity
from ..evidence.baselines import patchmatch_fill
from ..evidence.evaluation import contact_sheet, demo_backend, evaluate_pair, held_out_pairs
from ..evidence.inventory import network_inventory
from ..evidence.loops import PYTORCH
from ..inpainting.imaging import feather
from ..inpainting.loop import Settings, inpaint, preset
from ..inpainting.photographs import demo_photographs
from ..model.checkpoint import presets_of
from ..page.bundle import write_bundle
from ..page.driving import launch_options
from ..page.engines import find, with_playwright
from ..page.serve import Server
from . import figures
from .lab import jupyterlab, run_all, write_notebook
from .workbench import Workbench

LIMIT = 1_000_000  # bytes, of all pictures together
WIDTH = 1100  # px, the widest
QUALITY = 82  # of JPEG
SHEET_EVERY = 5  # of the held-out photographs, in the order of their names
SHEET_TITLES = ("the hole", "38 evaluations", "distilled: 4", "PatchMatch", "OpenCV, Telea", "the photograph")
PRECISIONS = ("fp32", "fp16-storage", "int8")  # in the plot of the error's growth
PATIENCE = 300_000  # ms that a page may take for one thing

WIDGET = """import ipywidgets
from moebius_lab.notebook.inpaint_panel import Inpaint, backends_of
from moebius_lab.notebook.mask_painter import MaskPainter
from moebius_lab.notebook.workbench import prepare

bench = prepare(image={image!r}, mask={mask!r}, output_dir={output!r})
painter = MaskPainter(bench.image, bench.mask, width=520, height=400)
panel = Inpaint(painter, backends_of(bench))
panel.backend.value = "ONNX Runtime"
panel.run()
ipywidgets.VBox([painter, panel])"""


def make_pictures(
    bench: Workbench, folder: str | Path, on_picture: Callable[[str], None] = lambda name: None
) -> dict[str, int]:
    """Make README's pictures in `folder`, in place of those that are there.

    Args:
        bench: the demo network; its graphs, bundle and loops are reused from its folder or made there.
        folder: made if missing.
        on_picture: called with a picture's name before it is made.

    Returns:
        Bytes by file name.

    Raises:
        LabError: no Chromium or JupyterLab, another network, or pictures above `LIMIT` together: the old ones stay then.
    """
    if bench.config.name != "demo":
        raise LabError(f"README's pictures are of the demo network, not of {bench.config.name}")
    find()
    makers: dict[str, Callable[[], Image.Image | Figure]] = {
        "network_by_part.png": network_by_part,
        "lambda_layer.png": lambda: figures.lambda_layer(MOEBIUS),
        "contact_sheet.jpg": lambda: sheet(bench),
        "error_growth.png": lambda: error_growth(bench),
        "page.jpg": lambda: page(bench),
        "widget.jpg": lambda: widget(bench),
    }
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as made:
        for name, make in makers.items():
            on_picture(name)
            _save(make(), Path(made, name))
        sizes = {name: Path(made, name).stat().st_size for name in makers}
        if sum(sizes.values()) > LIMIT:
            raise LabError(
                f"the pictures take {sum(sizes.values()):,} bytes, more than {LIMIT:,}: make fewer or smaller ones"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in makers:
            shutil.copy(Path(made, name), folder / name)
    return sizes


def network_by_part() -> Figure:
    """The published network's parts by parameters, arithmetic and largest tensor."""
    columns = {"weights_MB": "weights, MB (float32)", "GFLOP": "GFLOP a guided step", "largest_MB": "largest tensor, MB"}
    return figures.shares(network_inventory(MOEBIUS)[0], columns)


def sheet(bench: Workbench) -> Image.Image:
    """Every fifth held-out picture, filled by the demo network in ONNX Runtime and distilled, by PatchMatch and by OpenCV's Telea."""
    distilled = config.DISTILLED["demo"]
    fastest, quick = preset(config.FASTEST, presets_of(distilled)), demo_backend(distilled)
    rows = []
    for name, (picture, mask) in list(held_out_pairs().items())[::SHEET_EVERY]:
        filled = evaluate_pair(bench.onnx_backend, picture, mask, Settings(init="noise"))[1]
        rows.append(
            (
                name,
                [
                    figures.masked(picture, mask),
                    filled["ours"],
                    inpaint(quick, picture, mask, fastest),
                    patchmatch_fill(picture, feather(mask) > 0),
                    filled["telea"],
                    picture,
                ],
            )
        )
    return contact_sheet(rows, SHEET_TITLES)


def error_growth(bench: Workbench) -> Figure:
    """How far ONNX Runtime's latents are from PyTorch's along the loop, in three precisions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine two lose more to each other than they gain
    exact = bench.loop(PYTORCH).latents
    torch.set_num_threads(threads)
    growth = {form: np.abs(bench.loop(form).latents - exact).max(axis=(1, 2, 3)).tolist() for form in PRECISIONS}
    return figures.error_growth(growth, parity.GRAPH_LARGEST_ERROR)


def page(bench: Workbench) -> Image.Image:
    """The page when it has filled the hole of its first sample: before and after, divided where the slider stands."""
    bundle = bench.folder / "pictures_bundle"
    write_bundle(bench, bundle, ("fp16-storage",))

    def use(play) -> Image.Image:
        with play.chromium.launch(**launch_options("none")) as chromium:
            tab = _tab(chromium, 1280, 800)
            tab.goto(server.url)
            tab.click("#samples button >> nth=0")
            tab.wait_for_selector("text=/ is open: /")  # before, there is no hole to fill
            tab.click("#run")
            tab.click("#prompt-yes")
            tab.wait_for_selector("#keep:enabled")
            tab.wait_for_selector("#run:enabled")
            tab.fill("#split", "0.5")
            return _screenshot(tab)

    with Server(bundle) as server:
        return with_playwright(use)


def widget(bench: Workbench) -> Image.Image:
    """The mask painter and the panel under it in a JupyterLab, after a run."""
    photo, mask = next(iter(demo_photographs().values()))
    code = WIDGET.format(image=str(photo), mask=str(mask), output=str(bench.folder))

    def use(play) -> Image.Image:
        with play.chromium.launch(**launch_options("none")) as chromium:
            tab = _tab(chromium, 1000, 1500)
            run_all(tab, url, "widget.ipynb")
            tab.wait_for_selector(".jp-OutputArea img.widget-image")
            return _screenshot(tab.locator(".jp-OutputArea-output >> nth=-1"))

    with tempfile.TemporaryDirectory() as folder:
        write_notebook(Path(folder, "widget.ipynb"), code)
        with jupyterlab(Path(folder)) as url:
            return with_playwright(use)


def _tab(chromium, width: int, height: int):
    tab = chromium.new_page(viewport={"width": width, "height": height})
    tab.set_default_timeout(PATIENCE)
    return tab


def _screenshot(of) -> Image.Image:
    return Image.open(io.BytesIO(of.screenshot(animations="disabled"))).convert("RGB")


def _save(picture: Image.Image | Figure, path: Path) -> None:
    if isinstance(picture, Figure):
        picture.savefig(path)
        return
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.save(path, quality=QUALITY, optimize=True, progressive=True)
