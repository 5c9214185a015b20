"""The three graphs of one network in a folder, in any form: made if missing, and checked before use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL

from .. import LabError
from ..config import DETERMINISTIC, NETWORKS, OPSET, PARTS, STRAIGHTFORWARD, NetworkConfig
from ..files import STORED_FILE, TEXT, changed_file, file_sha256, kept_json, listed, record, replace_folder, say, write_json
from ..inpainting.backends import TorchBackend
from ..model.checkpoint import check_state, check_weights, find_weights, load_checkpoint, load_vae, make_vae, read_state_dict
from ..model.unet import MoebiusNet
from ..provenance import facts_digest, made_by
from .export import export_graph, export_straightforward
from .precision import STAMP, per_graph, store
from .sessions import OnnxBackend

MADE_FROM = record(files=listed(STORED_FILE), made_from={"type": "object"})
"""What a stamp of ours holds besides the list of files: what they were made from."""

RUN_BYTES = {"denoiser": 30, "vae": 18}  # that a run writes for each parameter, about


@dataclass(frozen=True)
class Graphs:
    """A network with its weights, a precision, and a folder in which its graphs are kept, under onnx/."""

    config: NetworkConfig
    weights: str  # a name in `config.WEIGHTS`, or a folder with denoiser.safetensors and vae.safetensors
    folder: Path
    precision: str = "fp32"  # in which the graphs are used where none is named; see `precision.per_graph`

    def __post_init__(self) -> None:
        per_graph(self.precision)  # raises for an unknown one
        check_weights(self.weights, self.config)

    @cached_property
    def net(self) -> MoebiusNet:
        return load_checkpoint(self.weight_file("denoiser"), self.config)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return load_vae(self.weight_file("vae"), self.config)

    def weight_file(self, part: str) -> str | Path:
        """The file of a part's weights ("denoiser" or "vae"), fetched first if need be, or "deterministic"."""
        return find_weights(self.weights, part, self.config)

    def require_weights(self) -> None:
        """Fetch both parts' weights if need be, and raise LabError where a file is damaged or not this network's."""
        for part in PARTS:
            source = self.weight_file(part)
            if source != DETERMINISTIC:
                with torch.device("meta"):
                    module = MoebiusNet(self.config) if part == "denoiser" else make_vae(self.config)
                check_state(module, read_state_dict(source), str(source))

    def made_from(self, part: str) -> dict[str, object]:
        """What a graph of `part` ("denoiser" or "vae") depends on: network, weights, this code and the libraries that it uses."""
        source = self.weight_file(part)
        if source != DETERMINISTIC and not Path(source).is_file():
            raise LabError(
                f"{source}: there is no such file; a folder of weights holds denoiser.safetensors and vae.safetensors"
            )
        digest = source if source == DETERMINISTIC else file_sha256(source)
        return {
            "network": self.config.name,
            "sizes": facts_digest(asdict(self.config)),
            "weights": digest,
            "opset": OPSET,
        } | MADE_BY

    def fingerprint(self) -> str:
        """SHA-256 of all that the graphs depend on: the network, both parts' weights, code and libraries. It dates results."""
        return facts_digest([self.made_from(part) for part in PARTS])

    @cached_property
    def torch_backend(self) -> TorchBackend:
        return TorchBackend(self.net, self.vae)

    @cached_property
    def onnx_backend(self) -> OnnxBackend:
        """ONNX Runtime on this run's graphs, which are made first where they are missing or out of date."""
        return OnnxBackend(self.stored(), self.config)

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

    def disk_needed(self) -> int:
        """Bytes that a whole run takes in its folder, about: graphs in every precision, copies for page and benchmark, one at work."""
        with torch.device("meta"):
            sizes = {"denoiser": MoebiusNet(self.config), "vae": make_vae(self.config)}
        return sum(RUN_BYTES[part] * sum(p.numel() for p in module.parameters()) for part, module in sizes.items())

    def _stored(self, graph: str, form: str, on_graph) -> Path:
        folder = self._folder(graph, form)
        if not self.stored_files(graph, form):
            straightforward = form == STRAIGHTFORWARD
            fp32 = self._stored(graph, "fp32", on_graph) if form != "fp32" and not straightforward else None
            on_graph(graph if form == "fp32" else f"{graph}, {form}")
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
        """Name, bytes and SHA-256 of the files of one stored graph, its own first; none where it would be made again.

        Every file is compared with its SHA-256, once in a process while its size and time stay. What is damaged is said.
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
    """The network of this name; LabError lists the names there are."""
    if name not in NETWORKS:
        raise LabError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]
