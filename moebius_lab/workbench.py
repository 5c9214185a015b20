"""What every notebook and command begins with: checked parameters, loaded networks, a folder for results."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tqdm.auto import tqdm

from . import LabError, __version__
from .backends import Backend, OnnxBackend, TorchBackend
from .checkpoint import (
    DEMO_FOLDER,
    check_state,
    check_weights,
    find_weights,
    load_checkpoint,
    load_vae,
    make_vae,
    read_state_dict,
)
from .config import BACKENDS, DETERMINISTIC, NETWORKS, PARTS, STRAIGHTFORWARD, NetworkConfig
from .export import OPSET, export_graph, export_straightforward
from .hub import file_sha256
from .imaging import check_picture_and_mask, read_image, read_mask
from .inpaint import Progress, Settings, inpaint
from .inventory import graph_gflop
from .precision import per_graph, store
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
    def net(self) -> MoebiusNet:
        return load_checkpoint(self.weight_file("denoiser"), self.config)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return load_vae(self.weight_file("vae"), self.config)

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
            init: see `inpaint.Settings`; the other settings are the default ones.

        Raises:
            LabError: an unknown precision or `init`.
        """
        path, key = self.folder / "loops" / f"{name}-{init}.npz", self._loop_key()
        if path.is_file():
            with np.load(path) as kept:
                if kept["key"] == key:
                    arrays = {what: kept[what] for what in ("picture", "latents", "clean")}
                    return Loop(str(kept["backend"]), **arrays, steps=int(kept["steps"]), seconds=float(kept["seconds"]))
        backend = self.torch_backend if name == PYTORCH else OnnxBackend(self.stored(name), self.config)
        loop = self.run_loop(backend, init)
        path.parent.mkdir(exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, key=key, **vars(loop))
        path.with_suffix(".part").replace(path)
        return loop

    def run_loop(self, backend: Backend, init: str = Settings.init) -> Loop:
        """The sampling loop on this run's picture, on any backend, with a progress bar; nothing is kept. See `loop`."""
        seen: list[Progress] = []
        start = time.perf_counter()
        with tqdm(desc=backend.name, unit="step", leave=False) as bar:

            def watch(progress: Progress) -> None:
                seen.append(progress)
                bar.total = progress.windows * progress.steps
                bar.update()

            picture = inpaint(backend, self.image, self.mask, Settings(init=init), watch)
        seconds = time.perf_counter() - start
        latents, clean = (np.concatenate([getattr(p, what).numpy() for p in seen]) for what in ("latent", "clean"))
        return Loop(backend.name, picture, latents, clean, seen[0].steps, seconds)

    def _loop_key(self) -> str:
        """SHA-256 of all that the loop's numbers depend on."""
        digest = hashlib.sha256(self.fingerprint().encode())
        for name in ("backends", "imaging", "inpaint"):
            digest.update(file_digest(Path(__file__).with_name(f"{name}.py")).encode())
        for array in (self.image, self.mask):
            digest.update(str(array.shape).encode() + array.tobytes())
        return digest.hexdigest()

    def weight_file(self, part: str) -> str | Path:
        """The file of a part's weights ("denoiser" or "vae"), fetched first if need be, or "deterministic"."""
        return find_weights(self.weights, part, self.config)

    def require_weights(self) -> None:
        """Fetch both parts' weights if need be, and raise LabError where a file is not whole or not this network's."""
        for part in PARTS:
            source = self.weight_file(part)
            if source != DETERMINISTIC:
                with torch.device("meta"):
                    module = MoebiusNet(self.config) if part == "denoiser" else make_vae(self.config)
                check_state(module, read_state_dict(source), str(source))

    def _made_from(self, part: str) -> dict[str, object]:
        """What a graph of `part` ("denoiser" or "vae") depends on."""
        source = self.weight_file(part)
        digest = source if source == DETERMINISTIC else file_digest(Path(source))
        sources = ("config", "lambda_layer", "unet", "ddim", "graph", "export", "precision")
        code = [file_digest(Path(__file__).with_name(f"{name}.py")) for name in sources]
        return {"network": self.config.name, "weights": digest, "opset": OPSET, "code": code}

    def disk_needed(self) -> int:
        """Bytes that a whole run takes in its folder, about: graphs in every precision, copies for page and benchmark, one at work."""
        with torch.device("meta"):
            sizes = {"denoiser": MoebiusNet(self.config), "vae": make_vae(self.config)}
        return sum(RUN_BYTES[part] * sum(p.numel() for p in module.parameters()) for part, module in sizes.items())

    def fingerprint(self) -> str:
        """SHA-256 of all that this run's graphs depend on: the network, both parts' weights, the code. It dates results."""
        made_from = [self._made_from(part) for part in PARTS]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

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
        if precision == STRAIGHTFORWARD:
            forms = per_graph("fp32") | {"step": STRAIGHTFORWARD}
        else:
            forms = per_graph(precision or self.precision)
        return {graph: self._stored(graph, form, on_graph) for graph, form in forms.items()}

    def _stored(self, graph: str, form: str, on_graph) -> Path:
        stamp, made_from = self._stamp(graph, form)
        folder = stamp.parent
        if not _is_complete(stamp, made_from):
            straightforward = form == STRAIGHTFORWARD
            fp32 = self._stored(graph, "fp32", on_graph) if form != "fp32" and not straightforward else None
            on_graph(graph if form == "fp32" else f"{graph}, {form}")
            shutil.rmtree(folder, ignore_errors=True)
            with TemporaryDirectory(dir=self.folder) as exported:
                if straightforward:
                    source = export_straightforward(self.net, exported)
                else:
                    source = fp32 or export_graph(graph, self.net, self.vae, exported)
                files = store(source, "fp32" if straightforward else form, folder)
            facts = {"made_from": made_from, "files": [asdict(file) for file in files]}
            stamp.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return folder / f"{graph}.onnx"

    def stored_files(self, graph: str, form: str) -> list[dict]:
        """Name, bytes and SHA-256 of the files of one stored graph, its own first; none where it would be made anew."""
        stamp, made_from = self._stamp(graph, form)
        return json.loads(stamp.read_text(encoding="utf-8"))["files"] if _is_complete(stamp, made_from) else []

    def _stamp(self, graph: str, form: str) -> tuple[Path, dict[str, object]]:
        """The file that tells what a stored graph was made from, and what it has to tell."""
        part = "denoiser" if graph == "step" else "vae"
        return self.folder / "onnx" / form / graph / "files.json", self._made_from(part)

    def once(self, name: str, make: Callable[[], object], source: str) -> object:
        """What `make` returns, which has to fit JSON; kept in `onnx/NAME.json` until weights or code change, or `source`."""
        path, key = self.folder / "onnx" / f"{name}.json", f"{self.fingerprint()} {file_digest(Path(source))}"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("made_from") != key:
            kept = {"made_from": key, "value": make()}
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        return kept["value"]

    def record(self, notebook: str, **results: object) -> Path:
        """Write a notebook's results to `results/NOTEBOOK.json` and return the path."""
        path = self.folder / "results" / f"{notebook}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"network": self.config.name, "weights": self.weights, "version": __version__}
        head["made_from"] = self.fingerprint()
        path.write_text(json.dumps(head | results, indent=1, default=float), encoding="utf-8")
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


def _is_complete(stamp: Path, made_from: dict[str, object]) -> bool:
    """Whether `stamp` says that its folder was made from `made_from`, and every file that it names is there in full."""
    if not stamp.is_file():
        return False
    said = json.loads(stamp.read_text(encoding="utf-8"))
    files = [(stamp.with_name(file["name"]), file["bytes"]) for file in said["files"]]
    return said["made_from"] == made_from and all(f.is_file() and f.stat().st_size == size for f, size in files)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        LabError: there is no such file.
    """
    if not path.is_file():
        raise LabError(f"{path}: there is no such file; a folder of weights holds denoiser.safetensors and vae.safetensors")
    return file_sha256(path)


def find_network(name: str) -> NetworkConfig:
    """The network of this name; LabError lists the names there are."""
    if name not in NETWORKS:
        raise LabError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def prepare(
    network: str = "demo",
    weights: str = "demo",
    image: str = "",
    mask: str = "",
    output_dir: str = "build",
    precision: str = "fp32",
    backend: str = "onnx",
) -> Workbench:
    """Check the parameters of a notebook and load its picture; networks load when they are first used.

    Args:
        network: a name in `config.NETWORKS`.
        weights: a name in `config.WEIGHTS`, or a folder with denoiser.safetensors and vae.safetensors.
        image: a picture file; empty for the first demo photograph.
        mask: its mask; empty only where `image` is.
        output_dir: made if missing.
        precision: of the graphs that this run uses; see `precision.per_graph`.
        backend: one of `config.BACKENDS`: what fills the picture where a notebook leaves the choice.

    Raises:
        LabError: a parameter that cannot be used.
    """
    config = find_network(network)
    check_weights(weights, config)
    if bool(image) != bool(mask):
        raise LabError("give image and mask together, or neither for a demo photograph")
    if not image:
        photographs = demo_photographs()
        if not photographs:
            raise LabError(f"{DEMO_FOLDER}/photos holds no photograph; give image and mask")
        image, mask = next(iter(photographs.values()))
    picture, hole = read_image(image), read_mask(mask)
    check_picture_and_mask(picture, hole)
    bench = Workbench(config, weights, picture, hole, Path(output_dir).resolve(), precision, backend)
    bench.folder.mkdir(parents=True, exist_ok=True)
    return bench
