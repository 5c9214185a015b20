"""The training pictures on the device, and random windows of them: every batch is cut and coloured there."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .generated import generated_pictures

GROUP = 16  # windows that are cut at one scale, or generated of one kind
TEXTURE_SHARE = 0.2  # of the windows that are cut from pictures
GENERATED_SHARE = 0.18  # of all windows
BANK = 2048  # generated pictures that are kept to draw from ...
RENEWED_SHARE = 0.1  # ... of whose groups this share is drawn anew each time one is taken
GREY_SHARE = 0.06  # of the windows of pictures lose their colour: grey must stay grey


class Album:
    """Pictures of every size in one piece of device memory.

    Args:
        pictures: kind ("photograph" or "texture") and pixels, uint8 (h, w, 3).
        device: where the windows are cut.
        size: px, side of a window; a picture whose shorter side is less is enlarged to it.
        bank: how many generated pictures to keep in addition to them.
    """

    def __init__(self, pictures: list[tuple[str, np.ndarray]], device: torch.device, size: int, bank: int = BANK) -> None:
        self.size, self.device = size, device
        grown = [(kind, _at_least(rgb, size)) for kind, rgb in pictures]
        self.pixels = torch.cat([torch.from_numpy(np.ascontiguousarray(rgb)).reshape(-1, 3) for _, rgb in grown]).to(device)
        areas = [rgb.shape[0] * rgb.shape[1] for _, rgb in grown]
        self.starts = torch.tensor([0, *np.cumsum(areas)[:-1]], device=device)
        self.heights, self.widths = torch.tensor([rgb.shape[:2] for _, rgb in grown], device=device).unbind(1)
        self.sides = torch.minimum(self.heights, self.widths)
        self.largest = int(self.sides.max())
        texture = torch.tensor([kind == "texture" for kind, _ in grown])
        self.textures = texture.to(device)
        weights = torch.tensor(areas, dtype=torch.float32).sqrt()  # more of a large picture is unseen
        shares = TEXTURE_SHARE * texture + (1 - TEXTURE_SHARE) * ~texture
        self.weights = (shares * weights / torch.where(texture, weights[texture].sum(), weights[~texture].sum())).to(device)

        self.bank = torch.cat([_bytes(generated_pictures(GROUP, size, device)) for _ in range(max(1, bank // GROUP))])

    def __len__(self) -> int:
        return len(self.starts)

    def windows(self, count: int) -> Tensor:
        """(count, 3, size, size) float32 in [0, 1]: square windows, all of one random scale, made smaller to `size`.

        A texture has no top: its windows are turned or upside down as often as not, so with the flips of
        `recoloured` it is seen in all eight symmetries.
        """
        side = round(math.exp(math.log(self.size) + float(torch.rand(())) * math.log(self.largest / self.size)))
        pick = torch.multinomial(self.weights * (self.sides >= side), count, replacement=True)
        line = torch.arange(side, device=self.device)
        rows = (torch.rand(count, device=self.device) * (self.heights[pick] - side + 1)).long()[:, None] + line
        columns = (torch.rand(count, device=self.device) * (self.widths[pick] - side + 1)).long()[:, None] + line
        cells = self.starts[pick, None, None] + rows[:, :, None] * self.widths[pick, None, None] + columns[:, None]
        windows = self.pixels[cells].permute(0, 3, 1, 2).float() / 255
        if side != self.size:
            size = (self.size, self.size)
            windows = F.interpolate(windows, size=size, mode="bilinear", antialias=True, align_corners=False)
        no_top = self.textures[pick] & (torch.rand(2, count, device=self.device) < 0.5)
        turned, upside_down = no_top[..., None, None, None]
        windows = torch.where(turned, windows.transpose(2, 3), windows)
        return torch.where(upside_down, windows.flip(2), windows)

    def generated(self, count: int) -> Tensor:
        """(count, 3, size, size) float32 in [0, 1]: generated pictures, of whatever kinds."""
        if float(torch.rand(())) < RENEWED_SHARE:
            start = GROUP * int(torch.randint(len(self.bank) // GROUP, ()))
            self.bank[start : start + GROUP] = _bytes(generated_pictures(GROUP, self.size, self.device))
        return self.bank[torch.randint(len(self.bank), (count,), device=self.device)].float() / 255


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().byte()


def _at_least(rgb: np.ndarray, side: int) -> np.ndarray:
    h, w = rgb.shape[:2]
    if min(h, w) >= side:
        return rgb
    grown = F.interpolate(
        torch.from_numpy(rgb).permute(2, 0, 1)[None].float(),
        size=(max(side, h * side // w), max(side, w * side // h)),
        mode="bicubic",
    )
    return grown[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()


def recoloured(x: Tensor) -> Tensor:
    """Windows in [0, 1] with flips and mild changes of contrast, saturation, gamma and white balance; some lose their colour."""
    count, device = len(x), x.device
    x = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, x.flip(3), x)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * torch.exp(0.15 * torch.randn(count, 1, 1, 1, device=device))
    grey = x.mean(1, keepdim=True)
    saturation = 1 + 0.25 * torch.randn(count, 1, 1, 1, device=device)
    colourless = torch.rand(count, 1, 1, 1, device=device) < GREY_SHARE
    gamma = torch.exp(0.2 * torch.randn(count, 1, 1, 1, device=device))
    gains = 1 + 0.06 * torch.randn(count, 3, 1, 1, device=device)
    coloured = (grey + (x - grey) * saturation).clamp(1e-4, 1) ** gamma * gains
    return torch.where(colourless, grey.clamp(1e-4, 1) ** gamma, coloured).clamp(0, 1)


@torch.no_grad()
def random_windows(album: Album, count: int) -> Tensor:
    """(count, 3, size, size) float32 in [-1, 1]: windows of pictures, and among them generated ones."""
    groups = []
    for start in range(0, count, GROUP):
        n = min(GROUP, count - start)
        if float(torch.rand(())) < GENERATED_SHARE:
            groups.append(album.generated(n))
        else:
            groups.append(recoloured(album.windows(n)))
    return torch.cat(groups) * 2 - 1
