"""The networks behind FID and LPIPS, as TorchScript files that the reader has on disk; none is fetched, none ships.

Both files were published with StyleGAN2-ADA by NVIDIA. A TorchScript file holds its own code, so neither torch-fidelity, clean-fid
nor lpips is needed: all three depend on torchvision, which this project does without.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import LabError
from ...errors import first_line

INCEPTION, VGG = "inception-2015-12-05.pt", "vgg16.pt"
FEATURES = 2048  # of one picture, before Inception's last layer
WHERE = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
"""Where the two files were published."""
FILES = {"inception": (INCEPTION, "FID"), "lpips": (VGG, "LPIPS")}


def find(folder: str | Path) -> tuple[dict[str, str], list[str]]:
    """The files that are in a folder, by their name in `Plan`, and a line for each that is not."""
    found = {name: str(Path(folder, file).resolve()) for name, (file, _) in FILES.items() if Path(folder, file).is_file()}
    missing = [
        f"{measure} is left out: put {file} (from {WHERE}) into {folder}"
        for name, (file, measure) in FILES.items()
        if name not in found
    ]
    return found, missing


@lru_cache(maxsize=2)
def _network(path: str) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        words = f"{path} is not a TorchScript network ({first_line(error)}); fetch it again from {WHERE}"
        raise LabError(words) from None


def _as_batch(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]  # (1, 3, H, W) in 0..255


@torch.inference_mode()
def inception_features(path: str, picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (2048,): what FID compares; the file itself scales pictures to 299 px.

    Raises:
        LabError: the file cannot be loaded or is another network.
    """
    features = _network(path)(_as_batch(picture), return_features=True)
    if features.shape != (1, FEATURES):
        raise LabError(f"{path} gives {tuple(features.shape)} features, not (1, {FEATURES}); it is not {INCEPTION}")
    return features[0].float().numpy()


@torch.inference_mode()
def lpips(path: str, x: np.ndarray, y: np.ndarray) -> float:
    """LPIPS by VGG-16 of two pictures, uint8 (H, W, 3), over the whole picture as papers report it; 0 is equal.

    Raises:
        LabError: the file cannot be loaded.
    """
    network = _network(path)
    a, b = (network(_as_batch(p).float(), resize_images=False, return_lpips=True) for p in (x, y))
    return float((a - b).square().sum())


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """FID of two sets of features, float (n, d) and (m, d): Heusel et al. 2017, equation 6.

    Both covariances are written as RᵀR with R of a QR decomposition. The trace of the root of their product is then the sum of the
    singular values of R₁R₂ᵀ, which needs no root of a matrix that may be singular.
    """
    means, roots = [], []
    for features in (np.asarray(x, float), np.asarray(y, float)):
        means.append(features.mean(0))
        roots.append(np.linalg.qr((features - means[-1]) / np.sqrt(len(features) - 1), mode="r"))
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum((root**2).sum() for root in roots) - 2 * cross)
