import os
import pickle
import re
import struct

import pytest
import torch
from safetensors.torch import save_file

from moebius_lab import LabError
from moebius_lab.config import DEMO, MOEBIUS, SMALL, TINY
from moebius_lab.model.checkpoint import (
    CheckpointError,
    check_weights,
    deterministic_weights,
    load_checkpoint,
    load_vae,
    read_state_dict,
)
from moebius_lab.model.unet import MoebiusNet


@pytest.fixture(scope="module")
def state():
    return deterministic_weights(MoebiusNet(SMALL))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_checkpoint_of_half_precision_loads_from_either_format(tmp_path, state, ending):
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    path = tmp_path / f"weights.{ending}"
    save_file(half, path) if ending == "safetensors" else torch.save(half, path)
    assert {value.dtype for value in read_state_dict(path).values()} == {torch.float16, torch.int64}
    net = load_checkpoint(path, SMALL)
    weight = net.diff_model.time_embedding.linear_1.weight
    assert weight.dtype == torch.float32 and not net.training
    assert torch.equal(weight, half["diff_model.time_embedding.linear_1.weight"].float())


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 904166124\n"
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "a pointer of Git LFS.*git lfs pull"),
        (PAGE, "a web page.*log in"),
        (b'{"error": "Repository not found"}', "JSON text, .*what the server said"),
        (b"", "an incomplete or damaged .*download it again"),
        (struct.pack("<Q", 1 << 62) + b"{}", "an incomplete or damaged|its content is a safetensors file"),
    ],
)
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path, ending, content, words):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: {words}") as error:
        load_checkpoint(path, SMALL)
    assert "\n" not in str(error.value) and "run code" not in str(error.value)


def test_a_file_under_the_other_kind_s_ending_is_told_so(tmp_path, state):
    torch.save(state, tmp_path / "x.safetensors")
    save_file(state, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="its content is a torch.save file; give it the ending .bin"):
        read_state_dict(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="its content is a safetensors file; give it the ending .safetensors"):
        read_state_dict(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.to(torch.float8_e4m3fn), "another type than .*float8_e4m3fn.*before they were quantized"),
        (lambda value: value.int(), "another type than .*int32"),
        (lambda value: value.to(torch.complex64), "another type than .*complex64"),
        (lambda value: value > 0, "another type than .*bool"),
        (lambda value: value.to_sparse(), "are sparse.*to_dense"),
        (lambda value: value.to("meta"), "have a shape but no numbers"),
    ],
)
def test_numbers_that_no_weight_can_have_are_refused(tmp_path, state, change, words):
    path = tmp_path / "x.bin"
    torch.save({name: change(value) if value.is_floating_point() else value for name, value in state.items()}, path)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: \d+ entries .*{words}"):
        load_checkpoint(path, SMALL)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_types_that_weights_are_published_in_load(tmp_path, state, kind):
    torch.save(
        {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}, tmp_path / "x.bin"
    )
    weight = load_checkpoint(tmp_path / "x.bin", SMALL).embedding_layer.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, state["embedding_layer.weight"].to(kind).float())


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda state: dict(enumerate(state.values())), "have no names other than 0"),
        (lambda state: {"epoch": 3, "state_dict": state}, "save its entry 'state_dict' alone"),
        (
            lambda state: {"module." + name: value for name, value in state.items()},
            "each name has an extra 'module.' in front",
        ),
        (
            lambda state: {"_orig_mod." + name: value for name, value in state.items()},
            "each name has an extra '_orig_mod.' in front",
        ),
    ],
)
def test_the_right_tensors_under_other_names_say_what_to_save(tmp_path, state, wrap, words):
    torch.save(wrap(state), tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=words) as error:
        load_checkpoint(tmp_path / "x.bin", SMALL)
    assert str(error.value).startswith(f"{tmp_path / 'x.bin'}: ") and "\n" not in str(error.value)


def test_the_salt_changes_every_number():
    net = MoebiusNet(SMALL)
    plain, salted = deterministic_weights(net), deterministic_weights(net, "salt:")
    assert not any(torch.equal(plain[k], salted[k]) for k in plain if not k.endswith("num_batches_tracked"))


def test_keys_are_strict_and_the_report_names_them(tmp_path, state):
    changed = dict(state)
    changed["surplus.weight"] = changed.pop("diff_model.conv_norm_out.weight")
    changed["diff_model.conv_norm_out.bias"] = torch.zeros(7)
    save_file(changed, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "x.safetensors", SMALL)
    for words in ("1 missing", "conv_norm_out.weight", "1 unexpected", "surplus.weight", "1 misshapen", "(7,)"):
        assert words in str(error.value)


def test_a_checkpoint_of_another_width_is_refused(tmp_path, state):
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="misshapen"):
        load_checkpoint(tmp_path / "x.safetensors", DEMO)
    with pytest.raises(CheckpointError, match="missing"):
        load_vae(tmp_path / "x.safetensors", SMALL)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("keep", [0, 5, 1000, 0.5])
def test_a_truncated_file_is_refused(tmp_path, state, ending, keep):
    path = tmp_path / f"x.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="an incomplete or damaged") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    for path, write in ((tmp_path / "a.bin", torch.save), (tmp_path / "b.bin", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"weight": Malicious()}, path)
        with pytest.raises(CheckpointError, match="refused|an incomplete or damaged"):
            read_state_dict(path)
    assert not marker.exists()


def test_a_pickle_of_something_else_is_refused(tmp_path):
    torch.save([1, 2, 3], tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        read_state_dict(tmp_path / "x.bin")


def test_numbers_that_are_not_finite_are_refused(tmp_path, state):
    save_file(state | {"embedding_layer.weight": torch.full((20, 64), float("inf"))}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not finite.*embedding_layer"):
        load_checkpoint(tmp_path / "x.safetensors", SMALL)


def test_names_and_paths_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none.bin", SMALL)
    with pytest.raises(LabError, match='neither "demo", "demo-fast", "deterministic", .*"places2".* nor a folder'):
        check_weights("places", MOEBIUS)


@pytest.mark.parametrize(
    ("weights", "config"), [("demo", SMALL), ("demo-fast", TINY), ("places2", DEMO), ("pretrained", SMALL)]
)
def test_weights_of_another_network_are_refused(weights, config):
    with pytest.raises(LabError, match=f"the {weights} weights belong to the .* network, not to {config.name}"):
        check_weights(weights, config)


def test_a_lora_is_called_one(tmp_path):
    save_file({"down_blocks.0.to_q.lora_A.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="a LoRA"):
        load_checkpoint(tmp_path / "x.safetensors", SMALL)
