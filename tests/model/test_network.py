import json
import shutil

import pytest
import torch
from conftest import DATA
from torch import nn

from moebius_lab import LabError
from moebius_lab.config import DEMO, MOEBIUS, SMALL
from moebius_lab.evidence.inventory import network_inventory
from moebius_lab.evidence.reference import verify_reference
from moebius_lab.model.lambda_layer import SelfLambda
from moebius_lab.model.unet import MoebiusNet
from moebius_lab.port.export import SelfLambda2d


@pytest.mark.slow
def test_all_reference_files_hold_the_full_size_network_included():
    checks = verify_reference(DATA)
    assert {check.name.split(":")[0] for check in checks} == {
        "small_state_dict.json", "moebius_state_dict.json", "unet_small.npz", "unet_moebius.npz", "pipeline_small.npz",
    }  # fmt: skip
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]


def test_other_weights_do_not_pass(tmp_path):
    shutil.copy(DATA / "unet_small.npz", tmp_path)
    assert not verify_reference(tmp_path, salt="x")[-1].ok


def test_other_keys_do_not_pass(tmp_path):
    keys = json.loads((DATA / "small_state_dict.json").read_text(encoding="utf-8"))
    keys["extra.weight"] = keys.pop("embedding_layer.weight")
    (tmp_path / "small_state_dict.json").write_text(json.dumps(keys), encoding="utf-8")
    [check] = verify_reference(tmp_path)
    assert not check.ok and check.max_difference == 2


@pytest.mark.parametrize("broken", ["missing", "empty", "damaged"])
def test_bad_reference_folders_are_named(tmp_path, broken):
    folder = tmp_path / "reference"
    if broken != "missing":
        folder.mkdir()
    if broken == "damaged":
        (folder / "unet_small.npz").write_bytes(b"PK not a zip")
    with pytest.raises(LabError, match=str(folder)):
        verify_reference(folder)


def test_sizes_of_the_networks():
    with torch.device("meta"):
        sizes = {c.name: sum(p.numel() for p in MoebiusNet(c).parameters()) for c in (MOEBIUS, DEMO, SMALL)}
    assert sizes["moebius"] == 226_041_531
    assert sizes["demo"] == 9_410_619


def test_a_latent_of_another_size_is_refused():
    net = MoebiusNet(SMALL)
    with pytest.raises(ValueError, match="tied to 128 px"):
        net(torch.zeros(1, 9, 32, 32), torch.zeros(1), torch.zeros(1, 10, dtype=torch.int64))


def test_the_position_term_in_two_dimensions_is_the_published_one():
    torch.manual_seed(0)
    layer = SelfLambda(32, heads=8, window=15)
    for norm in (layer.norm_q, layer.norm_v):
        nn.init.normal_(norm.running_mean, std=0.1)
    x = torch.randn(2, 32, 12, 12)
    with torch.no_grad():
        published = layer.eval()(x)
        layer.__class__ = SelfLambda2d
        torch.testing.assert_close(layer(x), published, rtol=0, atol=1e-6)


def test_inventory_of_the_published_network():
    table, operators = network_inventory(MOEBIUS)
    assert table.parameters.sum() == 226_041_531
    assert table.GFLOP.sum() == pytest.approx(632, abs=1)  # measured on the release
    assert (table.GFLOP > 0).all()
    assert operators["convolution"] > 200
