"""Weights: files and names in, networks ready to run out; keys are strict, and what is wrong is said in full."""

from __future__ import annotations

import json
import os
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import LabError
from ..config import (
    DETERMINISTIC,
    FASTEST,
    LATENT_CHANNELS,
    MOEBIUS,
    PRESETS,
    PUBLISHED,
    WEIGHTS,
    NetworkConfig,
    Preset,
    distilled_preset,
)
from ..errors import NO_ROOM, explain_os_error, first_line, is_out_of_memory
from ..files import file_sha256, require_room, written_whole
from .hub import Hub, HubUnreachable, default_folder
from .low_rank import DIFFERENCE, merged, read_difference
from .unet import MoebiusNet

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
SHIPPED = {"demo": DEMO_FOLDER, "demo-fast": DEMO_FOLDER.with_name("demo_fast")}
"""Folders of the weights that come with the package, by name."""
DENOISER_REPO, VAE_REPO = "hustvl/Moebius", "hustvl/PixelHacker"

PICKLE, SAFETENSORS = "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"
DEPRECATED_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that diffusers gave the layers of an autoencoder's attention before version 0.15, and since."""
STORED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types in which weights may be stored. 8 bits are too few for the comparison with the release to hold; they are made here."""
FOREIGN = (
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS, not the weights that it stands for; run `git lfs pull` where it came from",
    ),
    (rb"\s*<", "a web page, not weights; log in where it came from, or take the link of the file itself"),
    (rb"\s*\{\s*\"", "JSON text, not weights; open it to see what the server said"),
)
"""How files begin that are taken for weights, and what to do about each."""
OF_NO_EFFECT = ("sample_size", "force_upcast")  # entries of an autoencoder's configuration that change no number


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
        CheckpointError: no such file, cut short, damaged, another kind of file, or a pickle that holds anything but tensors
            by their names.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give the path of a .safetensors or .bin checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
    ) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        inner = [key for key, value in state.items() if isinstance(value, dict)] if isinstance(state, dict) else []
        advice = f"save its entry {inner[0]!r} alone" if inner else "give a file with plain weights"
        raise CheckpointError(f"{path}: it does not contain a dictionary of tensors; {advice}")
    numbered = [key for key in state if not isinstance(key, str)]
    if numbered:
        words = f"its tensors have no names other than {numbered[0]!r} and the like"
        raise CheckpointError(f"{path}: {words}; save the model's `state_dict()`")
    return state


def _why_unreadable(path: Path, error: Exception) -> str:
    """What a file is that neither library could read, and what to do about it."""
    if isinstance(error, OSError) and error.errno:
        return explain_os_error(OSError(error.errno, error.strerror))
    with path.open("rb") as file:
        start = file.read(64)
    for pattern, words in FOREIGN:
        if re.match(pattern, start):
            return words
    if path.suffix != ".safetensors" and start[8:9] == b"{":
        return "its content is a safetensors file; give it the ending .safetensors"
    if path.suffix == ".safetensors" and start[:2] in (b"PK", b"\x80\x02"):
        return "its content is a torch.save file; give it the ending .bin"
    if isinstance(error, pickle.UnpicklingError) and re.search("weights_only|unsupported", str(error).lower()):
        advice = "Ask its author for a .safetensors file"
        return f"the pickle contains more than tensors, so loading it could run code; it was refused. {advice}"
    kind = "safetensors file" if path.suffix == ".safetensors" else "checkpoint"
    return f"an incomplete or damaged {kind} ({first_line(error)}); download it again"


def check_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Compare keys, shapes and types with the module's, every one, and the numbers with finite ones; `module` may be on meta.

    Raises:
        CheckpointError: with the number and the first names of the missing, unexpected and misshapen entries, or of those whose
            numbers cannot be used.
    """
    if any("lora" in key.lower() for key in state):
        raise CheckpointError(
            f"{source}: a LoRA, which contains only changes to another checkpoint; merge it into that one first"
        )
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
        other = "of this network with another width or picture size" if not missing + unexpected else "of another network"
        raise CheckpointError(
            f"{source}: not a checkpoint of this network but {other}: {', '.join(problems)}{_hint_of_prefix(wanted, state)}"
        )
    _require_numbers(wanted, state, source)


def _hint_of_prefix(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What to do where only a common beginning of all names is in the way, as DataParallel and torch.compile add one."""
    prefix = os.path.commonprefix(list(state))
    prefix = prefix[: prefix.rfind(".") + 1]
    same = prefix and {key.removeprefix(prefix) for key in state} == set(wanted)
    return f"; each name has an extra {prefix!r} in front: save the `state_dict()` of the module inside" if same else ""


def _require_numbers(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError unless every entry is a dense tensor of finite numbers of a type that its weight can have."""
    of_another_type = [key for key, value in state.items() if value.dtype not in STORED and wanted[key].is_floating_point()]
    for what, bad, advice in (
        (
            "are sparse",
            [key for key, value in state.items() if value.layout != torch.strided],
            "save them with `.to_dense()`",
        ),
        (
            "have a shape but no numbers",
            [key for key, value in state.items() if value.is_meta],
            "save the loaded model, not one on `meta`",
        ),
        (
            "are of another type than float32, float16 or bfloat16",
            of_another_type,
            "save the weights before they were quantized",
        ),
    ):
        if bad:
            kind = str(state[bad[0]].dtype).removeprefix("torch.")
            raise CheckpointError(f"{source}: {len(bad)} entries {what} (first: {bad[0]}, {kind}); {advice}")
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"{source}: {len(bad)} entries are not finite (first: {bad[0]}); download it again")


def load_strict(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `module`, every key and shape exact; raises as `check_state` does."""
    check_state(module, state, source)
    module.load_state_dict(state, strict=True)


def load_checkpoint(source: str | Path, config: NetworkConfig) -> MoebiusNet:
    """A denoiser with its weights, float32, in evaluation mode.

    Args:
        source: a file of all of them, or one of `config.WEIGHTS`: "demo" and "demo-fast" (shipped with the package), "deterministic" (made
            by recipe), or published weights, which are fetched first where they are not on this machine.
        config: the network that the weights belong to.

    Raises:
        CheckpointError: see `read_state_dict` and `check_state`.
        HubError: published weights that cannot be had; see `hub.Hub.fetch`.
    """
    return _load(MoebiusNet(config).eval(), source, "denoiser", config)


def load_vae(source: str | Path, config: NetworkConfig) -> AutoencoderKL:
    """The autoencoder that goes with `load_checkpoint`, from a file or one of the same names."""
    return _load(make_vae(config), source, "vae", config)


def _load(module: nn.Module, source: str | Path, part: str, config: NetworkConfig) -> nn.Module:
    if str(source) in WEIGHTS:
        source = find_weights(str(source), part, config)
    if str(source) == DETERMINISTIC:
        module.load_state_dict(deterministic_weights(module))
        return module
    load_strict(module, read_state_dict(source), str(source))
    return module


# -- which file a name stands for --------------------------------------------------------------------------------------


def check_weights(weights: str, config: NetworkConfig) -> None:
    """Raise LabError where `weights` is no name and no folder, or belongs to another network than `config`."""
    belongs_to = dict.fromkeys(SHIPPED, "demo") | dict.fromkeys(PUBLISHED, MOEBIUS.name)
    if config.name != belongs_to.get(weights, config.name):
        raise LabError(
            f"the {weights} weights belong to the {belongs_to[weights]} network, not to {config.name}; name that network, "
            f'or give weights "{DETERMINISTIC}" or a folder'
        )
    if weights not in WEIGHTS and not Path(weights).is_dir():
        names = ", ".join(f'"{name}"' for name in WEIGHTS)
        raise LabError(f"weights={weights!r} is neither {names} nor a folder that exists")


def presets_of(weights: str) -> dict[str, Preset]:
    """The presets that these weights can be sampled with, the default first: `config.PRESETS`, or the one of distilled weights.

    Args:
        weights: a name in `config.WEIGHTS`, or a folder.

    Raises:
        LabError: the folder's difference is damaged.
    """
    if weights in WEIGHTS and weights not in SHIPPED:
        return dict(PRESETS)
    file = SHIPPED.get(weights, Path(weights)) / DIFFERENCE
    return {FASTEST: distilled_preset(read_difference(file).steps)} if file.is_file() else dict(PRESETS)


def find_weights(
    weights: str, part: str, config: NetworkConfig, hub: Hub | None = None, on_the_way: tuple[Path, ...] = ()
) -> str | Path:
    """The file that holds one part of `weights`; published ones are fetched and converted where they are not there yet.

    Args:
        weights: one of `config.WEIGHTS`, or a folder with denoiser.safetensors and vae.safetensors, or one with a difference
            from other weights, into which it is merged where that was not done yet; see `low_rank`.
        part: "denoiser" or "vae".
        config: the network that the weights belong to.
        hub: where published weights come from and go to; by default as huggingface_hub's environment says.
        on_the_way: files of differences that led here from one to the next.

    Returns:
        A .safetensors file with the types in which the weights were published, or "deterministic", which needs none.

    Raises:
        HubError, CheckpointError: see `hub.Hub.fetch`, `read_state_dict` and `check_state`. Where no hub can be had, the
            message names every file and the place to put it.
    """
    if weights == DETERMINISTIC:
        return DETERMINISTIC
    if weights not in PUBLISHED:
        folder = SHIPPED.get(weights, Path(weights))
        if (folder / DIFFERENCE).is_file():
            return _merged(folder / DIFFERENCE, part, config, hub, on_the_way)
        return folder / f"{part}.safetensors"
    hub = hub or Hub(default_folder())
    denoiser, vae_config, vae = (
        (f"{PUBLISHED[weights]}/{PICKLE}",),
        ("vae/config.json",),
        (f"vae/{SAFETENSORS}", f"vae/{PICKLE}"),
    )
    with hub.held():
        try:
            if part == "denoiser":
                return _converted(hub, DENOISER_REPO, denoiser, part, lambda: MoebiusNet(config))
            check_vae_config(hub.fetch(VAE_REPO, vae_config).path, config)
            return _converted(hub, VAE_REPO, vae, part, lambda: make_vae(config))
        except HubUnreachable as error:
            files = ((DENOISER_REPO, denoiser), (VAE_REPO, vae_config), (VAE_REPO, vae))
            raise HubUnreachable(f"{error}; {hub.by_hand(files)}") from None


def weights_digest(source: str | Path) -> str:
    """SHA-256 of a file that `find_weights` gives, or "deterministic", which has none."""
    return DETERMINISTIC if source == DETERMINISTIC else file_sha256(source)


def _merged(file: Path, part: str, config: NetworkConfig, hub: Hub | None, on_the_way: tuple[Path, ...]) -> str | Path:
    """The file of weights to which a difference was added; an autoencoder is that of the weights it belongs to."""
    difference, here = read_difference(file), file.resolve()
    if here in on_the_way:
        raise CheckpointError(
            f"{file}: its weights are a difference from themselves, by way of {difference.weights}; distil it again, with "
            "an output folder that holds no weights"
        )
    if difference.network != config.name:
        raise CheckpointError(
            f"{file}: it belongs to the {difference.network} network, not to {config.name}; name that network"
        )
    base = find_weights(difference.weights, part, config, hub, (*on_the_way, here))
    if part != "denoiser":
        return base
    digest = weights_digest(base) if base == DETERMINISTIC or Path(base).is_file() else ""
    if digest != difference.sha256:
        raise CheckpointError(
            f"{file}: it was made for other {difference.weights} weights than those in {base}; distil it again from these"
        )
    target = default_folder() / "merged" / f"{file_sha256(file)[:16]}-{digest[:16]}.safetensors"
    if not target.is_file():
        with torch.device("meta"):
            module = MoebiusNet(config)
        state = deterministic_weights(MoebiusNet(config)) if base == DETERMINISTIC else read_state_dict(base)
        check_state(module, state, str(base))
        target.parent.mkdir(parents=True, exist_ok=True)
        require_room(target.parent, sum(value.nbytes for value in state.values()), target.name)
        with written_whole(target) as whole:
            save_file(merged(state, difference), whole)
    return target


def _converted(hub: Hub, repo: str, names: tuple[str, ...], part: str, make: Callable[[], nn.Module]) -> Path:
    target = (hub.folder / repo / names[0]).with_name(f"{part}.safetensors")
    if not target.is_file():
        source = hub.fetch(repo, names)
        with torch.device("meta"):
            module = make()
        try:
            convert(source.path, target, module)
        except CheckpointError:
            if source.fetched:
                source.path.unlink()
            raise
        hub.check(target, made_from=source.sha256)
        if source.fetched:
            source.path.unlink()
    hub.check(target)
    return target


def convert(source: Path, target: Path, module: nn.Module) -> None:
    """Write a checkpoint of `module` as .safetensors, numbers and types as they are stored in `source`.

    `target` appears whole or not at all. The module, which may be on the meta device, is only compared with. The layers
    of an autoencoder's attention get their present names.

    Raises:
        CheckpointError: not a whole checkpoint, not one of this module, or no room on the disk.
    """
    state = {_present_name(key): value for key, value in read_state_dict(source).items()}
    check_state(module, state, str(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    require_room(target.parent, sum(value.nbytes for value in state.values()), target.name)
    try:
        with written_whole(target) as part:
            save_file({key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in NO_ROOM or any(f"(os error {number})" in str(error) for number in NO_ROOM)
        reason = "the disk is full; free some space" if full else str(error).splitlines()[0]
        raise CheckpointError(f"{target}: cannot be written: {reason}") from None


def _present_name(key: str) -> str:
    pattern = rf"(\.attentions\.0)\.({'|'.join(DEPRECATED_ATTENTION)})\.(weight|bias)$"
    return re.sub(pattern, lambda m: f"{m[1]}.{DEPRECATED_ATTENTION[m[2]]}.{m[3]}", key)


def check_vae_config(path: Path, config: NetworkConfig) -> None:
    """Compare a published autoencoder's config.json with `config.vae`, entry by entry, diffusers' defaults included.

    Raises:
        CheckpointError: another autoencoder, or not a configuration.
    """
    try:
        text = path.read_text(encoding="utf-8")
        published = dict(json.loads(text))  # from_config would take a text for the name of a repository
        with torch.device("meta"):
            theirs, ours = AutoencoderKL.from_config(published).config, make_vae(config).config
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise CheckpointError(f"{path}: not the configuration of an AutoencoderKL ({reason}); fetch it again") from None
    other = [
        f"{key} {_plain(theirs[key])} instead of {_plain(ours[key])}"
        for key in ours
        if key not in OF_NO_EFFECT and not key.startswith("_") and _plain(theirs[key]) != _plain(ours[key])
    ]
    if other:
        raise CheckpointError(f"{path}: not the autoencoder of the {config.name} network: {'; '.join(other)}")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
