"""Every constant of the port: the networks, their autoencoders, and the diffusion schedule.

Nothing else in the package, and nothing on the web page, states one of these numbers again: Python imports them from
here, and the page reads them from the manifest that `moebius_lab` writes.
"""

from __future__ import annotations

from dataclasses import dataclass

# -- what every network of the family shares (Moebius release, UNet2DLambdaDWConvMixFFN) ------------------------------

LATENT_CHANNELS = 4  # channels of the autoencoder's latent
INPUT_CHANNELS = 2 * LATENT_CHANNELS + 1  # noisy latent, mask, masked-image latent, in this order
VAE_FACTOR = 8  # image pixels per latent cell, along each side
CONDITION_TOKENS = 10  # learned vectors in one condition row
UNCONDITIONAL_IDS = tuple(range(10, 20))  # rows of the embedding table: the unconditional row ...
CONDITIONAL_IDS = tuple(range(0, 10))  # ... and the conditional one; there is no text encoder
UNCONDITIONAL, CONDITIONAL = 0, 1  # what the step graph's input `conditions` calls the two

# -- what commands, notebooks and files call things --------------------------------------------------------------------

GRAPHS = ("vae_encoder", "step", "vae_decoder")
"""Names of the three graphs, and of their files without the ending."""
STEP_UNGUIDED = "step_unguided"
RUNS = {"vae_encoder": "vae_encoder", "step": "step", STEP_UNGUIDED: "step", "vae_decoder": "vae_decoder"}
"""Every way in which a picture runs a graph, and the graph. The step runs on both conditions where it is guided, else on one."""
PARTS = ("denoiser", "vae")
"""What a set of weights consists of."""

BACKENDS = ("torch", "onnx", "browser")
"""What a picture can be filled by: PyTorch, ONNX Runtime, or a browser (`notebook.browser_backend`)."""

DETERMINISTIC = "deterministic"
"""The name under which weights made by `checkpoint.deterministic_weights` are asked for."""
PUBLISHED = {"pretrained": "pretrained", "places2": "ft_places2", "celebahq": "ft_celebahq", "ffhq": "ft_ffhq"}
"""Names under which the published weights are asked for, and the folder of hustvl/Moebius that holds each."""
DISTILLED = {"demo": "demo-fast"}
"""Weights of which a distilled form ships, and its name: the preset *fastest* takes that; see `training.distillation`."""
DISTILLED_GRAPHS = ("step",)
"""The graphs that distilled weights have of their own: the autoencoder is that of the weights they were distilled from."""
WEIGHTS = ("demo", *DISTILLED.values(), DETERMINISTIC, *PUBLISHED)
"""Every name of weights; anything else is a path."""

# -- in what forms graphs are stored -----------------------------------------------------------------------------------

FLOAT32, FLOAT16, INT8, INT4 = STORED_TYPES = ("float32", "float16", "int8", "int4")
"""Types in which a large weight may be stored; `port.precision` says what becomes of one that a type does not suit."""

PROVIDERS = ("webgpu", "wasm")
"""Where the page can run the graphs: on the graphics device, or on the processor."""

MEASURES = {
    "step": "a guided step, and one that is not",
    "picture": "the whole picture, as the release fills it and fast",
    "parts": "encode and decode",
    "difference": "the largest difference of each graph's outputs from PyTorch's in float32",
    "limits": "a large matrix product and a large copy on the same backends",
    "curve": "the whole picture with other numbers of steps",
    "profile": "a step's time by operator",
    "load": "from the browser's cache to ready, and a first visit's time",
    "memory": "peaks of processes and card",
}
"""What `benchmark` measures."""
COSTLY = ("limits", "profile", "load")
"""Of these, what only some precisions take part in, because it takes long or shows no difference; see `Precision.costly`."""


@dataclass(frozen=True)
class Precision:
    """One form in which graphs are stored: how, in what arithmetic they run, what they need, and who is given them."""

    note: str  # what the page says of it, in one plain sentence
    matrices: str = FLOAT32  # type of a large weight with two dimensions, one of `STORED_TYPES`
    kernels: str = FLOAT32  # type of any other large weight: a convolution's
    arithmetic: str = FLOAT32  # or FLOAT16, which reads every weight in 16 bits
    autoencoder: str = ""  # the precision that encoder and decoder take instead of this one; empty: this one
    least_psnr: float | None = None  # dB, against float32, inside a picture's hole; None: the same function, rounded
    node_tolerance: float = (
        1e-4  # of any tensor on the way: largest difference from float32, as a share of its largest magnitude
    )
    providers: tuple[str, ...] = PROVIDERS  # of the page, that can run it
    requires: tuple[str, ...] = ()  # WebGPU features
    options: tuple[tuple[str, str], ...] = ()  # entries of ONNX Runtime's session configuration, by their full names
    options_require: tuple[str, ...] = ()  # WebGPU features without which the page leaves them out
    place: int | None = None  # among those that the page offers, its favourite first; None: it does not offer it
    bundled: bool = False  # in a bundle for which no precisions are named
    measured: bool = True  # by a benchmark for which no precisions are named
    costly: tuple[str, ...] = ()  # which of `COSTLY` it takes part in

    def __post_init__(self) -> None:
        if not {self.matrices, self.kernels} <= set(STORED_TYPES) or not set(self.costly) <= set(COSTLY):
            raise ValueError(f"{self}: choose matrices and kernels from {STORED_TYPES}, costly from {COSTLY}")
        if self.arithmetic != FLOAT32 and {self.arithmetic, self.matrices, self.kernels} != {FLOAT16}:
            raise ValueError(f"{self}: arithmetic is {FLOAT32}, or {FLOAT16} on weights stored in {FLOAT16}")


WIDENED_IN_EACH_RUN = (
    ("optimization.disable_specified_optimizers", "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer"),
)
"""Keeps 16-bit weights as they are in memory. By default the runtime makes 32 bits of them when it loads a graph and holds both
for a while. For 8 bits no entry is needed: it folds no DequantizeLinear."""

PRECISIONS = {
    "fp32": Precision(
        "32-bit weights and arithmetic, nothing rounded.", place=3, bundled=True, costly=("limits", "profile")
    ),
    "fp16-storage": Precision(
        "16-bit weights, 32-bit arithmetic; a 32-bit checkpoint is rounded once, 71 dB a step.",
        matrices=FLOAT16,
        kernels=FLOAT16,
        least_psnr=60.0,
        node_tolerance=0.02,
        options=WIDENED_IN_EACH_RUN,
        options_require=("shader-f16",),
        place=1,  # before fp16: a recording stands for the runtime, which is more than the demo's weights
        bundled=True,
        costly=("load",),
    ),
    "fp16": Precision(
        "16-bit weights and arithmetic.",
        matrices=FLOAT16,
        kernels=FLOAT16,
        arithmetic=FLOAT16,
        autoencoder="fp16-storage",
        least_psnr=40.0,
        node_tolerance=0.05,
        providers=("webgpu",),
        requires=("shader-f16",),
        place=2,
        bundled=True,
    ),
    "int8": Precision(
        "8-bit weights: the smallest, slightly different pictures.",
        matrices=INT8,
        kernels=INT8,
        least_psnr=40.0,
        node_tolerance=0.5,
        place=4,
        costly=("load",),
    ),
    "int4": Precision(
        "4-bit weights: an experiment that does not keep the picture.",
        matrices=INT4,
        kernels=INT4,
        least_psnr=10.0,
        node_tolerance=1.0,
        measured=False,
    ),
}
"""Every precision by its name, in the order of every table; to add one is to add an entry. See `port.precision`."""

STRAIGHTFORWARD = "straightforward"
"""The form of the step without rewrites; besides the precisions, which are forms of the rewritten one."""
AS_EXPORTED = Precision("The step as the exporter finds it, for measurements.", costly=("profile",))
"""What `STRAIGHTFORWARD` is otherwise: float32, never offered."""


def entry_of(name: str) -> Precision:
    """The entry of a precision, or of `STRAIGHTFORWARD`; KeyError where there is none."""
    return AS_EXPORTED if name == STRAIGHTFORWARD else PRECISIONS[name]


def offered() -> dict[str, Precision]:
    """What the page may offer, its favourite first."""
    chosen = {name: entry for name, entry in PRECISIONS.items() if entry.place is not None}
    return dict(sorted(chosen.items(), key=lambda item: item[1].place))


def bundled() -> tuple[str, ...]:
    """The precisions of a bundle for which none are named, the page's favourite first."""
    return tuple(name for name, entry in offered().items() if entry.bundled)


def measured() -> dict[str, Precision]:
    """What a benchmark may measure, in its order: the straightforward step first, for comparison."""
    return {STRAIGHTFORWARD: AS_EXPORTED} | {name: entry for name, entry in PRECISIONS.items() if entry.measured}


# -- what `benchmark` measures -----------------------------------------------------------------------------------------

PROCESSOR, CARD = "processor", "card"
"""Where a backend computes."""


@dataclass(frozen=True)
class Way:
    """One way to run a backend: one row of every table for each form of the graphs."""

    label: str  # what the tables call it
    opened_by: str  # key of `contenders.OPENERS`
    forms: tuple[str, ...] = ()  # that it has; empty: the precisions that are asked for
    compiled: bool = False  # by PyTorch, which takes minutes for each form: of its own forms only those that are asked for
    provider: str = ""  # of the page in Chromium
    captured: bool = False  # the page captures each graph once and replays it
    kernels: str = "none"  # of our own in captured graphs, as `browser.Browser` takes them
    threads: int = 0  # of WebAssembly; 0: as many as the page takes


@dataclass(frozen=True)
class Contender:
    """A backend that `benchmark` measures."""

    label: str  # in the rows of load and memory; in Chromium, of the way that the page chooses by itself
    description: str
    where: str  # PROCESSOR or CARD
    ways: tuple[Way, ...]
    experiment: bool = False  # nobody gets it without asking: its load and its memory are not measured

    @property
    def compiled(self) -> bool:
        """Whether it takes minutes to open; its memory is not measured."""
        return any(way.compiled for way in self.ways)

    @property
    def provider(self) -> str:
        """The page's provider, for a backend in Chromium; empty for others."""
        return self.ways[0].provider

    def seen(self, captured: bool, replaced: bool = False) -> str:
        """What the tables call a run in which the page chose the way by itself.

        Args:
            captured: whether it captured the graphs.
            replaced: whether kernels of our own stand for commands of theirs.
        """
        kernels = "fastest" if replaced else "none"
        own = (way for way in self.ways if way.captured == captured and way.kernels == kernels and not way.threads)
        return next((way.label for way in own), self.label)


CONTENDERS = {
    "torch-cuda": Contender(
        "PyTorch eager, CUDA",
        "PyTorch eager on an NVIDIA card, and our form of the step as a CUDA graph",
        CARD,
        (
            Way("PyTorch eager, CUDA", "torch", ("fp32", "fp16")),
            Way("PyTorch, rewritten, CUDA graph", "cuda-graph", ("fp32",)),
        ),
    ),
    "torch-cuda-compiled": Contender(
        "PyTorch compiled, CUDA",
        "PyTorch compiled, on the card",
        CARD,
        (Way("PyTorch compiled, CUDA", "torch", ("fp32", "fp16"), compiled=True),),
    ),
    "webgpu-native": Contender(
        "WebGPU, native", "ONNX Runtime's native WebGPU provider", CARD, (Way("WebGPU, native", "onnxruntime"),)
    ),
    "chromium-webgpu": Contender(
        "Chromium, WebGPU, our kernels",
        "WebGPU in Chromium: each step dispatched, captured and replayed, and with kernels of our own in what was captured",
        CARD,
        (
            Way("Chromium, WebGPU", "chromium", provider="webgpu"),
            Way("Chromium, WebGPU, captured", "chromium", provider="webgpu", captured=True),
            Way("Chromium, WebGPU, our kernels", "chromium", provider="webgpu", captured=True, kernels="fastest"),
        ),
    ),
    "chromium-webgpu-matrix": Contender(
        "Chromium, WebGPU, matrix units",
        "an experiment behind a flag: products on the card's matrix units, in 16 bits and as three products that keep float32's numbers",
        CARD,
        (
            Way("Chromium, WebGPU, matrix units", "chromium", provider="webgpu", captured=True, kernels="matrix"),
            Way(
                "Chromium, WebGPU, matrix units, exact", "chromium", provider="webgpu", captured=True, kernels="matrix exact"
            ),
        ),
        experiment=True,
    ),
    "torch-cpu": Contender(
        "PyTorch eager, CPU", "PyTorch eager on the processor", PROCESSOR, (Way("PyTorch eager, CPU", "torch", ("fp32",)),)
    ),
    "torch-cpu-compiled": Contender(
        "PyTorch compiled, CPU",
        "PyTorch compiled, on the processor",
        PROCESSOR,
        (Way("PyTorch compiled, CPU", "torch", ("fp32",), compiled=True),),
    ),
    "onnxruntime-cpu": Contender(
        "ONNX Runtime, CPU", "ONNX Runtime on the processor", PROCESSOR, (Way("ONNX Runtime, CPU", "onnxruntime"),)
    ),
    "chromium-wasm": Contender(
        "Chromium, wasm, all threads",
        "WebAssembly in Chromium, with one thread and with as many as the page takes",
        PROCESSOR,
        (
            Way("Chromium, wasm, 1 thread", "chromium", provider="wasm", threads=1),
            Way("Chromium, wasm, all threads", "chromium", provider="wasm"),
        ),
    ),
}
"""Every backend by its name, in the order in which they are opened; to add one is to add an entry."""

# -- what `bisect` compares --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A backend that can be one of the two whose runs are compared node by node."""

    label: str  # what the answer calls it
    opened_by: str  # key of `bisect.OPENERS`, or `bisect.TORCH`
    forms: tuple[str, ...] = ()  # that it has; empty: every precision
    taken_at_once: int = 256_000_000  # bytes of intermediate values that one run gives
    provider: str = ""  # of the page in a browser
    captured: bool = False  # the page captures the graph, where all of it runs on the device, and replays it
    engine: str = "chromium"  # of that browser
    kernels: str = "none"  # of our own in what is captured; "all": wherever there are any


IN_BROWSER = 64_000_000  # bytes that a page hands over at once, as text
SIDES = {
    "torch-cpu": Side("PyTorch eager, CPU", "torch", ("fp32",)),
    "onnxruntime-cpu": Side("ONNX Runtime, CPU", "onnxruntime"),
    "webgpu-native": Side("WebGPU, native", "webgpu"),
    "chromium-wasm": Side("Chromium, wasm", "browser", taken_at_once=IN_BROWSER, provider="wasm"),
    "chromium-webgpu": Side("Chromium, WebGPU", "browser", taken_at_once=IN_BROWSER, provider="webgpu"),
    "chromium-webgpu-captured": Side(
        "Chromium, WebGPU, captured", "browser", taken_at_once=IN_BROWSER, provider="webgpu", captured=True
    ),
    "firefox-wasm": Side("Firefox, wasm", "browser", taken_at_once=IN_BROWSER, provider="wasm", engine="firefox"),
    "firefox-webgpu": Side("Firefox, WebGPU", "browser", taken_at_once=IN_BROWSER, provider="webgpu", engine="firefox"),
    "webkit-wasm": Side("WebKit, wasm", "browser", taken_at_once=IN_BROWSER, provider="wasm", engine="webkit"),
    "chromium-webgpu-kernels": Side(
        "Chromium, WebGPU, our kernels", "browser", taken_at_once=IN_BROWSER, provider="webgpu", captured=True, kernels="all"
    ),
}
"""Every one by its name; to add one is to add an entry."""

# -- what `evaluate` compares ------------------------------------------------------------------------------------------

GPU = "GPU"
"""What a Dask worker that has a card calls it: `dask worker --resources GPU=1`."""


@dataclass(frozen=True)
class Filler:
    """What fills pictures by the thousand: the network in one runtime, or what a user would take instead."""

    label: str  # what the tables call it
    forms: tuple[str, ...] = ()  # that it has; empty: every precision
    resource: str = ""  # that a worker must have; empty: none


ORIGINAL = "torch"
FILLERS = {
    ORIGINAL: Filler("PyTorch", ("fp32",)),
    "torch-cuda": Filler("PyTorch, CUDA", ("fp32",), GPU),
    "onnx": Filler("ONNX Runtime"),
    "webgpu-native": Filler("WebGPU, native", resource=GPU),
}
"""Runtimes of the network, by name; the others are compared with `ORIGINAL`, or with "torch-cuda" where that is missing."""
BASELINES = {
    "patchmatch": "PatchMatch",
    "telea": "OpenCV Telea",
    "navier_stokes": "OpenCV Navier-Stokes",
    "biharmonic": "biharmonic",
}
"""Methods that need no network, and what the tables call them."""
USUAL_BASELINES = ("patchmatch", "telea", "biharmonic")
"""Those of an evaluation for which none are named."""
HOLES_A_TASK = 16  # that a worker fills at once: some seconds on a processor
MASK_KINDS = ("thin", "thick", "box", "centre", "object")
"""Holes that are drawn from a seed; see `inpainting.masks`."""
PAPER_SHARE = (0.4, 0.5)  # of a picture that the holes of the paper's main tables take

# -- the diffusion process (release: DDIM, epsilon prediction) ---------------------------------------------------------

TRAIN_TIMESTEPS = 1000  # length of the schedule that the network was trained on
BETA_START = 0.00085  # "scaled_linear": betas are the squares of a line between the square roots of these two
BETA_END = 0.012
STATE_ROWS = ("latent", "prediction", "kept")  # what the sampling loop carries from step to step; see `model.sampler`


@dataclass(frozen=True)
class Solver:
    """A method that goes from noise to a latent in few steps; `model.sampler.SCHEDULERS` has what makes it."""

    description: str
    order: int  # the fewest steps it can be run with


SOLVERS = {
    "ddim": Solver("DDIM, as released: order 1", 1),
    "ddim-trailing": Solver(
        "DDIM from pure noise, as DPM-Solver++ of order 1: for networks that were distilled to few steps", 1
    ),
    "dpm++2m": Solver("DPM-Solver++ of order 2, from two predictions", 2),
    "unipc": Solver("UniPC of order 2: DPM-Solver++ that corrects each latent once its noise is known", 2),
}
"""Every solver by its name. DDIM starts where the release does ("leading" timesteps: 950 of 20 steps); the others start from pure
noise at 999 ("trailing"), which few steps need."""
INITS = ("image", "noise")
"""Where denoising starts: from the picture with noise on it, as released, or from noise alone."""

# -- defaults of the release's example ---------------------------------------------------------------------------------

SOLVER = "ddim"
STEPS = 20  # of which strength decides how many are run
STRENGTH = 0.99  # share of the schedule that is run: 19 of 20 steps, starting at t = 900
GUIDANCE = 2.0  # classifier-free guidance: uncond + g (cond - uncond)
NOISE_OFFSET = 0.0357  # weight of the one normal number per channel that is added to the noise
GUIDANCE_INTERVAL = (0.0, 1.0)  # shares of the run between which steps are guided
MASK_BLUR_RADIUS = 3  # px, radius of PIL's Gaussian blur that feathers the mask before pasting, as released
MASK_THRESHOLD = 0.5  # a mask value / 255 at or above this is the hole: 128 of 255

# -- what a person chooses between -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """One way to sample, by name: values of `inpainting.loop.Settings`."""

    label: str  # what a person reads
    note: str  # in one plain sentence
    solver: str  # a name in `SOLVERS`
    steps: int
    strength: float
    guidance: float
    guidance_interval: tuple[float, float]
    init: str  # one of `INITS`
    harmonize: bool  # see `inpainting.harmonizing`


PRESETS = {
    "fast": Preset(
        "Fast", "5 steps of DPM-Solver++, all but the first guided: 9 evaluations of the network.",
        "dpm++2m", 5, 1.0, 2.3, (0.2, 1.0), "noise", True,
    ),
    "fastest": Preset(
        "Fastest", "4 steps of DPM-Solver++, the last two guided: 6 evaluations; the texture is weaker.",
        "dpm++2m", 4, 1.0, GUIDANCE, (0.5, 1.0), "noise", True,
    ),
    "as-released": Preset(
        "As released", "19 guided DDIM steps that start from the picture: 38 evaluations.",
        SOLVER, STEPS, STRENGTH, GUIDANCE, GUIDANCE_INTERVAL, "image", False,
    ),
}  # fmt: skip
"""What is offered to people, their default first; `Settings()` is "as-released", so that parity compares like with like."""
DEFAULT_PRESET = next(iter(PRESETS))
FASTEST = "fastest"
DISTILLED_SOLVER = "ddim-trailing"
"""What networks are distilled for: it leaves from pure noise."""


def distilled_preset(steps: int) -> Preset:
    """The one way to sample distilled weights: as many evaluations as steps, since guidance is in the weights."""
    note = f"{steps} steps of a network distilled for them: {steps} evaluations."
    return Preset(PRESETS[FASTEST].label, note, DISTILLED_SOLVER, steps, 1.0, 1.0, (0.0, 1.0), "noise", True)


# -- how the graphs run on WebGPU (ONNX Runtime's provider) ------------------------------------------------------------

GPU_LAYOUTS = {"vae_encoder": "NHWC", "step": "NCHW", "vae_decoder": "NHWC"}
"""In which layout the provider runs a graph's convolutions. Those of the autoencoder are large, and the provider reads four
numbers at a time only where channels come last; the step has none but depthwise and 1x1 ones, whose data stays as it is."""

WEBGPU_DEFAULTS = {
    "maxStorageBufferBindingSize": 2**27,  # bytes of one tensor
    "maxStorageBuffersPerShaderStage": 8,  # tensors that one program reads and writes
    "maxComputeWorkgroupStorageSize": 16384,  # bytes
    "maxComputeInvocationsPerWorkgroup": 256,
}
"""What every device with WebGPU has (W3C, WebGPU, "Limits"); the graphs need no more."""
LARGEST_BINDING = WEBGPU_DEFAULTS["maxStorageBufferBindingSize"]

# -- how the graphs are written ----------------------------------------------------------------------------------------

OPSET = 18  # of ONNX's own operators, in every graph
RUNTIME_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators

# -- how a mask is painted, in the notebook and on the page -------------------------------------------------------------

MOST_GROWTH = 500  # px by which a selection may grow, shrink or be feathered at once
WIRE_MARGIN = 32  # px around its two ends that a wire may use, besides a quarter of their distance
SEGMENTER_SIDE = 1024  # px, longer side of a picture as a segmentation model sees it
TOLERANCE = 24  # 0..255: by how much each channel may differ for the magic wand, at first
BRUSH_SHARE = 0.07  # of a picture's shorter side: the brush's diameter at first, rounded down to px, at least 1

# -- what a person sees while it runs ----------------------------------------------------------------------------------

PREVIEW_SHARE = 0.2  # of a run's time may go into decoding previews

# -- how a picture of any size meets a square network (ours, not the release's) ----------------------------------------

WHOLE, AS_RELEASED = COVERAGES = ("whole", "as-released")
"""How much of a hole the model is told of, and how much of its picture is replaced; the first is the default.

As released, a latent cell is hole where its upper left pixel is, and the blurred mask blends the new picture in: in a thin hole
the old content stays. Whole: every cell that the hole touches is hole, and the new picture replaces all of the hole, feathered
outwards only."""

FEATHER_WIDTH = 9  # px outside a whole hole over which the new picture fades out; the release's blur reaches as far
WINDOW_MARGIN = 0.125  # share of the window's side that is kept free on each side of a hole
RARE_COLOURS = 0.02  # share of the pixels around a hole that do not count as its colours, at either end of a difference
HARMONY_RING = 24  # px around a hole that a harmonized fill is compared with
DETAIL_SEAM = 4  # px on both sides of the hole's edge that count for neither, so that a seam is not taken for texture
MOST_DETAIL = 1.5  # by which fine detail is multiplied or divided at most
EXTENSION_DEPTH = 6  # sixteenths of the window's side: how deep a ring of new canvas is at most
EXTENSION_BEYOND = 2  # sixteenths of it: how far a window reaches past the ring, into what is not used
EXTENSION_REACH = 16  # px over which new canvas takes over the colours that it is joined to
MAX_MEGAPIXELS = 100  # a larger picture is refused rather than left to exhaust memory
MOST_VARIANTS = 1000  # results that one command makes of a picture
JPEG_QUALITY = 95  # 1..100, of JPEG and AVIF unless another is asked for


@dataclass(frozen=True)
class VaeConfig:
    """A diffusers `AutoencoderKL` with `VAE_FACTOR` 8 and `LATENT_CHANNELS` 4."""

    block_out_channels: tuple[int, ...]  # channels at 1/1, 1/2, 1/4 and 1/8 of the image's side
    layers_per_block: int  # ResNet blocks a resolution
    norm_num_groups: int  # groups of every GroupNorm
    scaling_factor: float  # latent = scaling_factor x posterior sample: brings the latents to unit variance
    mid_block_attention: bool = True  # one self-attention at the lowest resolution


@dataclass(frozen=True)
class NetworkConfig:
    """One size of the Moebius denoiser together with the autoencoder that it works with.

    `rel_pos_emb` has one row per latent cell, so a checkpoint belongs to exactly one `image_size`.
    """

    name: str  # what commands, notebooks and file names call it
    image_size: int  # px, side of the square window that the model sees
    block_out_channels: tuple[int, int, int]  # channels at 1/8, 1/16 and 1/32 of the image's side
    cross_attention_dim: int  # width of a condition vector inside the U-Net
    encoder_hid_dim: int  # width of a row of the embedding table
    vae: VaeConfig
    layers_per_block: int = 2  # ResNet + transformer pairs a down block; an up block has one more
    heads: int = 8  # query heads of a lambda layer; keys and values have C / heads channels
    position_kernel: int = 15  # side of the self-lambda's window of relative positions, in latent cells
    ffn_expansion: int = 5  # MixFFN widens C to 5 C
    norm_groups: int = 32  # groups of every GroupNorm in the U-Net

    @property
    def latent_size(self) -> int:
        """Side of the latent grid, in cells."""
        return self.image_size // VAE_FACTOR

    @property
    def time_embedding_dim(self) -> int:
        """Width of the time embedding after its two Linear layers."""
        return 4 * self.block_out_channels[0]


MOEBIUS = NetworkConfig(
    name="moebius",
    image_size=512,
    block_out_channels=(320, 640, 1280),
    cross_attention_dim=768,
    encoder_hid_dim=3072,
    vae=VaeConfig((128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, scaling_factor=0.13025),
)
"""The published network: 226,041,531 parameters, with the autoencoder of hustvl/PixelHacker."""

DEMO = NetworkConfig(
    name="demo",
    image_size=256,
    block_out_channels=(64, 128, 256),
    cross_attention_dim=192,
    encoder_hid_dim=256,
    vae=VaeConfig(
        (32, 64, 128, 128), layers_per_block=1, norm_num_groups=8, scaling_factor=1.0119, mid_block_attention=False
    ),
)
"""The network we trained ourselves, shipped with the package: 9.4 M parameters."""

SMALL = NetworkConfig(
    name="small",
    image_size=128,
    block_out_channels=(32, 64, 96),
    cross_attention_dim=48,
    encoder_hid_dim=64,
    vae=VaeConfig((16, 32, 32, 32), layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
)
"""A small network of the same make, filled with deterministic numbers: the reference outputs of `tests/data` are of it."""

TINY = NetworkConfig(
    name="tiny",
    image_size=128,
    block_out_channels=(16, 32, 48),
    cross_attention_dim=32,
    encoder_hid_dim=32,
    vae=VaeConfig((8, 16, 16, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.13025),
    layers_per_block=1,
    heads=4,
    position_kernel=7,
    norm_groups=8,
)
"""The smallest, one block a resolution, also of deterministic numbers: for WebGPU on a processor, where each operator costs."""

NETWORKS = {config.name: config for config in (MOEBIUS, DEMO, SMALL, TINY)}
