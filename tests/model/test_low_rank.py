"""Low-rank differences: what they change, how large they are, and weights that consist of one."""

import shutil

import huggingface_hub.constants
import pytest
import torch
from differences import difference_for, shapes_of
from safetensors.torch import load_file, save_file

from moebius_lab import LabError
from moebius_lab.config import DEMO, DETERMINISTIC, DISTILLED, FASTEST, MOEBIUS, PRESETS, SMALL, TINY
from moebius_lab.files import file_sha256
from moebius_lab.inpainting.loop import preset
from moebius_lab.model import low_rank
from moebius_lab.model.checkpoint import (
    SHIPPED,
    deterministic_weights,
    find_weights,
    load_checkpoint,
    load_vae,
    presets_of,
)
from moebius_lab.model.low_rank import (
    DIFFERENCE,
    Difference,
    largest_rank,
    matrices,
    merged,
    of_rank,
    read_difference,
    write_difference,
)
from moebius_lab.model.unet import MoebiusNet


@pytest.mark.parametrize("config", [MOEBIUS, DEMO], ids=lambda config: config.name)
def test_a_difference_of_the_published_size_fits_into_four_megabytes(config):
    shapes = shapes_of(config)
    rank = largest_rank(shapes, 3.9e6)

    def size(rank: int) -> int:
        return 2 * rank * sum(n + m for n, m in of_rank(shapes, rank).values())

    assert rank >= 2 and size(rank) <= 3.9e6 < size(rank + 1)
    assert len(of_rank(shapes, rank)) > 80
    assert not [name for name in matrices(shapes) if name.startswith("embedding_layer")]
    with pytest.raises(LabError, match="no difference fits into 0.0 MB"):
        largest_rank(shapes, 100)


def test_it_is_added_to_each_weight_and_types_stay(tmp_path):
    difference = difference_for(TINY)
    write_difference(tmp_path / DIFFERENCE, difference)
    read = read_difference(tmp_path / DIFFERENCE)
    assert {name: getattr(read, name) for name in low_rank.FACTS} == {
        name: getattr(difference, name) for name in low_rank.FACTS
    }
    state = deterministic_weights(MoebiusNet(TINY)) | {}
    name = next(iter(read.factors))
    state[name] = state[name].half()
    result = merged(state, read)
    assert result[name].dtype == torch.float16 and result.keys() == state.keys()
    for key, weight in state.items():
        if key not in read.factors:
            assert result[key] is weight
            continue
        up, down = (factor.half().float() for factor in difference.factors[key])
        expected = weight.float() + torch.einsum("nr,rm->nm", up, down).reshape(weight.shape)
        torch.testing.assert_close(
            result[key].float(), expected, atol=1e-5 if weight.dtype == torch.float32 else 1e-2, rtol=1e-5
        )
    with pytest.raises(LabError, match="do not have in that shape"):
        merged(deterministic_weights(MoebiusNet(SMALL)), read)


@pytest.fixture
def merged_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "moebius-lab" / "merged"


def test_a_folder_with_a_difference_is_a_set_of_weights(tmp_path, merged_folder):
    difference, folder = difference_for(TINY), tmp_path / "distilled"
    folder.mkdir()
    write_difference(folder / DIFFERENCE, difference)
    path = find_weights(str(folder), "denoiser", TINY)
    [kept] = merged_folder.iterdir()
    assert path == kept
    network, base = load_checkpoint(path, TINY), load_checkpoint(DETERMINISTIC, TINY)
    expected = merged(base.state_dict(), read_difference(folder / DIFFERENCE))
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert find_weights(str(folder), "vae", TINY) == DETERMINISTIC
    load_vae(find_weights(str(folder), "vae", TINY), TINY)

    before = kept.stat().st_mtime_ns
    assert find_weights(str(folder), "denoiser", TINY) == kept and kept.stat().st_mtime_ns == before
    difference.factors[next(iter(difference.factors))][0].mul_(2)
    write_difference(folder / DIFFERENCE, difference)
    assert find_weights(str(folder), "denoiser", TINY) != kept, "another difference, another network"


def test_a_difference_of_weights_in_files_belongs_to_those_files(tmp_path, merged_folder):
    base, folder = tmp_path / "base", tmp_path / "distilled"
    base.mkdir()
    folder.mkdir()
    state = {name: x.half() if x.is_floating_point() else x for name, x in deterministic_weights(MoebiusNet(TINY)).items()}
    save_file(state, base / "denoiser.safetensors")
    digest = file_sha256(base / "denoiser.safetensors")
    write_difference(folder / DIFFERENCE, difference_for(TINY, weights=str(base), sha256=digest))
    found = load_file(find_weights(str(folder), "denoiser", TINY))
    assert all(found[name].dtype == state[name].dtype for name in state)
    assert find_weights(str(folder), "vae", TINY) == base / "vae.safetensors"

    first = next(name for name in state if state[name].is_floating_point())
    save_file(state | {first: state[first] + 1}, base / "denoiser.safetensors")
    with pytest.raises(LabError, match="made for other .* weights"):
        find_weights(str(folder), "denoiser", TINY)
    shutil.rmtree(base)
    with pytest.raises(LabError, match="made for other .* weights"):
        find_weights(str(folder), "denoiser", TINY)


def test_distilled_weights_have_one_preset(tmp_path):
    write_difference(tmp_path / DIFFERENCE, difference_for(TINY, steps=3))
    (name, entry), *others = presets_of(str(tmp_path)).items()
    assert (name, others) == (FASTEST, []) and "3 evaluations" in entry.note
    settings = preset(name, presets_of(str(tmp_path)), seed=5)
    assert (settings.solver, settings.steps, settings.init, settings.seed) == ("ddim-trailing", 3, "noise", 5)
    assert settings.evaluations() == 3
    with pytest.raises(LabError, match="for these weights; choose one of fastest"):
        preset("fast", presets_of(str(tmp_path)))
    for weights in ("demo", DETERMINISTIC, "places2", str(tmp_path / "plain")):
        assert presets_of(weights) == PRESETS


@pytest.mark.parametrize("weights", DISTILLED.values())
def test_shipped_differences_belong_to_the_shipped_weights(weights, merged_folder):
    """Whoever trains those further has to distil them again."""
    folder = SHIPPED[weights]
    base = next(name for name, distilled in DISTILLED.items() if distilled == weights)
    difference = read_difference(folder / DIFFERENCE)
    assert difference.weights == base and difference.network == DEMO.name
    assert (folder / DIFFERENCE).stat().st_size < 4e6
    whole, plain = (load_checkpoint(name, DEMO).state_dict() for name in (weights, base))
    changed = {name for name, tensor in whole.items() if not torch.equal(tensor, plain[name])}
    assert changed == set(difference.factors)


def test_differences_from_each_other_are_told(tmp_path):
    """Each names the other as what it is added to, or itself: there are no weights at the bottom."""
    one, other, alone = (tmp_path / name for name in ("one", "other", "alone"))
    for folder, base in ((one, other), (other, one), (alone, alone)):
        folder.mkdir()
        write_difference(folder / DIFFERENCE, difference_for(TINY, weights=str(base)))
    for folder in (one, other, alone):
        for part in ("denoiser", "vae"):
            with pytest.raises(LabError, match="difference from themselves.*output folder that holds no weights"):
                find_weights(str(folder), part, TINY)


def test_what_is_no_difference_is_told(tmp_path, merged_folder):
    path = tmp_path / DIFFERENCE
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(LabError, match="damaged difference"):
        read_difference(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(LabError, match="not a difference that"):
        read_difference(path)
    whole = difference_for(TINY)
    name, (up, down) = next(iter(whole.factors.items()))
    for factors, words in (((up, down[:1]), "do not go together"), ((up / 0, down), "not finite")):
        write_difference(path, Difference(**{f: getattr(whole, f) for f in low_rank.FACTS}, factors={name: factors}))
        with pytest.raises(LabError, match=words):
            read_difference(path)
    write_difference(path, difference_for(TINY, steps=0))
    with pytest.raises(LabError, match="not a difference that"):
        read_difference(path)
    write_difference(path, whole)
    with pytest.raises(LabError, match="belongs to the tiny network, not to small"):
        find_weights(str(tmp_path), "denoiser", SMALL)
