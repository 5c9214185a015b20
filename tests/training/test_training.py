"""The training code: data readers, fast forms, and the whole recipe in small."""

import copy
import io
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from moebius_lab import LabError
from moebius_lab.config import DEMO, SMALL, TINY
from moebius_lab.model.checkpoint import make_vae
from moebius_lab.model.lambda_layer import CrossLambda, SelfLambda
from moebius_lab.model.unet import MoebiusNet
from moebius_lab.training import __main__ as recipe
from moebius_lab.training import album, checkpoints, data, decoder, denoiser, generated, speed
from moebius_lab.training.__main__ import (
    DEMO_FOLDER,
    SMOKE,
    STAGES,
    by_stage,
    load_weights,
    run,
    save_half,
    smoke_album,
    start_from_shipped,
)
from moebius_lab.training.fast_forms import toeplitz, use_fast_forms
from moebius_lab.training.vae import agreed


@pytest.mark.parametrize("side", [4, 8, 16])
def test_toeplitz_matrix_is_the_convolution(side):
    torch.manual_seed(0)
    kernel, v = torch.randn(3, 15, 15), torch.randn(2, 5, side, side)
    published = torch.nn.functional.conv3d(v[:, None], kernel[:, None, None], padding=(0, 7, 7))  # (B, K, V, h, w)
    ours = torch.einsum("knm,bvm->bkvn", toeplitz(kernel, side), v.flatten(2))
    assert torch.allclose(ours, published.flatten(3), atol=1e-4)


def test_fast_layers_equal_the_published_ones():
    torch.manual_seed(0)
    self_lambda, cross_lambda = SelfLambda(32, 8, 15).train(), CrossLambda(32, 8, 24, 10, 64).train()
    x, context = torch.randn(2, 32, 8, 8), torch.randn(2, 10, 24)
    fast_self, fast_cross = use_fast_forms(copy.deepcopy(self_lambda)), use_fast_forms(copy.deepcopy(cross_lambda))
    assert torch.allclose(fast_self(x), self_lambda(x), atol=1e-5)
    assert torch.allclose(fast_cross(x, context), cross_lambda(x, context), atol=1e-4)


def test_fast_network_has_the_same_keys_output_and_gradient():
    torch.manual_seed(0)
    network = MoebiusNet(SMALL).train()
    fast = use_fast_forms(copy.deepcopy(network))
    assert list(fast.state_dict()) == list(network.state_dict())
    s = SMALL.latent_size
    inputs = torch.randn(2, 9, s, s), torch.tensor([3, 900]), torch.stack([torch.arange(10), torch.arange(10, 20)])
    a, b = network(*inputs), fast(*inputs)
    assert torch.allclose(a, b, atol=5e-4)
    a.pow(2).mean().backward()
    b.pow(2).mean().backward()
    for (name, p), q in zip(network.named_parameters(), fast.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=2e-3 * max(1.0, float(p.grad.abs().max()))), name


def test_kernels_compute_what_the_library_does():
    """Where Triton is installed, which the workbench does not need."""
    pytest.importorskip("triton")
    script = Path(__file__).parents[1] / "support" / "check_kernels.py"
    checked = subprocess.run([sys.executable, str(script)], capture_output=True, encoding="utf-8", timeout=300)
    assert checked.stdout.strip() == "all kernels agree", checked.stderr


def test_a_step_has_the_gradients_of_a_plain_backward_pass():
    """A step reads copies of the parameters, which have 16 bits on a card; what is updated are the parameters."""
    torch.manual_seed(0)
    pool = speed.random_pool(8, TINY.latent_size, torch.device("cpu"))
    trainer = denoiser.Trainer(TINY, pool, 4)
    trainer.network.train()
    plain = copy.deepcopy(trainer.network)
    before = [p.detach().clone() for p in trainer.trained]
    for _ in range(2):  # of the second step's gradients nothing may be left of the first's
        torch.manual_seed(1)
        trainer._gradients()
    plain.zero_grad()
    torch.manual_seed(1)
    denoiser.diffusion_loss(plain, pool, 4, trainer.schedule).backward()
    for (name, p), q in zip(trainer.network.named_parameters(), plain.parameters()):
        assert not p.requires_grad or torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6), name
    trainer.step(1e-3)
    assert all(not torch.equal(p, old) for p, old in zip(trainer.trained, before))


class _Unwritable:
    def __reduce__(self):
        raise KeyboardInterrupt  # as when a process is ended while it writes


def test_a_checkpoint_that_was_cut_short_leaves_the_one_before(tmp_path):
    file = tmp_path / "a.pt"
    checkpoints.save({"steps": 1, "weights": torch.ones(1000)}, file)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save({"steps": 2, "weights": torch.ones(1000), "rest": _Unwritable()}, file)
    assert torch.load(file, weights_only=True)["steps"] == 1 and list(tmp_path.iterdir()) == [file]


def test_fast_norms_keep_bfloat16_where_autocast_would_widen():
    norm, x = torch.nn.GroupNorm(2, 8), torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        fast = use_fast_forms(copy.deepcopy(norm))(x.bfloat16())
    assert fast.dtype == torch.bfloat16
    assert torch.allclose(fast.float(), norm(x), atol=0.05)


class _Padded(torch.nn.Module):
    """A padded convolution, or one that sees the picture's other end where zeros belong."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.wrapped = torch.nn.Conv2d(3, 4, 3), wrapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pad(x, (1, 1, 0, 0))
        y = torch.cat([x[:, :, -1:], x, x[:, :, :1]], 2) if self.wrapped else torch.nn.functional.pad(x, (0, 0, 1, 1))
        return self.conv(y)


def test_a_compiled_network_that_forgets_its_padding_is_not_used(capsys):
    plain, x = _Padded(False), torch.randn(4, 3, 12, 12)
    assert agreed(copy.deepcopy(plain), plain, x) is not plain
    assert not capsys.readouterr().out
    assert agreed(_Padded(True), plain, x) is plain
    assert "row" in capsys.readouterr().out


def test_grain_knows_smooth_from_rough_and_not_which():
    torch.manual_seed(0)
    rough = torch.randn(1, 3, 64, 64)
    other, smooth = torch.randn(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    assert (decoder.grain(rough) - decoder.grain(other)).abs().mean() < 0.2 * (
        decoder.grain(rough) - decoder.grain(smooth)
    ).abs().mean()


def test_mixed_decoder_lies_on_the_line_and_keeps_the_encoder():
    first, second = make_vae(SMALL), make_vae(SMALL)
    expected = [
        a.lerp(b, 1.1).detach() for a, b in zip(decoder.decoder_parameters(first), decoder.decoder_parameters(second))
    ]
    encoder = copy.deepcopy(first.encoder.state_dict())
    decoder.mix_decoders(first, decoder.decoder_parameters(second), 1.1)
    assert all(torch.equal(a, b) for a, b in zip(decoder.decoder_parameters(first), expected))
    assert all(torch.equal(v, encoder[k]) for k, v in first.encoder.state_dict().items())


def _pool(count: int = 8) -> dict[str, torch.Tensor]:
    s = SMALL.latent_size
    hole = torch.zeros(count, 1, s, s, dtype=torch.bool)
    hole[:, :, 4:9, 4:9] = True
    latent = torch.randn(count, 4, s, s).half()
    return {"latent": latent, "masked": latent * ~hole, "mask": hole, "released": hole}


def test_training_begins_with_centred_first_kernels():
    trainer = denoiser.Trainer(SMALL, _pool(), 2)
    kernels = trainer.network.diff_model.conv_in.conv_dw.weight[:, 0].detach().abs().flatten(1)
    assert (kernels.argmax(1) == 4).all() and kernels[:, 4].min() > 5 * kernels[:, :4].max()


def test_a_shifted_first_kernel_is_moved_to_the_middle_and_others_stay():
    """Two shipped kernels had become shifts by one row: the outermost row at top and bottom was never denoised."""
    torch.manual_seed(0)
    kernels = 0.01 * torch.randn(3, 1, 3, 3)
    kernels[0, 0, 0, 1] = 0.63  # reads the cell above
    kernels[1, 0, 1, 1] = -0.5
    kernels[2, 0, 0, 1], kernels[2, 0, 1, 1] = 0.38, -0.3  # a gradient: it sees the middle too
    moved = denoiser.unshifted(kernels)
    assert torch.equal(moved[1:], kernels[1:])
    x = torch.randn(1, 1, 9, 9)
    before, after = (torch.nn.functional.conv2d(x, k[:1], padding=1) for k in (kernels, moved))
    # the same picture one row further up, but for the three small taps that left the window
    assert torch.allclose(after[:, :, :-1], before[:, :, 1:], atol=0.2) and after[0, 0, -1].abs().mean() > 0.2
    assert int(moved[0].abs().argmax()) == 4


def test_first_kernels_are_held_while_the_rest_is_trained(tmp_path):
    trainer = denoiser.Trainer(SMALL, _pool(), 2)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    for _ in range(2):
        trainer.step(1e-3)
    changed = {name for name, p in trainer.network.named_parameters() if not torch.equal(p, before[name])}
    assert denoiser.FIRST_KERNELS not in changed and len(changed) > 0.9 * len(before)
    assert torch.allclose(trainer.average[list(before).index(denoiser.FIRST_KERNELS)], before[denoiser.FIRST_KERNELS])


def test_recalibration_forgets_the_old_batchnorm_statistics():
    torch.manual_seed(0)
    network, spoilt = MoebiusNet(SMALL), None
    spoilt = copy.deepcopy(network)
    for module in spoilt.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean += 5
            module.running_var *= 9
    pool = _pool()
    states = []
    for net in (network, spoilt):
        torch.manual_seed(1)
        states.append(denoiser.recalibrate(net, pool, 4, 3).state_dict())
        assert not net.training
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    means = [v for k, v in states[0].items() if k.endswith("running_mean")]
    assert all(m.abs().sum() > 0 for m in means)


def test_loss_is_lowest_for_the_true_noise(monkeypatch):
    """A network that knows the answer is told so: the loss of the exact target is nought, of zeros it is not."""
    for share in ("FOREIGN_SHARE", "EMPTY_SHARE"):
        monkeypatch.setattr(denoiser, share, 0.0)  # every start holds its own picture, by which the oracle finds it
    pool, schedule = _pool(4), denoiser.alphas_cumprod().float()
    seen = {}

    class Oracle(torch.nn.Module):
        def forward(self, x, t, ids):
            seen["ids"] = ids
            alpha = schedule[t][:, None, None, None]
            match = [
                int(((x[i, :4] - alpha[i].sqrt() * pool["latent"].float()).abs().mean(dim=(1, 2, 3))).argmin())
                for i in range(len(x))
            ]
            return (x[:, :4] - alpha.sqrt() * pool["latent"][match].float()) / (1 - alpha).sqrt()

    torch.manual_seed(0)
    few_noise = torch.full((1000,), 0.999)  # so little noise that the oracle always finds its picture
    schedule = few_noise
    assert denoiser.diffusion_loss(Oracle(), pool, 16, few_noise) < 0.05 * denoiser.diffusion_loss(
        lambda x, t, ids: torch.randn_like(x[:, :4]), pool, 16, few_noise
    )
    assert set(seen["ids"][:, 0].tolist()) <= {0, 10}


def test_schedule_matches_the_scheduler_of_the_pipeline():
    from moebius_lab.model.sampler import ddim_scheduler

    assert torch.allclose(denoiser.alphas_cumprod().float(), ddim_scheduler().alphas_cumprod, atol=1e-6)


CPU = torch.device("cpu")


def _picture(h: int, w: int, colour: int) -> np.ndarray:
    """Rows get brighter, and every picture has a colour of its own."""
    return np.stack(
        [np.linspace(0, 250, h).astype(np.uint8)[:, None].repeat(w, 1)] * 2 + [np.full((h, w), colour, np.uint8)], 2
    )


def test_windows_lie_inside_one_picture_and_keep_its_rows():
    torch.manual_seed(0)
    pictures = [
        ("photograph", _picture(100, 70, 10)),
        ("photograph", _picture(64, 300, 90)),
        ("texture", _picture(40, 50, 200)),
    ]
    kept = album.Album(pictures, CPU, 64, bank=16)
    assert len(kept) == 3 and int(kept.sides.min()) == 64  # the texture was enlarged
    seen = set()
    for _ in range(40):
        windows = kept.windows(8)
        assert windows.shape == (8, 3, 64, 64) and windows.min() >= 0 and windows.max() <= 1
        blue = windows[:, 2].flatten(1)
        assert (blue.max(1)[0] - blue.min(1)[0] < 1e-5).all()  # of one picture alone
        upright = windows[(blue[:, 0] * 255).round() != 200]  # the texture may be turned
        assert (upright[:, 0].diff(dim=1) > -1e-5).all()  # rows in their order
        seen |= {round(float(v) * 255) for v in blue[:, 0]}
    assert seen == {10, 90, 200}


@pytest.mark.parametrize("kind, ways", [("photograph", 2), ("texture", 8)])
def test_textures_are_seen_in_all_eight_symmetries_and_photographs_upright(kind, ways):
    torch.manual_seed(0)
    rgb = np.full((64, 64, 3), 90, np.uint8)
    rgb[:32, :32], rgb[:32, 32:], rgb[32:, :32] = 110, 130, 150
    kept = album.Album([(kind, rgb), (kind, rgb)], CPU, 64, bank=16)
    kept.weights = torch.ones(2)  # an album of one kind has none of the other, whose share is missing
    windows = album.recoloured(kept.windows(200)).mean(1)
    corners = windows[:, [8, 8, 56, 56], [8, 56, 8, 56]].argsort(1)
    assert len(corners.unique(dim=0)) == ways


def test_photographs_are_the_majority_of_windows():
    pictures = [("photograph", _picture(80, 80, 10))] + [("texture", _picture(200, 200, 200))] * 20
    kept = album.Album(pictures, CPU, 64, bank=16)
    assert float(kept.weights[1:].sum()) == pytest.approx(album.TEXTURE_SHARE) and float(
        kept.weights.sum()
    ) == pytest.approx(1)


def test_random_windows_are_coloured_anew_and_some_are_grey():
    torch.manual_seed(0)
    x = torch.rand(400, 3, 8, 8)
    changed = album.recoloured(x)
    grey = ((changed.amax(1) - changed.amin(1)).amax((1, 2)) < 1e-6).float().mean()
    assert 0.02 < grey < 0.12 and changed.min() >= 0 and changed.max() <= 1
    grey = (0.4 + 0.2 * torch.rand(50, 1, 8, 8)).expand(-1, 3, -1, -1)
    tinted = album.recoloured(grey)
    tint = tinted[:, :2] / tinted[:, 2:]
    assert float((tint.amax((2, 3)) - tint.amin((2, 3))).max()) < 1e-4  # one tint all over: no colours of its own
    assert not torch.allclose(tinted.std((1, 2, 3)), grey.std((1, 2, 3)), rtol=0.1)  # but another contrast
    windows = album.random_windows(smoke_album(CPU, 64), 20)
    assert windows.shape == (20, 3, 64, 64) and windows.min() >= -1 and windows.max() <= 1 and windows.std() > 0.1


@pytest.mark.parametrize("kind", generated.KINDS)
def test_generated_pictures_are_in_range_and_differ(kind, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(generated, "KINDS", (kind,))
    pictures = generated.generated_pictures(6, 48, CPU)
    assert (
        pictures.shape == (6, 3, 48, 48) and torch.isfinite(pictures).all() and pictures.min() >= 0 and pictures.max() <= 1
    )
    assert all((a - b).abs().mean() > 0.01 for a, b in zip(pictures, pictures[1:]))
    assert pictures.flatten(1).std(1).median() > 0.02


def test_bricks_go_on_in_straight_rows():
    """The joints of a wall without perspective are rows: what a picture of clouds never has."""
    torch.manual_seed(3)
    wall, clouds = generated._wall(12, 128, CPU), generated._clouds(12, 128, CPU)

    def edges(pictures):  # how much sharper the sharpest line is than the median line, whichever way it runs
        return [
            max(
                float(p.mean(0).diff(dim=d).abs().mean(1 - d).max() / p.mean(0).diff(dim=d).abs().mean().clamp_min(1e-6))
                for d in (0, 1)
            )
            for p in pictures
        ]

    assert np.mean(edges(wall)) > 1.3 * np.mean(edges(clouds))


def test_a_pool_is_renewed_where_it_is_oldest():
    class Numbers:
        drawn = 0

        def encode(self, count):
            fresh = torch.arange(self.drawn, self.drawn + count)
            self.drawn += count
            return {"latent": fresh}

    pool = denoiser.Pool(Numbers(), 6)
    place = pool["latent"].data_ptr()
    pool.renew(4)
    assert pool["latent"].tolist() == [6, 7, 8, 9, 4, 5]
    pool.renew(4)
    assert (
        pool["latent"].tolist() == [12, 13, 8, 9, 10, 11] and pool["latent"].data_ptr() == place
    )  # a captured step reads there


def test_masks_of_the_pool_are_whole_cells_and_those_of_as_released():
    torch.manual_seed(0)
    hole = torch.zeros(1, 64, 64, dtype=torch.uint8)
    hole[0, 9:20, 9:20] = 1
    small = smoke_album(CPU, 64)
    encoded = denoiser.Encoder(make_vae(SMALL).eval(), 1.0, small, hole, 4).encode(6)
    assert {k: tuple(v.shape[1:]) for k, v in encoded.items()} == {
        "latent": (4, 8, 8),
        "masked": (4, 8, 8),
        "mask": (1, 8, 8),
        "released": (1, 8, 8),
    }
    assert (
        len(encoded["mask"]) == 6
        and (encoded["mask"].sum((1, 2, 3)) == 4).all()
        and (encoded["released"].sum((1, 2, 3)) < 4).all()
    )


def test_numbers_by_stage_are_read_and_others_refused():
    assert by_stage("--seconds", ["vae=300", "denoiser=9.5"], float) == {"vae_seconds": 300.0, "denoiser_seconds": 9.5}
    assert by_stage("--batch", ["denoiser=32"], int) == {"denoiser_batch": 32}
    for word in ("vae", "vae=soon", "data=3", "vae=0", "vae=nan"):
        with pytest.raises(LabError, match="--seconds"):
            by_stage("--seconds", [word], float)
    with pytest.raises(LabError, match="--batch"):
        by_stage("--batch", ["denoiser=1.5"], int)


def test_the_denoiser_s_learning_rate_is_an_option(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(recipe, "run", lambda plan, *others: plans.append(plan))
    common = ["training", "--work-dir", str(tmp_path), "--seconds", "denoiser=900"]
    for more in ([], ["--denoiser-rate", "4e-4"], ["--denoiser-rate", "4e-4", "--smoke"]):
        monkeypatch.setattr("sys.argv", common + more)
        assert recipe.main() == 0
    assert [plan.denoiser_rate for plan in plans] == [denoiser.PEAK_LR, 4e-4, 4e-4]
    assert [plan.denoiser_seconds for plan in plans] == [900, 900, SMOKE.denoiser_seconds]
    for rate in ("0", "-1", "nan", "inf"):
        monkeypatch.setattr("sys.argv", [*common, "--denoiser-rate", rate])
        with pytest.raises(LabError, match="--denoiser-rate takes a number above 0"):
            recipe.main()


def test_the_unconditional_row_sees_another_picture_in_its_own_colours():
    torch.manual_seed(0)
    latent = 1 + 2 * torch.randn(3, 4, 8, 8)
    hole = torch.zeros(3, 1, 8, 8)
    hole[:, :, 2:5, 3:7] = 1
    masked = 5 + 0.5 * torch.randn(3, 4, 8, 8)
    seen = denoiser.foreign_surroundings(latent, masked, hole)
    inside = hole.expand_as(seen) > 0
    assert torch.equal(seen[inside], masked[inside])
    for i in range(3):
        outside = ~inside[i, 0]
        for channel in range(4):
            own, shown = masked[i, channel][outside], seen[i, channel][outside]
            assert float(shown.mean()) == pytest.approx(float(own.mean()), abs=1e-3)
            assert float(shown.std()) == pytest.approx(float(own.std()), rel=2e-3)
            other = latent[i - 1, channel][outside]
            assert torch.corrcoef(torch.stack([shown, other]))[0, 1] > 0.999
    assert torch.isfinite(denoiser.foreign_surroundings(latent, masked, torch.ones(3, 1, 8, 8))).all()


def test_a_pool_is_renewed_after_as_many_latents_whatever_the_batch():
    assert [denoiser.steps_between_renewals(batch) for batch in (128, 32, 10**6)] == [100, 400, 1]


@pytest.mark.slow
def test_speed_measures_and_lists_a_step():
    lines = speed.measure("small", 2, 1)
    assert "fast forms off by" in lines[0] and "ms" in lines[1] and "windows" in lines[2] and len(lines) > 10


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(tmp_path):
    log = run(SMOKE, tmp_path, ("vae", "decoder"), 0.0, smoke=True)
    assert log["vae"]["steps"] == 0 and "decoder" not in log and not (tmp_path / "vae_plain.safetensors").exists()
    log = run(SMOKE, tmp_path, ("vae",), 1e9, smoke=True)
    assert log["vae"]["steps"] == 4 and (tmp_path / "vae_plain.safetensors").exists()


TOGETHER = """
import torch
from moebius_lab.training import parallel
parallel.start()
torch.manual_seed(parallel.rank())
layer = torch.nn.BatchNorm1d(2)
torch.nn.init.normal_(layer.weight)
parallel.same_start(layer)
layer.running_mean.fill_(parallel.rank())
parallel.share_buffers(layer)
gradients = [torch.full((2, 2), float(parallel.rank())), torch.ones(3) * 2 * parallel.rank()]
parallel.average(gradients)
line = torch.nn.Linear(2, 1, bias=False)
parallel.same_start(line)
shared = parallel.together(line)
shared(torch.full((1, 2), float(parallel.rank()))).sum().backward()
value = parallel.agree(parallel.rank() + 5.0)
first, = parallel.mean([torch.tensor(float(parallel.rank()))])
said = [parallel.world(), layer.running_mean.tolist(), gradients[0].flatten().tolist(), gradients[1].tolist(), line.weight.grad.tolist(), value, first,
        round((layer.weight.sum() + line.weight.sum()).item(), 6)]
print(f"{said}\\n", end="", flush=True)  # in one piece, as both processes write to one stream
parallel.stop()
"""


@pytest.mark.slow
def test_two_processes_share_gradients_buffers_and_clock(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("[2"))
    assert len(lines) == 2 and lines[0] == lines[1], done.stderr[-2000:]
    assert json.loads(lines[0])[:-1] == [2, [0.5, 0.5], [0.5] * 4, [1.0] * 3, [[0.5, 0.5]], 5.0, 0.5]


def _rcc(content: bytes, packed: bool) -> bytes:
    """A Qt resource file of one folder `d` with one file `a.txt`."""

    def name(text):
        return struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")

    names = name("d") + name("a.txt")
    stored = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
    blob = struct.pack(">I", len(stored)) + stored
    tree = (
        struct.pack(">IHII", 0, 2, 1, 1)
        + struct.pack(">IHII", 0, 2, 1, 2)
        + struct.pack(">IHHHI", len(name("d")), int(packed), 0, 0, 0)
    )
    header = 20
    return (
        struct.pack(">4sIIII", b"qres", 1, header, header + len(tree), header + len(tree) + len(blob)) + tree + blob + names
    )


@pytest.mark.parametrize("packed", [False, True])
def test_qt_resource_files_are_read(packed):
    assert dict(data.read_rcc(_rcc(b"hello" * 9, packed))) == {"d/a.txt": b"hello" * 9}
    with pytest.raises(ValueError, match="not a Qt resource"):
        list(data.read_rcc(b"nope" * 9))


def test_licences_are_read_and_missing_ones_refused():
    entries = data.parse_debian_copyright(
        "Format: x\n\nFiles: *.jpg\nCopyright: A\nLicense: GPL-2+\n\nFiles: b/c.jpg\n d.jpg\nCopyright: B\nLicense: CC0-1.0\n text\n"
    )
    assert data.look_up(entries, "z/a.jpg") == ("A", "GPL-2+")
    assert data.look_up(entries, "b/c.jpg") == ("B", "CC0-1.0")
    with pytest.raises(KeyError):
        data.look_up(entries, "a.png")
    assert data.parse_gcompris_readme("Copyright: C\nLicense: Public Domain\nFiles:\nx.webp\n\nother\n") == {
        "x.webp": ("C", "Public domain")
    }
    readme = "Copyright: C\nLicense: CC-BY-SA 4.0\ny.webp\nComment: based on a photo by D, license CC-BY 2.0, source\n\n"
    painted = (
        "Copyright: C\nLicense: Public domain\nz.webp\nComment: based on an original painting by E, Public domain image.\n"
    )
    assert data.parse_gcompris_readme(readme + painted) == {"y.webp": ("C; based on a photo by D", "CC-BY-SA 4.0")}


def test_statements_of_licences_in_prose_are_read_and_their_absence_refused():
    krank, lxqt = (data.STATED[package][1] for package in ("krank", "lxqt-themes"))
    assert data.parse_statement("Author of new images: A B\n\tLicense: Public Domain\n", krank) == ("A B", "Public Domain")
    text = "Copyright 2022: T\nLicensed under https://creativecommons.org/licenses/by-sa/3.0/\n\nCredits:\n"
    assert data.parse_statement(text, lxqt) == ("2022: T", "CC-BY-SA-3.0")
    with pytest.raises(KeyError):
        data.parse_statement("All rights reserved.", lxqt)
    images = "License: CC0 address\nA tree.\na.webp\nb.webp\nsource\n\nc.webp - source c\n"
    assert data.parse_wordpress_readme(f"d.webp\n=== Images ===\n\n{images}") == {
        "a.webp": "A tree.; source",
        "b.webp": "A tree.; source",
        "c.webp": "source c",
    }
    with pytest.raises(KeyError):
        data.parse_wordpress_readme("=== Images ===\nLicense: GPLv2\na.webp\n")


def test_every_package_has_a_reader_and_chosen_pictures_name_their_licence(tmp_path, monkeypatch):
    assert set(data.PACKAGES) == set(data._READERS)
    monkeypatch.setattr(data, "PACKAGES", ("forensics-samples-files",))
    folder = tmp_path / "forensics-samples-files"
    pictures_folder = folder / "usr/share/forensics-samples/original-files/pic1"
    documents = folder / "usr/share/doc/forensics-samples-files"
    for made in (pictures_folder, documents):
        made.mkdir(parents=True)
    (documents / "copyright").write_text(
        "Files: *\nCopyright: A\nLicense: MIT\n\nFiles: original-files/*\nCopyright: B\nLicense: CC-BY-SA-4.0\n",
        encoding="utf-8",
    )
    for name, side in (("IMG_1.jpg", 400), ("IMG_2.jpg", 300), ("IMG_20200124_1.jpg", 400), ("logo.jpg", 400)):
        Image.fromarray(_picture(side, side, 90)).save(pictures_folder / name)
    (source,) = [source for source, _ in data.pictures(tmp_path)]  # others are small, left out or not chosen
    assert source == data.Source("forensics-samples-files", "pic1/IMG_1.jpg", "CC-BY-SA-4.0", "B", "train", "photograph")


def test_a_later_suite_comes_from_the_systems_own_mirror(tmp_path, monkeypatch):
    calls = []

    def run(words, **settings):
        calls.append(words)
        if "download" in words:
            (settings["cwd"] / f"{words[-1]}_1_all.deb").touch()
        return SimpleNamespace(stdout="mirror/debian/\nmirror/other/\n" if "indextargets" in words else "")

    monkeypatch.setattr(data.subprocess, "run", run)
    monkeypatch.setattr(data, "PACKAGES", ("a", "b/later", "c/later"))
    data.fetch_packages(tmp_path)
    verbs = [next(word for word in words if word in ("download", "-x", "indextargets", "update")) for words in calls]
    assert verbs == ["download", "-x", "indextargets", "update"] + ["download", "-x"] * 2
    assert calls[0] == ["apt-get", "-q", "download", "a"] and calls[5][-1] == "b@later"
    assert (tmp_path / "apt/later/sources.list").read_text(encoding="utf-8").split()[2:] == [
        "mirror/debian/",
        "later",
        "main",
    ]
    assert f"Dir::State::lists={tmp_path}/apt/later/lists" in calls[4]  # the system's own lists stay as they are
    monkeypatch.setattr(data.subprocess, "run", lambda words, **settings: SimpleNamespace(stdout=""))
    with pytest.raises(ValueError, match="apt-get update"):
        data.suite_options(tmp_path / "other", "later")


def test_the_largest_jpeg_of_a_theme_is_found():
    def jpeg(side):
        buffer = io.BytesIO()
        Image.fromarray(_picture(side, side, 60)).save(buffer, "JPEG")
        return buffer.getvalue()

    theme = b"header" + jpeg(20) + b"\xff\xd8\xff no picture" + jpeg(48) + b"between" + jpeg(32)
    assert Image.open(io.BytesIO(data.largest_jpeg(theme))).size == (48, 48)
    with pytest.raises(ValueError, match="no JPEG"):
        data.largest_jpeg(b"nothing here")


def test_an_album_keeps_what_is_trained_on_and_lays_the_rest_aside(tmp_path, monkeypatch):
    sources = [
        (data.Source("p", "a.jpg", "CC0-1.0", "A", "train", "photograph"), _picture(1500, 2200, 40)),
        (data.Source("p", "b.dds", "CC0-1.0", "A", "train", "texture"), _picture(300, 300, 200)),
        (data.Source("p", "d/c.png.cached.dds", "CC0-1.0", "A", "held-out", "photograph"), _picture(1200, 1800, 99)),
    ]
    monkeypatch.setattr(data, "pictures", lambda folder: iter(sources))
    assert data.make_album(tmp_path, tmp_path / "album.zip") == [source for source, _ in sources]
    (kind, large), (other, small) = data.read_album(tmp_path / "album.zip")
    assert (
        (kind, other) == ("photograph", "texture")
        and min(large.shape[:2]) == data.MOST_SIDE["photograph"]
        and small.shape == (300, 300, 3)
    )
    assert abs(int(large[5, 5, 2]) - 40) < 6
    assert max(Image.open(tmp_path / "held_out" / "c.png").size) == 1024


def test_held_out_windows_repeat_and_have_a_hole(tmp_path):
    Image.fromarray(_picture(500, 700, 80)).save(tmp_path / "x.png")
    Image.fromarray(_picture(300, 280, 20)).save(tmp_path / "y.png")
    data.make_windows(tmp_path, tmp_path / "one", ["x", "y"])
    data.make_windows(tmp_path, tmp_path / "two", ["y"])
    assert (tmp_path / "one" / "y.webp").read_bytes() == (tmp_path / "two" / "y.webp").read_bytes()
    mask = np.asarray(Image.open(tmp_path / "one" / "x_mask.png"))
    assert Image.open(tmp_path / "one" / "x.webp").size == mask.shape == (256, 256)
    assert data.WINDOW_AREAS[0] <= (mask > 0).mean() <= data.WINDOW_AREAS[1]


def test_record_of_sources_names_licences_and_keeps_held_out_files_apart():
    sources = json.loads(data.SOURCES_FILE.read_text(encoding="utf-8"))
    held_out = [s for s in sources if s["use"] == "held-out"]
    assert len(held_out) == len(data.HELD_OUT) >= 32
    assert sum(s["kind"] == "photograph" for s in sources if s["use"] == "train") > 350
    assert all(s["licence"] for s in sources)
    assert not {s["file"] for s in held_out} & {s["file"] for s in sources if s["use"] == "train"}


@pytest.mark.slow
def test_smoke_recipe_runs_and_resumes(tmp_path):
    log = run(SMOKE, tmp_path, STAGES, 1e9, smoke=True)
    assert [log[part]["steps"] for part in ("vae", "denoiser", "decoder")] == [4, 6, 4]
    plain, final = load_weights(tmp_path / "vae_plain.safetensors"), load_weights(tmp_path / "vae.safetensors")
    changed = {name for name, before in plain.items() if not torch.equal(before, final[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    first = load_file(tmp_path / "denoiser.safetensors")
    assert list(first) and all(torch.isfinite(v.float()).all() for v in first.values())
    again = run(SMOKE, tmp_path, STAGES, 1e9, smoke=True)  # nothing left to do
    assert again["denoiser"]["curve"] == log["denoiser"]["curve"]
    further = replace(SMOKE, denoiser_steps=SMOKE.denoiser_steps + 2, denoiser_rate=1e-9)
    longer = run(further, tmp_path, ("denoiser",), 1e9, smoke=True)
    assert longer["denoiser"]["steps"] == SMOKE.denoiser_steps + 2
    groups = torch.load(tmp_path / "denoiser.pt", weights_only=True)["optimizer"]["param_groups"]
    assert 0 < float(groups[0]["lr"]) < 1e-9  # behind its warm-up
    assert longer["denoiser"]["curve"][0] == log["denoiser"]["curve"][0]


def test_weights_alone_start_a_resumed_run(tmp_path):
    network = MoebiusNet(SMALL)
    file = tmp_path / "state.pt"
    torch.save({"network": network.state_dict(), "steps": 40, "log": {"steps": 40, "seconds": 1.0, "curve": []}}, file)
    trainer, log = denoiser.train_denoiser(
        SMALL, _pool(), file, seconds=1e9, stop_after=1e9, max_steps=42, batch=2, peak=0.0
    )
    assert log["steps"] == 42
    assert all(torch.equal(p, q) for p, q in zip(trainer.network.parameters(), network.parameters()))


def test_weights_alone_begin_a_new_plan(tmp_path):
    """Where the old plan's seconds were spent, training the shipped weights further ended before its first step."""
    file = tmp_path / "state.pt"
    torch.save(
        {"network": MoebiusNet(SMALL).state_dict(), "steps": 40, "log": {"steps": 40, "seconds": 1440.0, "curve": []}}, file
    )
    trainer, log = denoiser.train_denoiser(SMALL, _pool(), file, seconds=1440, stop_after=1e9, max_steps=42, batch=2)
    assert log["steps"] == 42 and log["seconds"] > 1440
    assert trainer.rate.item() < 0.05 * denoiser.PEAK_LR  # warming up again
    state = torch.load(file, weights_only=True)
    assert state["since"] == 40 and state["plan_began"] == 1440


def test_a_decoder_is_trained_further_from_its_log_alone(tmp_path):
    vae, file = make_vae(SMALL), tmp_path / "decoder.pt"
    torch.save({"log": {"steps": 40, "seconds": 480.0, "curve": [[40, 0.1, 0.2]]}}, file)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    average, log = decoder.train_decoder(
        vae, smoke_album(CPU, 64), pictures, file, seconds=480, stop_after=1e9, max_steps=2, batch=1
    )
    assert log["steps"] == 42 and log["seconds"] > 480 and log["curve"][0] == [40, 0.1, 0.2]
    assert not all(torch.equal(a, b) for a, b in zip(average, decoder.decoder_parameters(vae)))
    again = decoder.train_decoder(
        vae, smoke_album(CPU, 64), pictures, file, seconds=480, stop_after=1e9, max_steps=2, batch=1
    )[1]
    assert again["steps"] == 42  # the new plan is done


def test_shipped_weights_start_unshifted_and_their_encoder_encodes(tmp_path):
    start_from_shipped(tmp_path, ("denoiser",))
    kernels = torch.load(tmp_path / "denoiser.pt", weights_only=True)["network"][denoiser.FIRST_KERNELS]
    assert torch.equal(kernels, denoiser.unshifted(kernels))
    assert load_file(tmp_path / "vae_plain.safetensors").keys() == make_vae(DEMO).state_dict().keys()
    (tmp_path / "all").mkdir()
    start_from_shipped(tmp_path / "all", STAGES)
    assert not (tmp_path / "all" / "vae_plain.safetensors").exists()  # the vae stage makes it


def test_an_unfinished_training_goes_before_the_shipped_weights(tmp_path):
    (tmp_path / "left").mkdir()
    vae = make_vae(DEMO)
    save_half(vae, tmp_path / "left" / "vae.safetensors")
    start_from_shipped(tmp_path, ("denoiser",), tmp_path / "left")
    for name in ("vae_plain", "vae"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (tmp_path / "left" / "vae.safetensors").read_bytes()
    shipped = load_weights(DEMO_FOLDER / "denoiser.safetensors")
    started = torch.load(tmp_path / "denoiser.pt", weights_only=True)["network"]
    assert all(torch.equal(started[k], shipped[k]) for k in shipped if k != denoiser.FIRST_KERNELS)
