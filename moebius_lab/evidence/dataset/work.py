"""What a worker does: one contender on one batch of holes. The same numbers come out whoever does it: one thread, one order."""

from __future__ import annotations

import time
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from ... import LabError
from ...errors import explain
from ...inpainting.backends import Backend, TorchBackend
from ...inpainting.imaging import ImageError, check_picture_and_mask, feather, is_hole
from ...inpainting.loop import inpaint
from ...inpainting.masks import mask_of_kind
from ...inpainting.picture_files import read_image, read_mask
from ...port.graphs import Graphs, find_network
from ...port.sessions import OnnxBackend, open_session, webgpu_session
from ...provenance import made_by
from ..baselines import FILLS
from ..measures import measures
from ..perceptual import PerceptualDistance
from . import scripted
from .plan import TRUTH, Case, Contender, Job, Plan

LEAST_SQUARE = 0.5  # of a picture's shorter side: the smallest square that is cut at random, unless `Plan.size` is more


def do(plan: Plan, job: Job) -> list[dict]:
    """Fill and measure a batch.

    Returns:
        A row for every case: its key ("picture", "square", "hole", "contender"), "share" of the hole, the measures, "features" for FID
        (float32 bytes), "seconds" of the fill alone; and "error", empty for a fill that was measured.

    Raises:
        LabError: the contender or a measure cannot be run here at all.
    """
    torch.set_num_threads(1)  # a sum's order depends on the number of threads, and so do its last digits
    cv2.setNumThreads(1)
    rows = []
    for case in job.cases:
        row = {
            "picture": case.picture,
            "square": case.square,
            "hole": case.hole,
            "contender": job.contender.key,
            "error": "",
        }
        try:
            picture, mask = load(plan, case)
        except (ImageError, OSError) as error:
            rows.append(row | {"error": explain(error)})
            continue
        start = time.perf_counter()
        try:
            filled = fill(plan, job.contender, case, picture, mask)
        except FloatingPointError as error:
            rows.append(row | {"error": explain(error)})
            continue
        row["seconds"] = time.perf_counter() - start
        rows.append(row | _measured(plan, job.contender, filled, picture, mask))
    return rows


def load(plan: Plan, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The square of a case, uint8 (size, size, 3), and its mask, uint8 (size, size), 255 in the hole.

    Raises:
        ImageError: a file is missing or cannot be read, or the hole is empty or everything.
    """
    whole = read_image(Path(plan.pictures, case.picture))
    rows, columns = _square(whole.shape[:2], plan, case)
    part = whole[rows, columns]
    scaled = Image.fromarray(part).resize((plan.size, plan.size), Image.Resampling.LANCZOS)
    picture = np.asarray(scaled) if part.shape[0] != plan.size else part
    if plan.masks:
        given = read_mask(plan.mask_of(case.picture))
        if given.shape != whole.shape[:2]:
            check_picture_and_mask(whole, given)  # says how they differ
        touched = cv2.resize(
            is_hole(given)[rows, columns].astype(np.float32), (plan.size, plan.size), None, 0, 0, cv2.INTER_AREA
        )
        hole = touched > 0
    else:
        generator = np.random.default_rng(case.seed(plan.seed, "hole"))
        hole = mask_of_kind(case.hole, plan.share, generator, plan.size) > 0
    mask = hole.astype(np.uint8) * 255
    check_picture_and_mask(picture, mask)
    return np.ascontiguousarray(picture), mask


def _square(shape: tuple[int, int], plan: Plan, case: Case) -> tuple[slice, slice]:
    """The square of a case in a picture of this shape: the largest in the middle, or one at random, rarely smaller than `plan.size`."""
    short = min(shape)
    if case.square == 0:
        side, corner = short, [(length - short) // 2 for length in shape]
    else:
        generator = np.random.default_rng(case.seed(plan.seed, "square"))
        side = int(generator.integers(min(short, max(plan.size, round(LEAST_SQUARE * short))), short + 1))
        corner = [int(generator.integers(length - side + 1)) for length in shape]
    return slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)


def fill(plan: Plan, contender: Contender, case: Case, picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What a contender makes of a picture with a hole: uint8 (H, W, 3)."""
    if contender.filler == TRUTH:
        return picture
    if contender.filler in FILLS:
        return FILLS[contender.filler](picture, feather(mask) > 0)
    backend = _backend(plan.network, plan.weights, plan.graphs, contender.filler, contender.form)
    return inpaint(backend, picture, mask, plan.settings(contender, case))


@lru_cache(maxsize=1)  # at full size one takes gigabytes
def _backend(network: str, weights: str, folder: str, filler: str, form: str) -> Backend:
    graphs = Graphs(find_network(network), weights, Path(folder))
    return OPENERS[filler](graphs, form)


def _cuda(graphs: Graphs) -> TorchBackend:
    if not torch.cuda.is_available():
        raise LabError("PyTorch finds no CUDA here; leave torch-cuda out, or run it on a worker that has a card")
    return TorchBackend(graphs.net.cuda(), graphs.vae.cuda())


OPENERS = {
    "torch": lambda graphs, form: graphs.torch_backend,
    "torch-cuda": lambda graphs, form: _cuda(graphs),
    "onnx": lambda graphs, form: OnnxBackend(graphs.stored(form), graphs.config, partial(open_session, threads=1)),
    "webgpu-native": lambda graphs, form: OnnxBackend(graphs.stored(form), graphs.config, webgpu_session),
}
"""How each of `config.FILLERS` is opened."""


@lru_cache(maxsize=1)
def _distance() -> PerceptualDistance:
    return PerceptualDistance()


def _measured(
    plan: Plan, contender: Contender, filled: np.ndarray, picture: np.ndarray, mask: np.ndarray
) -> dict[str, object]:
    hole = is_hole(mask)
    found: dict[str, object] = {"share": float(hole.mean())}
    if contender.filler != TRUTH:
        found |= measures(filled, picture, hole, _distance() if plan.perceptual else None)
        if plan.lpips:
            found["lpips"] = round(scripted.lpips(plan.lpips, filled, picture), 5)
    if plan.inception:
        found["features"] = scripted.inception_features(plan.inception, filled).tobytes()
    return found


MADE_BY = made_by(__name__)
