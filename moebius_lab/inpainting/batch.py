"""A folder of pictures, each with its mask: which file goes with which, what is still to be made, and what cannot be.

Names are matched by rule, here and on the page:

- A picture is a file in the folder itself whose ending is one of `ENDINGS`; hidden files and folders in it are left alone.
- The mask of NAME.jpg is a file of the masks' folder called NAME, NAME-mask or NAME_mask, the first that there is, with any of
  these endings. Where pictures and masks share a folder, its mask is NAME-mask or NAME_mask, and such files are no pictures.
- Its result is NAME.png, or NAME-1.png, NAME-2.png and so on where several variants are asked for.

A result that is there is finished, since it is written whole or not at all: it is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import explain
from .backends import Backend
from .extending import Extension, extend, extend_mask, extension_to, parse_extension
from .imaging import ImageError, check_picture_and_mask
from .loop import Progress, Settings, inpaint_picture
from .picture_files import FORMATS, Picture, is_there, plan_output, read_mask, read_picture

ENDINGS = (*FORMATS, ".gif", ".jfif", ".pbm", ".pgm", ".pnm")
"""Endings, in lower case, of files that are taken for pictures."""
MASK_SUFFIXES = ("-mask", "_mask")
SAME = "same"
"""The format of a result that has its picture's own ending."""

Widening = Callable[[int, int], Extension]
"""(width, height) of a picture, px -> how it is extended."""


@dataclass(frozen=True)
class Job:
    """One picture of a folder and what is to be made of it."""

    picture: Path
    mask: Path | None  # None where only new canvas is filled
    results: tuple[Path, ...]  # one a variant
    fault: str = ""  # why it cannot be done, where that is known from names alone

    @property
    def missing(self) -> list[int]:
        """Variants, from 0, whose results are not there yet."""
        return [i for i, path in enumerate(self.results) if not is_there(path)]


def results_of(path: Path, variants: int) -> tuple[Path, ...]:
    """Where the variants of a result are written: `path` itself, or its name with -1, -2 and so on before the ending."""
    if variants == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(variants))


def variant(settings: Settings, i: int) -> Settings:
    """The settings of variant `i`, from 0: each has the next seed; beyond 2^32 - 1 seeds begin again at 0, as on the page."""
    return replace(settings, seed=(settings.seed + i) % 2**32) if i else settings


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        ImageError: there is no such folder.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: there is no such folder; give one of pictures")
    found = (path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix.lower() in ENDINGS)
    return sorted(path for path in found if not path.is_dir())


def plan_folder(pictures: Path, masks: Path | None, results: Path, ending: str = ".png", variants: int = 1) -> list[Job]:
    """What is to be made of a folder of pictures, by name; a job that cannot be done says why.

    Args:
        pictures: the folder.
        masks: a folder, or the one mask of all pictures; None where only new canvas is filled.
        results: a folder; made if missing, but not here.
        ending: of the results, or `SAME`.
        variants: of each picture, 1 or more.

    Raises:
        ImageError: there is no such folder, no picture in it, or results would lie among the pictures or masks.
    """
    found = pictures_in(pictures)
    by_stem: dict[str, list[Path]] = {}
    same_folder = masks is not None and masks.is_dir() and masks.samefile(pictures)
    if masks is not None and not masks.is_file():
        for path in pictures_in(masks):
            by_stem.setdefault(path.stem, []).append(path)
    if same_folder:
        found = [path for path in found if not path.stem.endswith(MASK_SUFFIXES)]
    if not found:
        raise ImageError(f"{pictures}: there is no picture in this folder; pictures end in {', '.join(ENDINGS)}")
    for folder in (pictures, masks):
        if folder is not None and results.is_dir() and results.samefile(folder):
            raise ImageError(f"{results}: results would lie among the pictures or masks; name another folder")
    suffixes = MASK_SUFFIXES if same_folder else ("", *MASK_SUFFIXES)
    jobs, taken = [], {}
    for picture in found:
        form = picture.suffix if ending == SAME else ending
        names = results_of(results / f"{picture.stem}{form}", variants)
        mask, fault = None, ""
        if masks is not None:
            mask, fault = (masks, "") if masks.is_file() else _mask_of(picture.stem, suffixes, by_stem, masks)
        first = taken.setdefault(names[0].name, picture)
        if first is not picture:
            fault = f"its result would have the name of that of {first.name}; rename one of them"
        jobs.append(Job(picture, mask, names, fault))
    return jobs


def _mask_of(stem: str, suffixes: tuple[str, ...], by_stem: dict[str, list[Path]], masks: Path) -> tuple[Path | None, str]:
    """The mask of a picture by its name, or None and why there is none."""
    named = next((by_stem[stem + suffix] for suffix in suffixes if stem + suffix in by_stem), [])
    if len(named) == 1:
        return named[0], ""
    if named:
        return None, f"{' and '.join(path.name for path in named)} could both be its mask; keep one of them"
    return None, f"there is no mask for it; put {stem}{suffixes[0]}.png into {masks}"


def read_job(
    job: Job, widening: Widening | None, selecting: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[Picture, np.ndarray, Extension | None]:
    """Picture and mask of a job, extended if that is asked for.

    Args:
        job: of `plan_folder`.
        widening: how the picture is extended.
        selecting: makes the mask, bool (H, W), from the picture, uint8 (H, W, 3), where there is no file of one.

    Raises:
        ImageError: one of them cannot be used, or they do not go together.
    """
    if job.fault:
        raise ImageError(f"{job.picture}: {job.fault}")
    picture = read_picture(job.picture)
    mask = None if job.mask is None else read_mask(job.mask)
    if selecting is not None:
        mask = selecting(picture.rgb).astype(np.uint8) * 255
    extension = None
    if widening is not None:
        extension = widening(picture.rgb.shape[1], picture.rgb.shape[0])
        picture = extend(picture, extension)
        mask = extend_mask(mask, extension, picture.rgb.shape[:2])
    try:
        check_picture_and_mask(picture.rgb, mask)
    except ImageError as error:
        raise ImageError(f"{job.picture}: {error}") from None
    return picture, mask, extension


def widening(words: list[str] | None, ratio: str) -> Widening | None:
    """How every picture is extended: as `words` say (`parse_extension`), to a ratio (`extension_to`), or not at all.

    Raises:
        LabError: both are given, or one of them cannot be read.
    """
    if words and ratio:
        raise ImageError("a picture is extended by px or to an aspect ratio, not both; leave one of them out")
    if words:
        extension = parse_extension(words)
        return lambda width, height: extension
    if ratio:
        extension_to(ratio, 1, 10**6)  # raises where it is no ratio
        return lambda width, height: extension_to(ratio, width, height)
    return None


@dataclass
class Outcome:
    """What became of a folder, in results."""

    made: int = 0
    there_before: int = 0
    failed: int = 0  # pictures, not results

    def words(self) -> str:
        return f"{self.made} made, {self.there_before} there before, {self.failed} pictures failed"


def fill_folder(
    jobs: list[Job],
    backend: Backend,
    settings: Settings,
    quality: int | None = None,
    widening: Widening | None = None,
    model: dict[str, str] | None = None,
    on_made: Callable[[Path], None] = lambda path: None,
    on_failure: Callable[[Path, str], None] = lambda path, why: None,
    on_remark: Callable[[str], None] = lambda words: None,
    on_progress: Callable[[Job, int, Progress], None] | None = None,
) -> Outcome:
    """Make the results of a folder that are not there yet; a picture that fails stops none of the others.

    Args:
        jobs: of `plan_folder`.
        backend: where the networks run.
        settings: of the first variant; each further one has the next seed.
        quality: see `plan_output`.
        widening: how pictures are extended.
        model: see `inpaint_picture`.
        on_made: called with every result that was written.
        on_failure: called with a picture and why it has no result, in one line that names it.
        on_remark: called with what a picture or format loses.
        on_progress: called as on_progress(job, variant, progress) after every step.
    """
    outcome = Outcome()
    for job in jobs:
        missing = job.missing
        outcome.there_before += len(job.results) - len(missing)
        if not missing:
            continue
        try:
            picture, mask, extension = read_job(job, widening)
            for remark in picture.remarks:
                on_remark(f"{job.picture}: {remark}")
            for i in missing:
                output = plan_output(job.results[i], picture, quality)
                for remark in output.remarks if i == missing[0] else ():
                    on_remark(remark)

                def report(progress: Progress, job: Job = job, i: int = i) -> None:
                    if on_progress is not None:
                        on_progress(job, i, progress)

                varied = variant(settings, i)
                output.write(inpaint_picture(backend, picture, mask, varied, report, extension=extension, model=model))
                outcome.made += 1
                on_made(output.path)
        except Exception as error:
            why = explain(error)
            if why is None:
                raise
            outcome.failed += 1
            on_failure(job.picture, why if str(job.picture) in why else f"{job.picture}: {why}")
    return outcome
