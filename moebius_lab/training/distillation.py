"""Few evaluations of a finished network: guidance and steps are distilled into a low-rank difference from its weights.

    python -m moebius_lab.training.distillation --network moebius --weights places2 --data PICTURES --work-dir w -o places2-fast
    python -m moebius_lab inpaint ... --weights places2-fast --solver ddim-trailing --steps 4 --guidance 1

Two stages, each with the network before it as its teacher:

    guidance  one evaluation on the condition says what two and guidance say (Meng et al. 2023)
    steps     one step of the student goes as far as `SUBSTEPS` of that network go (Salimans & Ho 2022)

Teacher and student are evaluated only at timesteps of their schedules, which leave from pure noise. What is trained are the two factors of
each weight's difference (`model.low_rank`), nothing else: no bias, no norm, and the statistics of the BatchNorms stay. A piece of
work that is cut goes on from its checkpoint with the same command.
"""

from __future__ import annotations

from .. import errors

if __name__ == "__main__":
    errors.watch_process()  # from here on, since what follows takes seconds to import

import argparse
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .. import LabError
from ..config import (
    CONDITIONAL_IDS,
    DISTILLED_SOLVER,
    GUIDANCE,
    LATENT_CHANNELS,
    NETWORKS,
    NOISE_OFFSET,
    UNCONDITIONAL_IDS,
)
from ..files import write_json
from ..inpainting import masks
from ..inpainting.batch import pictures_in
from ..inpainting.picture_files import read_image
from ..model.checkpoint import check_weights, find_weights, load_checkpoint, load_vae, weights_digest
from ..model.low_rank import DIFFERENCE, Difference, change, largest_rank, of_rank, write_difference
from ..model.sampler import Step, solver_steps
from ..model.unet import MoebiusNet
from . import checkpoints, data, denoiser, parallel
from .album import Album
from .fast_forms import channels_last, use_fast_forms
from .steps import Steps, copy_all

EVALUATIONS = 4  # of the finished student: steps from pure noise
SUBSTEPS = 4  # of its teacher in each
MOST_BYTES = 3.9e6  # of a difference's numbers
STAGES = ("guidance", "steps")
SECONDS = {"guidance": 600.0, "steps": 1200.0}
PEAK_LR = 2e-3
WARMUP_STEPS = 20
AVERAGE_DECAY = 0.998
MOST_WEIGHT = 25.0  # of the loss at high noise, where a predicted noise means a picture that is many times as far off
SAVE_EVERY = 60  # seconds
CHECK_EVERY = 10  # steps between two looks at the clock
PRINT_EVERY = 50  # steps
KEPT_BACK = 64  # pictures on which a stage is judged; they are never trained on
MASKS = 1024
BANK = 256  # generated pictures to draw from, besides those of the folder
SEED = 20261126


class Student:
    """A network whose weights are those of another plus a low-rank difference.

    Args:
        network: what the difference is added to, in evaluation mode; stays as it is.
        rank: of every difference.
        factors: to begin with, instead of a difference of nothing.
    """

    def __init__(self, network: MoebiusNet, rank: int, factors: dict[str, tuple[Tensor, Tensor]] | None = None) -> None:
        self.network = network.requires_grad_(False)
        self.base = dict(network.named_parameters())
        self.up, self.down = {}, {}
        generator = torch.Generator().manual_seed(SEED)
        for name, (n, m) in of_rank({name: tuple(p.shape) for name, p in self.base.items()}, rank).items():
            device = self.base[name].device
            self.up[name] = torch.zeros(n, rank, device=device)
            self.down[name] = (torch.randn(rank, m, generator=generator) / math.sqrt(m)).to(device)
            if factors:
                self.up[name].copy_(factors[name][0])
                self.down[name].copy_(factors[name][1])
        self.trained = [tensor.requires_grad_() for tensor in (*self.up.values(), *self.down.values())]

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Up and down of each weight, detached copies."""
        return {name: (self.up[name].detach().clone(), self.down[name].detach().clone()) for name in self.up}

    def __call__(self, *inputs: Tensor) -> Tensor:
        changed = {name: change(self.up[name], self.down[name], self.base[name]) for name in self.up}
        return functional_call(self.network, changed, inputs)


@torch.no_grad()
def with_difference(network: MoebiusNet, factors: dict[str, tuple[Tensor, Tensor]]) -> MoebiusNet:
    """A copy of the network with the difference in its weights."""
    result = copy.deepcopy(network)
    for name, (up, down) in factors.items():
        weight = result.get_parameter(name)
        weight.copy_(change(up, down, weight))
    return result


# -- what the student is to say ----------------------------------------------------------------------------------------


def ids_of(count: int, ids: tuple[int, ...], device: torch.device) -> Tensor:
    """(count, 10): the ids of one condition, which follow one another, for each of a batch."""
    return torch.arange(ids[0], ids[0] + len(ids), device=device).expand(
        count, -1
    )  # made there: a captured step cannot wait


def guided_noise(network: nn.Module, latent: Tensor, rest: Tensor, t: Tensor, guidance: float) -> Tensor:
    """(n, 4, s, s): the noise with guidance, from two evaluations; `rest` is mask and masked latent (n, 5, s, s)."""
    n = len(latent)
    rows = torch.cat([latent, rest], dim=1)
    ids = torch.cat([ids_of(n, UNCONDITIONAL_IDS, t.device), ids_of(n, CONDITIONAL_IDS, t.device)])
    u, c = network(torch.cat([rows, rows]), torch.cat([t, t]), ids).float().chunk(2)
    return u + guidance * (c - u)


def noise_alone(network: nn.Module | Student, latent: Tensor, rest: Tensor, t: Tensor) -> Tensor:
    """(n, 4, s, s): the noise on the condition, from one evaluation."""
    return network(torch.cat([latent, rest], dim=1), t, ids_of(len(latent), CONDITIONAL_IDS, t.device)).float()


@dataclass(frozen=True)
class Schedule:
    """A solver's steps as numbers for each of a batch: the next latent is `keeps` of the latent and `takes` of the noise."""

    timesteps: Tensor  # (k,) integers
    signal: Tensor  # (k,)
    sigma: Tensor
    keeps: Tensor
    takes: Tensor

    @staticmethod
    def of(steps: list[Step], device: torch.device) -> Schedule:
        """The table of a solver of order 1, which looks at nothing but latent and noise."""
        rows = [(s.timestep, s.signal, s.sigma, s.state_weights[0][0], s.noise_weights[0]) for s in steps]
        timesteps, *others = torch.tensor(rows, dtype=torch.float64).unbind(1)
        return Schedule(timesteps.long().to(device), *(column.float().to(device) for column in others))

    def next(self, latent: Tensor, noise: Tensor, i: Tensor) -> Tensor:
        """The latents after step `i` (n,), a number for each."""
        return wide(self.keeps[i]) * latent + wide(self.takes[i]) * noise

    def noise_that_leads(self, latent: Tensor, target: Tensor, i: Tensor) -> Tensor:
        """The noise with which step `i` goes from the latents to the targets."""
        return (target - wide(self.keeps[i]) * latent) / wide(self.takes[i])


def wide(numbers: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)."""
    return numbers[:, None, None, None]


@dataclass
class Lesson:
    """What a stage teaches: the noise that `target` says, at the timesteps of a schedule."""

    stage: str
    teacher: MoebiusNet
    guidance: float
    coarse: Schedule  # the student's own steps
    fine: Schedule  # its teacher's, `substeps` for each of them
    substeps: int

    @property
    def asked(self) -> Schedule:
        """The schedule at whose timesteps the student is asked."""
        return self.fine if self.stage == "guidance" else self.coarse

    @torch.no_grad()
    def target(self, latent: Tensor, rest: Tensor, i: Tensor) -> Tensor:
        """The noise that the student is to say at timestep `i` (n,) of `asked`."""
        if self.stage == "guidance":
            return guided_noise(self.teacher, latent, rest, self.fine.timesteps[i], self.guidance)
        x = latent
        for k in range(self.substeps):
            j = i * self.substeps + k
            x = self.fine.next(x, noise_alone(self.teacher, x, rest, self.fine.timesteps[j]), j)
        return self.coarse.noise_that_leads(latent, x, i)

    def draw(self, pool: dict[str, Tensor] | denoiser.Pool, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, mask and masked latent, indices into `asked`, and the weights of the loss in each cell."""
        device = pool["latent"].device
        pick = torch.randint(len(pool["latent"]), (batch,), device=device)
        x0, hole = pool["latent"][pick].float(), pool["mask"][pick].float()
        rest = torch.cat([hole, pool["masked"][pick].float()], dim=1)
        i = torch.randint(len(self.asked.timesteps), (batch,), device=device)
        noise = torch.randn_like(x0) + NOISE_OFFSET * torch.randn(batch, LATENT_CHANNELS, 1, 1, device=device)
        signal, sigma = wide(self.asked.signal[i]), wide(self.asked.sigma[i])
        near = F.max_pool2d(hole, 3, 1, 1)  # the hole and the ring of cells around it
        inside = denoiser.OUTSIDE_WEIGHT + (1 - denoiser.OUTSIDE_WEIGHT) * near
        first = wide((i == 0).float())  # where nothing but noise is known; a start with a picture in it is never met
        latent = (1 - first) * (signal * x0 + sigma * noise) + first * noise
        return latent, rest, i, inside * ((sigma / signal) ** 2).clamp(1, MOST_WEIGHT)

    def loss(self, student: Student | nn.Module, pool: dict[str, Tensor] | denoiser.Pool, batch: int) -> Tensor:
        """The weighted mean squared error of one random batch; a scalar."""
        latent, rest, i, weight = self.draw(pool, batch)
        with torch.autocast(latent.device.type, torch.bfloat16, enabled=latent.is_cuda):
            wanted = self.target(latent, rest, i)
            said = noise_alone(student, latent, rest, self.asked.timesteps[i])
        return ((said - wanted).square() * weight).sum() / (LATENT_CHANNELS * weight.sum())


@torch.no_grad()
def error_of(network: nn.Module | Student, lesson: Lesson, pool: dict[str, Tensor], batch: int) -> float:
    """The mean loss over as many random batches as the pool has, the same ones for every network."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(SEED)
        losses = [lesson.loss(network, pool, batch) for _ in range(max(1, len(pool["latent"]) // batch))]
    return float(torch.stack(losses).mean())


# -- training ----------------------------------------------------------------------------------------------------------


class Learner(Steps):
    """A student and what it is taught."""

    def __init__(self, student: Student, lesson: Lesson, pool: dict[str, Tensor] | denoiser.Pool, batch: int) -> None:
        super().__init__(student.trained, student.trained, weight_decay=0.0, decay=AVERAGE_DECAY)
        self.student, self.lesson, self.pool, self.batch = student, lesson, pool, batch

    def losses(self) -> tuple[Tensor, Sequence[Tensor]]:
        loss = self.lesson.loss(self.student, self.pool, self.batch)
        return loss, torch.autograd.grad(loss, self.trained)


@dataclass
class Work:
    """One distillation: what is distilled, and how far each stage goes."""

    network: MoebiusNet  # the finished one, on the device
    pool: dict[str, Tensor] | denoiser.Pool
    kept_back: dict[str, Tensor]
    folder: Path
    rank: int
    guidance: float = GUIDANCE
    evaluations: int = EVALUATIONS
    substeps: int = SUBSTEPS
    batch: int = 32
    seconds: dict[str, float] | None = None  # of each stage, all pieces together
    most_steps: int = 10**9
    deadline: float = math.inf  # time.time() at which to save and stop

    def run(self) -> tuple[dict[str, tuple[Tensor, Tensor]], dict] | None:
        """Train stage after stage.

        Returns:
            The factors of the whole difference, and the log; None where time was over before.
        """
        device = self.pool["latent"].device
        teacher, factors, log = self.network, None, {}
        fine = Schedule.of(solver_steps(DISTILLED_SOLVER, self.evaluations * self.substeps), device)
        coarse = Schedule.of(solver_steps(DISTILLED_SOLVER, self.evaluations), device)
        for stage in STAGES:
            lesson = Lesson(stage, teacher, self.guidance, coarse, fine, self.substeps)
            factors, log[stage], done = self.learn(lesson, factors)
            if not done:
                return None
            teacher = with_difference(self.network, factors)
        return factors, log

    def learn(self, lesson: Lesson, factors: dict | None = None) -> tuple[dict, dict, bool]:
        """Train one stage, from its checkpoint if there is one.

        Args:
            lesson: what is taught.
            factors: of the student's difference at the beginning; none for the network as it is.

        Returns:
            The factors averaged over the last steps; the log: steps, seconds, curve of the smoothed loss, and the error on the pictures kept
            back `before` and `after`; and whether the stage is done.
        """
        checkpoint = self.folder / f"{lesson.stage}.pt"
        seconds = (SECONDS | (self.seconds or {}))[lesson.stage]
        student = Student(self.network, self.rank, factors)
        learner = Learner(student, lesson, self.pool, self.batch)
        log: dict = {"steps": 0, "seconds": 0.0, "curve": []}
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location=learner.device, weights_only=True)
            copy_all([t.detach() for t in student.trained], state["trained"])
            learner.go_on(state)
            log = state["log"]
        else:
            log["before"] = error_of(student, lesson, self.kept_back, self.batch)
        if "after" not in log:
            learner.capture()
        before, begun, saved, first = log["seconds"], time.time(), time.time(), learner.steps

        def look() -> None:
            log["steps"], log["seconds"] = learner.steps, before + parallel.agree(time.time() - begun)

        def save() -> None:
            look()
            if parallel.is_first():
                state = {"trained": [t.detach() for t in student.trained], "log": log} | learner.progress()
                checkpoints.save(state, checkpoint)

        renew_every = denoiser.steps_between_renewals(self.batch)
        while learner.steps < self.most_steps and "after" not in log:
            done = learner.steps - first
            if done % CHECK_EVERY == 0:
                look()
                if log["seconds"] >= seconds:
                    break
                if parallel.agree(time.time()) >= self.deadline:
                    save()
                    return student.factors(), log, False
            if isinstance(self.pool, denoiser.Pool) and done % renew_every == renew_every - 1:
                self.pool.renew(min(denoiser.RENEWED, 4 * self.batch))
            progress = max(log["seconds"] / seconds, learner.steps / self.most_steps)
            learner.step(PEAK_LR * min(1.0, (learner.steps + 1) / WARMUP_STEPS) * min(1.0, 2 * (1 - progress) + 0.01))
            if learner.steps % PRINT_EVERY == 0 or learner.steps == self.most_steps:
                (value,) = parallel.mean([learner.loss])
                if not math.isfinite(value):
                    raise FloatingPointError(f"the loss of {lesson.stage} is {value} at step {learner.steps}")
                log["curve"].append([learner.steps, round(value, 6)])
                if parallel.is_first():
                    seconds_so_far = time.time() - begun
                    print(f"{lesson.stage}: {learner.steps} steps, {seconds_so_far:.0f} s, loss {value:.5f}", flush=True)
            if time.time() - saved > SAVE_EVERY:
                save()
                saved = time.time()
        names = list(student.up)
        finished = dict(zip(names, zip(learner.average[: len(names)], learner.average[len(names) :])))
        if "after" not in log:
            log["after"] = error_of(with_difference(self.network, finished), lesson, self.kept_back, self.batch)
            save()
        if parallel.is_first():
            share = log["after"] / log["before"]
            print(
                f"{lesson.stage}: {log['steps']} steps; error {log['before']:.5f} -> {log['after']:.5f} ({share:.0%})",
                flush=True,
            )
        return finished, log, True


# -- the command -------------------------------------------------------------------------------------------------------


def album_of(folder: Path, device: torch.device, size: int) -> Album:
    """The pictures of a folder, or of the albums that the stage `data` of the training leaves in one.

    Raises:
        LabError: there are none.
    """
    albums = sorted(folder.glob("album*.zip"))
    if albums:
        pictures = [picture for file in albums for picture in data.read_album(file)]
    else:
        pictures = [("photograph", read_image(path).copy()) for path in pictures_in(folder)]
    if not pictures:
        raise LabError(f"{folder}: no picture and no album; give a folder of photographs")
    return Album(pictures, device, size, bank=BANK)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moebius_lab.training.distillation", description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=sorted(NETWORKS), default="demo")
    parser.add_argument("--weights", default="demo", help="what is distilled: a name, or a folder (default: demo)")
    parser.add_argument("--data", type=Path, required=True, help="a folder of pictures, or of the training's albums")
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints; a second run resumes from them")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder of the new weights")
    parser.add_argument(
        "--evaluations", type=int, default=EVALUATIONS, help=f"steps of the student (default: {EVALUATIONS})"
    )
    parser.add_argument("--substeps", type=int, default=SUBSTEPS, help=f"of its teacher in each (default: {SUBSTEPS})")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help=f"that is distilled (default: {GUIDANCE})")
    parser.add_argument("--batch", type=int, default=32, help="latents a step, in each process (default: 32)")
    parser.add_argument("--pool", type=int, default=2048, help="encoded pictures to draw from (default: 2048)")
    parser.add_argument("--most-bytes", type=float, default=MOST_BYTES, help="of the difference's numbers")
    parser.add_argument("--steps", type=int, default=10**9, help="at most so many in each stage")
    for stage in STAGES:
        parser.add_argument(f"--{stage}-seconds", type=float, default=SECONDS[stage], help="training time of the stage")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds after which to save and stop")
    options = parser.parse_args()
    began, config = time.time(), NETWORKS[options.network]
    if options.evaluations < 1 or options.substeps < 1 or options.batch < 1 or options.pool < 1:
        raise LabError("evaluations, substeps, batch and pool must be at least 1")
    check_weights(options.weights, config)
    whole = any((options.output / f"{name}.safetensors").exists() for name in ("denoiser", "vae"))
    if whole or Path(options.weights).resolve() == options.output.resolve():
        raise LabError(f"{options.output} holds weights; a difference belongs into a folder of its own: give another -o")
    device = parallel.start()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED + (int(began) + 1000 * parallel.rank()))  # neither another piece's batches nor process's
    source = find_weights(options.weights, "denoiser", config)
    network = channels_last(use_fast_forms(load_checkpoint(source, config)).to(device))
    rank = largest_rank({name: tuple(p.shape) for name, p in network.named_parameters()}, options.most_bytes)
    vae = load_vae(find_weights(options.weights, "vae", config), config)
    album = album_of(options.data, device, config.image_size)
    holes = torch.from_numpy(masks.random_masks(MASKS, SEED + parallel.rank(), config.image_size)).to(device)
    vae = use_fast_forms(vae).to(device).to(memory_format=torch.channels_last)
    encoder = denoiser.Encoder(vae, config.vae.scaling_factor, album, holes, min(options.batch, options.pool))
    work = Work(
        network, denoiser.Pool(encoder, options.pool), encoder.encode(KEPT_BACK), options.work_dir, rank, options.guidance,
        options.evaluations, options.substeps, options.batch, {stage: getattr(options, f"{stage}_seconds") for stage in STAGES},
        options.steps, began + options.stop_after,
    )  # fmt: skip
    done = work.run()
    if done is None:
        print(f"{options.stop_after:.0f} s are over: the same command goes on from here")
    elif parallel.is_first():
        factors, log = done
        made = f"{options.evaluations} steps of {DISTILLED_SOLVER}, guidance {options.guidance:g} distilled"
        options.output.mkdir(parents=True, exist_ok=True)
        weights = options.weights if not Path(options.weights).is_dir() else str(Path(options.weights).resolve())
        write_difference(
            options.output / DIFFERENCE,
            Difference(config.name, weights, weights_digest(source), made, options.evaluations, factors),
        )
        write_json(options.output / "distillation.json", {"made": made, "rank": rank} | log)
        size = (options.output / DIFFERENCE).stat().st_size
        print(f"{options.output / DIFFERENCE}: rank {rank}, {size / 1e6:.1f} MB; {made}")
    parallel.stop()
    return 0


if __name__ == "__main__":
    errors.leave(errors.run(main))
