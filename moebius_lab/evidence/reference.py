"""Checks the network and the pipeline against a folder of reference outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import LabError
from ..config import AS_RELEASED, MOEBIUS, SMALL, NetworkConfig
from ..files import COUNT, DamagedFile, listed, mapping, read_arrays, read_json
from ..inpainting.backends import TorchBackend
from ..inpainting.imaging import mask_to_hole, paste, to_bytes, to_unit_range
from ..inpainting.loop import Settings, sample
from ..model.checkpoint import deterministic_weights, make_vae
from ..model.unet import MoebiusNet

COPY_AGAIN = "copy it again"
NETWORK_TOLERANCE = 2e-5  # max |d| of the predicted noise, whose standard deviation is about 0.4
BLOCK_TOLERANCE = 1e-4  # of a block's mean and standard deviation, relative to the standard deviation
PICTURE_TOLERANCE = 1  # levels of 255
PICTURE_SHARE = 1e-3  # share of the values that may differ at all


@dataclass(frozen=True)
class Check:
    """One compared thing."""

    name: str
    max_difference: float
    mean_difference: float
    tolerance: float
    ok: bool


def verify_reference(folder: str | Path, salt: str = "", on_check=lambda check: None) -> list[Check]:
    """Compare with every reference file in `folder`: unet_small.npz, unet_moebius.npz, pipeline_small.npz,
    small_state_dict.json, moebius_state_dict.json.

    Args:
        folder: holds at least one of the files.
        salt: put before each entry's name when the weights are made (`deterministic_weights`).
        on_check: called with each result as it comes.

    Raises:
        LabError: no such folder, none of the files in it, or one of them cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"{folder}: there is no such folder; give the folder of the reference files")
    checks: list[Check] = []
    for file, check in _CHECKS.items():
        path = folder / file
        if not path.is_file():
            continue
        try:
            results = check(path, salt)
        except DamagedFile:
            raise
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise LabError(f"{path}: not a complete reference file ({error}); {COPY_AGAIN}") from None
        for result in results:
            checks.append(result)
            on_check(result)
    if not checks:
        raise LabError(f"{folder}: none of {', '.join(_CHECKS)} is there; give the folder of the reference files")
    return checks


def _within(name: str, got: np.ndarray, reference: np.ndarray, tolerance: float, share: float | None = None) -> Check:
    if got.shape != reference.shape:
        raise ValueError(f"{name}: shape {reference.shape}, {got.shape} was expected")
    d = np.abs(got.astype(np.float64) - reference.astype(np.float64))
    ok = bool(d.max() <= tolerance) and (share is None or float((d > 0).mean()) < share)
    return Check(name, float(d.max()), float(d.mean()), tolerance, ok)


def _keys(config: NetworkConfig):
    def check(path: Path, salt: str) -> list[Check]:
        with torch.device("meta"):
            ours = {name: list(entry.shape) for name, entry in MoebiusNet(config).state_dict().items()}
        theirs = read_json(path, mapping(listed(COUNT)), COPY_AGAIN)
        different = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
        return [Check(f"{path.name}: keys and shapes", different, different / len(theirs), 0, different == 0)]

    return check


def _network(config: NetworkConfig):
    def check(path: Path, salt: str) -> list[Check]:
        reference = read_arrays(path, COPY_AGAIN)
        net = MoebiusNet(config).eval()
        net.load_state_dict(deterministic_weights(net, salt))
        seen = []

        def watch(module, inputs, output) -> None:
            x = output[0] if isinstance(output, tuple) else output
            seen.append(np.array([x.mean(), x.std()]))

        for block in [*net.diff_model.down_blocks, *net.diff_model.up_blocks]:
            block.register_forward_hook(watch)
        with torch.inference_mode():
            noise = net(*(torch.from_numpy(reference[name]) for name in ("latent", "timesteps", "input_ids")))
        checks = [
            _within(f"{path.name}: block {i}", s / r[1], r / r[1], BLOCK_TOLERANCE)
            for i, s in enumerate(seen)
            if (r := reference.get(f"block_{i}_mean_std")) is not None
        ]
        return [*checks, _within(f"{path.name}: noise", noise.numpy(), reference["noise"], NETWORK_TOLERANCE)]

    return check


def _pipeline(path: Path, salt: str) -> list[Check]:
    reference = read_arrays(path, COPY_AGAIN)
    net, vae = MoebiusNet(SMALL).eval(), make_vae(SMALL)
    for module in (net, vae):
        module.load_state_dict(deterministic_weights(module, salt))
    image, mask = reference["image"], reference["mask"]
    settings = Settings(guidance=float(reference["guidance"]), coverage=AS_RELEASED)
    raw = to_bytes(sample(TorchBackend(net, vae), to_unit_range(image), mask_to_hole(mask), settings))
    return [
        _within(f"{path.name}: raw", raw, reference["raw"], PICTURE_TOLERANCE, PICTURE_SHARE),
        _within(
            f"{path.name}: pasted",
            paste(raw, image, mask, AS_RELEASED),
            reference["pasted"],
            PICTURE_TOLERANCE,
            PICTURE_SHARE,
        ),
    ]


_CHECKS = {
    "small_state_dict.json": _keys(SMALL),
    "moebius_state_dict.json": _keys(MOEBIUS),
    "unet_small.npz": _network(SMALL),
    "pipeline_small.npz": _pipeline,
    "unet_moebius.npz": _network(MOEBIUS),
}
