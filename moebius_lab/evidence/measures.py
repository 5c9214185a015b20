"""What is measured of one fill against the truth, inside the hole."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from .perceptual import PerceptualDistance

RING = 24  # px around a hole whose texture a fill's is measured against; not `HARMONY_RING`, which may be tuned without moving a measure
SEAM = 4  # px on both sides of the hole's edge that count for neither
MEASURES = {
    "psnr_db": "PSNR in the hole, dB",
    "ssim": "SSIM",
    "texture": "texture, 1 is right",
    "texture_error": "|log2 texture|",
    "perceptual": "perceptual distance",
}
"""What `measures` finds, and the titles of tables and plots."""


def hole_psnr(filled: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Peak signal-to-noise ratio over the hole's pixels, dB; both pictures uint8 (H, W, 3), hole bool (H, W)."""
    error = np.mean((filled[hole].astype(float) - truth[hole].astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def hole_ssim(filled: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Structural similarity (scikit-image, 7 px windows), averaged over the hole's pixels; 1 is equal."""
    _, similarity = structural_similarity(filled, truth, channel_axis=2, full=True)
    return float(similarity[hole].mean())


def texture_ratio(filled: np.ndarray, hole: np.ndarray, ring: int = RING) -> float:
    """Laplacian energy in the hole over that of a ring of `ring` px around it: 1 is equal texture, 0 is smooth.

    Pixels within `SEAM` of the hole's edge count for neither side, so that a seam is not taken for texture.
    """
    grey = cv2.cvtColor(filled, cv2.COLOR_RGB2GRAY).astype(np.float32)
    energy = cv2.Laplacian(grey, cv2.CV_32F) ** 2
    area, seam = hole.astype(np.uint8), _square(SEAM)
    inside = cv2.erode(area, seam) > 0
    if not inside.any():
        inside = hole
    near = cv2.dilate(area, seam) > 0
    around = (cv2.dilate(area, _square(ring)) > 0) & ~near
    return float(energy[inside].mean() / (energy[around].mean() + 1e-3))


def _square(reach: int) -> np.ndarray:
    """The kernel that reaches `reach` px from its middle in every direction."""
    return np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)


def texture_error(ratio: float) -> float:
    """How far a texture ratio is from 1, symmetric in too little and too much: |log2 ratio|."""
    return float(abs(np.log2(max(ratio, 1e-6))))


def measures(
    filled: np.ndarray, truth: np.ndarray, hole: np.ndarray, distance: PerceptualDistance | None
) -> dict[str, float]:
    """Every measure of one fill that needs no other fill; the perceptual one if its network is given."""
    ratio = texture_ratio(filled, hole)
    found = {
        "psnr_db": round(hole_psnr(filled, truth, hole), 3),
        "ssim": round(hole_ssim(filled, truth, hole), 4),
        "texture": round(ratio, 4),
        "texture_error": round(texture_error(ratio), 4),
    }
    if distance is not None:
        found["perceptual"] = round(distance.between(filled, truth, hole), 4)
    return found
