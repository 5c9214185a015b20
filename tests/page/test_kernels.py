"""WebGPU kernels of our own, each beside PyTorch in double precision, on shapes that fit no tile: on the software adapters of Chromium and
Firefox, whose compilers are different programs."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moebius_lab.page import bundle
from moebius_lab.page.driving import IMPORT, Tab, session_of
from moebius_lab.page.engines import ENGINES, MAIN
from moebius_lab.page.serve import Server
from moebius_lab.port.precision import quantize_groups

RUNNER = Path(__file__).parents[1] / "web" / "run_kernels.mjs"
CLOSE = 2e-6  # of the largest magnitude: what sums of a thousand float32 numbers lose

WITH_WEBGPU = [name for name, engine in ENGINES.items() if "webgpu" in engine.providers]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=WITH_WEBGPU)
def kernels(request, engine_here):
    """A page of a software adapter in which kernels run; see `Kernels`."""
    engine_here(request.param, "webgpu")
    with Server(bundle.WEB) as server:
        session = session_of(ENGINES[request.param], "webgpu", "software")
        try:
            tab = session.new_tab()
            tab.goto(server.url + "engine/capture.js")
            tab.evaluate(IMPORT, ["driver", RUNNER.read_text(encoding="utf-8")])
            assert tab.evaluate("(base) => driver.start(base)", server.url)
            yield Kernels(tab, server.url)
        finally:
            session.close()


class Kernels:
    """`run(module, launch, arguments, arrays, outputs)`: one kernel of a module, on arrays by name."""

    def __init__(self, tab: Tab, base: str) -> None:
        self.tab, self.base = tab, base

    def run(
        self, module: str, launch: str, args: list, arrays: dict[str, Tensor], outputs: dict[str, tuple], stored=np.float32
    ) -> dict:
        packed = {name: _packed(array) for name, array in arrays.items()}
        sizes = {name: int(np.prod(shape)) * np.dtype(stored).itemsize for name, shape in outputs.items()}
        job = {"base": self.base, "module": module, "launch": launch, "args": args, "arrays": packed, "outputs": sizes}
        got = self.tab.evaluate("(job) => driver.run(job)", job)
        return {
            name: torch.from_numpy(np.frombuffer(base64.b64decode(got[name]), stored).reshape(shape).copy()).double()
            for name, shape in outputs.items()
        }


STORED = {torch.int8: np.int8, torch.float16: np.float16, torch.int64: np.int32}  # all others as float32


def _packed(array: Tensor) -> str:
    numbers = array.numpy().astype(STORED.get(array.dtype, np.float32))
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


def numbers(*shape: int) -> Tensor:
    """Normal numbers, as float32 has them, in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) < CLOSE


def assert_rounded_once(got: Tensor, expected: Tensor) -> None:
    """To 16 bits, at the end, besides what float32 sums lose."""
    most = 2.0**-11 * expected.abs() + CLOSE * expected.abs().max()
    assert got.shape == expected.shape and ((got - expected).abs() <= most).all()


# -- products ----------------------------------------------------------------------------------------------------------


def tiles() -> dict[str, dict]:
    """Of product.js: one that fits few shapes, an uneven one, one whose sums are cut into parts, tall and wide threads, and large ones, whose
    slabs are two groups of rows."""
    return {
        "small": {"M": 32, "N": 32, "K": 16, "m": 4, "n": 4},
        "uneven": {"M": 32, "N": 40, "K": 8, "m": 8, "n": 4},
        "in parts": {"M": 32, "N": 32, "K": 8, "m": 4, "n": 4, "parts": 3},
        "sixteen rows": {"M": 64, "N": 40, "K": 8, "m": 16, "n": 4},
        "eight columns": {"M": 64, "N": 64, "K": 16, "m": 4, "n": 8},
        "large": {"M": 64, "N": 64, "K": 16, "m": 16, "n": 8},
    }


def product(M: int, N: int, K: int, **more) -> dict:
    """A product as operations.js describes it."""
    plain = {"kind": "product", "M": M, "N": N, "K": K, "outer": 1, "inner": 1, "A": "@A", "B": "@B", "C": "@C", "from": 0}
    plain |= {name: {"outer": size // 4, "inner": 0} for name, size in (("a", M * K), ("b", K * N), ("c", M * N))}
    plain |= {"rows": {"per": M, "a": 0, "c": 0, "step": N // 4}, "biased": "", "bias": None, "silu": False, "sums": []}
    plain |= {"split": None}
    return (
        plain | {"gathered": None, "window": None, "half": False, "narrow": {"A": None, "B": None}, "turned": False} | more
    )


@pytest.mark.parametrize("tile", tiles())
def test_a_product_with_all_that_can_follow_it(kernels, tile):
    M, N, K, Z = 45, 52, 300, 3
    A, B, bias, one, two = numbers(Z, M, K), numbers(Z, K, N), numbers(M), numbers(Z, M, N), numbers(Z, M, N) * 2
    operation = product(M, N, K, outer=Z, biased="row", bias="@bias", silu=True, sums=["@one", "@two"])
    arrays = {"A": A, "B": B, "bias": bias, "one": one, "two": two}
    got = kernels.run("product.js", "launchProduct", [operation, tiles()[tile]], arrays, {"C": (Z, M, N)})["C"]
    assert_close(got, F.silu(A @ B + bias[:, None]) + one + two)


def test_a_product_of_one_matrix_with_many_and_a_bias_of_columns(kernels):
    M, N, K, outer, inner = 20, 36, 24, 2, 3
    A, B, bias = numbers(outer, M, K), numbers(inner, K, N), numbers(N)
    strides = {"a": {"outer": M * K // 4, "inner": 0}, "b": {"outer": 0, "inner": K * N // 4}}
    strides |= {"c": {"outer": inner * M * N // 4, "inner": M * N // 4}}
    operation = product(M, N, K, outer=outer, inner=inner, biased="column", bias="@bias", **strides)
    arrays = {"A": A, "B": B, "bias": bias}
    shape = (outer, inner, M, N)
    got = kernels.run("product.js", "launchProduct", [operation, tiles()["small"]], arrays, {"C": shape})["C"]
    assert_close(got, torch.einsum("omk,ikn->oimn", A, B) + bias)


@pytest.mark.parametrize("half", (False, True))
@pytest.mark.parametrize("tile", ("small", "in parts"))
def test_a_product_whose_columns_are_split_over_three_tensors(kernels, tile, half):
    M, K, sizes = 37, 52, (24, 8, 12)
    N, names = sum(sizes), ("q", "k", "v")
    A, B, bias = (array.half() if half else array.float() for array in (numbers(M, K), numbers(K, N), numbers(N)))
    split = {"parts": [f"@{name}" for name in names], "sizes": sizes}
    operation = product(M, N, K, biased="column", bias="@bias", C="@q", split=split, **(HALVES if half else {}))
    outputs = {name: (M, size) for name, size in zip(names, sizes, strict=True)}
    arrays, kind = {"A": A, "B": B, "bias": bias}, np.float16 if half else np.float32
    got = kernels.run("product.js", "launchProduct", [operation, tiles()[tile]], arrays, outputs, kind)
    expected = (A.double() @ B.double() + bias.double()).split(sizes, 1)
    for name, part in zip(names, expected, strict=True):
        (assert_rounded_once if half else assert_close)(got[name], part)


def test_a_product_that_stores_transposed(kernels):
    b, x, y, K, N = 2, 3, 10, 16, 12  # (b, x, y, N) becomes (b, y, x, N)
    A, B = numbers(b, x, y, K), numbers(x, K, N)
    strides = {"a": {"outer": x * y * K // 4, "inner": y * K // 4}, "b": {"outer": 0, "inner": K * N // 4}}
    strides |= {"c": {"outer": x * y * N // 4, "inner": N // 4}}
    rows = {"per": 1, "a": K // 4, "c": x * N // 4, "step": N // 4}
    operation = product(y, N, K, outer=b, inner=x, rows=rows, **strides)
    got = kernels.run("product.js", "launchProduct", [operation, tiles()["small"]], {"A": A, "B": B}, {"C": (b, y, x, N)})[
        "C"
    ]
    assert_close(got, torch.einsum("bxyk,xkn->byxn", A, B))


@pytest.mark.parametrize("words", (1, 2))
def test_a_product_of_gathered_rows(kernels, words):
    b, t, rows, M, K, N = 2, 3, 29, 10, 20, 8
    A, data = numbers(b, t, M, K), numbers(b, rows, N)
    indices = torch.randint(rows, (t, K), generator=torch.Generator().manual_seed(1))
    stored = torch.stack([indices, torch.zeros_like(indices)], -1) if words == 2 else indices
    strides = {"a": {"outer": t * M * K // 4, "inner": M * K // 4}, "b": {"outer": rows * N // 4, "inner": 0}}
    strides |= {"c": {"outer": t * M * N // 4, "inner": M * N // 4}}
    gathered = {"indices": "@indices", "words": words}
    operation = product(M, N, K, outer=b, inner=t, gathered=gathered, **strides)
    arrays = {"A": A, "B": data, "indices": stored}
    got = kernels.run("product.js", "launchProduct", [operation, tiles()["small"]], arrays, {"C": (b, t, M, N)})["C"]
    assert_close(got, torch.einsum("btmk,btkn->btmn", A, data[:, indices]))


GROUP = 8  # numbers of one scale, so that a row of the tests' weights has several
NARROW = {"16 bits": {"scale": None, "group": 1}, "8 bits": {"scale": "@scale", "group": GROUP}}
HALVES = {"half": True, "narrow": {"A": NARROW["16 bits"], "B": NARROW["16 bits"]}}


def narrowed(array: Tensor, form: str) -> tuple[Tensor, dict[str, Tensor]]:
    """An array as float32 gets it back, and what is stored of it: the numbers as "stored", and their scales if they have some."""
    if form == "16 bits":
        return array.half().double(), {"stored": array.half()}
    integers, scale = quantize_groups(array.float().numpy(), GROUP, 127)
    stored = {"stored": torch.from_numpy(integers), "scale": torch.from_numpy(scale.astype(np.float32))}
    widened = (stored["stored"].float() * stored["scale"][:, None]).double()
    return widened.reshape(-1)[: array.numel()].reshape(array.shape), stored


@pytest.mark.parametrize("form", NARROW)
@pytest.mark.parametrize("operand", ("A", "B", "B by columns"))
def test_a_product_of_narrow_weights_is_that_of_the_widened(kernels, operand, form):
    M, N, K = 45, 52, 100
    A, B = numbers(M, K).float(), numbers(K, N).float()
    weights = {"A": A, "B": B, "B by columns": B.T.contiguous()}[operand]
    widened, stored = narrowed(weights, form)
    plain = {"A": A, "B": B} | {operand[0]: widened.T if operand == "B by columns" else widened}
    more = {"narrow": {"A": None, "B": None} | {operand[0]: NARROW[form]}, "turned": operand == "B by columns"}
    for tile in tiles().values():
        expected = kernels.run("product.js", "launchProduct", [product(M, N, K), tile], plain, {"C": (M, N)})["C"]
        operation = product(M, N, K, **more, **{operand[0]: "@stored"})
        arrays = stored | {name: array for name, array in plain.items() if name != operand[0]}
        got = kernels.run("product.js", "launchProduct", [operation, tile], arrays, {"C": (M, N)})["C"]
        assert torch.equal(got, expected)
    assert_close(got, plain["A"].double() @ plain["B"].double())


@pytest.mark.parametrize("tile", tiles())
@pytest.mark.parametrize("biased", ("row", "column"))
def test_a_product_in_16_bits_whose_sums_have_32(kernels, tile, biased):
    M, N, K, Z = 45, 52, 300, 3
    A, B, one, two = (numbers(*shape).half() for shape in ((Z, M, K), (Z, K, N), (Z, M, N), (Z, N, M)))
    bias, two = numbers(M if biased == "row" else N).half(), two.reshape(Z, M, N)
    operation = product(M, N, K, outer=Z, biased=biased, bias="@bias", silu=True, sums=["@one", "@two"], **HALVES)
    arrays = {"A": A, "B": B, "bias": bias, "one": one, "two": two}
    args = [operation, tiles()[tile]]
    got = kernels.run("product.js", "launchProduct", args, arrays, {"C": (Z, M, N)}, np.float16)["C"]
    added = bias.double()[:, None] if biased == "row" else bias.double()
    expected = F.silu(A.double() @ B.double() + added) + one.double() + two.double()
    assert_rounded_once(got, expected)


@pytest.mark.parametrize("form", NARROW)
def test_gathered_rows_can_be_narrow(kernels, form):
    rows, M, K, N = 29, 10, 20, 8
    A, (data, stored) = numbers(M, K), narrowed(numbers(rows, N), form)
    indices = torch.randint(rows, (K,), generator=torch.Generator().manual_seed(1))
    gathered = {"indices": "@indices", "words": 1}
    operation = product(M, N, K, gathered=gathered, B="@stored", narrow={"A": None, "B": NARROW[form]})
    got = kernels.run(
        "product.js", "launchProduct", [operation, tiles()["small"]], stored | {"A": A, "indices": indices}, {"C": (M, N)}
    )
    assert_close(got["C"], A.float().double() @ data[indices])


@pytest.mark.parametrize("form", NARROW)
def test_a_convolution_by_narrow_kernels_as_onnx_stores_them(kernels, form):
    height, width, channels, N = 9, 6, 32, 12
    picture, (kernel, stored) = numbers(channels, height, width), narrowed(numbers(N, channels, 3, 3), form)
    window = {"height": height, "width": width, "channels": channels, "columns": 3, "top": 1, "left": 1, "stride": 1}
    more = {"window": window | {"across": width}, "biased": "column", "bias": "@bias", "turned": True}
    operation = product(height * width, N, 9 * channels, B="@stored", narrow={"A": None, "B": NARROW[form]}, **more)
    arrays = stored | {"A": picture.permute(1, 2, 0), "bias": numbers(N)}
    outputs = {"C": (height, width, N)}
    got = kernels.run("product.js", "launchProduct", [operation, tiles()["small"]], arrays, outputs)["C"]
    expected = F.conv2d(picture.float().double(), kernel, numbers(N).float().double(), padding=1)
    assert_close(got, expected.permute(1, 2, 0))


@pytest.mark.parametrize(("stride", "pads"), [(1, (1, 1, 1, 1)), (2, (0, 1, 0, 1)), (1, (0, 1, 1, 0))])
def test_a_convolution_of_a_picture_whose_channels_come_last(kernels, stride, pads):
    left, right, top, bottom = pads
    height, width, channels, N = 9, 6, 32, 12
    side = 3 if left + right == 2 or stride == 2 else 2
    picture, kernel, bias = numbers(channels, height, width), numbers(N, channels, side, side), numbers(N)
    expected = F.conv2d(F.pad(picture, pads), kernel, bias, stride)
    across = expected.shape[-1]
    window = {"height": height, "width": width, "channels": channels, "columns": side, "top": top, "left": left}
    window |= {"stride": stride, "across": across}
    operation = product(expected[0].numel(), N, side * side * channels, window=window, biased="column", bias="@bias")
    arrays = {"A": picture.permute(1, 2, 0), "B": kernel.permute(2, 3, 1, 0), "bias": bias}
    outputs = {"C": (*expected.shape[1:], N)}
    got = kernels.run("product.js", "launchProduct", [operation, tiles()["small"]], arrays, outputs)["C"]
    assert_close(got, expected.permute(1, 2, 0))


# -- products on matrix units -------------------------------------------------------------------------------------------

UNITS = {"M": 8, "N": 8, "K": 8, "lanes": 4}
EXACT = {"rounded": False, "exact": True}
IN_CHROMIUM = pytest.mark.parametrize("kernels", [MAIN], indirect=True)  # which alone has units


def unit_tiles(exact: bool) -> dict[str, dict]:
    """Of units.js. No software adapter has units: `run_kernels.mjs` puts plain arithmetic in the place of their instructions."""
    plain = {"M": 32, "N": 32, "K": 16, "m": 16, "n": 16, "units": UNITS | {"exact": exact}}
    return {
        "plain": plain,
        "eight deep": plain | {"N": 16, "K": 8},
        "in parts": plain | {"M": 16, "parts": 3},
    }


def rounded(array: Tensor, exact: bool) -> Tensor:
    """What the units multiply."""
    return array.float().double() if exact else array.half().double()


@IN_CHROMIUM
@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("tile", unit_tiles(False))
def test_a_product_on_matrix_units_with_all_that_can_follow_it(kernels, tile, exact):
    M, N, K, Z = 45, 52, 100, 2
    A, B, bias, one, two = numbers(Z, M, K), numbers(Z, K, N), numbers(M), numbers(Z, M, N), numbers(Z, M, N) * 2
    operation = product(M, N, K, outer=Z, biased="row", bias="@bias", silu=True, sums=["@one", "@two"])
    arrays = {"A": A, "B": B, "bias": bias, "one": one, "two": two}
    args = [operation, unit_tiles(EXACT[exact])[tile]]
    got = kernels.run("product.js", "launchProduct", args, arrays, {"C": (Z, M, N)})["C"]
    multiplied = rounded(A, EXACT[exact]) @ rounded(B, EXACT[exact])
    assert_close(got, F.silu(multiplied + bias.float().double()[:, None]) + one.float().double() + two.float().double())


@IN_CHROMIUM
@pytest.mark.parametrize("exact", EXACT)
def test_a_convolution_on_matrix_units_of_a_picture_whose_channels_come_last(kernels, exact):
    height, width, channels, N = 9, 6, 32, 12
    picture, (kernel, stored) = numbers(channels, height, width), narrowed(numbers(N, channels, 3, 3), "16 bits")
    window = {"height": height, "width": width, "channels": channels, "columns": 3, "top": 1, "left": 1, "stride": 1}
    more = {"window": window | {"across": width}, "biased": "column", "bias": "@bias", "turned": True}
    operation = product(height * width, N, 9 * channels, B="@stored", narrow={"A": None, "B": NARROW["16 bits"]}, **more)
    arrays = stored | {"A": picture.permute(1, 2, 0), "bias": numbers(N)}
    args = [operation, unit_tiles(EXACT[exact])["plain"]]
    got = kernels.run("product.js", "launchProduct", args, arrays, {"C": (height, width, N)})["C"]
    expected = F.conv2d(rounded(picture, EXACT[exact]), kernel, numbers(N).float().double(), padding=1)
    assert_close(got, expected.permute(1, 2, 0))


@IN_CHROMIUM
def test_a_product_on_matrix_units_in_16_bits_is_rounded_once(kernels):
    M, N, K = 45, 52, 100
    A, B = numbers(M, K).half(), numbers(K, N).half()
    operation = product(M, N, K, **HALVES)
    args = [operation, unit_tiles(False)["plain"]]
    got = kernels.run("product.js", "launchProduct", args, {"A": A, "B": B}, {"C": (M, N)}, np.float16)["C"]
    assert_rounded_once(got, A.double() @ B.double())


# -- products in 16-bit arithmetic --------------------------------------------------------------------------------------


def half_tiles() -> dict[str, dict]:
    """Of product.js: with threads that have nothing to fetch, with a slab that fits few shapes, in parts, with more than one piece to fetch for
    each thread, with a slab after which sums are added at once, and one that is tried first on a card."""
    tiles = {
        "plain": {"M": 32, "N": 32, "K": 16, "m": 8, "n": 8},
        "uneven": {"M": 64, "N": 40, "K": 8, "m": 8, "n": 8},
        "in parts": {"M": 32, "N": 64, "K": 16, "m": 8, "n": 8, "parts": 3},
        "four columns": {"M": 64, "N": 36, "K": 16, "m": 8, "n": 4},
        "sixteen rows": {"M": 128, "N": 64, "K": 16, "m": 16, "n": 8},
        "sixteen columns": {"M": 64, "N": 128, "K": 16, "m": 8, "n": 16},
        "deep": {"M": 64, "N": 64, "K": 64, "m": 8, "n": 8},
        "on a card": {"M": 64, "N": 64, "K": 32, "m": 8, "n": 8},
    }
    return {name: tile | {"half": True} for name, tile in tiles.items()}


def assert_near_in_halves(got: Tensor, expected: Tensor) -> None:
    """As far as sums of 32 products in 16 bits go."""
    far = float((got - expected).abs().max() / expected.abs().max())
    assert got.shape == expected.shape and far < 2.0**-9
    assert float((got - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()) < 1e-3


@pytest.mark.parametrize("tile", half_tiles())
@pytest.mark.parametrize("turned", (False, True))
def test_a_product_summed_in_16_bits_along_a_slab(kernels, tile, turned):
    M, N, K, Z = 45, 52, 204, 2
    A, B, bias, one = (numbers(*shape).half() for shape in ((Z, M, K), (Z, K, N), (N,), (Z, M, N)))
    operation = product(M, N, K, outer=Z, biased="column", bias="@bias", sums=["@one"], turned=turned, **HALVES)
    arrays = {"A": A, "B": B.transpose(1, 2) if turned else B, "bias": bias, "one": one}
    args = [operation, half_tiles()[tile]]
    got = kernels.run("product.js", "launchProduct", args, arrays, {"C": (Z, M, N)}, np.float16)["C"]
    assert_near_in_halves(got, A.double() @ B.double() + bias.double() + one.double())


@pytest.mark.parametrize("tile", ("plain", "in parts", "four columns", "on a card"))
def test_rows_are_gathered_for_a_product_summed_in_16_bits(kernels, tile):
    rows, M, N, K = 61, 45, 52, 204
    A, B = numbers(M, K).half(), numbers(rows, N).half()
    indices = torch.randint(rows, (K,), generator=torch.Generator().manual_seed(1))
    operation = product(M, N, K, gathered={"indices": "@indices", "words": 1}, **HALVES)
    arrays = {"A": A, "B": B, "indices": indices}
    got = kernels.run("product.js", "launchProduct", [operation, half_tiles()[tile]], arrays, {"C": (M, N)}, np.float16)["C"]
    assert_near_in_halves(got, A.double() @ B.double()[indices])


@pytest.mark.parametrize("tile", ("plain", "in parts", "four columns", "on a card"))
@pytest.mark.parametrize("turned", (False, True))
def test_a_convolution_summed_in_16_bits_along_a_slab(kernels, tile, turned):
    height, width, channels, N = 9, 6, 32, 12
    picture, kernel, bias = numbers(channels, height, width).half(), numbers(N, channels, 3, 3).half(), numbers(N).half()
    window = {"height": height, "width": width, "channels": channels, "columns": 3, "top": 1, "left": 1, "stride": 1}
    more = {"window": window | {"across": width}, "biased": "column", "bias": "@bias", "turned": turned}
    operation = product(height * width, N, 9 * channels, **more, **HALVES)
    arrays = {"A": picture.permute(1, 2, 0), "B": kernel if turned else kernel.permute(2, 3, 1, 0), "bias": bias}
    args = [operation, half_tiles()[tile]]
    got = kernels.run("product.js", "launchProduct", args, arrays, {"C": (height, width, N)}, np.float16)["C"]
    expected = F.conv2d(picture.double(), kernel.double(), bias.double(), padding=1).permute(1, 2, 0)
    assert_near_in_halves(got, expected)


# -- pictures ----------------------------------------------------------------------------------------------------------


def norm_of(B: int, C: int, H: int, W: int, groups: int, half: bool = False) -> tuple[dict, dict[str, Tensor]]:
    """A norm as passes.js describes it, of numbers far from zero, and what it reads: the picture and its channels' numbers in 16 bits."""
    moments = {"kind": "moments", "x": "@x", "scale": "@scale", "bias": "@shift", "y": "@y", "epsilon": 1e-5}
    moments |= {"batch": B, "groups": groups, "size": C // groups * H * W}
    affine = {
        "kind": "affine",
        "scale": "@scale2",
        "bias": "@shift2",
        "mean": "@mean",
        "variance": "@variance",
        "epsilon": 1e-5,
    }
    arrays = {"x": numbers(B, C, H, W) + 30, "scale": numbers(groups), "shift": numbers(groups) * 2, "scale2": numbers(C)}
    arrays |= {"shift2": numbers(C) + 1, "mean": numbers(C) / 3, "variance": numbers(C) ** 2 + 0.5}
    narrow = ("x", "scale2", "shift2", "mean", "variance") if half else ()
    arrays |= {name: arrays[name].half() for name in narrow}
    return {"moments": moments, "affine": affine, "half": half}, arrays


def normal(arrays: dict[str, Tensor], groups: int) -> Tensor:
    """What `norm_of` describes, before its fixed scale."""
    x = arrays["x"].double()
    grouped = x.float().double().reshape(x.shape[0], groups, -1)
    y = F.instance_norm(grouped, weight=arrays["scale"], bias=arrays["shift"], eps=1e-5)
    return y.reshape(x.shape)


def scaled(y: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    c = {name: arrays[name].double()[:, None, None] for name in ("scale2", "shift2", "mean", "variance")}
    return (y - c["mean"]) / torch.sqrt(c["variance"] + 1e-5) * c["scale2"] + c["shift2"]


@pytest.mark.parametrize("half", (False, True))
@pytest.mark.parametrize(("H", "W", "kept"), [(16, 8, True), (6, 4, False), (5, 12, False), (160, 104, False)])
def test_a_norm_and_a_depthwise_convolution(kernels, H, W, kept, half):
    B, C, groups = 2, 12, 3  # of which the last has groups that workgroups share
    norm, arrays = norm_of(B, C, H, W, groups, half)
    own = {"W": numbers(C, 1, 3, 3), "bias": numbers(C)}
    arrays |= {name: array.half() if half else array for name, array in own.items()}
    depthwise = {"kind": "depthwise", "x": "@x", "W": "@W", "bias": "@bias", "y": "@y", "B": B, "C": C, "H": H, "W4": W // 4}
    depthwise |= {"narrow": NARROW["16 bits"] if half else None, "half": half, "relu": kept}
    outputs = {"y": (B, C, H, W)} | ({"kept": (B, C, H, W)} if kept else {})
    args = [depthwise, norm, "@kept" if kept else None]
    got = kernels.run("pictures.js", "launchDepthwise", args, arrays, outputs, np.float16 if half else np.float32)
    before = F.silu(scaled(normal(arrays, groups), arrays))
    after = F.conv2d(before, arrays["W"].double(), arrays["bias"].double(), padding=1, groups=C)
    expected = {"y": F.relu(after) if kept else after, "kept": before}
    for name, value in got.items():  # 30 from zero, float32 has 30 times the rounding of what the norm leaves of it
        most = 30 * CLOSE * expected[name].abs().max() + (2.0**-11 * expected[name].abs() if half else 0)
        assert ((value - expected[name]).abs() <= most).all()


@pytest.mark.parametrize("halves", (True, False))
def test_the_middle_of_a_mixffn(kernels, halves):
    B, D, H, W = 2, 5, 8, 12
    value, gate = numbers(B, D, H, W), numbers(B, D, H, W) * 2
    kernel, bias = numbers(2 * D, 1, 3, 3), numbers(2 * D)
    convolved = [
        F.conv2d(x, kernel[part], bias[part], padding=1, groups=D)
        for x, part in ((value, slice(D, None)), (gate, slice(0, D)))
    ]
    shape = {"kind": "depthwise", "B": B, "H": H, "W4": W // 4, "narrow": None, "half": False, "relu": False, "y": "@y"}
    if halves:  # of one picture, the gate first
        arrays = {"x": torch.cat([gate, value], 1), "W": kernel, "bias": bias}
        whole = shape | {"x": "@x", "W": "@W", "bias": "@bias", "C": 2 * D}
        middle = {"value": whole, "gate": whole, "first": D, "second": 0}
    else:
        arrays = {"x": value, "W": kernel[D:], "bias": bias[D:], "x2": gate, "W2": kernel[:D], "bias2": bias[:D]}
        middle = {"value": shape | {"x": "@x", "W": "@W", "bias": "@bias", "C": D}, "first": 0, "second": 0}
        middle |= {"gate": shape | {"x": "@x2", "W": "@W2", "bias": "@bias2", "C": D}}
    got = kernels.run("pictures.js", "launchMiddle", [middle | {"D": D, "y": "@y"}], arrays, {"y": (B, D, H, W)})["y"]
    assert_close(got, convolved[0] * F.silu(convolved[1]))


@pytest.mark.parametrize("relu", (False, True))
def test_a_depthwise_convolution_in_16_bits(kernels, relu):
    B, C, H, W = 2, 5, 8, 12
    x, kernel, bias = numbers(B, C, H, W).half(), numbers(C, 1, 3, 3).half(), numbers(C).half()
    depthwise = {"kind": "depthwise", "x": "@x", "W": "@W", "narrow": NARROW["16 bits"], "bias": "@bias", "y": "@y"}
    depthwise |= {"B": B, "C": C, "H": H, "W4": W // 4, "half": True, "relu": relu}
    arrays = {"x": x, "W": kernel, "bias": bias}
    args = [depthwise, None, None]
    got = kernels.run("pictures.js", "launchDepthwise", args, arrays, {"y": (B, C, H, W)}, np.float16)["y"]
    expected = F.conv2d(x.double(), kernel.double(), bias.double(), padding=1, groups=C)
    assert_rounded_once(got, F.relu(expected) if relu else expected)


def test_the_middle_of_a_mixffn_in_16_bits(kernels):
    B, D, H, W = 2, 5, 8, 12
    x, kernel, bias = numbers(B, 2 * D, H, W).half(), numbers(2 * D, 1, 3, 3).half(), numbers(2 * D).half()
    whole = {
        "kind": "depthwise",
        "x": "@x",
        "W": "@W",
        "bias": "@bias",
        "y": "@y",
        "narrow": NARROW["16 bits"],
        "half": True,
    }
    whole |= {"B": B, "C": 2 * D, "H": H, "W4": W // 4, "relu": False}
    middle = {"value": whole, "gate": whole, "first": D, "second": 0, "D": D, "y": "@y"}
    arrays = {"x": x, "W": kernel, "bias": bias}
    got = kernels.run("pictures.js", "launchMiddle", [middle], arrays, {"y": (B, D, H, W)}, np.float16)["y"]
    gate, value = F.conv2d(x.double(), kernel.double(), bias.double(), padding=1, groups=2 * D).chunk(2, 1)
    assert_rounded_once(got, value * F.silu(gate))


@pytest.mark.parametrize("back", (False, True))
def test_a_picture_of_16_bits_as_tokens_and_back(kernels, back):
    sides = [2, 36, 3, 4, 2, 4]
    picture = numbers(*sides).half()
    order = picture.permute(0, 3, 5, 2, 4, 1).contiguous()
    x, y = (order, picture) if back else (picture, order)
    tokens = {"kind": "tokens", "x": "@x", "y": "@y", "half": True, "shape": sides, "back": back, "norm": None}
    got = kernels.run("pictures.js", "launchTokens", [tokens], {"x": x}, {"y": tuple(y.shape)}, np.float16)["y"]
    assert torch.equal(got, y.double())


def test_depthwise_kernels_of_16_bits(kernels):
    B, C, H, W = 2, 5, 8, 12
    x, bias, (kernel, stored) = numbers(B, C, H, W), numbers(C), narrowed(numbers(C, 1, 3, 3), "16 bits")
    depthwise = {"kind": "depthwise", "x": "@x", "W": "@stored", "narrow": NARROW["16 bits"], "bias": "@bias", "y": "@y"}
    depthwise |= {"B": B, "C": C, "H": H, "W4": W // 4, "half": False, "relu": False}
    arrays = stored | {"x": x, "bias": bias}
    got = kernels.run("pictures.js", "launchDepthwise", [depthwise, None, None], arrays, {"y": (B, C, H, W)})["y"]
    assert_close(got, F.conv2d(x, kernel, bias, padding=1, groups=C))


def test_a_norm_of_16_bits_as_tokens(kernels):
    B, C, gy, py, gx, px, groups = 2, 36, 3, 4, 2, 4, 4
    norm, arrays = norm_of(B, C, gy * py, gx * px, groups, half=True)
    norm["affine"] = None
    tokens = {
        "kind": "tokens",
        "x": "@x",
        "y": "@y",
        "half": True,
        "shape": [B, C, gy, py, gx, px],
        "back": False,
        "norm": norm,
    }
    got = kernels.run("pictures.js", "launchTokens", [tokens], arrays, {"y": (B, py, px, gy, gx, C)}, np.float16)["y"]
    expected = normal(arrays, groups).reshape(B, C, gy, py, gx, px).permute(0, 3, 5, 2, 4, 1)
    assert ((got - expected).abs() <= 30 * CLOSE * expected.abs().max() + 2.0**-11 * expected.abs()).all()


@pytest.mark.parametrize("normed", (False, True))
def test_a_picture_as_tokens_and_back(kernels, normed):
    B, C, gy, py, gx, px, groups = 2, 36, 3, 4, 2, 4, 4
    sides = [B, C, gy, py, gx, px]
    norm, arrays = norm_of(B, C, gy * py, gx * px, groups)
    norm["affine"] = None
    tokens = {"kind": "tokens", "x": "@x", "y": "@y", "half": False, "shape": sides}
    shape = (B, py, px, gy, gx, C)
    forth = tokens | {"back": False, "norm": norm if normed else None}
    got = kernels.run("pictures.js", "launchTokens", [forth], arrays, {"y": shape})["y"]
    picture = normal(arrays, groups) if normed else arrays["x"].float().double()
    expected = picture.reshape(sides).permute(0, 3, 5, 2, 4, 1)
    assert float((got - expected).abs().max() / expected.abs().max()) < (30 * CLOSE if normed else 1e-9)
    if not normed:
        back = kernels.run("pictures.js", "launchTokens", [tokens | {"back": True, "norm": None}], {"x": got}, {"y": sides})[
            "y"
        ]
        assert torch.equal(back, picture.reshape(sides))


@pytest.mark.parametrize(("C", "groups"), [(16, 4), (24, 2), (96, 8)])
def test_a_norm_of_a_picture_whose_channels_come_last(kernels, C, groups):
    pixels = 15 * 11
    x, scale, bias = numbers(pixels, C) * 3 + 20, numbers(C), numbers(C)
    norm = {"kind": "norm last", "x": "@x", "y": "@y", "scale": "@scale", "bias": "@bias", "channels": C, "groups": groups}
    norm |= {"pixels": pixels, "epsilon": 1e-6}
    arrays = {"x": x, "scale": scale, "bias": bias}
    got = kernels.run("pictures.js", "launchNormLast", [norm], arrays, {"y": (pixels, C)})["y"]
    expected = F.silu(F.group_norm(x.float().double().T[None], groups, scale, bias, 1e-6)[0].T)
    assert float((got - expected).abs().max() / expected.abs().max()) < 10 * CLOSE


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "written"), [((), ()), (("x", "skip"), ()), (("x", "skip"), ("y", "sum")), ((), ("y", "sum"))]
)
@pytest.mark.parametrize(("count", "C", "skipped"), [(7, 20, 0), (6, 520, 3), (5, 148, 5)])
def test_a_layer_norm_of_a_sum(kernels, count, C, skipped, read, written):
    given = {"x": numbers(count, C) + 10} | ({"skip": numbers(skipped, C)} if skipped else {})
    given = {name: array.half() if name in read else array.float() for name, array in given.items()}
    scale, bias = numbers(C), numbers(C) * 2
    norm = {"kind": "layer norm", "x": "@x", "skip": None, "scale": "@scale", "bias": "@bias", "y": "@y", "sum": None}
    norm |= {"count": count, "C": C, "skipped": skipped, "epsilon": 1e-5}
    outputs, total = {"y": (count, C)}, given["x"].double()
    if skipped:
        total = total + given["skip"].double().repeat(count // skipped, 1)
        norm |= {"skip": "@skip", "sum": "@sum"}
        outputs["sum"] = (count, C)
    norm["halves"] = [f"@{name}" for name in (*read, *written) if name in given or name in outputs]
    arrays = given | {"scale": scale, "bias": bias}
    got = kernels.run("rows.js", "launchLayerNorm", [norm], arrays, outputs, np.float16 if written else np.float32)
    expected = {"y": F.layer_norm(total, (C,), scale, bias, 1e-5), "sum": total}
    for name, value in got.items():
        most = 10 * CLOSE * expected[name].abs().max() + (2.0**-11 * expected[name].abs() if written else 0)
        assert ((value - expected[name]).abs() <= most).all()


@pytest.mark.parametrize("half", (False, True))
@pytest.mark.parametrize(
    ("shape", "added", "turned"),
    [((2, 20, 2, 3, 3, 2), True, True), ((1, 324, 3, 2, 1, 2), True, False), ((2, 8, 16, 4, 16, 4), False, False)],
)
def test_a_layer_norm_of_tokens_that_gives_a_picture(kernels, shape, added, turned, half):
    B, C, gy, py, gx, px = shape  # the last keeps a large card busy
    count = B * gy * py * gx * px
    stored = (lambda array: array.half()) if half else (lambda array: array.float())
    given = {"x": stored(numbers(count, C) + 10)} | ({"skip": stored(numbers(count // B, C))} if added else {})
    scale, bias = numbers(C), numbers(C) * 2
    norm = {
        "kind": "layer norm",
        "x": "@x",
        "skip": "@skip" if added else None,
        "scale": "@scale",
        "bias": "@bias",
        "y": "@y",
    }
    norm |= {"sum": "@sum" if added else None, "count": count, "C": C, "skipped": count // B, "epsilon": 1e-5}
    norm |= {"halves": ["@x", "@skip", "@y", "@sum"] if half else [], "picture": {"shape": shape, "turned": turned}}
    outputs = {"y": (B, C, gy * py, gx * px)}
    if added:
        outputs["sum"] = outputs["y"] if turned else (count, C)
    arrays, kind = given | {"scale": scale, "bias": bias}, np.float16 if half else np.float32
    got = kernels.run("pictures.js", "launchLayerNormToPicture", [norm], arrays, outputs, kind)
    total = given["x"].double() + (given["skip"].double().repeat(B, 1) if added else 0)
    pictured = lambda tokens: tokens.reshape(B, py, px, gy, gx, C).permute(0, 5, 3, 1, 4, 2).reshape(outputs["y"])  # noqa: E731
    expected = {"y": pictured(F.layer_norm(total, (C,), scale, bias, 1e-5)), "sum": pictured(total) if turned else total}
    for name, value in got.items():
        most = 10 * CLOSE * expected[name].abs().max() + (2.0**-11 * expected[name].abs() if half else 0)
        assert ((value - expected[name]).abs() <= most).all()


@pytest.mark.parametrize("half", (False, True))
@pytest.mark.parametrize(("T", "C", "per"), [(256, 8, 256), (144, 12, 36), (2000, 4, 8)])
def test_the_softmax_of_columns_in_parts(kernels, T, C, per, half):
    B = 2
    x = (numbers(B, T, C) * 5 - 30).half() if half else (numbers(B, T, C) * 5 - 30).float()
    softmax = {"kind": "softmax down", "x": "@x", "y": "@y", "half": half, "B": B, "T": T, "C": C, "per": per}
    stored, shape = np.float16 if half else np.float32, (B, T // per, C, per)
    got = kernels.run("rows.js", "launchSoftmaxDown", [softmax], {"x": x}, {"y": shape}, stored)["y"]
    expected = x.double().softmax(1).reshape(B, T // per, per, C).transpose(2, 3)
    if half:
        return assert_rounded_once(got, expected)
    assert_close(got, expected)


@pytest.mark.parametrize("half", (False, True))
@pytest.mark.parametrize(("T", "C", "N", "size"), [(4096, 4, 40, 8), (1200, 8, 12, 0), (60, 12, 256, 4)])
def test_content_lambdas_behind_their_values(kernels, T, C, N, size, half):
    B = 2
    stored = (lambda array: array.half()) if half else (lambda array: array.float())
    keys, values, between = stored(numbers(B, T, C) * 5 - 30), stored(numbers(B, T, N)), stored(numbers(B, max(size, 4)))
    content = {"kind": "content lambda", "keys": "@keys", "values": "@values", "between": "@between", "y": "@y"}
    content |= {"half": half, "B": B, "T": T, "C": C, "N": N, "size": size}
    arrays, shape = {"keys": keys, "values": values, "between": between}, {"y": (B, (T + C) * N + size)}
    kind = np.float16 if half else np.float32
    got = kernels.run("rows.js", "launchContentLambda", [content], arrays, shape, kind)["y"]
    made = keys.double().softmax(1).transpose(1, 2) @ values.double()
    before = torch.cat([values.double().flatten(1), between.double()[:, :size]], 1)
    assert torch.equal(got[:, : T * N + size], before)
    got = got[:, T * N + size :].reshape(B, C, N)
    if half:
        return assert_rounded_once(got, made)
    assert_close(got, made)


@pytest.mark.parametrize(("half", "form"), [(False, None), (True, None), *((False, form) for form in NARROW)])
@pytest.mark.parametrize("H, D, shared, sums", [(8, 40, True, 0), (3, 12, False, 2), (5, 160, False, 1)])
def test_attention_to_the_vectors_of_a_condition(kernels, H, D, shared, sums, half, form):
    B, T, J, rows = 2, 7, 12, 3
    sums = 0 if form else sums  # as many buffers as every device binds
    stored = (lambda array: array.half()) if half else (lambda array: array.float())
    q, E = stored(numbers(1 if shared else B, T, H, D)), stored(numbers(T, D, J))
    k, v, rest = stored(numbers(rows, D, J)), stored(numbers(rows, J, D)), [stored(numbers(B, T, H, D)) for _ in range(sums)]
    indices = torch.tensor([2, 0])
    E, weights = narrowed(E, form) if form else (E, {"stored": E})
    attention = {"kind": "condition attention", "q": "@q", "E": "@stored", "k": "@k", "v": "@v", "indices": "@indices"}
    attention |= {"narrow": NARROW[form or "16 bits"] if form or half else None, "words": 1, "y": "@y", "half": half}
    attention |= {"a": {"outer": 0 if shared else T * H * D // 4, "inner": H * D // 4}}
    attention |= {"sums": [f"@sum{i}" for i in range(sums)], "B": B, "T": T, "H": H, "D": D, "J": J}
    arrays = weights | {"q": q, "k": k, "v": v, "indices": indices} | {f"sum{i}": array for i, array in enumerate(rest)}
    kind = np.float16 if half else np.float32
    got = kernels.run("rows.js", "launchConditionAttention", [attention], arrays, {"y": (B, T, H, D)}, kind)["y"]
    keys = E.double() + k.double()[indices][:, None]
    expected = q.double() @ keys @ v.double()[indices][:, None] + sum(array.double() for array in rest)
    if half:
        return assert_rounded_once(got, expected)
    assert_close(got, expected)


@pytest.mark.parametrize("silu", (False, True))
def test_a_matrix_times_a_vector(kernels, silu):
    N, K = 9, 268
    x, W, bias = numbers(K), numbers(N, K), numbers(N)
    vector = {
        "kind": "vector",
        "N": N,
        "K": K,
        "x": "@x",
        "W": "@W",
        "narrow": None,
        "bias": "@bias",
        "y": "@y",
        "silu": silu,
    }
    got = kernels.run("rows.js", "launchVector", [vector], {"x": x, "W": W, "bias": bias}, {"y": (N,)})["y"]
    expected = W @ x + bias
    assert_close(got, F.silu(expected) if silu else expected)


@pytest.mark.parametrize("form", NARROW)
def test_a_narrow_matrix_times_a_vector(kernels, form):
    N, K = 9, 268
    x, bias, (W, stored) = numbers(K), numbers(N), narrowed(numbers(N, K), form)
    vector = {
        "kind": "vector",
        "N": N,
        "K": K,
        "x": "@x",
        "W": "@stored",
        "narrow": NARROW[form],
        "bias": "@bias",
        "y": "@y",
    }
    arrays = stored | {"x": x, "bias": bias}
    got = kernels.run("rows.js", "launchVector", [vector | {"silu": False}], arrays, {"y": (N,)})["y"]
    assert_close(got, W @ x.float().double() + bias.float().double())


@pytest.mark.parametrize("half", (False, True))
def test_tensors_side_by_side(kernels, half):
    parts = [numbers(3, size).half() if half else numbers(3, size).float() for size in (4, 12, 8)]
    concat = {"kind": "concat", "parts": ["@0", "@1", "@2"], "y": "@y", "half": half, "outer": 3, "sizes": [4, 12, 8]}
    arrays = {str(i): part for i, part in enumerate(parts)}
    stored = np.float16 if half else np.float32
    got = kernels.run("rows.js", "launchConcat", [concat], arrays, {"y": (3, 24)}, stored)["y"]
    assert torch.equal(got, torch.cat(parts, 1).double())
