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

# -- what commands, notebooks and files call things --------------------------------------------------------------------

GRAPHS = ("vae_encoder", "step", "vae_decoder")
"""Names of the three graphs, and of their files without the ending."""
PARTS = ("denoiser", "vae")
"""What a set of weights consists of."""

BACKENDS = ("torch", "onnx", "browser")
"""What a picture can be filled by: PyTorch, ONNX Runtime, or a browser (`notebook.browser_backend`)."""

PRECISIONS = ("fp32", "fp16-storage", "fp16", "int8", "int4")
"""Forms in which graphs are stored; see `precision`."""
STRAIGHTFORWARD = "straightforward"
"""The form of the step without rewrites; beside the precisions, which are forms of the rewritten one."""

DETERMINISTIC = "deterministic"
"""The name under which weights made by `checkpoint.deterministic_weights` are asked for."""
PUBLISHED = {"pretrained": "pretrained", "places2": "ft_places2", "celebahq": "ft_celebahq", "ffhq": "ft_ffhq"}
"""Names under which the published weights are asked for, and the folder of hustvl/Moebius that holds each."""
WEIGHTS = ("demo", DETERMINISTIC, *PUBLISHED)
"""Every name of weights; anything else is a path."""

# -- what `benchmark` measures, in the order in which it is opened -----------------------------------------------------

CONTENDERS = {
    "torch-cuda": "PyTorch eager on an NVIDIA card, and our form of the step as a CUDA graph",
    "torch-cuda-compiled": "PyTorch compiled, on the card",
    "webgpu-native": "ONNX Runtime's native WebGPU provider",
    "chromium-webgpu": "WebGPU in Chromium, each step dispatched, and captured and replayed",
    "torch-cpu": "PyTorch eager on the processor",
    "torch-cpu-compiled": "PyTorch compiled, on the processor",
    "onnxruntime-cpu": "ONNX Runtime on the processor",
    "chromium-wasm": "WebAssembly in Chromium, with one thread and with as many as the page takes",
}
MEASURES = {
    "step": "a guided step",
    "picture": "the whole picture as the release fills it",
    "parts": "encode and decode",
    "limits": "a large matrix product and a large copy on the same backends",
    "curve": "the whole picture with other numbers of steps",
    "profile": "a step's time by operator",
    "load": "from the browser's cache to ready, and a first visit's time",
    "memory": "peaks of processes and card",
}
MEASURED_PRECISIONS = (STRAIGHTFORWARD, "fp32", "fp16-storage", "fp16", "int8")

# -- the diffusion process (release: DDIM, epsilon prediction) ---------------------------------------------------------

TRAIN_TIMESTEPS = 1000  # length of the schedule that the network was trained on
BETA_START = 0.00085  # "scaled_linear": betas are the squares of a line between the square roots of these two
BETA_END = 0.012

# -- defaults of the release's example ---------------------------------------------------------------------------------

STEPS = 20  # of which strength decides how many are run
STRENGTH = 0.99  # share of the schedule that is run: 19 of 20 steps, starting at t = 900
GUIDANCE = 2.0  # classifier-free guidance: uncond + g (cond - uncond)
NOISE_OFFSET = 0.0357  # weight of the one normal number per channel that is added to the noise
MASK_BLUR_RADIUS = 3  # px, radius of PIL's Gaussian blur that feathers the mask before pasting, as released
MASK_THRESHOLD = 0.5  # a mask value / 255 at or above this is the hole: 128 of 255

# -- how the graphs run on WebGPU (ONNX Runtime's provider) ------------------------------------------------------------

GPU_LAYOUTS = {"vae_encoder": "NHWC", "step": "NCHW", "vae_decoder": "NHWC"}
"""In which layout the provider runs a graph's convolutions. Those of the autoencoder are large, and the provider reads four
numbers at a time only where channels come last; the step has none but depthwise and 1x1 ones, whose data stays as it is."""

# -- how the graphs are written ----------------------------------------------------------------------------------------

OPSET = 18  # of ONNX's own operators, in every graph
RUNTIME_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators

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
MAX_MEGAPIXELS = 100  # a larger picture is refused rather than left to exhaust memory
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
    vae=VaeConfig((32, 64, 128, 128), layers_per_block=1, norm_num_groups=8, scaling_factor=1.0523, mid_block_attention=False),
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
