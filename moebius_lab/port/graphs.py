"""The three graphs of one network in a folder, in any form: made if missing, checked before use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL

from .. import LabError
from ..config import DETERMINISTIC, DISTILLED, GRAPHS, NETWORKS, OPSET, PARTS, STRAIGHTFORWARD, WEIGHTS, NetworkConfig
from ..files import STORED_FILE, TEXT, changed_file, kept_json, listed, record, replace_folder, say, write_json
from ..inpainting.backends import TorchBackend
from ..model.checkpoint import (
    check_state,
    check_weights,
    find_weights,
    load_checkpoint,
    load_vae,
    make_vae,
    read_state_dict,
    weights_digest,
)
from ..model.unet import MoebiusNet
from ..provenance import facts_digest, made_by
from .export import export_graph, export_straightforward
from .precision import STAMP, per_graph, store
from .sessions import OnnxBackend

MADE_FROM = record(files=listed(STORED_FILE), made_from={"type": "object"})
"""The shape of a stamp: the list of files, and what they were made from."""

RUN_BYTES = {"denoiser": 30, "vae": 18}  # about how many bytes a run writes for each parameter


@dataclass(frozen=True)
class Graphs:
    """A network with its weights, a precision, and a folder that keeps its graphs under onnx/."""

    config: NetworkConfig
    weights: str  # a name in `config.WEIGHTS`, or a folder with denoiser.safetensors and vae.safetensors
    folder: Path
    precision: str = "fp32"  # used wherever no other is named; see `precision.per_graph`

    def __post_init__(self) -> None:
        per_graph(self.precision)  # raises for an unknown one
        check_weights(self.weights, self.config)

    @cached_property
    def net(self) -> MoebiusNet:
        return load_checkpoint(self.weight_file("denoiser"), self.config)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return load_vae(self.weight_file("vae"), self.config)

    @property
    def weights_name(self) -> str:
        """The name of the weights, or that of their folder, without its place on this machine: what others are told."""
        return self.weights if self.weights in WEIGHTS else Path(self.weights).name

    @property
    def distilled(self) -> Graphs | None:
        """The shipped weights that were distilled from these, in `folder`/distilled; None if there are none."""
        name = DISTILLED.get(self.weights)
        return Graphs(self.config, name, self.folder / "distilled", self.precision) if name else None

    def weight_file(self, part: str) -> str | Path:
        """The file of a part's weights ("denoiser" or "vae"), fetched first if necessary, or "deterministic"."""
        return find_weights(self.weights, part, self.config)

    def require_weights(self) -> None:
        """Fetch both parts' weights if necessary; raises LabError if a file is damaged or belongs to another network."""
        for part in PARTS:
            source = self.weight_file(part)
            if source != DETERMINISTIC:
                with torch.device("meta"):
                    module = MoebiusNet(self.config) if part == "denoiser" else make_vae(self.config)
                check_state(module, read_state_dict(source), str(source))

    def made_from(self, part: str) -> dict[str, object]:
        """What a graph of `part` ("denoiser" or "vae") depends on: network, weights, this code and its libraries."""
        source = self.weight_file(part)
        if source != DETERMINISTIC and not Path(source).is_file():
            raise LabError(
                f"{source}: there is no such file; a folder of weights holds denoiser.safetensors and vae.safetensors"
            )
        return {
            "network": self.config.name,
            "sizes": facts_digest(asdict(self.config)),
            "weights": weights_digest(source),
            "opset": OPSET,
        } | MADE_BY

    def fingerprint(self) -> str:
        """SHA-256 of everything that the graphs depend on: network, both parts' weights, code, libraries. It dates results."""
        return facts_digest([self.made_from(part) for part in PARTS])

    @cached_property
    def torch_backend(self) -> TorchBackend:
        return TorchBackend(self.net, self.vae)

    @cached_property
    def onnx_backend(self) -> OnnxBackend:
        """ONNX Runtime on this run's graphs, which are made first if they are missing or out of date."""
        return OnnxBackend(self.stored(), self.config)

    def stored(self, precision: str = "", on_graph=lambda graph: None, graphs: tuple[str, ...] = GRAPHS) -> dict[str, Path]:
        """The three graphs in a precision, or some of them; each is made unless it exists already, from the same weights and code.

        Each has a folder of its own, `onnx/FORM/GRAPH/`, with its weights in files of at most 64 MB and `files.json`: what
        it was made from, and the name, bytes and SHA-256 of every file, the graph's own first.

        Args:
            precision: see `precision.per_graph`; empty for this run's own; or "straightforward": the published step in
                float32, for comparison.
            on_graph: called with a graph's name before that graph is made.
            graphs: those that are wanted.

        Returns:
            The path of each graph's .onnx file.

        Raises:
            LabError: the precision is unknown, or the disk has too little room.
        """
        if precision == STRAIGHTFORWARD:
            forms = per_graph("fp32") | {"step": STRAIGHTFORWARD}
        else:
            forms = per_graph(precision or self.precision)
        return {graph: self._stored(graph, form, on_graph) for graph, form in forms.items() if graph in graphs}

    def once(self, name: str, make: Callable[[], object], shape: dict, *depends_on: object) -> object:
        """What `make` returns, kept in `onnx/NAME.json` until something that it depends on changes.

        Args:
            name: the file's, without its ending.
            make: returns a value that JSON can express.
            shape: the JSON Schema of that value; a file that does not match it is made again.
            depends_on: dependencies besides the weights and the graphs' code: values that JSON can express, such as a
                module's `MADE_BY`.
        """
        path, key = self.folder / "onnx" / f"{name}.json", facts_digest(self.fingerprint(), *depends_on)
        kept = kept_json(path, record(made_from=TEXT, value=shape))
        if kept is None or kept["made_from"] != key:
            kept = {"made_from": key, "value": make()}
            write_json(path, kept)
        return kept["value"]

    def disk_needed(self) -> int:
        """About how many bytes a complete run needs in its folder: graphs in every precision, copies for page and benchmark, and
        room for the graph that is being made."""
        return sum(RUN_BYTES[part] * count for part, count in self.parameter_counts().items())

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters each part has ("denoiser" and "vae"); no weights are read."""
        with torch.device("meta"):
            modules = {"denoiser": MoebiusNet(self.config), "vae": make_vae(self.config)}
        return {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}

    def _stored(self, graph: str, form: str, on_graph) -> Path:
        folder = self._folder(graph, form)
        if not self.stored_files(graph, form):
            straightforward = form == STRAIGHTFORWARD
            fp32 = self._stored(graph, "fp32", on_graph) if form != "fp32" and not straightforward else None
            on_graph(graph if form == "fp32" else f"{graph}, {form}")
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.folder) as work:
                if straightforward:
                    source = export_straightforward(self.net, work)
                else:
                    source = fp32 or export_graph(graph, self.net, self.vae, work)
                made = Path(work) / "stored"
                files = store(source, "fp32" if straightforward else form, made)
                write_json(
                    made / STAMP, {"made_from": self.made_from(_part(graph)), "files": [asdict(file) for file in files]}
                )
                replace_folder(made, folder)
        return folder / f"{graph}.onnx"

    def stored_files(self, graph: str, form: str) -> list[dict]:
        """Name, bytes and SHA-256 of a stored graph's files, its own first; empty if the graph would be made again.

        Every file is compared with its SHA-256, once in a process for as long as its size and time do not change. Damage is
        reported.
        """
        folder = self._folder(graph, form)
        stamp = kept_json(folder / STAMP, MADE_FROM)
        if stamp is None or stamp["made_from"] != self.made_from(_part(graph)):
            return []
        if words := changed_file(folder, stamp["files"]):
            say(f"{words}; {graph} in {form} is made again")
            return []
        return stamp["files"]

    def _folder(self, graph: str, form: str) -> Path:
        return self.folder / "onnx" / form / graph


def _part(graph: str) -> str:
    return "denoiser" if graph == "step" else "vae"


MADE_BY = made_by(__name__)


def find_network(name: str) -> NetworkConfig:
    """The network of this name; LabError lists the known names."""
    if name not in NETWORKS:
        raise LabError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]
