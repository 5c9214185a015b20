"""The page's modules without a browser: JavaScript against Python's numbers, types, size."""

import ast
import base64
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from programs import node

from moebius_lab import LabError, config
from moebius_lab.inpainting import selection
from moebius_lab.inpainting.batch import plan_folder
from moebius_lab.inpainting.extending import Extension, extend, extend_mask, plan_filling, put_back, see
from moebius_lab.inpainting.harmonizing import harmonized
from moebius_lab.inpainting.imaging import (
    crop,
    describe_windows,
    feather,
    is_hole,
    mask_to_hole,
    mask_to_latent,
    plan_windows,
    to_bytes,
    to_unit_range,
    uncrop,
)
from moebius_lab.inpainting.loop import Settings, preset
from moebius_lab.inpainting.photographs import demo_photographs
from moebius_lab.inpainting.picture_files import plan_output, read_image, read_picture
from moebius_lab.model.sampler import ddim_scheduler, guided_weights, solver_steps
from moebius_lab.notebook.mask_painter import MaskPainter, first_brush
from moebius_lab.page import bundle
from moebius_lab.page.browser import DRIVER
from moebius_lab.page.modules import KERNELS, RECORDED, WEB
from moebius_lab.page.reference import described_inputs, made

HERE = Path(__file__).parents[1]
PACKAGE = Path(bundle.__file__).parents[1]
SIZE = 64  # of the windows in these fixtures: Python's window logic takes any


def text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def painted(height: int, width: int, *holes: tuple[int, int, int, int], soft: bool = False) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    for top, left, bottom, right in holes:
        mask[top:bottom, left:right] = 255
    if soft:
        mask = np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(2)))
    return mask


def comb(height: int, width: int) -> np.ndarray:
    """Teeth that only the lowest row joins, the same upside down, a diagonal to the left, and a ring."""
    mask = painted(height, width, (40, 10, 41, 40), (10, 50, 11, 80), (60, 140, 80, 160))
    mask[10:40, 10:40:3] = mask[11:41, 50:80:4] = 255
    mask[62:78, 142:158] = 0
    np.fill_diagonal(mask[45:97, 60:112][:, ::-1], 255)
    return mask


def specks(height: int, width: int, count: int, size: int) -> np.ndarray:
    """Holes of 1 to `size` px a side, anywhere."""
    rng, mask = np.random.default_rng(count + size), np.zeros((height, width), np.uint8)
    for top, left, high, wide in rng.integers((0, 0, 1, 1), (height, width, size + 1, size + 1), (count, 4)):
        mask[top : top + high, left : left + wide] = rng.integers(128, 256)
    return mask


PICTURES = {
    "one window at its own size": painted(100, 150, (40, 50, 60, 75)),
    "a hole in the corner": painted(90, 120, (0, 0, 20, 31)),
    "smaller than the window": painted(40, 50, (10, 10, 30, 22)),
    "narrower than the window": painted(120, 30, (70, 5, 90, 25)),
    "tiny": painted(5, 7, (1, 1, 3, 4)),
    "a hole too large for the window": painted(130, 190, (20, 30, 110, 150)),
    "large, past the edges": painted(70, 200, (5, 20, 66, 180), soft=True),
    "four apart": painted(200, 210, (10, 10, 30, 30), (10, 150, 40, 170), (150, 20, 170, 44), (120, 120, 180, 199)),
    "two whose feathers meet": painted(80, 190, (20, 40, 60, 88), (22, 91, 58, 139), soft=True),
    "at the edges, in several windows": painted(200, 210, (0, 0, 21, 30), (0, 181, 30, 210), (171, 95, 200, 120), soft=True),
    "a comb, a ring around a dot": np.maximum(comb(100, 180), painted(100, 180, (70, 150, 71, 151))),
    "a soft stain far from the hole": np.maximum(
        painted(90, 140, (30, 20, 50, 40)), painted(90, 140, (40, 60, 44, 66)) // 3
    ),
    "many specks": specks(300, 400, 150, 5),
    "specks and holes too large": specks(400, 300, 60, 70),
    "wide and low, a wire along it": painted(20, 900, (8, 30, 12, 880)),
    "wide and low, a thick hole along it": painted(45, 900, (8, 30, 38, 880)),
    "high and narrow, a thick hole along it": painted(700, 40, (20, 5, 650, 35)),
    "wires that cross": painted(300, 400, (5, 200, 290, 203), (100, 10, 102, 390), (250, 20, 280, 60)),
    "at the right edge, and at the left one a row below": painted(90, 130, (20, 100, 21, 130), (21, 0, 22, 20)),
    "one diagonal, one line": np.maximum(np.eye(90, 140, dtype=np.uint8) * 255, painted(90, 140, (50, 100, 51, 139))),
}


def picture_case(name: str, mask: np.ndarray, coverage: str) -> dict:
    rng = np.random.default_rng(len(name))
    height, width = mask.shape
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    planned = plan_windows(mask, SIZE, coverage)
    windows, result, left = [], image, is_hole(mask)
    for window in planned:
        seen, seen_mask = crop(result, left, window, SIZE)
        made = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        result = uncrop(made, result, mask, window, coverage)
        left = left & ~window.hole
        told = mask_to_latent(mask_to_hole(seen_mask), coverage).numpy()
        arrays = {"seen": seen, "seen_hole": seen_mask == 255, "told": told, "made": made}
        place = {"left": window.left, "top": window.top, "side": window.side}
        windows.append(place | {key: text(array) for key, array in arrays.items()})
    arrays = {"image": image, "mask": mask, "result": result, "owners": planned[0].owners.astype(np.uint32)}
    facts = {"name": f"{name}, {coverage}", "coverage": coverage, "width": width, "height": height, "windows": windows}
    return facts | {"plan": describe_windows(planned, SIZE)} | {k: text(v) for k, v in arrays.items()}


def harmonizing_case(name: str) -> dict:
    """What the model saw and made of a window of `SIZE` px, and what is made of that."""
    rng = np.random.default_rng(len(name))
    seen, made = (
        np.clip(rng.normal(rng.integers(60, 200, 3), rng.uniform(2, 50), (SIZE, SIZE, 3)), 0, 255) for _ in range(2)
    )
    hole = painted(SIZE, SIZE, *HARMONIZED[name]) if HARMONIZED[name] else np.full((SIZE, SIZE), 255, np.uint8)
    if name == "grey":
        seen = seen[..., :1].repeat(3, 2)
    seen, made = seen.astype(np.uint8), made.astype(np.uint8)
    arrays = {"seen": seen, "made": made, "hole": hole > 0, "harmonized": harmonized(made, seen, hole)}
    return {"name": name} | {key: text(array) for key, array in arrays.items()}


HARMONIZED = {
    "a hole inside": [(20, 16, 44, 40)], "grey": [(4, 4, 30, 30)], "at the edge": [(0, 30, 20, 64)],
    "a line": [(30, 0, 31, 64)], "one pixel": [(9, 9, 10, 10)], "nearly everything": [(0, 0, 63, 64)], "everything": None,
    "two holes": [(4, 2, 14, 14), (33, 33, 60, 58)], "two that fade into each other": [(4, 2, 14, 14), (24, 2, 30, 30)],
}  # fmt: skip
"""The holes of each case: top, left, bottom, right."""
BATCHES = [
    ("a.jpg", "a-mask.png", "b.png", "b_mask.webp", "c.png"), ("a.png", "b.png", "a-mask.png", "b-mask.png", "a_mask.gif"),
]  # fmt: skip
EXTENSIONS = [
    (40, 60, Extension(left=20)), (90, 130, Extension(3, 5, 70, 1)), (30, 20, Extension(0, 40, 0, 40)),
    (100, 70, Extension(11, 12, 13, 14)), (12, 12, Extension(right=1)), (50, 200, Extension(0, 100, 0, 0)),
]  # fmt: skip
"""Height and width of a picture, and how it is extended."""


def extension_case(height: int, width: int, extension: Extension, painted_too: bool) -> dict:
    rng = np.random.default_rng(height + width)
    old = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    picture = extend(read_picture(old), extension)
    hole = painted(height, width, (height // 3, width // 3, height // 2, width // 2)) if painted_too else None
    mask = extend_mask(hole, extension, picture.rgb.shape[:2])
    windows, result, left = [], picture.rgb, is_hole(mask)
    for window in plan_filling(mask, SIZE, extension=extension):
        seen, seen_mask = see(result, left, window, SIZE)
        made = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        result = put_back(made, result, mask, window)
        left = left & ~window.hole
        place = {"left": window.left, "top": window.top, "side": window.side, "joins": bool(window.new_canvas)}
        windows.append(place | {"seen": text(seen), "seen_hole": text(seen_mask == 255), "made": text(made)})
    rgba = np.dstack([picture.rgb, picture.alpha])
    arrays = {"old": old, "image": rgba, "mask": mask, "result": result}
    return {"width": width, "height": height, "extension": vars(extension), "windows": windows} | {
        name: text(array) for name, array in arrays.items()
    }


def photograph(seed: int) -> np.ndarray:
    """A piece of a demo photograph, uint8 (90, 120, 3), at full size or reduced."""
    photos = [read_image(photo) for photo, _ in demo_photographs().values()]
    image, factor = photos[seed % len(photos)], 1 + seed % 3
    top, left = np.random.default_rng(seed).integers((0, 0), (image.shape[0] - 90 * factor, image.shape[1] - 120 * factor))
    return np.ascontiguousarray(image[top : top + 90 * factor : factor, left : left + 120 * factor : factor])


def selection_case(seed: int) -> dict:
    """What one click, one wire and one change of a selection give."""
    rng, image = np.random.default_rng(seed), photograph(seed)
    (x, y), (u, v) = ((int(rng.integers(120)), int(rng.integers(90))) for _ in range(2))
    tolerance, contiguous, px = int(rng.choice([0, 8, 24, 60, 255])), seed % 3 > 0, (0, 1, 2, 5, 17, 40)[seed % 6]
    chosen = selection.wand(image, (x, y), 24, contiguous=seed % 2 > 0)
    part = is_hole(specks(90, 120, 6, 30)) if seed % 2 else chosen
    part = part if seed else np.zeros_like(part)
    return {
        "image": text(image), "x": x, "y": y, "tolerance": tolerance, "contiguous": contiguous, "px": px,
        "wand": text(selection.wand(image, (x, y), tolerance, contiguous)),
        "end": [u, v], "way": selection.wire(image, (x, y), (u, v)), "part": text(part),
        "grown": text(selection.grow(part, px)), "shrunk": text(selection.shrink(part, px)),
        "feathered": text(selection.feather(part, px)), "filled": text(selection.fill_holes(part)),
        "largest": text(selection.keep_largest(part)),
    }  # fmt: skip


def made_case(tmp_path: Path) -> dict:
    """A PNG that says what it was made with, as Python writes it."""
    made = {"format": 1, "settings": vars(preset("fast", seed=11)), "code": "0123456789abcdef"}
    made["model"] = {"network": "demo", "weights": "ünïcode", "precision": "fp32", "backend": "PyTorch"}
    picture = replace(read_picture(np.zeros((3, 4, 3), np.uint8)), made=made)
    plan_output(tmp_path / "made.png", picture).write(picture)
    content = (tmp_path / "made.png").read_bytes()
    assert read_picture(content).made == json.loads(json.dumps(made))
    return {"made": made, "png": base64.b64encode(content).decode()}


def batch_case(tmp_path: Path, *names: str) -> dict:
    """Which file is whose mask among files of one folder, by Python's rule."""
    folder = tmp_path / "-".join(name.partition(".")[0] for name in names)
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    jobs = plan_folder(folder, folder, tmp_path / "out")
    return {"names": names, "jobs": [[job.picture.name, job.mask and job.mask.name] for job in jobs]}


def feather_case(height: int, width: int) -> dict:
    mask = np.random.default_rng(height).integers(0, 2, (height, width), dtype=np.uint8) * 255
    mask[: height // 2] = 0
    blurred = np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(config.MASK_BLUR_RADIUS)))
    arrays = {"mask": mask, "blurred": blurred, "weights": feather(mask)}
    return {"width": width, "height": height} | {name: text(array) for name, array in arrays.items()}


def plan_case(seed: int) -> dict:
    """Random holes, small and large, and the places of their windows."""
    rng = np.random.default_rng(seed)
    height, width, size = rng.integers(30, 600, 2).tolist() + [int(rng.integers(4, 20)) * 8]
    mask = specks(height, width, int(rng.integers(1, 300)), int(rng.integers(1, 40)))
    coverage = config.COVERAGES[seed % 2]
    windows = [
        [window.left, window.top, window.side, int(window.hole.sum())] for window in plan_windows(mask, size, coverage)
    ]
    return {"width": width, "height": height, "size": size, "coverage": coverage, "mask": text(mask), "windows": windows}


def painting_case(seed: int) -> dict:
    """Gestures on one mask, and the mask after each as the notebook's painter has it.

    Positions are in px from the picture's corner, as the page has them, most of them so that centres of pixels lie on edges.
    """
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 150, 2).tolist()
    painter, gestures = MaskPainter(np.zeros((height, width, 3), np.uint8)), []
    for number in range(12):
        tool = ("brush", "lasso", "rectangle", "eraser")[number % 4]
        count = 2 if tool == "rectangle" else int(rng.integers(1 if tool != "lasso" else 3, 9))
        points = rng.uniform(-0.2, 1.2, (count, 2)) * (width, height)
        grid = (1, 2, 8, 0)[(seed + number) % 4]
        points = (np.round(points * grid) / grid if grid else points) + 0.5 * (grid == 1)
        size = float(rng.choice([1, 2, 5, 10, 13, 26, 25.5, rng.uniform(1, 60)]))
        if tool == "rectangle":
            painter.rectangle(*points - 0.5)
        elif tool == "lasso":
            painter.lasso(points - 0.5)
        else:
            (painter.stroke if tool == "brush" else painter.erase)(points - 0.5, size)
        gestures.append({"tool": tool, "points": points.tolist(), "size": size, "mask": text(painter.mask)})
    return {"width": width, "height": height, "gestures": gestures}


def random_case(seed: int) -> dict:
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = [torch.randn(count, generator=generator).numpy() for count in (1024, 1024, 4096, 4, 3, 100, 4)]
    return {"seed": seed, "draws": [text(draw) for draw in draws]}


SCHEDULES = {
    "ddim": [(20, 0.99), (50, 1.0), (7, 0.5), (1000, 1.0), (3, 0.99), (1, 1.0), (1, 0.99), (10, 0.01), (999, 0.3)],
    "dpm++2m": [(6, 1.0), (61, 1.0), (4, 1.0), (2, 1.0), (3, 1.0), (16, 1.0), (20, 0.99), (50, 0.2), (12, 0.5), (80, 1.0)],
    "unipc": [(6, 1.0), (4, 1.0), (2, 1.0), (3, 1.0), (5, 0.7), (16, 1.0), (20, 0.99), (50, 0.2), (12, 0.5), (80, 1.0)],
}
REFUSED = [
    {"solver": "euler"},
    {"steps": 0},
    {"steps": 1001},
    {"strength": 1.5},
    {"strength": 0},
    {"solver": "dpm++2m", "steps": 1},
    {"solver": "unipc", "steps": 20, "strength": 0.05},
    {"guidance_interval": (0.5, 0.25)},
    {"guidance_interval": (-0.5, 1)},
    {"guidance_interval": (0, 1.5)},
    {"guidance_interval": (0.96, 0.99)},
    {"init": "nothing"},
    {"coverage": "most"},
    {"harmonize": "yes"},
    {"guidance": math.inf},
]
"""Settings that are out of their ranges, one for each sentence that says so."""
INTERVALS = [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.7, 1.0), (0.3, 0.31), (0.1, 0.9)]


def schedule_case(solver: str, steps: int, strength: float) -> dict:
    expected = solver_steps(solver, steps, strength)
    guided = [guided_weights(step, 2.5) for step in expected[:2]]
    schedule = {"solver": solver, "steps": steps, "strength": strength}
    return schedule | {"expected": [vars(step) for step in expected], "guided": guided}


def refused_case(changes: dict) -> dict:
    with pytest.raises(LabError) as refused:
        Settings(**changes)
    sayable = {name: None if value == math.inf else value for name, value in changes.items()}  # JSON has no infinity
    return {"changes": sayable, "message": str(refused.value)}


def guidance_case(steps: int, interval: tuple[float, float]) -> dict | None:
    try:
        settings = Settings("ddim", steps, 1.0, 2.0, interval)
    except LabError:
        return None
    return {"steps": steps, "interval": interval, "guidances": settings.guidances()}


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory) -> Path:
    rgb = np.arange(768, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    decoded = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(5))
    ranges = {"rgb": rgb, "unit": to_unit_range(rgb).numpy(), "decoded": decoded.numpy(), "bytes": to_bytes(decoded)}
    content = {
        "constants": bundle.constants(config.SMALL),
        "size": SIZE,
        "alphas": ddim_scheduler().alphas_cumprod.double().tolist(),
        "orders": {name: solver.order for name, solver in config.SOLVERS.items()},
        "schedules": [schedule_case(solver, *case) for solver, cases in SCHEDULES.items() for case in cases],
        "presets": {
            name: vars(entry) | {"evaluations": preset(name).evaluations()} for name, entry in config.PRESETS.items()
        },
        "settings": vars(Settings()),
        "refused": [refused_case(changes) for changes in REFUSED],
        "guidances": [case for n in (1, 2, 6, 10, 19) for share in INTERVALS if (case := guidance_case(n, share))],
        "random": [random_case(seed) for seed in (0, 1, 2**32 + 5, 2**53 - 1)],
        "pictures": [picture_case(name, mask, coverage) for name, mask in PICTURES.items() for coverage in config.COVERAGES],
        "extensions": [extension_case(*case, painted_too) for case in EXTENSIONS for painted_too in (False, True)],
        "harmonized": [harmonizing_case(name) for name in HARMONIZED],
        "selections": [selection_case(seed) for seed in range(12)],
        "made": made_case(tmp_path_factory.mktemp("made")),
        "batches": [batch_case(tmp_path_factory.mktemp("batch"), *names) for names in BATCHES],
        "plans": [plan_case(seed) for seed in range(60)],
        "feathers": [feather_case(*shape) for shape in ((40, 60), (1, 30), (30, 1), (4, 5), (6, 200))],
        "paintings": [painting_case(seed) for seed in range(24)],
        "brushes": [
            [w, h, first_brush(h, w)] for w, h in ((1, 1), (14, 30), (100, 100), (640, 480), (3000, 2000), (9999, 10_001))
        ],
        "reference": {
            run: {name: [described, text(made(described))] for name, described in inputs.items()}
            for run, inputs in described_inputs(config.TINY).items()
        },
        "range": {key: text(array) for key, array in ranges.items()},
    }
    path = tmp_path_factory.mktemp("fixtures") / "fixtures.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.slow
def test_javascript_computes_what_python_does(fixtures):
    tests = sorted(str(path) for path in (HERE / "web").rglob("*.test.mjs"))
    done = node("--test", "--test-timeout=60000", *tests, env=dict(os.environ) | {"FIXTURES": str(fixtures)})
    failed = [part for part in re.split(r"(?m)^(?=# Subtest: )", done.stdout) if re.search(r"(?m)^\s*not ok ", part)]
    assert done.returncode == 0, "".join(failed)[:6000] + done.stderr[-2000:]


def test_types(tmp_path):
    """Of every JavaScript file of the package."""
    modules = bundle.npm_packages(development=True)
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / PACKAGE.name).symlink_to(PACKAGE)
    common = {
        "strict": True,
        "checkJs": True,
        "noEmit": True,
        "target": "es2024",
        "module": "esnext",
        "preserveSymlinks": True,
    }
    common |= {"moduleResolution": "bundler", "skipLibCheck": True, "types": [], "noUnusedLocals": True}
    files = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.js")}
    workers = {path for path in files if path.endswith("/service_worker.js")}
    programs = {
        "page": (sorted(files - workers), ["es2024", "dom", "dom.iterable"]),
        "worker": (sorted(workers), ["es2024", "webworker"]),
    }
    for name, (files, libraries) in programs.items():
        settings = {"compilerOptions": common | {"lib": libraries}, "files": files}
        (tmp_path / f"{name}.json").write_text(json.dumps(settings), encoding="utf-8")
        done = node(str(modules / "typescript" / "lib" / "tsc.js"), "-p", f"{name}.json", cwd=tmp_path)
        assert done.returncode == 0, done.stdout


JAVASCRIPT = re.compile(
    r"=>|\bfunction\s*\w*\(|\b(?:const|let|var) (?:\w+|[\[{].*[\]}]) =|\bdocument\.\w|\bnew [A-Z]\w*\(|\bawait import\("
)


def strings_in(path: Path) -> list[str]:
    """Those of a Python file, f-strings with what they put in as their source has it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return plain + ["".join(map(source_of, node.values)) for node in nodes if isinstance(node, ast.JoinedStr)]


def source_of(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"


def test_javascript_stands_in_files_that_are_checked():
    """What stands in a Python string is an expression of one line."""
    found = {path: [part for part in strings_in(path) if JAVASCRIPT.search(part)] for path in PACKAGE.rglob("*.py")}
    assert found[DRIVER.with_name("browser.py")] and found[DRIVER.with_name("driving.py")]
    programs = [part for parts in found.values() for part in parts if "\n" in part or ";" in part or len(part) > 125]
    assert not programs


def test_the_page_is_small_and_what_is_not_needed_at_once_comes_later():
    first, every = bundle.needed_first(), set(bundle.page_files())
    assert {"interface/main.js", "engine/engine.js", "engine/worker.js", "engine/sampler.js", "interface/style.css"} < first
    assert {"engine/extending.js", "engine/harmonizing.js", "interface/selection.js"} < every - first
    # as hosts send it, compressed; three solvers and their settings took 6,000 of it, what suits a device and what else it can try 3,000,
    # kernels that the page's address asks for 600, a step asked for while another runs and reading all outputs at once 800,
    # calls one after another, no change while something is selected or extended, and errors of helpers and of what is stored 800
    kernels, recorded = ({name for name in every if name.startswith(folder)} for folder in (KERNELS, RECORDED))
    assert bundle.page_bytes() < 100_000
    assert bundle.page_bytes(every - kernels - recorded) < 160_000
    # loaded after the model, and only where there is a graphics device; 2,400 of it only to measure, 2,700 so that a visit tries for so
    # long, later ones go on and nothing is done twice, 1,900 so that a product's slabs can be multiplied in more than one way and short
    # kernels are timed fairly, 4,200 for norms, softmax and products in 16 bits and for devices with few registers,
    # 4,800 for attention to conditions, stores of queries, keys and values, layer norms that give pictures, what is expected of tiles, and so
    # that one program does for all sizes, 3,400 for content lambdas, words of two numbers of 16 bits and weights as stored
    units = {f"{KERNELS}units.js"}  # of these the experiment, which only who asks for it loads
    assert bundle.page_bytes(kernels - units) < 66_000 and bundle.page_bytes(units) < 4_000
    # in place of ONNX Runtime, likewise; 1,200 of it so that weights have a place before they are read, and are widened on the device, 3,000
    # so that what is made of weights alone is computed once
    assert bundle.page_bytes(recorded) < 12_500


def test_kernels_are_written_for_the_pinned_runtime():
    """A new version may name its programs or lay out its uniforms otherwise: read operations.js against it before this is changed."""
    pinned = json.loads((bundle.WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]
    known = re.search(r"export const RUNTIME = '([\d.]+)';", (WEB / KERNELS / "operations.js").read_text(encoding="utf-8"))
    assert known[1] == pinned
