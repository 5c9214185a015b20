"""The one sampling loop in Python, for any backend, and what puts a picture of any size through it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .. import LabError
from ..config import (
    COVERAGES,
    GUIDANCE,
    GUIDANCE_INTERVAL,
    INITS,
    LATENT_CHANNELS,
    NOISE_OFFSET,
    PRESETS,
    SOLVER,
    STEPS,
    STRENGTH,
    Preset,
)
from ..errors import first_line
from ..model.sampler import Step, first_state, solver_steps
from ..provenance import made_by
from .backends import Backend
from .extending import Extension, plan_filling, put_back, see
from .harmonizing import harmonized
from .imaging import (
    Window,
    check_picture_and_mask,
    describe_windows,
    is_hole,
    mask_to_hole,
    mask_to_latent,
    to_bytes,
    to_unit_range,
)
from .picture_files import Picture

ROUNDING = 1e-6  # steps; step 7 of ten begins at 0.7 of the run, although 0.7 x 10 is not 7 in binary


@dataclass(frozen=True)
class Settings:
    """What a person chooses; the defaults are the release's example, except for `coverage`. See `preset` for faster ones."""

    solver: str = SOLVER  # a name in `config.SOLVERS`
    steps: int = STEPS  # 1..1000, length of the schedule
    strength: float = STRENGTH  # (0, 1], share of the schedule that is run
    guidance: float = GUIDANCE  # 1 is the conditional prediction alone, which takes half the arithmetic
    guidance_interval: tuple[float, float] = (
        GUIDANCE_INTERVAL  # shares of the run: step i of n is guided if start <= i/n < end
    )
    noise_offset: float = NOISE_OFFSET  # weight of one normal number per channel, added to the noise
    seed: int = 0  # of torch's CPU generator
    init: Literal["image", "noise"] = "image"  # "image", as the release: the start holds 12 % of the hole's old content
    coverage: Literal["whole", "as-released"] = "whole"  # see `config.COVERAGES`; "whole" replaces all of the hole
    harmonize: bool = False  # bring the fill nearer to its surroundings in colour and texture; see `harmonizing`

    def __post_init__(self) -> None:
        steps = self.schedule()  # raises for values outside their ranges
        if len(self.guidance_interval) != 2:
            raise LabError(
                f"the guidance interval must be two shares of the run, as in (0.5, 1), not {self.guidance_interval}"
            )
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise LabError(
                f"guidance must run from a share of 0 or more to a later one of at most 1, not from {start} to {end}"
            )
        if not any(self.is_guided(i, len(steps)) for i in range(len(steps))):
            raise LabError(
                f"no step of {len(steps)} begins between {start:g} and {end:g} of the run: widen the guidance interval, "
                "or set guidance to 1"
            )
        if self.init not in INITS:
            raise LabError(f'init must be "image" or "noise", not {self.init!r}')
        if self.coverage not in COVERAGES:
            raise LabError(f"coverage must be one of {', '.join(COVERAGES)}, not {self.coverage!r}")
        if not isinstance(self.harmonize, bool):
            raise LabError(f"harmonize must be true or false, not {self.harmonize!r}")
        if not np.isfinite([self.guidance, self.noise_offset]).all():
            raise LabError("guidance and noise offset must be finite numbers")
        if not 0 <= self.seed < 2**63:
            raise LabError(f"seed must be a whole number from 0 to 2^63 - 1, not {self.seed}")

    def schedule(self) -> list[Step]:
        """The steps that are run."""
        return solver_steps(self.solver, self.steps, self.strength)

    def is_guided(self, i: int, count: int) -> bool:
        """Whether step `i`, from 0, of `count` lies in the guidance interval."""
        start, end = self.guidance_interval
        return start * count <= i + ROUNDING and i + ROUNDING < end * count

    def guidances(self) -> list[float]:
        """The guidance of each step that is run: 1 outside the interval."""
        count = len(self.schedule())
        return [self.guidance if self.is_guided(i, count) else 1.0 for i in range(count)]

    def evaluations(self) -> int:
        """How often a window's sampling evaluates the network: twice in a guided step, once in any other."""
        return sum(1 if guidance == 1 else 2 for guidance in self.guidances())


def preset(name: str, presets: Mapping[str, Preset] = PRESETS, **changes: object) -> Settings:
    """The settings of a preset, a name in `presets`, with other `changes` by name, such as `seed=3`.

    Args:
        name: of the preset.
        presets: those that the weights have, by `checkpoint.presets_of`.
        changes: values of `Settings` in place of the preset's.

    Raises:
        LabError: an unknown preset, or a change outside its range.
    """
    if name not in presets:
        of_these = "" if presets is PRESETS else " for these weights"
        raise LabError(f"there is no preset {name!r}{of_these}; choose one of {', '.join(presets)}")
    chosen = {field: value for field, value in vars(presets[name]).items() if field not in ("label", "note")}
    return Settings(**chosen | changes)


def preset_of(settings: Settings, presets: Mapping[str, Preset] = PRESETS) -> str:
    """The name of the preset that has these settings, whatever their seed, offset and coverage; empty for none.

    Args:
        settings: that are looked for.
        presets: those that there are, by name.
    """
    kept = {"seed": settings.seed, "noise_offset": settings.noise_offset, "coverage": settings.coverage}
    return next((name for name in presets if preset(name, presets, **kept) == settings), "")


def settings_of(made: dict) -> Settings:
    """The settings that a picture says it was made with; see `picture_files.MADE`.

    Raises:
        LabError: some of them are unknown here, or out of their ranges.
    """
    found = dict(made["settings"])
    try:
        found["guidance_interval"] = tuple(found["guidance_interval"])
        return Settings(**found)
    except (KeyError, TypeError) as error:
        raise LabError(
            f"these settings were written by another version ({first_line(error)}); give them as options"
        ) from None


@dataclass(frozen=True)
class Progress:
    """Handed to the callback after every step."""

    window: int  # from 0
    windows: int
    step: int  # steps done in this window, from 1
    steps: int
    latent: Tensor  # (1, 4, s, s) after the step, scaled
    clean: Tensor  # (1, 4, s, s), the picture predicted at this step (x0), scaled: for a preview


class Cancelled(Exception):
    """Raised by the loop when its `cancel` event was set; the picture that was given is untouched."""


def sample(
    backend: Backend,
    image: Tensor,
    hole: Tensor,
    settings: Settings,
    on_step: Callable[[int, int, Tensor, Tensor], None] | None = None,
    cancel: threading.Event | None = None,
) -> Tensor:
    """Denoise one model window.

    Random numbers are drawn in the release's order from one CPU generator: image posterior, masked posterior, noise,
    offset, all of them whatever `init` is. From noise, the picture itself is not encoded: nothing reads it.

    Args:
        backend: where the networks run.
        image: (1, 3, S, S) in [-1, 1].
        hole: (1, 1, S, S), 1 in the hole.
        settings: see `Settings`.
        on_step: called as on_step(done, total, latent, clean) after every step.
        cancel: checked before every step.

    Returns:
        The decoded window (1, 3, S, S), in about [-1, 1].

    Raises:
        Cancelled: `cancel` was set.
        FloatingPointError: the network returned a number that is not finite.
    """
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    s = backend.config.latent_size
    factor = backend.config.vae.scaling_factor

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def encode(x: Tensor, draw: Tensor) -> Tensor:
        mean, std = backend.encode(x)
        return factor * (mean + std * draw)

    steps = settings.schedule()
    of_image, of_masked, noise = (normal(1, LATENT_CHANNELS, s, s) for _ in range(3))
    latent = noise + settings.noise_offset * normal(1, LATENT_CHANNELS, 1, 1)
    if settings.init == "image":
        latent = steps[0].signal * encode(image, of_image) + steps[0].sigma * latent
    masked_latent = encode(image * (1 - hole), of_masked)
    mask = mask_to_latent(hole, settings.coverage)

    state = first_state(latent)
    for i, (step, guidance) in enumerate(zip(steps, settings.guidances())):
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"cancelled after {i} of {len(steps)} steps")
        state = backend.step(state, mask, masked_latent, step, guidance)
        if not torch.isfinite(state).all():
            raise FloatingPointError(f"{backend.name}: the denoiser returned numbers that are not finite at step {i + 1}")
        if on_step is not None:
            on_step(i + 1, len(steps), state[:1], state[1:2])
    return backend.decode(state[:1] / factor)


def describe_cost(windows: list[Window], size: int, settings: Settings, step_seconds: float = 0.0) -> str:
    """What filling through `windows` (of `plan_filling`) will cost, in words: "54 windows of 512 px, 1,026 steps, about 3 min".

    Args:
        windows: the plan.
        size: px, side of the model's input.
        settings: see `Settings`.
        step_seconds: how long a guided step takes, for the time; 0 where nobody knows. Any other takes half of it.
    """
    steps = len(windows) * len(settings.schedule())
    words = f"{describe_windows(windows, size)}, {steps:,} step{'s' if steps > 1 else ''}"
    if not step_seconds:
        return words
    seconds = max(len(windows) * settings.evaluations() / 2 * step_seconds, 1)
    return f"{words}, about {f'{seconds / 60:,.0f} min' if seconds >= 100 else f'{seconds:.0f} s'}"


def inpaint(
    backend: Backend,
    image: np.ndarray,
    mask: np.ndarray,
    settings: Settings = Settings(),
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    on_fill: Callable[[np.ndarray, Window], None] | None = None,
    extension: Extension | None = None,
) -> np.ndarray:
    """Fill the hole of a picture of any size.

    Args:
        backend: where the networks run.
        image: uint8 (H, W, 3).
        mask: uint8 (H, W): the hole is where it is 128 or more. As released, all its values blend the result in.
        settings: see `Settings`.
        on_progress: called after every step of every window.
        cancel: set it, from any thread, to stop before the next step.
        on_fill: called as on_fill(made, window) with what the model made of each window, as `put_back` takes it.
        extension: how the picture was extended, see `extending.extend`: the old part of it stays bit-identical, except around
            holes of its own.

    Returns:
        uint8 (H, W, 3): new in the whole hole, and equal to `image` in every pixel that is `FEATHER_WIDTH` px or more
        from it. As released: a blend also inside, and equal to `image` where `imaging.feather` has no weight.

    Raises:
        ImageError: picture and mask do not go together, or the mask is empty or everything.
        Cancelled: `cancel` was set.
    """
    check_picture_and_mask(image, mask)
    size = backend.config.image_size
    result = image
    left_to_fill = is_hole(mask)
    windows = plan_filling(mask, size, settings.coverage, extension)
    for i, window in enumerate(windows):

        def report(done: int, total: int, latent: Tensor, clean: Tensor, i: int = i) -> None:
            if on_progress is not None:
                on_progress(Progress(i, len(windows), done, total, latent, clean))

        seen, seen_mask = see(result, left_to_fill, window, size)
        raw = to_bytes(sample(backend, to_unit_range(seen), mask_to_hole(seen_mask), settings, report, cancel))
        if settings.harmonize:
            raw = harmonized(raw, seen, seen_mask)
        if on_fill is not None:
            on_fill(raw, window)
        result = put_back(raw, result, mask, window, settings.coverage)
        left_to_fill[window.visible] &= window.owners[window.visible] != window.number
    return result


def inpaint_picture(
    backend: Backend,
    picture: Picture,
    mask: np.ndarray,
    settings: Settings = Settings(),
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    extension: Extension | None = None,
    model: dict[str, str] | None = None,
) -> Picture:
    """`inpaint` for a picture as it was read: what the model makes is pasted into the stored pixels, in their own colours.

    Args:
        model: what the picture says of the model besides its network and backend: `weights` and `precision`, by name.

    Returns:
        The picture with its own profile, transparency and EXIF block, and with what it was made with; `stored` stays where the result of `inpaint` does.
        New canvas is joined in sRGB, as the page does it, and converted from there; the old pixels' values stay as they were stored.
    """
    named = {"network": backend.config.name, "weights": "", "precision": "", "backend": backend.name} | (model or {})
    picture = replace(picture, made={"format": 1, "settings": vars(settings), "model": named, "code": CODE})
    if picture.stored is picture.rgb:
        rgb = inpaint(backend, picture.rgb, mask, settings, on_progress, cancel, extension=extension)
        return picture.filled(rgb, rgb)
    stored = picture.stored_rgb

    def keep(made: np.ndarray, window: Window) -> None:
        nonlocal stored
        if not window.new_canvas:
            stored = put_back(picture.in_its_profile(made), stored, mask, window, settings.coverage)

    rgb = inpaint(backend, picture.rgb, mask, settings, on_progress, cancel, keep, extension)
    if extension is not None:
        left, top, right, bottom = extension.inside(*mask.shape[::-1])
        old = stored[top:bottom, left:right]
        stored = np.array(picture.in_its_profile(rgb))
        stored[top:bottom, left:right] = old
    return picture.filled(rgb, stored)


CODE = str(made_by(__name__)["code"])[:16]
"""Version of the code that fills pictures, as their files state it."""
