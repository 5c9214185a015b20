"""What an evaluation consists of: pictures, holes, contenders, and the jobs that they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from ... import LabError
from ...config import (
    BASELINES,
    DEFAULT_PRESET,
    FILLERS,
    HOLES_A_TASK,
    MASK_KINDS,
    PAPER_SHARE,
    PRECISIONS,
    STRAIGHTFORWARD,
    Preset,
)
from ...inpainting.batch import ENDINGS, MASK_SUFFIXES
from ...inpainting.loop import Settings, preset
from ...model.checkpoint import presets_of

GIVEN = "given"  # the kind of a hole that comes from a folder of masks
TRUTH = "truth"
"""The contender that leaves the pictures as they are: FID compares its features with those of the fills."""


@dataclass(frozen=True)
class Contender:
    """One row of the tables: a runtime of the network with a form and a solver, or a baseline."""

    filler: str  # a name in `config.FILLERS` or `config.BASELINES`, or `TRUTH`
    form: str = ""  # a precision, or `STRAIGHTFORWARD`; empty for baselines
    solver: str = ""  # a name in `config.SOLVERS`; empty for baselines

    @property
    def key(self) -> str:
        """Its name in files and tables, as in "onnx-int8-ddim"."""
        return "-".join(part for part in (self.filler, self.form, self.solver) if part)

    @property
    def label(self) -> str:
        """Its name for people, as in "ONNX Runtime, int8, ddim"."""
        if self.filler not in FILLERS:
            return BASELINES.get(self.filler, self.filler)
        form = "" if FILLERS[self.filler].forms else self.form
        return ", ".join(part for part in (FILLERS[self.filler].label, form, self.solver) if part)

    @property
    def resource(self) -> str:
        """What a worker must offer to run it; empty for nothing."""
        return FILLERS[self.filler].resource if self.filler in FILLERS else ""


def contenders(
    backends: Sequence[str], solvers: Sequence[str], baselines: Sequence[str] = (), truth: bool = False
) -> tuple[Contender, ...]:
    """Who takes part, sorted so that a worker opens each form of the network once.

    Args:
        backends: as in "torch", "onnx:int8"; a runtime alone stands for fp32.
        solvers: that each backend samples with.
        baselines: names in `config.BASELINES`.
        truth: whether the untouched pictures take part, for FID.

    Raises:
        LabError: an unknown name, or a form that the runtime does not have.
    """
    found = {}
    for backend in backends:
        name, _, form = backend.partition(":")
        if name not in FILLERS:
            raise LabError(
                f"there is no backend {name!r}; choose from {', '.join(FILLERS)}, with a precision as in onnx:int8"
            )
        forms = FILLERS[name].forms or (*PRECISIONS, STRAIGHTFORWARD)
        if (form or forms[0]) not in forms:
            raise LabError(f"{name} has no form {form!r}; choose one of {', '.join(forms)}")
        found |= {Contender(name, form or forms[0], solver): None for solver in solvers}
    for name in baselines:
        if name not in BASELINES:
            raise LabError(f"there is no baseline {name!r}; choose from {', '.join(BASELINES)}")
        found[Contender(name)] = None
    return (*found, *([Contender(TRUTH)] if truth else []))


@dataclass(frozen=True)
class Case:
    """One hole in one square of one picture."""

    picture: str  # the file, relative to the folder of pictures, with /
    square: int  # 0 is the largest in the middle; others are cut at random
    hole: str  # one of `config.MASK_KINDS`, or `GIVEN`

    def seed(self, plan_seed: int, what: str) -> int:
        """A number that depends on the plan's seed, this case and `what` is drawn: below 2^63, the same for every contender."""
        words = (plan_seed, self.picture, self.square, *(() if what == "square" else (self.hole,)), what)
        return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8]) >> 1


@dataclass(frozen=True)
class Plan:
    """All that an evaluation's numbers depend on besides its contenders and the code. Workers get it as it is.

    Pictures, masks, graphs and weights are named by paths that have to lead to the same files on every worker.
    """

    pictures: str  # folder
    names: tuple[str, ...]  # of its pictures, relative to it
    network: str  # in `config.NETWORKS`
    weights: str  # see `port.graphs.Graphs`
    graphs: str  # folder that has onnx/
    size: int  # px, side of the squares that are filled
    masks: str = ""  # folder of given masks; empty to draw them
    kinds: tuple[str, ...] = MASK_KINDS  # of drawn holes, each on every square
    share: tuple[float, float] = PAPER_SHARE  # of the square that a drawn hole takes
    squares: int = 1  # from every picture
    seed: int = 0
    preset: str = DEFAULT_PRESET  # steps and guidance; every fill starts from noise, not from the picture
    steps: int = 0  # instead of the preset's; 0 for those
    inception: str = ""  # TorchScript file for FID; empty for none
    lpips: str = ""  # and for LPIPS
    perceptual: bool = True  # measure the distance by features of EfficientNet-lite0
    batch: int = HOLES_A_TASK

    def __post_init__(self) -> None:
        if not self.names:
            raise LabError(f"{self.pictures}: no pictures here; name a folder of {', '.join(ENDINGS)}")
        if self.preset not in self.presets:
            raise LabError(f"there is no preset {self.preset!r} for these weights; choose one of {', '.join(self.presets)}")
        if unknown := set(self.kinds) - set(MASK_KINDS):
            raise LabError(f"there is no kind of mask {min(unknown)!r}; choose from {', '.join(MASK_KINDS)}")
        if min(self.squares, self.batch, self.size) < 1:
            raise LabError("squares, batch and size must be 1 or more")
        if not 0 < self.share[0] <= self.share[1] < 1:
            raise LabError(
                f"--share must run from a number above 0 to one below 1, not from {self.share[0]} to {self.share[1]}"
            )

    @cached_property
    def presets(self) -> dict[str, Preset]:
        """Those of the weights."""
        return presets_of(self.weights)

    def cases(self) -> list[Case]:
        """Every hole, picture by picture."""
        holes = (GIVEN,) if self.masks else self.kinds
        return [Case(name, i, hole) for name in self.names for i in range(self.squares) for hole in holes]

    def mask_of(self, name: str) -> Path:
        """Where the mask of a picture lies, by the rule of `inpainting.batch`, below the folder of masks; NAME.png if there is none."""
        there = Path(self.masks, name)
        suffixes = MASK_SUFFIXES if self.masks == self.pictures else ("", *MASK_SUFFIXES)
        candidates = (there.with_name(f"{there.stem}{suffix}{ending}") for suffix in suffixes for ending in ENDINGS)
        return next((path for path in candidates if path.is_file()), there.with_name(f"{there.stem}{suffixes[0]}.png"))

    def settings(self, contender: Contender, case: Case) -> Settings:
        """How a contender samples: its solver, the plan's steps, and the noise of this case."""
        changes = {"steps": self.steps} if self.steps else {}
        return preset(
            self.preset, self.presets, init="noise", solver=contender.solver, seed=case.seed(self.seed, "noise"), **changes
        )

    def facts(self) -> dict[str, object]:
        """What a kept run is compared with: the plan as JSON can say it, with each file's bytes in place of paths, which may move."""
        of_files: dict[str, object] = {"pictures": [_bytes(Path(self.pictures, name)) for name in self.names]}
        of_files["masks"] = [_bytes(self.mask_of(name)) for name in self.names] if self.masks else []
        of_files |= {name: _bytes(Path(path)) if (path := getattr(self, name)) else 0 for name in ("inception", "lpips")}
        return json.loads(json.dumps(asdict(self) | of_files | {"graphs": "", "weights": ""}))


@dataclass(frozen=True)
class Job:
    """One contender on one batch: what a worker is sent, and one Parquet file."""

    contender: Contender
    number: int  # of the batch
    cases: tuple[Case, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The file of its rows, below the run's folder."""
        return f"parts/{self.contender.key}/{self.number:06}.parquet"


def jobs(plan: Plan, who: Sequence[Contender]) -> list[Job]:
    """Every job, contender by contender."""
    cases = plan.cases()
    batches = [tuple(cases[i : i + plan.batch]) for i in range(0, len(cases), plan.batch)]
    return [Job(contender, number, batch) for contender in who for number, batch in enumerate(batches)]


def picture_names(folder: str | Path) -> tuple[str, ...]:
    """The picture files below a folder, relative to it, in order; those that are named as masks (`batch.MASK_SUFFIXES`) are left out.

    Raises:
        LabError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"{folder}: there is no such folder; name one that has pictures")
    files = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and not path.stem.endswith(MASK_SUFFIXES)]
    return tuple(sorted(path.relative_to(folder).as_posix() for path in files if not path.name.startswith(".")))


def _bytes(path: Path) -> int:
    """A file's size; -1 for one that is not there, which is told when it is read."""
    return path.stat().st_size if path.is_file() else -1
