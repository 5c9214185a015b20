"""Moebius, a CUDA-only inpainting model, taken to ONNX and to the browser: the library behind the notebooks."""

__version__ = "0.1.0"


class LabError(ValueError):
    """Input that cannot be used. Its message is one line that says what is wrong and what to do about it."""
