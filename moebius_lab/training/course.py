"""The course of a training: when it ends, how fast it learns, what it tells, and from where it resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoints, parallel

WARMUP_STEPS = 200
EMA_DECAY = 0.998
CHECK_EVERY = 20  # steps between two looks at the clock
SAVE_EVERY = 60  # seconds
NOTE_EVERY, PRINT_EVERY = 100, 500  # steps


class Course:
    """One training, in as many calls as it takes.

    A plan ends with its time or with its steps, whichever comes first, and the learning rate falls to nothing as that end comes. A
    checkpoint whose plan is over, or that holds no plan, begins a new one, and the log goes on counting.

    Args:
        name: what is trained, in what is printed.
        checkpoint: a file, which may be missing; written every minute and at the end.
        device: that trains.
        seconds: training time of the plan, all calls together.
        stop_after: seconds that this call may take, set-up included; the next one goes on where it stopped.
        max_steps: of the plan.

    Attributes:
        state: what the checkpoint holds; empty where there is none.
        log: steps, seconds, and the curve of losses: [step, loss, ...], each the mean since the one before.
    """

    def __init__(
        self, name: str, checkpoint: Path, device: torch.device, *, seconds: float, stop_after: float, max_steps: int
    ) -> None:
        self.began = time.time()
        self.name, self.checkpoint = name, checkpoint
        self.seconds, self.stop_after, self.max_steps = seconds, stop_after, max_steps
        self.state = torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.exists() else {}
        self.log: dict = self.state.get("log", {"steps": 0, "seconds": 0.0, "curve": []})
        self.plan = self.state.get("plan", {key: self.log[key] for key in ("steps", "seconds")})  # the log when it began
        self.losses: list[Tensor] = []

    @property
    def steps(self) -> int:
        """How many the plan has seen."""
        return self.log["steps"] - self.plan["steps"]

    @property
    def progress(self) -> float:
        """The share of the plan that is over, 0 to 1: of its time or of its steps, whichever is more."""
        return max((self.log["seconds"] - self.plan["seconds"]) / self.seconds, self.steps / self.max_steps)

    def rate(self, peak: float) -> float:
        """The learning rate of the next step: it rises, stays at `peak`, and falls over the second half."""
        return peak * min(1.0, (self.steps + 1) / WARMUP_STEPS, (1 - self.progress) / 0.5 + 0.01)

    def run(self, parts: Callable[[], dict]) -> Iterator[None]:
        """One turn for each step, until the plan or the time of this call is over.

        Args:
            parts: what the next call resumes from, besides log and plan.
        """
        if parallel.is_first():
            print(f"{self.name}: ready in {time.time() - self.began:.0f} s", flush=True)
        begun, saved, before = time.time(), time.time(), self.log["seconds"]

        def look() -> None:
            self.log["seconds"] = before + parallel.agree(time.time() - begun)

        def save() -> None:
            if parallel.is_first():
                checkpoints.save(parts() | {"log": self.log, "plan": self.plan}, self.checkpoint)

        while self.steps < self.max_steps:
            if self.steps % CHECK_EVERY == 0:
                look()
                over = self.log["seconds"] - self.plan["seconds"] >= self.seconds
                if over or parallel.agree(time.time() - self.began) >= self.stop_after:
                    break
            yield
            if time.time() - saved > SAVE_EVERY:
                save()
                saved = time.time()
        look()
        save()

    @torch.no_grad()
    def done(self, losses: Tensor, parameters: list[Tensor], average: list[Tensor]) -> None:
        """Count a step: its losses go into the log, and the running mean follows the parameters.

        Args:
            losses: (n,), of this step.
            parameters: as they are after it.
            average: their running mean, changed in place.

        Raises:
            FloatingPointError: a loss is no longer finite.
        """
        self.log["steps"] += 1
        torch._foreach_lerp_(average, parameters, 1 - min(EMA_DECAY, (self.steps + 1) / (11 + self.steps)))
        self.losses.append(losses.detach())
        at = self.log["steps"]
        if at % NOTE_EVERY and self.steps < self.max_steps:
            return
        values = parallel.mean(torch.stack(self.losses).mean(0))
        self.losses.clear()
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(f"the {self.name}'s losses are {values} at step {at}")
        self.log["curve"].append([at, *(round(value, 5) for value in values)])
        if at % PRINT_EVERY == 0 and parallel.is_first():
            losses_so_far = ", ".join(f"{value:.5f}" for value in values)
            print(f"{self.name}: {at} steps, {self.log['seconds']:.0f} s, loss {losses_so_far}", flush=True)
