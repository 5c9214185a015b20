"""An object selected with a click, by a segmentation model that the reader gives as ONNX files; none is shipped.

A model is known by the names of its inputs, as the usual exporters write them:

| export | files | sees | decoder asks for | gives |
|---|---|---|---|---|
| EfficientSAM, its `export_to_onnx.py` | one, or encoder and decoder | `batched_images` (1, 3, h, w), 0..1 | `batched_point_coords`, `batched_point_labels`; in two files `orig_im_size` too | `output_masks`, `iou_predictions` |
| SAM and MobileSAM, their `export_onnx_model.py` with an encoder by samexporter or `torch.onnx` | encoder and decoder | (h, w, 3), 0..255, or (1, 3, S, S), normalised and padded | `point_coords`, `point_labels`, `mask_input`, `has_mask_input`, `orig_im_size` | `low_res_masks` or `masks`, `iou_predictions` |
| SAM and SlimSAM, by Optimum in two files | encoder and decoder | `pixel_values` (1, 3, S, S), normalised and padded | `input_points`, `input_labels`, `image_positional_embeddings` | `pred_masks`, `iou_scores` |

Of the masks that come, that with the best score counts. Where there are four, the first is SAM's for several clicks and is left out, as
SAM does it. Pictures are reduced by the mean of the pixels under each new one, masks enlarged bilinearly; the page's
`segmenter_worker.js` computes the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import onnxruntime

from ..config import SEGMENTER_SIDE
from ..errors import first_line
from .imaging import ImageError
from .selection import Pixel, inside

POINTS = ("batched_point_coords", "point_coords", "input_points")
"""Inputs by which a decoder is known."""
OWN_SIZE = "batched_images"
"""The input of a model that takes pictures of any size, with values 0..1; others take a square of which the picture is the upper left."""
MASKS = {"low_res_masks": True, "pred_masks": True, "output_masks": False, "masks": False}
"""Outputs that are masks, the preferred first, and whether they show the square; the others show the picture."""
SCORES = ("iou_predictions", "iou_scores")
SINGLE = 4  # masks, of which the first is for several clicks
MASK_INPUT_SIDE = 256  # px of an earlier mask, which is never given
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, of values 0..255: what SAM's encoders take pictures to be normalised by."""


class Segmenter:
    """A segmentation model on the processor.

    Args:
        paths: its ONNX file, or those of its encoder and decoder, in any order.

    Raises:
        ImageError: no such file, no model, or one of another form.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.path = " and ".join(map(str, paths))
        sessions = [_opened(path) for path in paths]
        decoders = [session for session in sessions if _names(session.get_inputs()) & set(POINTS)]
        encoders = [session for session in sessions if session not in decoders]
        if len(decoders) != 1 or len(encoders) > 1:
            raise ImageError(
                f"{self.path}: of a model in two files give the encoder and the decoder, of one in one file that alone"
            )
        [self._decoder], self._encoder = decoders, encoders[0] if encoders else None
        self._image = (self._encoder or self._decoder).get_inputs()[0]
        inputs, outputs = _names(self._decoder.get_inputs()), _names(self._decoder.get_outputs())
        made = _names(self._encoder.get_outputs()) | {"image_embeddings"} if self._encoder else {OWN_SIZE}
        unknown = inputs - set(self._prompt((0.0, 0.0), 1, 1)) - made
        lacking = [" or ".join(names) for names in (tuple(MASKS), SCORES) if not outputs & set(names)]
        if unknown or lacking:
            asks = f"it asks for {', '.join(sorted(unknown))}" if unknown else f"it has no {', '.join(lacking)}"
            raise ImageError(f"{self.path}: {asks}; a model in the form of EfficientSAM or SAM is needed")
        self._masks = next(name for name in MASKS if name in outputs)
        self._scores = next(name for name in SCORES if name in outputs)
        self._seen, self._kept = b"", {}

    def select(self, image: np.ndarray, point: Pixel) -> np.ndarray:
        """The object at a pixel. A picture that was given last is not encoded again.

        Args:
            image: uint8 (H, W, 3).
            point: x and y of the pixel.

        Returns:
            bool (H, W).

        Raises:
            ImageError: the point lies outside, or the model failed.
        """
        x, y = inside(point, image.shape)
        height, width = image.shape[:2]
        side = self._side
        share = side / max(height, width)
        if self._image.name == OWN_SIZE:
            share = min(1.0, share)
        w, h = (max(1, math.floor(px * share + 0.5)) for px in (width, height))
        prompt = self._prompt(((x + 0.5) * w / width - 0.5, (y + 0.5) * h / height - 0.5), w, h)
        try:
            known = prompt | self._encoded(image, w, h)
            feeds = {value.name: known[value.name] for value in self._decoder.get_inputs()}
            masks, scores = self._decoder.run([self._masks, self._scores], feeds)
        except Exception as error:
            raise ImageError(f"{self.path}: the model failed ({first_line(error)})") from None
        masks, scores = masks.reshape(-1, *masks.shape[-2:]), scores.reshape(-1).copy()
        if len(scores) == SINGLE:
            scores[0] = -np.inf
        across, down = (w / side, h / side) if MASKS[self._masks] else (1.0, 1.0)
        return _enlarged(masks[int(np.argmax(scores))].astype(np.float64), height, width, down, across) >= 0

    @property
    def _side(self) -> int:
        """px, of the square in which the model sees a picture, or of a picture's longer side."""
        shape = self._image.shape
        return shape[2] if len(shape) == 4 and isinstance(shape[2], int) else SEGMENTER_SIDE

    def _encoded(self, image: np.ndarray, w: int, h: int) -> dict[str, np.ndarray]:
        """What the decoder is given of a picture: itself, or what the encoder made of it."""
        seen = hashlib.blake2b(np.ascontiguousarray(image)).digest()
        if seen != self._seen:
            given = {self._image.name: self._pixels(image, w, h)}
            if self._encoder is not None:
                names = [output.name for output in self._encoder.get_outputs()]
                made = dict(zip(names, self._encoder.run(names, given)))
                given = {"image_embeddings": made[names[0]]} | made
            self._seen, self._kept = seen, given
        return self._kept

    def _pixels(self, image: np.ndarray, w: int, h: int) -> np.ndarray:
        values = _reduced(image, w, h)
        if self._image.name == OWN_SIZE:
            return (values / 255).transpose(2, 0, 1)[None].astype(np.float32)
        if len(self._image.shape) == 3:
            return values.astype(np.float32)
        square = np.zeros((1, 3, self._side, self._side), np.float32)
        square[0, :, :h, :w] = ((values - MEAN) / DEVIATION).transpose(2, 0, 1)
        return square

    def _prompt(self, at: tuple[float, float], w: int, h: int) -> dict[str, np.ndarray]:
        """A click at x and y (px of what the model sees), by every name that it may have, and that there is nothing else."""
        whole = {value.name for value in self._decoder.get_inputs() if value.type == "tensor(int64)"}
        point = np.float32([[[at]]])
        return {
            "batched_point_coords": point,
            "batched_point_labels": np.float32([[[1]]]),
            "point_coords": np.float32([[at, (0, 0)]]),
            "point_labels": np.float32([[1, -1]]),  # the second is none, as SAM wants it without a box
            "mask_input": np.zeros((1, 1, MASK_INPUT_SIDE, MASK_INPUT_SIDE), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([h, w], np.int64 if "orig_im_size" in whole else np.float32),
            "input_points": point,
            "input_labels": np.int64([[[1]]]),
        }


def _opened(path: str | Path) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a class of its own for each reason
        raise ImageError(f"{path}: this is not an ONNX model that can be run ({first_line(error)})") from None


def _names(values: list) -> set[str]:
    return {value.name for value in values}


def _reduced(image: np.ndarray, w: int, h: int) -> np.ndarray:
    """uint8 (H, W, 3) -> float64 (h, w, 3): the mean of the pixels under each new one, or the pixel under it where it is smaller."""
    values = image.astype(np.int64)
    counts = []
    for axis, (count, length) in enumerate(((h, image.shape[0]), (w, image.shape[1]))):
        edges = np.arange(count + 1) * length // count
        if count >= length:
            values = np.take(values, edges[:-1], axis)
            counts.append(np.ones(count, np.int64))
        else:
            values = np.add.reduceat(values, edges[:-1], axis)
            counts.append(np.diff(edges))
    return values / (counts[0][:, None, None] * counts[1][None, :, None])


def _enlarged(values: np.ndarray, height: int, width: int, down: float, across: float) -> np.ndarray:
    """float64 (h, w) -> (height, width): its upper left part, shares of its sides, with straight lines between the centres of its pixels."""
    (top, low, v), (left, right, u) = (
        _between(height, values.shape[0], down), _between(width, values.shape[1], across)
    )  # fmt: skip
    upper = values[top][:, left] + (values[top][:, right] - values[top][:, left]) * u
    lower = values[low][:, left] + (values[low][:, right] - values[low][:, left]) * u
    return upper + (lower - upper) * v[:, None]


def _between(count: int, length: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `count` pixels along a share of an axis of `length`: which two lie beside each centre, and how far it is on the way."""
    at = np.clip((np.arange(count) + 0.5) * (length * share) / count - 0.5, 0, length - 1)
    first = np.floor(at).astype(np.int64)
    return first, np.minimum(first + 1, length - 1), at - first
