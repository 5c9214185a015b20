"""Segmentation models that a reader brings: each usual form of export is known by its inputs, and misfits are one line."""

import numpy as np
import pytest
import segmenter

from moebius_lab.inpainting.imaging import ImageError
from moebius_lab.inpainting.segmenter import Segmenter


def red_on_grey(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a red rectangle, and where it is."""
    there = np.zeros((height, width), bool)
    there[height // 4 : height * 2 // 3, width // 4 : width * 2 // 3] = True
    return np.where(there[..., None], np.uint8([200, 30, 30]), np.uint8(90)).astype(np.uint8), there


@pytest.mark.parametrize("height, width", [(300, 420), (90, 60), (2100, 700)])
@pytest.mark.parametrize("form", segmenter.FORMS)
def test_each_form_of_export_selects_what_is_clicked_on(tmp_path, form, height, width):
    image, there = red_on_grey(height, width)
    encoder, decoder = segmenter.pair(tmp_path, form)
    model = Segmenter(decoder, encoder)  # in any order
    for point, expected in (((width // 2, height // 2), there), ((width - 1, height - 1), ~there)):
        found = model.select(image, point)
        assert found.shape == there.shape
        assert (found & expected).sum() / (found | expected).sum() > 0.9, point
    other, elsewhere = np.ascontiguousarray(image[::-1]), there[::-1]
    found = model.select(other, (width // 2, height // 2))
    assert (found & elsewhere).sum() / (found | elsewhere).sum() > 0.9  # not by what was made of the first picture


def test_a_model_in_one_file_needs_no_other(tmp_path):
    image, there = red_on_grey(90, 120)
    segmenter.reddish(tmp_path / "red.onnx")
    assert np.array_equal(Segmenter(tmp_path / "red.onnx").select(image, (50, 40)), there)


def test_what_does_not_fit_is_one_line(tmp_path):
    encoder, decoder = segmenter.pair(tmp_path, "sam")
    (tmp_path / "other").mkdir()
    others = segmenter.pair(tmp_path / "other", "optimum")
    segmenter.reddish(tmp_path / "red.onnx")
    for paths, words in (
        ((encoder,), "give the encoder and the decoder"),
        ((encoder, others[0]), "give the encoder and the decoder"),
        ((decoder, others[1]), "give the encoder and the decoder"),
        ((decoder,), "it asks for image_embeddings; a model in the form of EfficientSAM or SAM is needed"),
        ((encoder, others[1]), "it asks for image_positional_embeddings"),
        ((tmp_path / "none.onnx",), "not an ONNX model that can be run"),
    ):
        with pytest.raises(ImageError, match=words) as error:
            Segmenter(*paths)
        assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match="is not a pixel"):
        Segmenter(tmp_path / "red.onnx").select(np.zeros((5, 5, 3), np.uint8), (5, 0))
