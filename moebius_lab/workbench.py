"""What every notebook and command begins with: checked parameters, loaded networks, a folder for results."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tqdm.auto import tqdm

from . import LabError, __version__
from .backends import Backend, OnnxBackend, TorchBackend
from .checkpoint import DEMO_FOLDER, check_weights, make_vae
from .config import AS_RELEASED, BACKENDS, LATENT_CHANNELS, NETWORKS, NetworkConfig
from .files import TEXT, DamagedFile, kept_json, read_arrays, record, say, write_json, written_whole
from .graphs import Graphs
from .imaging import check_picture_and_mask
from .inpaint import Progress, Settings, inpaint
from .inventory import graph_gflop
from .picture_files import Source, read_image, read_mask
from .precision import per_graph
from .provenance import facts_digest, made_by
from .unet import MoebiusNet

RUN_BYTES = {"denoiser": 30, "vae": 18}  # that a run writes for each parameter, about
PYTORCH = "PyTorch"  # the backend that the others are compared with
BRISK_SECONDS = 1.0  # of a step's arithmetic: where it takes longer, the notebooks leave out what is only for show


@dataclass(frozen=True)
class Loop:
    """One run of the sampling loop on a workbench's picture."""

    backend: str  # what ran it, in its own words
    picture: np.ndarray  # uint8 (H, W, 3)
    latents: np.ndarray  # float32 (n, 4, s, s) after each step of each window, scaled
    clean: np.ndarray  # float32 (n, 4, s, s), the picture predicted at each step (x0), scaled
    steps: int  # of one window
    seconds: float  # that it took when it was run


def demo_photographs() -> dict[str, tuple[Path, Path]]:
    """The photographs shipped with the package, by name: each with its ready mask."""
    photos = sorted((DEMO_FOLDER / "photos").glob("*.jpg"))
    return {photo.stem: (photo, photo.with_name(photo.stem + "_mask.png")) for photo in photos}


@dataclass(frozen=True)
class Workbench:
    """One run of the port: a network with its weights, a picture with its mask, and a folder.

    In the folder: `onnx/` the graphs, `loops/` what the sampling loop gave on each backend, `pictures/` images and figures,
    `results/` one JSON per notebook.
    """

    config: NetworkConfig
    weights: str  # a name in `config.WEIGHTS`, or a folder with denoiser.safetensors and vae.safetensors
    image: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # uint8 (H, W), 255 is the hole
    folder: Path
    precision: str = "fp32"  # in which this run's graphs are used; see `precision.per_graph`
    backend: str = "onnx"  # one of `config.BACKENDS`: what fills the picture where a notebook leaves the choice

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise LabError(f"there is no backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        per_graph(self.precision)  # raises for an unknown one
        check_weights(self.weights, self.config)

    @cached_property
    def graphs(self) -> Graphs:
        return Graphs(self.config, self.weights, self.folder)

    @property
    def net(self) -> MoebiusNet:
        return self.graphs.net

    @property
    def vae(self) -> AutoencoderKL:
        return self.graphs.vae

    @cached_property
    def torch_backend(self) -> TorchBackend:
        return TorchBackend(self.net, self.vae)

    @cached_property
    def onnx_backend(self) -> OnnxBackend:
        """ONNX Runtime on this run's graphs, which are made first where they are missing or out of date."""
        return OnnxBackend(self.stored(), self.config)

    @cached_property
    def least_step_seconds(self) -> float:
        """Seconds that a guided step takes here at least: its arithmetic at the rate of a matrix product, the best of five."""
        a, seconds = torch.ones(1024, 1024), []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - start)
        return graph_gflop(self.config)["step"] * min(seconds) / (2 * 1024**3 / 1e9)

    @property
    def brisk(self) -> bool:
        """Whether that is at most `BRISK_SECONDS`: where not, the notebooks say what they leave out."""
        return self.least_step_seconds <= BRISK_SECONDS

    def loop(self, name: str, init: str = Settings.init) -> Loop:
        """The sampling loop on this run's picture, kept in `loops/NAME-INIT.npz` until weights, code or picture change.

        The backend is made for the run and let go after it, so that only one is in memory; PyTorch's networks stay.

        Args:
            name: "PyTorch", or a precision of ONNX Runtime's graphs, which are made first where they are missing.
            init: see `inpaint.Settings`; coverage is the release's, with which it is compared, the rest the default.

        Raises:
            LabError: an unknown precision or `init`.
        """
        path, key = self.folder / "loops" / f"{name}-{init}.npz", self._loop_key()
        if path.is_file() and (kept := self._kept_loop(path, key)):
            return kept
        backend = self.torch_backend if name == PYTORCH else OnnxBackend(self.stored(name), self.config)
        loop = self.run_loop(backend, init)
        with written_whole(path) as part, part.open("wb") as file:
            np.savez(file, key=key, **vars(loop))
        return loop

    def _kept_loop(self, path: Path, key: str) -> Loop | None:
        """A loop that was run before with the same key; one that is damaged is said."""
        side = self.config.latent_size
        shapes = {"picture": self.image.shape, "latents": (None, LATENT_CHANNELS, side, side), "steps": (), "seconds": ()}
        try:
            kept = read_arrays(path, "the loop is run again", shapes | {"clean": shapes["latents"], "backend": (), "key": ()})
        except DamagedFile as error:
            say(str(error))
            return None
        if str(kept.pop("key")) != key:
            return None
        numbers = {"backend": str(kept["backend"]), "steps": int(kept["steps"]), "seconds": float(kept["seconds"])}
        return Loop(**kept | numbers)

    def run_loop(self, backend: Backend, init: str = Settings.init) -> Loop:
        """The sampling loop on this run's picture, on any backend, with a progress bar; nothing is kept. See `loop`."""
        seen: list[Progress] = []
        start = time.perf_counter()
        with tqdm(desc=backend.name, unit="step", leave=False) as bar:

            def watch(progress: Progress) -> None:
                seen.append(progress)
                bar.total = progress.windows * progress.steps
                bar.update()

            picture = inpaint(backend, self.image, self.mask, Settings(init=init, coverage=AS_RELEASED), watch)
        seconds = time.perf_counter() - start
        latents, clean = (np.concatenate([getattr(p, what).numpy() for p in seen]) for what in ("latent", "clean"))
        return Loop(backend.name, picture, latents, clean, seen[0].steps, seconds)

    def _loop_key(self) -> str:
        """SHA-256 of all that the loop's numbers depend on."""
        digest = hashlib.sha256(facts_digest(self.fingerprint(), MADE_BY).encode())
        for array in (self.image, self.mask):
            digest.update(str(array.shape).encode() + array.tobytes())
        return digest.hexdigest()

    def require_weights(self) -> None:
        """See `Graphs.require_weights`."""
        self.graphs.require_weights()

    def disk_needed(self) -> int:
        """Bytes that a whole run takes in its folder, about: graphs in every precision, copies for page and benchmark, one at work."""
        with torch.device("meta"):
            sizes = {"denoiser": MoebiusNet(self.config), "vae": make_vae(self.config)}
        return sum(RUN_BYTES[part] * sum(p.numel() for p in module.parameters()) for part, module in sizes.items())

    def fingerprint(self) -> str:
        """See `Graphs.fingerprint`."""
        return self.graphs.fingerprint()

    def stored(self, precision: str = "", on_graph=lambda graph: None) -> dict[str, Path]:
        """The three graphs in a precision, each made first unless it is there, from the same weights and the same code.

        Each stands in a folder of its own, `onnx/FORM/GRAPH/`, with its weights in files of at most 64 MB and
        `files.json`: what it was made from, and every file's name, bytes and SHA-256, the graph's own first.

        Args:
            precision: see `precision.per_graph`; empty for this run's own; or "straightforward": the step as the exporter
                finds it, in float32, for comparison.
            on_graph: called with a graph's name before it is made.

        Returns:
            The path of each graph's .onnx file.

        Raises:
            LabError: an unknown precision, or a disk without room.
        """
        return self.graphs.stored(precision or self.precision, on_graph)

    def stored_files(self, graph: str, form: str) -> list[dict]:
        """See `Graphs.stored_files`."""
        return self.graphs.stored_files(graph, form)

    def once(self, name: str, make: Callable[[], object], shape: dict, *depends_on: object) -> object:
        """What `make` returns; kept in `onnx/NAME.json` until weights or the graphs' code change, or what else it depends on.

        Args:
            name: of the file.
            make: returns something that JSON can say.
            shape: the JSON Schema that it fits; a file that does not is made again.
            depends_on: besides weights and the graphs' code: anything that JSON can say, such as a module's `MADE_BY`.
        """
        path, key = self.folder / "onnx" / f"{name}.json", facts_digest(self.fingerprint(), *depends_on)
        kept = kept_json(path, record(made_from=TEXT, value=shape))
        if kept is None or kept["made_from"] != key:
            kept = {"made_from": key, "value": make()}
            write_json(path, kept)
        return kept["value"]

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


def find_network(name: str) -> NetworkConfig:
    """The network of this name; LabError lists the names there are."""
    if name not in NETWORKS:
        raise LabError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


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
            raise LabError(f"{DEMO_FOLDER}/photos holds no photograph; give image and mask")
        image, mask = next(iter(photographs.values()))
    picture, hole = read_image(image), read_mask(mask)
    check_picture_and_mask(picture, hole)
    bench = Workbench(config, weights, picture, hole, Path(output_dir).resolve(), precision, backend)
    bench.folder.mkdir(parents=True, exist_ok=True)
    return bench


MADE_BY = made_by(__name__)
