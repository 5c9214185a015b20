"""What a user would take instead of the network, behind one signature: (picture uint8 (H, W, 3), hole bool (H, W)) -> uint8 (H, W, 3)."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .. import LabError

PATCHMATCH_SEED = 0
OPENCV_RADIUS = 5  # px, the neighbourhood that Telea and Navier-Stokes look at


def patchmatch_fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """PatchMatch (Barnes et al. 2009), with the package's defaults.

    Raises:
        LabError: the package is not installed.
    """
    try:
        import patchmatch
    except ImportError as missing:
        raise LabError("the comparison with PatchMatch needs a package: pip install pypatchmatch") from missing
    patchmatch.set_verbose(False)
    patchmatch.set_random_seed(PATCHMATCH_SEED)
    return patchmatch.inpaint(picture, hole.astype(np.uint8))


def telea_fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """OpenCV's fast marching (Telea 2004): colours are carried inwards from the hole's edge."""
    return cv2.inpaint(picture, hole.astype(np.uint8), OPENCV_RADIUS, cv2.INPAINT_TELEA)


def navier_stokes_fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """OpenCV's Navier-Stokes (Bertalmio et al. 2001): lines of equal brightness are carried inwards."""
    return cv2.inpaint(picture, hole.astype(np.uint8), OPENCV_RADIUS, cv2.INPAINT_NS)


def biharmonic_fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """scikit-image's solution of the biharmonic equation: the smoothest surface that meets the edge. One large linear system."""
    from skimage.restoration import inpaint_biharmonic

    return np.rint(inpaint_biharmonic(picture, hole, channel_axis=-1).clip(0, 1) * 255).astype(np.uint8)


FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "patchmatch": patchmatch_fill,
    "telea": telea_fill,
    "navier_stokes": navier_stokes_fill,
    "biharmonic": biharmonic_fill,
}
"""Every one by its name in `config.BASELINES`."""
