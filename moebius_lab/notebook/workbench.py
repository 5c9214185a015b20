"""What every notebook and command begins with: checked parameters, loaded networks, a folder for results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .. import LabError, __version__
from ..config import BACKENDS
from ..evidence.inventory import least_step_seconds
from ..evidence.loops import Loops
from ..files import write_json, written_whole
from ..inpainting.imaging import check_picture_and_mask
from ..inpainting.photographs import demo_photographs
from ..inpainting.picture_files import Source, read_image, read_mask
from ..model.checkpoint import DEMO_FOLDER, check_weights
from ..port.graphs import find_network

BRISK_SECONDS = 1.0  # of a step's arithmetic: where it takes longer, the notebooks leave out what is only for show


@dataclass(frozen=True, kw_only=True)
class Workbench(Loops):
    """One run of the port: a network with its weights, a picture with its mask, and a folder.

    In the folder: `onnx/` the graphs, `loops/` what the sampling loop gave on each backend, `pictures/` images and figures,
    `results/` one JSON per notebook.
    """

    backend: str = "onnx"  # one of `config.BACKENDS`: what fills the picture where a notebook leaves the choice

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise LabError(f"there is no backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")

    @cached_property
    def least_step_seconds(self) -> float:
        """See `inventory.least_step_seconds`; measured once."""
        return least_step_seconds(self.config)

    @property
    def brisk(self) -> bool:
        """Whether that is at most `BRISK_SECONDS`; if it is not, the notebooks say what they leave out."""
        return self.least_step_seconds <= BRISK_SECONDS

    def record(self, notebook: str, **results: object) -> Path:
        """Write a notebook's results to `results/NOTEBOOK.json` and return the path."""
        path = self.folder / "results" / f"{notebook}.json"
        head = {"network": self.config.name, "weights": self.weights, "version": __version__}
        head["made_from"] = self.fingerprint()
        write_json(path, head | results)
        return path

    def keep(self, name: str, picture) -> Path:
        """Save a figure, or a uint8 array (H, W, 3) as it is, to `pictures/NAME.png` and return the path."""
        path = self.folder / "pictures" / f"{name}.png"
        with written_whole(path) as part:
            if isinstance(picture, np.ndarray):
                Image.fromarray(picture).save(part, "PNG")
            else:
                picture.savefig(part, format="png")
        return path


def prepare(
    network: str = "demo",
    weights: str = "demo",
    image: Source = "",
    mask: Source = "",
    output_dir: str = "build",
    precision: str = "fp32",
    backend: str = "onnx",
) -> Workbench:
    """Check the parameters of a notebook and load its picture; networks load when they are first used.

    Args:
        network: a name in `config.NETWORKS`.
        weights: a name in `config.WEIGHTS`, or a folder with denoiser.safetensors and vae.safetensors.
        image: a path, a PIL image or an array, see `read_picture`; "" for the first demo photograph.
        mask: its mask; "" only where `image` is.
        output_dir: made if missing.
        precision: of the graphs that this run uses; see `precision.per_graph`.
        backend: one of `config.BACKENDS`: what fills the picture where a notebook leaves the choice.

    Raises:
        LabError: a parameter that cannot be used.
    """
    config = find_network(network)
    check_weights(weights, config)
    nothing = [isinstance(given, str) and not given for given in (image, mask)]
    if any(nothing) != all(nothing):
        raise LabError("give image and mask together, or neither for a demo photograph")
    if all(nothing):
        photographs = demo_photographs()
        if not photographs:
            raise LabError(f"{DEMO_FOLDER}/photos has no photograph; give image and mask")
        image, mask = next(iter(photographs.values()))
    picture, hole = read_image(image), read_mask(mask)
    check_picture_and_mask(picture, hole)
    bench = Workbench(config, weights, Path(output_dir).resolve(), precision, image=picture, mask=hole, backend=backend)
    bench.folder.mkdir(parents=True, exist_ok=True)
    return bench
