"""Pictures made while training, on the device that trains: lines that go on, patterns that repeat, grain, and leaves.

Photographs with free licences are few, and what people erase stands before walls, fences, skies and hedges. Every picture
is drawn from random numbers of the device's generator, at twice the size, and averaged down, so edges are as soft as a
lens makes them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLING = 2  # pictures are drawn this much larger and averaged
LEAVES = 90  # shapes of a picture of dead leaves
BRANCHES = 48  # segments of a picture of branches
GRAIN_SHARE = 0.5  # of the pictures get film grain
GREY_SHARE = 0.15  # of the pictures have no colour


def _uniform(low: float, high: float, *shape: int, device: torch.device) -> Tensor:
    return low + (high - low) * torch.rand(*shape, device=device)


def _colours(count: int, device: torch.device, spread: float = 0.35) -> Tensor:
    """(count, 3, 1, 1) in [0, 1]: a random level with less colour than three free numbers would have."""
    level = _uniform(0.08, 0.92, count, 1, 1, 1, device=device)
    return (level + spread * (torch.rand(count, 3, 1, 1, device=device) - 0.5)).clamp(0, 1)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of every pixel, (1, 1, size, size), from -1 to 1."""
    line = torch.linspace(-1, 1, size, device=device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None, None], y[None, None]


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def fractal_noise(count: int, size: int, device: torch.device) -> Tensor:
    """(count, 1, size, size) of variance 1: amplitude falls as a random power of the frequency, in one direction faster."""
    frequency = torch.fft.fftfreq(size, device=device)
    x, y = _turned(
        frequency[None, None, None, :], frequency[None, None, :, None], _uniform(0, math.pi, count, 1, 1, 1, device=device)
    )
    stretch = torch.exp(0.6 * torch.randn(count, 1, 1, 1, device=device))
    radius = (x.square() * stretch + y.square() / stretch + size**-2).sqrt()
    spectrum = torch.fft.fft2(torch.randn(count, 1, size, size, device=device)) * radius ** -_uniform(
        0.4, 2.0, count, 1, 1, 1, device=device
    )
    spectrum[..., 0, 0] = 0
    noise = torch.fft.ifft2(spectrum).real
    return noise / noise.std((2, 3), keepdim=True).clamp_min(1e-6)


def _clouds(count: int, size: int, device: torch.device) -> Tensor:
    """Fractal noise between two colours: smoke, stone, sand, lawns from above."""
    share = torch.sigmoid(fractal_noise(count, size, device) * _uniform(0.4, 3, count, 1, 1, 1, device=device))
    return torch.lerp(_colours(count, device), _colours(count, device), share)


def _surface(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates (count, 1, size, size) of a plane seen in perspective: what lies on it becomes narrower with distance."""
    x, y = _grid(size, device)
    x, y = _turned(
        x, y, _uniform(0, 2 * math.pi, count, 1, 1, 1, device=device) * (torch.rand(count, 1, 1, 1, device=device) < 0.7)
    )
    tilt_x, tilt_y = (0.32 * torch.randn(2, count, 1, 1, 1, device=device)).clamp(-0.6, 0.6)
    depth = 1 + tilt_x * x + tilt_y * y
    depth = depth.clamp_min(0.12)
    scale = torch.exp(_uniform(math.log(1.5), math.log(14), count, 1, 1, 1, device=device))
    return scale * x / depth + 7 * torch.rand(count, 1, 1, 1, device=device), scale * y / depth + 7 * torch.rand(
        count, 1, 1, 1, device=device
    )


def _hashed(a: Tensor, b: Tensor, salt: Tensor) -> Tensor:
    """A number in [0, 1) for every pair of whole numbers: the same all over one brick."""
    return torch.frac((torch.sin(a * 12.9898 + b * 78.233 + salt) * 43758.5453).abs())


def _wall(count: int, size: int, device: torch.device) -> Tensor:
    """Bricks or tiles in perspective, each of its own shade, with joints between them."""
    u, v = _surface(count, size, device)
    u = u / _uniform(1, 2.6, count, 1, 1, 1, device=device)  # bricks are longer than high
    row = v.floor()
    u = u + torch.remainder(row, 2) * 0.5 * (torch.rand(count, 1, 1, 1, device=device) < 0.6)
    column, salt = u.floor(), 100 * torch.rand(count, 1, 1, 1, device=device)
    joint = _uniform(0.02, 0.1, count, 1, 1, 1, device=device)
    inside = torch.minimum(torch.minimum(u - column, 1 - u + column), torch.minimum(v - row, 1 - v + row))
    brick = ((inside - joint) / (0.5 * joint)).clamp(0, 1)
    shade = 1 + _uniform(0, 0.35, count, 1, 1, 1, device=device) * (_hashed(row, column, salt) - 0.5)
    face = (
        _colours(count, device)
        * shade
        * (1 + 0.12 * torch.rand(count, 1, 1, 1, device=device) * fractal_noise(count, size, device))
    )
    return torch.lerp(_colours(count, device), face, brick)


def _grating(count: int, size: int, device: torch.device) -> Tensor:
    """Stripes in perspective, sharp or soft, sometimes with others across: boards, fences, blinds, furrows."""
    u, v = _surface(count, size, device)
    sharp = torch.exp(_uniform(0, 3, count, 1, 1, 1, device=device))
    stripes = torch.sigmoid(sharp * (torch.sin(2 * u) - _uniform(-0.8, 0.8, count, 1, 1, 1, device=device)))
    across = torch.sigmoid(sharp * (torch.sin(1.3 * v) - _uniform(0, 0.95, count, 1, 1, 1, device=device)))
    across = across * (torch.rand(count, 1, 1, 1, device=device) < 0.4)
    behind = torch.lerp(
        _clouds(count, size, device),
        _gradient(count, size, device),
        (torch.rand(count, 1, 1, 1, device=device) < 0.5).float(),
    )
    return torch.lerp(behind, _colours(count, device), torch.maximum(stripes, across))


def _gradient(count: int, size: int, device: torch.device) -> Tensor:
    """A sky or a wall: four corners, and up to two straight edges, sharp or soft."""
    corners = torch.lerp(
        _colours(count, device), torch.rand(count, 3, 2, 2, device=device), 0.3 * torch.rand(count, 1, 1, 1, device=device)
    )
    picture = F.interpolate(corners, size=(size, size), mode="bilinear", align_corners=True)
    x, y = _grid(size, device)
    for _ in range(2):
        along, _ = _turned(x, y, _uniform(0, 2 * math.pi, count, 1, 1, 1, device=device))
        side = torch.sigmoid(
            (along - _uniform(-0.7, 0.7, count, 1, 1, 1, device=device))
            * torch.exp(_uniform(1, 6, count, 1, 1, 1, device=device))
        )
        shown = (torch.rand(count, 1, 1, 1, device=device) < 0.6).float()
        picture = torch.lerp(picture, _colours(count, device), side * shown)
    return picture


def _leaves(count: int, size: int, device: torch.device) -> Tensor:
    """Dead leaves: ellipses and boxes of every size, one over another, each with its own shading."""
    picture, (x, y) = _clouds(count, size, device), _grid(size, device)
    texture = fractal_noise(count, size, device)
    smallest = _uniform(0.02, 0.12, count, 1, 1, 1, device=device)
    palette = _colours(4 * count, device, 0.6).view(count, 4, 3, 1, 1)
    for _ in range(LEAVES):
        radius = (smallest / torch.rand(count, 1, 1, 1, device=device).clamp_min(0.02).sqrt()).clamp_max(0.6)
        u = x - _uniform(-1.1, 1.1, count, 1, 1, 1, device=device)
        v = y - _uniform(-1.1, 1.1, count, 1, 1, 1, device=device)
        u, v = _turned(u, v, _uniform(0, math.pi, count, 1, 1, 1, device=device))
        stretch = torch.exp(0.5 * torch.randn(count, 1, 1, 1, device=device))
        u, v = u * stretch, v / stretch
        boxy = torch.rand(count, 1, 1, 1, device=device) < 0.25
        distance = torch.where(boxy, torch.maximum(u.abs(), v.abs()), (u.square() + v.square()).sqrt())
        leaf = palette[torch.arange(count, device=device), torch.randint(4, (count,), device=device)]
        leaf = leaf * (1 + 0.25 * torch.randn(count, 1, 1, 1, device=device)) * (1 + 0.4 * u / radius) + 0.05 * texture
        picture = torch.lerp(picture, leaf, ((radius - distance) * size / 3).clamp(0, 1))
    return picture


def _branches(count: int, size: int, device: torch.device) -> Tensor:
    """Stems that fork and grow thinner, before a sky or a wood."""
    picture, (x, y) = (
        torch.lerp(_gradient(count, size, device), _clouds(count, size, device), torch.rand(count, 1, 1, 1, device=device)),
        _grid(size, device),
    )
    bark = _colours(count, device) * (1 + 0.15 * fractal_noise(count, size, device))
    every = torch.arange(count, device=device)
    ends = torch.zeros(count, BRANCHES, 2, device=device)
    angles, widths = torch.zeros(2, count, BRANCHES, device=device)
    for i in range(BRANCHES):
        if i < 2:  # stems come in from outside
            start = torch.stack([_uniform(-0.9, 0.9, count, device=device), torch.full((count,), 1.1, device=device)], 1)
            angle, width = -math.pi / 2 + 0.3 * torch.randn(count, device=device), _uniform(0.02, 0.09, count, device=device)
        else:
            parent = (torch.rand(count, device=device) * i).long()
            start, angle = ends[every, parent], angles[every, parent] + 0.6 * torch.randn(count, device=device)
            width = widths[every, parent] * _uniform(0.6, 0.95, count, device=device)
        length = _uniform(0.15, 0.5, count, device=device)
        step = torch.stack([angle.cos(), angle.sin()], 1) * length[:, None]
        ends[:, i], angles[:, i], widths[:, i] = start + step, angle, width
        dx, dy = x - start[:, 0].view(-1, 1, 1, 1), y - start[:, 1].view(-1, 1, 1, 1)
        sx, sy = step[:, 0].view(-1, 1, 1, 1), step[:, 1].view(-1, 1, 1, 1)
        place = ((dx * sx + dy * sy) / (sx.square() + sy.square())).clamp(0, 1)
        distance = ((dx - place * sx).square() + (dy - place * sy).square()).sqrt()
        w = width.view(-1, 1, 1, 1).clamp_min(0.006)
        lit = bark * (1.15 - 0.5 * (distance / w).clamp(0, 1))
        picture = torch.lerp(picture, lit, ((w - distance) * size / 3).clamp(0, 1))
    return picture


KINDS = (_clouds, _wall, _wall, _grating, _gradient, _leaves, _branches)


@torch.no_grad()
def generated_pictures(count: int, size: int, device: torch.device) -> Tensor:
    """(count, 3, size, size) float32 in [0, 1], all of one kind, which is drawn on the host."""
    kind = KINDS[int(torch.randint(len(KINDS), ()))]
    picture = F.avg_pool2d(kind(count, OVERSAMPLING * size, device), OVERSAMPLING)
    grain = F.avg_pool2d(torch.randn(count, 1, size + 1, size + 1, device=device), 2, 1)
    grain = torch.lerp(
        torch.randn(count, 1, size, size, device=device), 2 * grain, torch.rand(count, 1, 1, 1, device=device)
    )
    strength = _uniform(0.005, 0.06, count, 1, 1, 1, device=device) * (
        torch.rand(count, 1, 1, 1, device=device) < GRAIN_SHARE
    )
    picture = picture + strength * grain
    grey = torch.rand(count, 1, 1, 1, device=device) < GREY_SHARE
    return torch.where(grey, picture.mean(1, keepdim=True), picture).clamp(0, 1)
