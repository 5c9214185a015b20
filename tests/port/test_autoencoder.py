"""The autoencoder's rewrites against diffusers' own forms, and what a runtime makes of them."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from moebius_lab.config import DEMO, SMALL
from moebius_lab.model.checkpoint import deterministic_weights, make_vae
from moebius_lab.model.unet import MoebiusNet
from moebius_lab.port.autoencoder import PhaseUpsample, PooledGroupNorm, SumOverParts, parts_for, rewritten, square
from moebius_lab.port.export import Decoder, Encoder, export_graph


def test_squares_divide_every_side_and_end():
    assert [square(side) for side in (512, 40, 12, 9, 7, 5, 2, 1)] == [8, 8, 6, 3, 7, 5, 2, 1]
    assert square(37) == 37  # nothing up to 8 divides it


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (40, 24), (37, 6)])
def test_pooled_norm_is_group_norm(shape):
    norm = nn.GroupNorm(4, 16, eps=1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 * torch.randn(1, 16, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 50
    with torch.no_grad():
        torch.testing.assert_close(PooledGroupNorm(norm).double()(x), norm(x), rtol=1e-10, atol=1e-10)


def test_pooled_norm_of_a_flat_picture_stays_finite_and_right():
    """Where nothing varies the variance is nothing but rounding: it must not come out negative, as E[x^2] - E[x]^2 may."""
    norm = nn.GroupNorm(2, 8, eps=1e-6)
    x = torch.full((1, 8, 64, 64), 12.3456)
    x[:, :, 10, 10] += 0.01
    with torch.no_grad():
        made, expected = PooledGroupNorm(norm)(x), norm.double()(x.double())
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=0.05)  # of 9.9 at the odd cell


def test_phases_are_the_doubled_and_convolved_picture():
    upsample = Upsample2D(6, use_conv=True, out_channels=10).double()
    x = torch.randn(1, 6, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(PhaseUpsample(upsample)(x), upsample(x), rtol=1e-12, atol=1e-12)


def test_rewriting_leaves_the_autoencoder_and_its_weights_alone():
    vae = make_vae(SMALL)
    copy = rewritten(vae)
    kinds = Counter(type(module) for module in copy.modules())
    assert kinds[PooledGroupNorm] and kinds[PhaseUpsample] == 3 and not kinds[Upsample2D]
    assert not any(isinstance(module, (PooledGroupNorm, PhaseUpsample)) for module in vae.modules())
    assert {p.data_ptr() for p in copy.parameters()} == {p.data_ptr() for p in vae.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, DEMO], ids=lambda config: config.name)
def test_stored_weights_stay_and_the_runtime_makes_the_phases_when_it_loads(config, tmp_path):
    vae = make_vae(config)
    vae.load_state_dict(deterministic_weights(vae))
    path = export_graph("vae_decoder", MoebiusNet(config), vae, tmp_path)
    stored = path.with_name(path.name + ".data").stat().st_size
    weights = sum(4 * p.numel() for part in (vae.post_quant_conv, vae.decoder) for p in part.parameters())
    assert stored < 1.03 * weights
    counts = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    assert counts["DepthToSpace"] == 3 and not counts["Resize"]

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    made = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert not made["Slice"] and not made["Pad"]
    latent = torch.randn(1, 4, config.latent_size, config.latent_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"latent": latent.numpy()})[0], Decoder(vae)(latent).numpy(), atol=2e-5)


def test_encoder_and_decoder_with_rewrites_equal_those_without():
    vae = make_vae(SMALL)
    vae.load_state_dict(deterministic_weights(vae))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for mine, published in zip(Encoder(rewritten(vae))(image), Encoder(vae)(image)):
            torch.testing.assert_close(mine, published, rtol=0, atol=1e-5)
        latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(Decoder(rewritten(vae))(latent), Decoder(vae)(latent), rtol=0, atol=1e-5)


def test_a_picture_is_made_in_the_fewest_parts_that_fit():
    assert [parts_for(256, 512 * 512, 2**27 >> n) for n in range(4)] == [2, 4, 8, 16]
    assert parts_for(12, 10, 4 * 10 * 5) == 3  # 5 channels fit, and 4 divide 12
    with pytest.raises(ValueError, match="one channel of 100 positions"):
        parts_for(8, 100, 399)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_norm_and_a_convolution_of_parts_are_those_of_the_whole(parts):
    x = torch.randn(1, 16, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm, conv = PooledGroupNorm(nn.GroupNorm(8, 16)).double(), nn.Conv2d(16, 4, 3, padding=1).double()
    nn.init.normal_(norm.norm.weight)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(norm(x.chunk(parts, 1)), 1), norm(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(SumOverParts(conv)(x.chunk(parts, 1)), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_decoder_whose_largest_picture_is_in_parts_gives_the_same_picture(parts):
    vae = make_vae(SMALL)
    vae.load_state_dict(deterministic_weights(vae))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    largest = 4 * 32 * 64 * 64  # bytes of what the last upsampling makes of it, whole
    seen = []
    copy = rewritten(vae, largest // parts)
    for upsample in (module for module in copy.modules() if isinstance(module, PhaseUpsample)):
        upsample.register_forward_hook(lambda _, __, y: seen.append(1 if isinstance(y, torch.Tensor) else len(y)))
    with torch.no_grad():
        torch.testing.assert_close(Decoder(copy)(latent), Decoder(vae)(latent), rtol=0, atol=1e-5)
    assert seen == [1, 1, parts]
