"""One run of the sampling loop with all that it passed through: what parity compares."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..config import AS_RELEASED, LATENT_CHANNELS
from ..files import DamagedFile, read_arrays, say, written_whole
from ..inpainting.backends import Backend
from ..inpainting.loop import Progress, Settings, inpaint
from ..model.sampler import Step
from ..port.graphs import Graphs
from ..port.sessions import OnnxBackend
from ..provenance import facts_digest, made_by

PYTORCH = "PyTorch"  # the backend that the others are compared with


@dataclass(frozen=True)
class Loop:
    """One run of the sampling loop on a picture."""

    backend: str  # what ran it, in its own words
    picture: np.ndarray  # uint8 (H, W, 3)
    latents: np.ndarray  # float32 (n, 4, s, s) after each step of each window, scaled
    clean: np.ndarray  # float32 (n, 4, s, s), the picture predicted at each step (x0), scaled
    steps: int  # of one window
    seconds: float  # that it took when it was run


@dataclass(frozen=True, kw_only=True)
class Loops(Graphs):
    """Graphs, a picture with its mask, and what the sampling loop gives on it, kept in `folder`/loops."""

    image: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # uint8 (H, W), 255 is the hole

    def loop(self, name: str, init: str = Settings.init) -> Loop:
        """The sampling loop on this run's picture, kept in `loops/NAME-INIT.npz` until weights, code or picture change.

        The backend is made for the run and let go after it, so that only one is in memory; PyTorch's networks stay.

        Args:
            name: "PyTorch", or a precision of ONNX Runtime's graphs, which are made first where they are missing.
            init: see `loop.Settings`; coverage is the release's, with which it is compared, the rest the default.

        Raises:
            LabError: an unknown precision or `init`.
        """
        path, key = self.folder / "loops" / f"{name}-{init}.npz", self._loop_key()
        if path.is_file() and (kept := self._kept_loop(path, key)):
            return kept
        backend = self.torch_backend if name == PYTORCH else OnnxBackend(self.stored(name), self.config)
        loop = self.run_loop(backend, init)
        with written_whole(path) as part, part.open("wb") as file:
            np.savez(file, key=key, **vars(loop))
        return loop

    def _kept_loop(self, path: Path, key: str) -> Loop | None:
        """A loop that was run before with the same key; a damaged one is reported."""
        side = self.config.latent_size
        shapes = {"picture": self.image.shape, "latents": (None, LATENT_CHANNELS, side, side), "steps": (), "seconds": ()}
        try:
            kept = read_arrays(
                path, "the loop is run again", shapes | {"clean": shapes["latents"], "backend": (), "key": ()}
            )
        except DamagedFile as error:
            say(str(error))
            return None
        if str(kept.pop("key")) != key:
            return None
        numbers = {"backend": str(kept["backend"]), "steps": int(kept["steps"]), "seconds": float(kept["seconds"])}
        return Loop(**kept | numbers)

    def run_loop(self, backend: Backend, init: str = Settings.init) -> Loop:
        """The sampling loop on this run's picture, on any backend, with a progress bar; nothing is kept. See `loop`."""
        seen: list[Progress] = []
        start = time.perf_counter()
        with tqdm(desc=backend.name, unit="step", leave=False) as bar:

            def watch(progress: Progress) -> None:
                seen.append(progress)
                bar.total = progress.windows * progress.steps
                bar.update()

            picture = inpaint(backend, self.image, self.mask, Settings(init=init, coverage=AS_RELEASED), watch)
        seconds = time.perf_counter() - start
        latents, clean = (np.concatenate([getattr(p, what).numpy() for p in seen]) for what in ("latent", "clean"))
        return Loop(backend.name, picture, latents, clean, seen[0].steps, seconds)

    def _loop_key(self) -> str:
        """SHA-256 of all that the loop's numbers depend on."""
        digest = hashlib.sha256(facts_digest(self.fingerprint(), MADE_BY).encode())
        for array in (self.image, self.mask):
            digest.update(str(array.shape).encode() + array.tobytes())
        return digest.hexdigest()


class _Compared:
    """A backend that takes every guided step without guidance as well, and keeps how far apart the two predictions are."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.config, self.encode, self.decode = backend.name, backend.config, backend.encode, backend.decode
        self.backend, self.gains = backend, []

    def step(self, state: Tensor, mask: Tensor, masked_latents: Tensor, step: Step, guidance: float) -> Tensor:
        guided, plain = (self.backend.step(state, mask, masked_latents, step, g) for g in (guidance, 1.0))
        self.gains.append(float((guided - plain)[1].square().mean().sqrt()))
        return guided


def guidance_gains(backend: Backend, image: np.ndarray, mask: np.ndarray, settings: Settings) -> list[float]:
    """What guidance adds to the predicted picture at each step of a run: the root mean square of the change in its latent, scaled."""
    compared = _Compared(backend)
    inpaint(compared, image, mask, settings)
    return compared.gains


MADE_BY = made_by(__name__)
