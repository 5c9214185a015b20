"""Weights: files and names in, networks ready to run out; keys are strict, and what is wrong is said in full."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import LabError
from .config import LATENT_CHANNELS, NetworkConfig
from .unet import MoebiusNet

DEMO_FOLDER = Path(__file__).parent / "demo"
DETERMINISTIC = "deterministic"
"""The name under which weights made by `deterministic_weights` are asked for."""
PUBLISHED = ("pretrained", "ft_places2", "ft_celebahq", "ft_ffhq")
"""Folders of hustvl/Moebius that hold a `diffusion_pytorch_model.bin` each."""


class CheckpointError(LabError):
    """A checkpoint that cannot be read, or that belongs to another network."""


def make_vae(config: NetworkConfig) -> AutoencoderKL:
    """The network's autoencoder, diffusers' AutoencoderKL, with random weights, in evaluation mode."""
    levels = len(config.vae.block_out_channels)
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=config.vae.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.vae.layers_per_block,
        norm_num_groups=config.vae.norm_num_groups,
        scaling_factor=config.vae.scaling_factor,
        mid_block_add_attention=config.vae.mid_block_attention,
        sample_size=config.image_size,
    ).eval()


def deterministic_weights(module: nn.Module, salt: str = "") -> dict[str, Tensor]:
    """A state dict for `module` whose numbers follow from the entries' names alone, so that no file is needed.

    Every entry draws standard normals n from numpy's default generator seeded with CRC-32 of `salt` + name; norm
    weights become 1 + 0.1 n, biases 0.05 n, running means 0.1 n, running variances 0.5 + uniform, position embeddings
    0.1 n, the embedding table n, and all else n / sqrt(fan in). `num_batches_tracked` stays as it is.
    """
    return {name: _deterministic_entry(name, entry, salt) for name, entry in module.state_dict().items()}


def _deterministic_entry(name: str, entry: Tensor, salt: str) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return entry
    shape = tuple(entry.shape)
    rng = np.random.default_rng(zlib.crc32((salt + name).encode()))
    n = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        x = np.float32(0.5) + rng.random(shape, dtype=np.float32)
    elif name.endswith(("running_mean", "rel_pos_emb")):
        x = np.float32(0.1) * n
    elif name.endswith(".bias"):
        x = np.float32(0.05) * n
    elif name == "embedding_layer.weight":
        x = n
    elif n.ndim == 1:
        x = 1 + np.float32(0.1) * n
    else:
        x = n / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(x)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file, or a pickle of tensors and nothing else (`weights_only=True`); stored types are kept.

    Raises:
        CheckpointError: no such file, cut short, damaged, or a pickle that holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give the path of a .safetensors or .bin checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); download it again") from None
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise CheckpointError(
                f"{path}: the pickle holds more than tensors, so loading it could run code; it was refused. "
                "Ask its author for a .safetensors file"
            ) from None
        raise CheckpointError(f"{path}: not a whole checkpoint; download it again") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a whole checkpoint ({line}); download it again") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: it does not hold a dictionary of tensors; give a file with plain weights")
    return state


def stored_types(state: dict[str, Tensor]) -> dict[str, int]:
    """How many numbers of a state dict are stored in which type, for example {"float16": 226041531}."""
    counts: dict[str, int] = {}
    for value in state.values():
        kind = str(value.dtype).removeprefix("torch.")
        counts[kind] = counts.get(kind, 0) + value.numel()
    return counts


def load_strict(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `module`, every key and shape exact.

    Raises:
        CheckpointError: with the number and the first names of the missing, unexpected and misshapen entries.
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = [f"{len(names)} {what} (first: {'; '.join(names[:3])})" for what, names in found.items() if names]
    if problems:
        raise CheckpointError(f"{source}: not a checkpoint of this network: " + ", ".join(problems))
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"{source}: {len(bad)} entries hold numbers that are not finite (first: {bad[0]})")
    module.load_state_dict(state, strict=True)


def load_checkpoint(source: str | Path, config: NetworkConfig) -> MoebiusNet:
    """A denoiser with its weights, float32, in evaluation mode.

    Args:
        source: a file, or a name: "demo" (shipped with the package) or "deterministic" (made by recipe).
        config: the network that the weights belong to.

    Raises:
        CheckpointError: see `read_state_dict` and `load_strict`.
    """
    return _load(MoebiusNet(config).eval(), source, "denoiser.safetensors")


def load_vae(source: str | Path, config: NetworkConfig) -> AutoencoderKL:
    """The autoencoder that goes with `load_checkpoint`, from a file or one of the same names."""
    return _load(make_vae(config), source, "vae.safetensors")


def _load(module: nn.Module, source: str | Path, demo_file: str) -> nn.Module:
    if str(source) == DETERMINISTIC:
        module.load_state_dict(deterministic_weights(module))
        return module
    if str(source) in PUBLISHED:
        raise CheckpointError(
            f"{source}: download {source}/diffusion_pytorch_model.bin of hustvl/Moebius and give the path of that file"
        )
    path = DEMO_FOLDER / demo_file if str(source) == "demo" else Path(source)
    load_strict(module, read_state_dict(path), str(path))
    return module
