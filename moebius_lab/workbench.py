"""What every notebook and command begins with: checked parameters, loaded networks, a folder for results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from PIL import Image

from . import LabError, __version__
from .backends import GRAPHS, OnnxBackend, TorchBackend
from .checkpoint import DEMO_FOLDER, DETERMINISTIC, load_checkpoint, load_vae
from .config import NETWORKS, NetworkConfig
from .export import OPSET, export_graphs
from .imaging import check_picture_and_mask, read_image, read_mask
from .unet import MoebiusNet


def demo_photographs() -> dict[str, tuple[Path, Path]]:
    """The photographs shipped with the package, by name: each with its ready mask."""
    photos = sorted((DEMO_FOLDER / "photos").glob("*.jpg"))
    return {photo.stem: (photo, photo.with_name(photo.stem + "_mask.png")) for photo in photos}


@dataclass(frozen=True)
class Workbench:
    """One run of the port: a network with its weights, a picture with its mask, and a folder.

    In the folder: `onnx/` the graphs, `pictures/` images and figures, `results/` one JSON per notebook.
    """

    config: NetworkConfig
    weights: str  # "demo", "deterministic", or a folder with denoiser.safetensors and vae.safetensors
    image: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # uint8 (H, W), 255 is the hole
    folder: Path

    def __post_init__(self) -> None:
        if self.weights == "demo" and self.config.name != "demo":
            raise LabError(f'the demo weights belong to the demo network; give weights "{DETERMINISTIC}" or a folder')

    @cached_property
    def net(self) -> MoebiusNet:
        return load_checkpoint(self._source("denoiser.safetensors"), self.config)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return load_vae(self._source("vae.safetensors"), self.config)

    @cached_property
    def torch_backend(self) -> TorchBackend:
        return TorchBackend(self.net, self.vae)

    @cached_property
    def onnx_backend(self) -> OnnxBackend:
        """ONNX Runtime on this run's graphs, which are exported first where they are missing or out of date."""
        return OnnxBackend(self.graphs().parent, self.config)

    def _source(self, file: str) -> str | Path:
        return self.weights if self.weights in ("demo", DETERMINISTIC) else Path(self.weights) / file

    def _graphs_made_from(self) -> dict[str, object]:
        files = {"demo": DEMO_FOLDER, DETERMINISTIC: None}.get(self.weights, Path(self.weights))
        digests = [] if files is None else [file_digest(files / f"{part}.safetensors") for part in ("denoiser", "vae")]
        sources = ("config", "lambda_layer", "unet", "export")
        code = [file_digest(Path(__file__).with_name(f"{name}.py")) for name in sources]
        return {"network": self.config.name, "weights": digests or self.weights, "opset": OPSET, "code": code}

    def graphs(self, on_graph=lambda name: None) -> Path:
        """Export the three graphs unless they are there already, made from the same weights by the same code.

        Returns:
            The path of the denoiser; the other two stand beside it.
        """
        folder = self.folder / "onnx"
        stamp, made_from = folder / "made_from.json", self._graphs_made_from()
        complete = all((folder / f"{name}.onnx").is_file() for name in GRAPHS)
        if not (complete and stamp.is_file() and json.loads(stamp.read_text()) == made_from):
            stamp.unlink(missing_ok=True)
            export_graphs(self.net, self.vae, folder, on_graph)
            stamp.write_text(json.dumps(made_from, indent=1))
        return folder / "denoiser.onnx"

    def record(self, notebook: str, **results: object) -> Path:
        """Write a notebook's results to `results/NOTEBOOK.json` and return the path."""
        path = self.folder / "results" / f"{notebook}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"network": self.config.name, "weights": self.weights, "version": __version__}
        path.write_text(json.dumps(head | results, indent=1, default=float))
        return path

    def keep(self, name: str, picture) -> Path:
        """Save a figure, or a uint8 array (H, W, 3) as it is, to `pictures/NAME.png` and return the path."""
        path = self.folder / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(path)
        else:
            picture.savefig(path)
        return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        LabError: there is no such file.
    """
    if not path.is_file():
        raise LabError(f"{path}: there is no such file; a folder of weights holds denoiser.safetensors and vae.safetensors")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_network(name: str) -> NetworkConfig:
    """The network of this name; LabError lists the names there are."""
    if name not in NETWORKS:
        raise LabError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def prepare(
    network: str = "demo", weights: str = "demo", image: str = "", mask: str = "", output_dir: str = "build"
) -> Workbench:
    """Check the parameters of a notebook and load its picture; networks load when they are first used.

    Args:
        network: a name in `config.NETWORKS`.
        weights: "demo", "deterministic", or a folder with denoiser.safetensors and vae.safetensors.
        image: a picture file; empty for the first demo photograph.
        mask: its mask; empty only where `image` is.
        output_dir: made if missing.

    Raises:
        LabError: a parameter that cannot be used.
    """
    config = find_network(network)
    if weights not in ("demo", DETERMINISTIC) and not Path(weights).is_dir():
        raise LabError(f'weights={weights!r} is neither "demo", "{DETERMINISTIC}" nor a folder that exists')
    if bool(image) != bool(mask):
        raise LabError("give image and mask together, or neither for a demo photograph")
    if not image:
        photographs = demo_photographs()
        if not photographs:
            raise LabError(f"{DEMO_FOLDER}/photos holds no photograph; give image and mask")
        image, mask = next(iter(photographs.values()))
    picture, hole = read_image(image), read_mask(mask)
    check_picture_and_mask(picture, hole)
    bench = Workbench(config, weights, picture, hole, Path(output_dir).resolve())
    bench.folder.mkdir(parents=True, exist_ok=True)
    return bench
