from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moebius_lab.config import (
    CONDITIONAL_IDS,
    DEMO,
    FLOAT16,
    MOEBIUS,
    PRECISIONS,
    RUNS,
    SMALL,
    STEP_UNGUIDED,
    UNCONDITIONAL_IDS,
)
from moebius_lab.inpainting.backends import step_feeds
from moebius_lab.model.checkpoint import deterministic_weights
from moebius_lab.model.lambda_layer import CrossLambda, SelfLambda
from moebius_lab.model.sampler import ddim_scheduler, solver_steps
from moebius_lab.model.unet import Downsample, MixFFN, MoebiusNet, SeparableConv, Upsample, sinusoid
from moebius_lab.port import denoiser as graph
from moebius_lab.port import passes
from moebius_lab.port.export import example_inputs
from moebius_lab.port.sessions import open_session, session_options

DATA = Path(__file__).parents[1] / "data"
IDS = torch.tensor([UNCONDITIONAL_IDS, CONDITIONAL_IDS])
BOTH = torch.tensor([0.0, 1.0])


def filled(module: nn.Module) -> nn.Module:
    module.load_state_dict(deterministic_weights(module))
    return module.eval().requires_grad_(False)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_same(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < tolerance


@pytest.fixture(scope="module")
def net() -> MoebiusNet:
    return filled(MoebiusNet(SMALL))


def test_batchnorm_folds_into_a_matrix_and_into_a_kernel():
    conv, norm = filled(nn.Conv2d(6, 4, 3, bias=False)), filled(nn.BatchNorm2d(4))
    x = normal(2, 6, 5, 5)
    assert_same(F.conv2d(x, *graph.fold_batchnorm(conv.weight, norm)), norm(conv(x)), 1e-6)
    linear, norm = filled(nn.Linear(6, 4, bias=False)), filled(nn.BatchNorm1d(4))
    x = normal(9, 6)
    assert_same(F.linear(x, *graph.fold_batchnorm(linear.weight, norm)), norm(linear(x)), 1e-6)


def test_the_affine_part_of_a_group_norm_goes_into_the_matrix_after_it():
    norm, conv = filled(nn.GroupNorm(4, 12, eps=1e-6)), filled(nn.Conv2d(12, 5, 1))
    x = 3 * normal(2, 12, 6, 6) + 1
    weight, bias = graph.fold_input_affine(conv, norm)
    y = F.conv2d(graph.group_normalize(x, 4, 1e-6), weight[:, :, None, None], bias)
    assert_same(y, conv(norm(x)))


def test_group_norm_with_silu():
    norm = filled(nn.GroupNorm(4, 12, eps=1e-5))
    x = 3 * normal(2, 12, 6, 6) + 1
    assert_same(graph.GroupNormSiLU(norm)(x), F.silu(norm(x)))


@pytest.mark.parametrize("widths", [(8, 8), (8, 6)])
def test_separable_convolution(widths):
    conv = filled(SeparableConv(*widths))
    folded = graph.FoldedSeparableConv(conv)
    x = normal(2, 8, 6, 6)
    assert_same(folded(x, folded.bias), conv(x), 5e-6)
    added = normal(widths[1])
    assert_same(folded(x, folded.bias + added), conv(x) + added[:, None, None], 5e-6)


@pytest.mark.parametrize("side", [4, 16])
def test_tokens_are_a_reordered_picture(side):
    picture = normal(2, 3, side, side)
    tokens = graph.to_tokens(picture)
    assert torch.equal(graph.to_picture(tokens, side), picture)
    assert torch.equal(tokens, picture.flatten(2).transpose(1, 2)[:, graph.token_cells(side)])


@pytest.mark.parametrize(("side", "window"), [(4, 15), (8, 15), (32, 15), (12, 3)])
def test_self_lambda_as_scores_of_tiles(side, window):
    layer = filled(SelfLambda(48, 8, window))
    x = normal(2, 48, side, side)
    y = graph.to_picture(graph.TiledSelfLambda(layer, side)(graph.to_tokens(x), torch.zeros(2)), side)
    assert_same(y, layer(x), 3e-5)


def test_a_query_reads_no_key_outside_its_window():
    layer = graph.TiledSelfLambda(filled(SelfLambda(16, 8, 3)), 16)
    q, values = torch.ones(1, 256, 16), torch.zeros(1, 256 + 2 + 2, 2)
    cells = graph.token_cells(16)
    values[0, (cells == 5 * 16 + 5).nonzero().item()] = 1.0  # one key, at row 5, column 5
    reached = graph.to_picture(layer.apply_scores(q, values), 16).abs().sum((0, 1)) > 0
    assert reached.nonzero().tolist() == [[y, x] for y in (4, 5, 6) for x in (4, 5, 6)]


def test_self_lambda_refuses_a_grid_that_tiles_do_not_divide():
    with pytest.raises(ValueError, match="does not divide a grid of side 6"):
        graph.TiledSelfLambda(SelfLambda(16, 8, 15).eval(), 6)


def test_cross_lambda_as_attention_over_ten_keys():
    layer, context = filled(CrossLambda(48, 8, 20, tokens=10, positions=64)), normal(2, 10, 20)
    x = normal(2, 48, 8, 8)
    with torch.no_grad():
        attention = graph.ConditionAttention(layer, context)
    both = torch.tensor([0, 1])
    assert_same(graph.to_picture(attention(graph.to_tokens(x), both), 8), layer(x, context), 1e-5)
    shared = x[:1]  # a batch of one meets the rows that are chosen
    for rows in (both, both[1:], both[:1], both.flip(0)):
        expected = layer(shared.expand(len(rows), -1, -1, -1), context[rows])
        assert_same(graph.to_picture(attention(graph.to_tokens(shared), rows), 8), expected, 1e-5)


@pytest.mark.parametrize("positions", [1024, graph.LONG_SUM])
def test_content_lambda_in_parts(positions):
    k, v = normal(2, 6, positions).softmax(dim=-1), normal(2, positions, 6)
    assert_same(graph.content_lambda(k, v), torch.einsum("bkn,bnv->bkv", k, v), 1e-6)


def test_gate_and_value_of_the_feed_forward_made_apart():
    ffn = filled(MixFFN(12, 5))
    assert_same(graph.GatedHalves(ffn)(normal(2, 12, 6, 6)), ffn(normal(2, 12, 6, 6)), 5e-6)


def test_downsampling_as_a_gather_and_one_product():
    downsample = filled(Downsample(12))
    assert_same(
        graph.GatheredDownsample(downsample, 8)(normal(2, 12, 8, 8), torch.zeros(2)), downsample(normal(2, 12, 8, 8)), 5e-6
    )


def test_nearest_upsampling_and_convolution_as_nine_products():
    upsample = filled(Upsample(12))
    assert_same(graph.TapUpsample(upsample, 6)(normal(2, 12, 6, 6)), upsample(normal(2, 12, 6, 6)), 5e-6)


def test_sides_of_products_over_keys_are_multiples_of_what_a_gpu_reads_at_once(net):
    for block in (*graph.NoiseGraph(net).down,):
        for transformer in block["transformers"]:
            assert transformer.self_lambda.offsets.shape[1] % graph.LANES == 0
            assert transformer.condition.v.shape[1] % graph.LANES == 0


def test_time_biases_hold_embedding_projection_and_folded_norm(net):
    unet = net.diff_model
    blocks = [resnet for block in (*unet.down_blocks, *unet.up_blocks) for resnet in block.resnets]
    biases = graph.TimeBiases(unet.time_embedding, unet.time_dim, blocks)(torch.tensor([951.0]))
    time = F.silu(unet.time_embedding(sinusoid(torch.tensor([951]), unet.time_dim)))
    assert len(biases) == len(blocks) == 15
    for block, bias in zip(blocks, biases, strict=True):
        _, shift = graph.fold_batchnorm(block.conv1.conv_pw.weight, block.conv1.bn2)
        assert_same(bias, block.time_emb_proj(time)[0] + shift)


@pytest.mark.parametrize("config", [SMALL, DEMO], ids=lambda c: c.name)
def test_noise_graph_is_the_published_network(config):
    net, s = filled(MoebiusNet(config)), config.latent_size
    x, t = normal(1, 9, s, s), torch.tensor([450.0])
    expected = net(x.expand(2, -1, -1, -1), t.expand(2), IDS)
    noise_graph = graph.NoiseGraph(net)
    for conditions in (BOTH, BOTH[1:], BOTH[:1]):
        got = noise_graph(x[:, :4], x[:, 4:5], x[:, 5:], t, conditions)
        assert_same(got, expected[conditions.long()])


@pytest.mark.slow
def test_noise_graph_at_full_size_gives_the_release_s_numbers():
    with np.load(DATA / "unet_moebius.npz") as data:
        latent, ids, noise = (torch.from_numpy(data[k]) for k in ("latent", "input_ids", "noise"))
        timestep = torch.tensor([float(data["timesteps"][0])])
    noise_graph = graph.NoiseGraph(filled(MoebiusNet(MOEBIUS)))
    assert torch.equal(ids, IDS)
    for row in range(2):
        x = latent[row : row + 1]
        got = noise_graph(x[:, :4], x[:, 4:5], x[:, 5:], timestep, BOTH)[row]
        assert_same(got, noise[row])


def test_the_guided_halves_are_shared_until_the_condition_enters(net):
    noise_graph, batches = graph.NoiseGraph(net), {}
    first = noise_graph.down[0]["transformers"][0]
    for name, module in {"self": first.self_lambda, "condition": first.condition, "ffn": first.ffn}.items():
        module.register_forward_hook(lambda _, x, y, name=name: batches.update({name: (len(x[0]), len(y))}))
    for run, n in (("step", 2), (STEP_UNGUIDED, 1)):
        noise_graph(*noise_inputs(example_inputs(net.config)[run]))
        assert batches == {"self": (1, 1), "condition": (1, n), "ffn": (n, n)}


def noise_inputs(inputs: dict) -> list:
    """What a `NoiseGraph` takes of the step's inputs."""
    return [inputs["state"][:1], *(inputs[name] for name in ("mask", "masked_latents", "timestep", "conditions"))]


def test_step_graph_is_guidance_and_a_ddim_step_of_diffusers(net):
    state, mask, masked = normal(3, 4, 16, 16), normal(1, 1, 16, 16), normal(1, 4, 16, 16)
    scheduler = ddim_scheduler()
    scheduler.set_timesteps(20)
    steps = solver_steps("ddim", 20)
    for step in (steps[1], steps[-1]):
        inputs = step_feeds(state, mask, masked, step, 2.0)
        u, c = graph.NoiseGraph(net)(*noise_inputs(inputs))
        expected = scheduler.step(u + 2.0 * (c - u), step.timestep, state[:1], eta=0.0).prev_sample
        following, noise = graph.StepGraph(net)(*inputs.values())
        assert_same(following[:1], expected)
        assert torch.equal(noise, torch.stack([u, c]))
        unguided, alone = graph.StepGraph(net)(*step_feeds(state, mask, masked, step, 1.0).values())
        assert_same(alone[0], c)
        assert_same(unguided[:1], scheduler.step(c, step.timestep, state[:1], eta=0.0).prev_sample)


def test_a_network_in_training_mode_is_refused(net):
    with pytest.raises(ValueError, match="net.eval"):
        graph.NoiseGraph(MoebiusNet(SMALL))


@pytest.fixture(scope="module")
def step_file(small) -> Path:
    return small.stored()["step"]


def test_exported_step_graph_has_only_operators_that_stay_on_a_gpu(step_file):
    model = onnx.load(str(step_file))
    counts = Counter(node.op_type for node in model.graph.node)
    assert {(node.domain, node.op_type) for node in model.graph.node if node.domain} == {
        ("com.microsoft", "SkipLayerNormalization")
    }
    assert counts["SkipLayerNormalization"] == 29  # of 30: the first sum with the condition goes from a batch of one to two
    unwanted = {"Einsum", "Shape", "Sin", "Cos", "Mod", "Resize", "ConstantOfShape", "GroupNormalization", "Where", "Range"}
    assert not unwanted & set(counts)
    dims = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    assert all(dims.get(node.input[1], 4) == 4 for node in model.graph.node if node.op_type == "Conv")
    assert sum(counts.values()) - counts["Reshape"] < 930  # 1,302 nodes in the straightforward export
    dims = {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    fixed = {name: list(tensor.shape) for name, tensor in example_inputs(SMALL)["step"].items()}
    assert dims == fixed | {"conditions": ["n"], "noise_weights": [3, "n"]}


@pytest.mark.parametrize("form", [name for name, entry in PRECISIONS.items() if entry.arithmetic == FLOAT16])
def test_nothing_is_padded_in_16_bits(small, form):
    """Firefox's compiler of shaders refuses the program that ONNX Runtime writes for it."""
    for name, path in small.stored(form).items():
        assert "Pad" not in {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}, name


@pytest.mark.parametrize("form", ["fp32", "fp16"])
def test_on_the_processor_cells_are_gathered_and_no_number_changes(small, form):
    path = small.stored(form)["step"]  # fp16's states no shapes
    given = onnx.load(path, load_external_data=False)
    model = passes.gather_cells(given)
    before, after = (Counter(len(passes.transposed_axes(node)) for node in m.graph.node) for m in (given, model))
    assert before[6] == after[3] - before[3] == 45 and after[6] == 0
    assert passes.gather_cells(model) is model
    feeds = {name: x.numpy() for name, x in example_inputs(SMALL)["step"].items()}
    options = session_options()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # or it rounds to 16 bits elsewhere
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    given = onnx.load(path, load_external_data=False)
    runs = []
    for each in (given, model):
        session = onnxruntime.InferenceSession(each.SerializeToString(), options, providers=["CPUExecutionProvider"])
        runs.append(session.run(None, feeds))
    for got, wanted in zip(*runs, strict=True):
        assert np.array_equal(got, wanted)
    for run in RUNS:
        if RUNS[run] == "step":
            feeds = {name: x.numpy() for name, x in example_inputs(SMALL)[run].items()}
            assert all(np.isfinite(y).all() for y in open_session(path).run(None, feeds))
