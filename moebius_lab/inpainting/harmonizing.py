"""Making a fill agree with what lies around it: no colours that are not there, and as much fine texture.

What the decoder returns is often a little too coloured on a grey wall, too smooth in gravel or too rough in a sky, which shows as a
patch. Two corrections of each hole, both small, mend most of that:

- Colour differences stay within what a ring around the hole has, but for its rarest; a grey picture is filled in grey.
- Fine detail, a pixel less the smooth mean of its 3 x 3 neighbours, is scaled so that the Laplacian's energy in the hole comes half way
  (in its logarithm) to that in the ring, by at most `config.MOST_DETAIL`.

`Settings.harmonize` chooses it. The release has none of this. The page does the same (`web/engine/harmonizing.js`), pixel for pixel: all
sums are whole numbers.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from ..config import DETAIL_SEAM, FEATHER_WIDTH, HARMONY_RING, MOST_DETAIL, RARE_COLOURS

FLAT = 8.0  # added to both energies, so that nothing is made of rounding: half a level squared, of four times the luma


def harmonized(made: np.ndarray, seen: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The model's output for a window, each hole brought nearer to its own surroundings.

    Holes so near that the pixels over which they fade out meet are taken together.

    Args:
        made: uint8 (S, S, 3), what the model made.
        seen: uint8 (S, S, 3), what it saw.
        mask: uint8 (S, S), 255 in the hole, 0 where `seen` is known.

    Returns:
        uint8 (S, S, 3), as `made` where nothing of it is used; `made` itself where nothing is hole or nothing is known.
    """
    hole = mask > 0
    if hole.all() or not hole.any():
        return made
    result = made.copy()
    labels, _ = ndimage.label(_near(hole, FEATHER_WIDTH), structure=np.ones((3, 3)))
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        part = tuple(slice(max(at.start - HARMONY_RING, 0), at.stop + HARMONY_RING) for at in box)
        used = labels[part] == label
        result[part][used] = _one_hole(made[part], seen[part], hole[part], hole[part] & used)[used]
    return result


def _one_hole(made: np.ndarray, seen: np.ndarray, hole: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What is made of a part of a window: uint8 (H, W, 3).

    Args:
        made, seen: uint8 (H, W, 3), as `harmonized` has them; `HARMONY_RING` px around a hole and more, as far as the window goes.
        hole, own: bool (H, W), where nothing is known, and what of it is this hole.
    """
    ring = _near(own, HARMONY_RING) & ~hole
    luma, *differences = luma_and_differences(made)
    seen_luma, *known = luma_and_differences(seen)
    red_blue, green = (np.clip(d, *usual(k[ring])) for d, k in zip(differences, known))
    coloured = np.stack([luma - green + 2 * red_blue, luma + green, luma - green - 2 * red_blue], axis=2) + 2 >> 2
    core, clear = own & ~_near(~hole, DETAIL_SEAM), ring & ~_near(hole, DETAIL_SEAM)
    gain = detail_gain(_energy(luma, core if core.any() else own), _energy(seen_luma, clear))
    detail = (gain - 1) * fine_detail(luma) / 64
    return np.clip(np.floor(coloured + detail[..., None] + 0.5), 0, 255).astype(np.uint8)


def luma_and_differences(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 (H, W, 3) -> R + 2 G + B, R - B and 2 G - R - B, int32 (H, W) each; both differences of a grey pixel are 0."""
    red, green, blue = np.moveaxis(rgb.astype(np.int32), 2, 0)
    return red + 2 * green + blue, red - blue, 2 * green - red - blue


def usual(values: np.ndarray) -> tuple[int, int]:
    """Least and largest of some whole numbers, without the share of `RARE_COLOURS` at either end."""
    ordered = np.sort(values)
    rare = int(RARE_COLOURS * len(ordered))
    return int(ordered[rare]), int(ordered[len(ordered) - 1 - rare])


def detail_gain(made: float | None, known: float | None) -> float:
    """What fine detail is multiplied by; 1 where there is nothing to compare.

    Args:
        made: energy of four times the luma of what was made, in the hole.
        known: that around it.
    """
    if made is None or known is None:
        return 1.0
    gain = math.sqrt(math.sqrt((known + FLAT) / (made + FLAT)))
    return min(max(gain, 1 / MOST_DETAIL), MOST_DETAIL)


def fine_detail(luma: np.ndarray) -> np.ndarray:
    """int (H, W) -> 16 times each value less the mean of its neighbours with weights 1 2 1; edges are repeated."""
    smooth = luma
    for axis in (0, 1):
        smooth = ndimage.correlate1d(smooth, [1, 2, 1], axis=axis, mode="nearest")
    return 16 * luma - smooth


def _energy(luma: np.ndarray, where: np.ndarray) -> float | None:
    """Mean square of the Laplacian, without the outermost pixels; None where no others are left."""
    inner = where[1:-1, 1:-1]
    if not inner.any():
        return None
    middle = luma[1:-1, 1:-1].astype(np.int64)
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return int((laplacian[inner] ** 2).sum()) / int(inner.sum())


def _near(ones: np.ndarray, reach: int) -> np.ndarray:
    """bool (H, W) -> bool (H, W): a True within `reach` px along both axes."""
    return ndimage.maximum_filter(ones, 2 * reach + 1, mode="constant")
