"""The 9-channel denoiser, key for key the published `UNet2DLambdaDWConvMixFFN`.

Read from the bottom: `MoebiusNet` is the whole, `UNet` the picture of its resolutions, the rest are its parts.

    latent, mask, masked latent (B, 9, s, s)            s = image size / 8
      conv_in  ---------------------------------------> skips
      down  s      C0   2 x [ResNet, transformer]  ---> skips, then stride-2 convolution
      down  s/2    C1   2 x [ResNet, transformer]  ---> skips, then stride-2 convolution
      down  s/4    C2   2 x [ResNet, transformer]  ---> skips
      up    s/4    C2   3 x [concat skip, ResNet, transformer], then nearest x2 + convolution      (no mid block)
      up    s/2    C1   3 x [concat skip, ResNet, transformer], then nearest x2 + convolution
      up    s      C0   3 x [concat skip, ResNet, transformer]
      norm, SiLU, conv_out  -> predicted noise (B, 4, s, s)

Shape letters: B batch, C channels, h and w the sides of the current grid, D the width of the time embedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CONDITION_TOKENS, INPUT_CHANNELS, LATENT_CHANNELS, NetworkConfig
from .lambda_layer import BATCHNORM_EPS, CrossLambda, SelfLambda

TIME_MAX_PERIOD = 10_000  # longest wavelength of the sinusoidal time embedding, in timesteps


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, h, w) picture, each cell by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SeparableConv(nn.Module):
    """Depthwise 3x3 -> BatchNorm -> ReLU -> pointwise 1x1 -> BatchNorm, plus the input where the widths agree."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels, eps=BATCHNORM_EPS)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=BATCHNORM_EPS)
        self.residual = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pw(F.relu(self.bn1(self.conv_dw(x)))))
        return x + y if self.residual else y


class ResnetBlock(nn.Module):
    """Two separable convolutions, the time embedding added between them, and a shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-5)
        self.conv1 = SeparableConv(in_channels, out_channels)
        self.time_emb_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-5)
        self.conv2 = SeparableConv(out_channels, out_channels)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]  # (B, C, 1, 1)
        y = self.conv2(F.silu(self.norm2(y)))
        return self.conv_shortcut(x) + y


class NamedConv(nn.Module):
    """A convolution one level down, because the published keys say `inverted_conv.conv` and so on."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MixFFN(nn.Module):
    """Gated feed-forward with a depthwise convolution in its wide middle."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.inverted_conv = NamedConv(channels, wide, 1)
        self.depth_conv = NamedConv(wide, wide, 3, padding=1, groups=wide)
        self.point_conv = NamedConv(wide // 2, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, g = self.depth_conv(F.silu(self.inverted_conv(x))).chunk(2, dim=1)
        return self.point_conv(a * F.silu(g))


class TransformerLayer(nn.Module):
    """Self-lambda, cross-lambda and MixFFN, each behind a LayerNorm and inside a residual."""

    def __init__(self, channels: int, positions: int, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm(channels)
        self.attn1 = SelfLambda(channels, config.heads, config.position_kernel)
        self.norm2 = ChannelLayerNorm(channels)
        self.attn2 = CrossLambda(channels, config.heads, config.cross_attention_dim, CONDITION_TOKENS, positions)
        self.norm3 = ChannelLayerNorm(channels)
        self.ff = MixFFN(channels, config.ffn_expansion)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """GroupNorm -> 1x1 -> one transformer layer -> 1x1, plus the input."""

    def __init__(self, channels: int, positions: int, config: NetworkConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerLayer(channels, positions, config)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x))
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(y)


class Downsample(nn.Module):
    """Stride-2 convolution: halves the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """Pairs of ResNet and transformer; every pair's output, and the downsampler's, is a skip."""

    def __init__(self, in_channels: int, out_channels: int, grid: int, last: bool, config: NetworkConfig) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * config.layers_per_block
        self.resnets = nn.ModuleList(
            ResnetBlock(a, b, config.time_embedding_dim, config.norm_groups) for a, b in zip(widths, widths[1:])
        )
        self.attentions = nn.ModuleList(
            Transformer(out_channels, grid * grid, config) for _ in range(config.layers_per_block)
        )
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels)])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions):
            x = attention(resnet(x, time), context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class UpBlock(nn.Module):
    """Triples of skip, ResNet and transformer; the skip stands after the hidden state in the concatenation."""

    def __init__(
        self, in_channels: int, out_channels: int, skip_channels: list[int], grid: int, last: bool, config: NetworkConfig
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            ResnetBlock(a + s, out_channels, config.time_embedding_dim, config.norm_groups)
            for a, s in zip(widths, skip_channels)
        )
        self.attentions = nn.ModuleList(Transformer(out_channels, grid * grid, config) for _ in skip_channels)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_channels)])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions):
            x = attention(resnet(torch.cat([x, skips.pop()], dim=1), time), context)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class TimeEmbedding(nn.Module):
    """Two Linear layers with a SiLU between them, on the sinusoid of the timestep."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def time_frequencies(dim: int, device: torch.device) -> Tensor:
    """The dim/2 angular frequencies of the sinusoidal time embedding, geometric from 1 down, float32 (shift 0).

    Made on `device`: a copy from the CPU cannot be captured in a CUDA graph.
    """
    half = dim // 2
    return torch.exp(-math.log(TIME_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=device) / half)


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps (B,) in [0, 1000): (B, dim) float32, the cosines before the sines."""
    angles = timesteps.float()[:, None] * time_frequencies(dim, timesteps.device)  # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class UNet(nn.Module):
    """The U-Net of the module's picture, on latents and condition vectors."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c0, c1, c2 = config.block_out_channels
        grids = [config.latent_size, config.latent_size // 2, config.latent_size // 4]
        self.time_dim = c0
        self.conv_in = SeparableConv(INPUT_CHANNELS, c0)
        self.time_embedding = TimeEmbedding(c0, config.time_embedding_dim)
        self.encoder_hid_proj = nn.Linear(config.encoder_hid_dim, config.cross_attention_dim)

        skips = [c0]  # widths of the skips, in the order in which they are made
        self.down_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(zip((c0, c0, c1), (c0, c1, c2))):
            last = i == 2
            self.down_blocks.append(DownBlock(a, b, grids[i], last, config))
            skips += [b] * (config.layers_per_block + (not last))

        self.up_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(zip((c2, c2, c1), (c2, c1, c0))):
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(a, b, taken, grids[2 - i], i == 2, config))

        self.conv_norm_out = nn.GroupNorm(config.norm_groups, c0, eps=1e-5)
        self.conv_out = SeparableConv(c0, LATENT_CHANNELS)

    def forward(self, latent: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        time = self.time_embedding(sinusoid(timesteps, self.time_dim).to(latent.dtype))  # (B, D)
        context = self.encoder_hid_proj(condition)  # (B, 10, cross_attention_dim)
        x = self.conv_in(latent)
        skips = [x]
        for block in self.down_blocks:
            x, made = block(x, time, context)
            skips += made
        for block in self.up_blocks:
            x = block(x, skips, time, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class MoebiusNet(nn.Module):
    """The published model: a table of learned condition vectors and the U-Net that they steer.

    Source: github.com/hustvl/Moebius; a checkpoint's keys and shapes are those of `MoebiusNet(MOEBIUS).state_dict()`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding_layer = nn.Embedding(2 * CONDITION_TOKENS, config.encoder_hid_dim)
        self.diff_model = UNet(config)

    def forward(self, latent: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """Predict the noise in a latent.

        Args:
            latent: (B, 9, s, s): noisy latent (4), mask (1; 1 is the hole), masked-image latent (4), with s the
                network's `latent_size`.
            timesteps: (B,) in 0..999, integers or floats.
            input_ids: (B, 10) integers: `CONDITIONAL_IDS` or `UNCONDITIONAL_IDS`.

        Returns:
            (B, 4, s, s), in units of standard normal noise.

        Raises:
            ValueError: the latent is not (B, 9, s, s); the position embeddings fit one size only.
        """
        s = self.config.latent_size
        if latent.shape[1:] != (INPUT_CHANNELS, s, s):
            raise ValueError(
                f"the {self.config.name} network takes latents of shape (B, {INPUT_CHANNELS}, {s}, {s}), "
                f"not {tuple(latent.shape)}: it is tied to {self.config.image_size} px by its position embeddings"
            )
        return self.diff_model(latent, timesteps, self.embedding_layer(input_ids))
