"""ONNX Runtime on the three graphs: sessions on the CPU and on its native WebGPU provider, and the backend over them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from .. import LabError
from ..config import GPU_LAYOUTS, GRAPHS, NetworkConfig
from ..inpainting.backends import LOOP_OUTPUTS, GraphBackend
from .passes import gather_cells

WEIGHTS_FOLDER = (
    "session.model_external_initializers_file_folder_path"  # where a graph that is given as bytes has its weights
)


class OnnxBackend(GraphBackend):
    """ONNX Runtime on the three graphs, in any precision.

    Args:
        paths: the file of each graph in `GRAPHS`, as `Graphs.stored` returns them.
        config: the network that they were exported from.
        open_: makes a session from a file: `open_session`, on the CPU and the default, or `webgpu_session`.

    Raises:
        LabError: a file is missing, cannot be read, or belongs to another network.
    """

    def __init__(
        self,
        paths: dict[str, Path],
        config: NetworkConfig,
        open_: Callable[[Path], onnxruntime.InferenceSession] | None = None,
    ) -> None:
        self.config = config
        self.sessions = {graph: (open_ or open_session)(paths[graph]) for graph in GRAPHS}
        side = self.sessions["step"].get_inputs()[0].shape[-1]
        if side != config.latent_size:
            raise LabError(
                f"{paths['step']}: this graph takes {side} x {side} latents, the {config.name} network has "
                f"{config.latent_size}; name the network that it was exported from"
            )
        used = sorted({session.get_providers()[0] for session in self.sessions.values()})
        self.name = "ONNX Runtime, " + ", ".join(used)

    def run(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one graph on float32 arrays by name; returns only the outputs that the loop reads, `LOOP_OUTPUTS`."""
        feeds = {name: np.ascontiguousarray(x) for name, x in inputs.items()}
        outputs = LOOP_OUTPUTS[graph]
        return dict(zip(outputs, self.sessions[graph].run(outputs, feeds), strict=True))


def session_options(profile: str = "") -> onnxruntime.SessionOptions:
    """The options of every session, for any provider and precision; `profile` as in `open_session`."""
    options = onnxruntime.SessionOptions()
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    options.log_severity_level = 3  # errors only: it warns of every constant in half precision that it cannot fold
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # weights are dequantised once, at load
    return options


def open_session(
    path: str | Path, profile: str = "", model: onnx.ModelProto | None = None, threads: int = 0
) -> onnxruntime.InferenceSession:
    """Load a graph in ONNX Runtime on the CPU, stored in any precision; `passes.gather_cells` suits it to that provider.

    Args:
        path: the graph.
        profile: prefix of a profile's file name; empty for none.
        model: another graph on the same weights, to be loaded instead.
        threads: that one node may use; 0 for as many as OMP_NUM_THREADS lets PyTorch use, and where that is not set one a core.
            More than one wait busily for their next node, which on a busy machine costs others more than it gains here.

    Raises:
        LabError: the file is missing or cannot be read.
    """
    if not Path(path).is_file():
        raise LabError(f"{path}: there is no such file; make it with `python -m moebius_lab export`")
    options = session_options(profile)
    options.intra_op_num_threads = threads or (torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 0)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(Path(path).resolve().parent))
    try:
        model = gather_cells(model or onnx.load(str(path), load_external_data=False))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        line = str(error).splitlines()[0]
        raise LabError(f"{path}: ONNX Runtime cannot load it ({line}); export it again") from None


def webgpu_session(
    path: str | Path, profile: str = "", model: onnx.ModelProto | None = None
) -> onnxruntime.InferenceSession:
    """A graph on ONNX Runtime's native WebGPU provider (the package onnxruntime-ep-webgpu), and on nothing else.

    Convolutions run in the layout that the page uses for this graph (`config.GPU_LAYOUTS`), or in NCHW if it names none.

    Args:
        path: a graph in any precision.
        profile: prefix of a profile's file name; empty for none.
        model: another graph on the same weights, to be loaded instead.

    Raises:
        LabError: the package is missing, it finds no device, or the provider cannot run a node.
    """
    try:
        import onnxruntime_ep_webgpu as plugin
    except ImportError:
        raise LabError("the native WebGPU provider needs `pip install onnxruntime-ep-webgpu`") from None
    if not any(device.ep_name == plugin.get_ep_name() for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library("webgpu", plugin.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == plugin.get_ep_name()]
    if not devices:
        raise LabError("the native WebGPU provider finds no device: it needs a graphics card and the Vulkan loader")
    options = session_options(profile)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(devices[:1], {"preferredLayout": GPU_LAYOUTS.get(Path(path).stem, "NCHW")})
    if model:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(Path(path).resolve().parent))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString() if model else str(path), options)
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        raise LabError(
            f"{path}: the native WebGPU provider cannot load it ({str(error).splitlines()[0]}); use the backend onnx, or export again"
        ) from None
