import json
import os
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hub_server import REVISION, HubServer, unused_port
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from moebius_lab import LabError
from moebius_lab.config import MOEBIUS, SMALL
from moebius_lab.files import file_sha256
from moebius_lab.model.checkpoint import (
    CheckpointError,
    check_vae_config,
    deterministic_weights,
    find_weights,
    load_checkpoint,
    make_vae,
)
from moebius_lab.model.hub import PINNED, Hub, HubError, HubUnreachable
from moebius_lab.model.unet import MoebiusNet

PLACES = "ft_places2/diffusion_pytorch_model.bin"
NOTHING = {"revisions": {}, "files": {}}  # the small files are none that are pinned
DENOISER, VAE = "hustvl/Moebius", "hustvl/PixelHacker"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """SMALL's deterministic weights laid out, named and typed as the release's: denoiser in 32 bits, autoencoder in 16."""
    folder = tmp_path_factory.mktemp("published")

    def half(state):
        return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}

    torch.save(deterministic_weights(MoebiusNet(SMALL)), folder / "denoiser.bin")
    vae = make_vae(SMALL)
    torch.save(half(deterministic_weights(vae)), folder / "vae.bin")
    vae.save_config(folder)
    return folder


@pytest.fixture
def server(published):
    with HubServer() as hub:
        hub.state.files = {
            (DENOISER, PLACES): published / "denoiser.bin",
            (VAE, "vae/config.json"): published / "config.json",
            (VAE, "vae/diffusion_pytorch_model.bin"): published / "vae.bin",
        }
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    return Hub(tmp_path / "cache", server.url, NOTHING)


def denoiser(hub):
    return find_weights("places2", "denoiser", SMALL, hub)


def left_behind(hub):
    return {path.name for path in hub.folder.rglob("*") if path.is_file()} - {".lock", "lock.json"}


def test_published_weights_are_fetched_once_converted_once_and_keep_their_type(hub, server, published):
    path = denoiser(hub)
    stored, original = load_file(path), torch.load(published / "denoiser.bin", weights_only=True)
    assert {value.dtype for value in stored.values()} == {torch.float32, torch.int64}
    assert all(stored[name].dtype == original[name].dtype and torch.equal(stored[name], original[name]) for name in original)
    assert left_behind(hub) == {"denoiser.safetensors"}
    lock = json.loads((hub.folder / "lock.json").read_text(encoding="utf-8"))
    assert lock["revisions"] == {DENOISER: REVISION}
    assert lock["files"][f"{DENOISER}/{PLACES}"]["sha256"] == file_sha256(published / "denoiser.bin")

    asked = len(server.state.requests)
    assert denoiser(hub) == path and len(server.state.requests) == asked
    assert load_checkpoint(path, SMALL).diff_model.conv_norm_out.weight.dtype == torch.float32


@pytest.mark.parametrize("safetensors", [False, True])
def test_the_autoencoder_comes_from_either_format_and_its_configuration_is_checked(
    hub, server, published, tmp_path, safetensors
):
    state = torch.load(published / "vae.bin", weights_only=True)
    if safetensors:
        save_file(state, tmp_path / "vae.safetensors")
        server.state.files[VAE, "vae/diffusion_pytorch_model.safetensors"] = tmp_path / "vae.safetensors"
        del server.state.files[VAE, "vae/diffusion_pytorch_model.bin"]
    stored = load_file(find_weights("places2", "vae", SMALL, hub))
    assert all(torch.equal(stored[name], state[name]) for name in state) and stored.keys() == state.keys()
    assert left_behind(hub) == {"vae.safetensors", "config.json"}


def test_attention_layers_of_an_old_autoencoder_get_their_present_names(hub, server, published, tmp_path):
    state = torch.load(published / "vae.bin", weights_only=True)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in state.items():
        for new, previous in names.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{previous}.")
        old[key] = value
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.bin")
    server.state.files[VAE, "vae/diffusion_pytorch_model.bin"] = tmp_path / "old.bin"
    assert load_file(find_weights("places2", "vae", SMALL, hub)).keys() == state.keys()


@pytest.mark.parametrize(("entry", "value"), [("scaling_factor", 0.18215), ("block_out_channels", [16, 32, 32, 64])])
def test_another_autoencoder_is_refused(published, tmp_path, entry, value):
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    check_vae_config(published / "config.json", SMALL)
    (tmp_path / "config.json").write_text(json.dumps(config | {entry: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"not the autoencoder of the .*{entry}"):
        check_vae_config(tmp_path / "config.json", SMALL)
    del config["scaling_factor"]  # diffusers would then assume 0.18215
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="scaling_factor 0.18215 instead of 0.13025"):
        check_vae_config(tmp_path / "config.json", SMALL)
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not the configuration"):
        check_vae_config(tmp_path / "config.json", SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("reset", [False, True])
def test_a_dropped_connection_is_taken_up_where_it_broke_under_a_new_signed_address(hub, server, reset, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what the client writes at once: 10 MB otherwise
    server.state.drop_after, server.state.reset = [300_000, 200_000], reset
    denoiser(hub)
    ranges = [request["range"] for request in server.state.deliveries()]
    assert ranges[0] is None and len(ranges) == 3
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in ranges[1:]]
    assert (0 < starts[0] < starts[1] <= 500_000) if reset else starts == [300_000, 500_000]
    addresses = [request["path"] for request in server.state.deliveries()]
    assert len(set(addresses)) == 3


def test_a_download_is_taken_up_by_a_later_run(hub, server, published):
    size = (published / "denoiser.bin").stat().st_size
    partial = hub.folder / DENOISER / f"{PLACES}.{file_sha256(published / 'denoiser.bin')[:16]}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes((published / "denoiser.bin").read_bytes()[: size // 2])
    partial.with_name("diffusion_pytorch_model.bin.0123456789abcdef.incomplete").write_bytes(b"of another revision")
    denoiser(hub)
    assert [request["range"] for request in server.state.deliveries()] == [f"bytes={size // 2}-"]
    assert left_behind(hub) == {"denoiser.safetensors"}


def test_a_server_that_ignores_ranges_costs_a_download_but_no_correctness(hub, server):
    server.state.drop_after, server.state.no_ranges = [300_000], True
    assert denoiser(hub).is_file()


def test_an_expired_signature_is_renewed_once(hub, server):
    server.state.expired = 1
    assert denoiser(hub).is_file()
    assert [request["range"] for request in server.state.deliveries()] == [None, None]


def test_a_file_that_is_not_what_was_announced_is_not_kept(hub, server):
    server.state.corrupt = True
    with pytest.raises(HubError, match="not what .* announced"):
        denoiser(hub)
    assert left_behind(hub) == set()
    server.state.corrupt = False
    assert denoiser(hub).is_file()


def test_hashes_are_recorded_on_first_use_and_checked_ever_after(hub, server, published, tmp_path):
    path = denoiser(hub)
    changed = torch.load(published / "denoiser.bin", weights_only=True)
    changed["embedding_layer.weight"] += 1
    torch.save(changed, tmp_path / "changed.bin")
    server.state.files[DENOISER, PLACES] = tmp_path / "changed.bin"
    path.unlink()
    with pytest.raises(HubError, match="now has another file"):
        denoiser(hub)
    assert left_behind(hub) == set()

    server.state.files[DENOISER, PLACES] = published / "denoiser.bin"
    path = denoiser(hub)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HubError, match="SHA-256.*damaged.*[Dd]elete it"):
        denoiser(hub)


def test_a_revision_once_recorded_is_kept(hub, server, published):
    path = denoiser(hub)
    path.unlink()
    server.state.revision = "ab" * 20
    with pytest.raises(HubError, match=f"revision {REVISION} .recorded on first use. is no longer on"):
        denoiser(hub)


def test_offline_what_was_fetched_is_used_and_what_was_not_is_named_with_its_place(hub, monkeypatch):
    path = denoiser(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert denoiser(hub) == path
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE") as error:
        find_weights("ffhq", "denoiser", SMALL, hub)
    for words in ("ft_ffhq/diffusion_pytorch_model.bin", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"):
        assert words in str(error.value)
    assert str(hub.folder / DENOISER / "ft_ffhq" / "diffusion_pytorch_model.bin") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_put_into_its_place_by_hand_is_used_and_left_there(hub, monkeypatch, published):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = hub.folder / DENOISER / PLACES
    place.parent.mkdir(parents=True)
    shutil.copy(published / "denoiser.bin", place)
    assert load_file(denoiser(hub)) and place.is_file()


def test_a_file_in_the_clients_own_cache_is_used_and_left_there(hub, server, published, tmp_path):
    from huggingface_hub import hf_hub_download

    cached = hf_hub_download(DENOISER, PLACES, endpoint=server.url, cache_dir=constants.HF_HUB_CACHE)
    asked = len(server.state.requests)
    assert denoiser(hub).is_file() and os.path.exists(cached)
    assert len(server.state.requests) == asked


def test_a_hub_that_does_not_answer(hub, server, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_ETAG_TIMEOUT", 1)
    with unused_port() as port, pytest.raises(HubUnreachable, match="does not answer.*connection.*by other means"):
        denoiser(Hub(tmp_path / "other", f"http://127.0.0.1:{port}", NOTHING))
    server.state.status = 503
    with pytest.raises(HubUnreachable, match="answers 503"):
        denoiser(hub)
    assert left_behind(hub) == set()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": "hf_right"}, "HF_TOKEN"),
        ({"gated": True}, "agreement"),
        ({"files": {(DENOISER, "README.md"): None}}, "has no file ft_places2"),
        ({"files": {}}, "does not have hustvl/Moebius"),
    ],
)
def test_no_access_and_no_such_file(hub, server, change, words):
    for name, value in change.items():
        setattr(server.state, name, value)
    with pytest.raises(HubUnreachable, match=words):
        denoiser(hub)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "SOCKS proxy; `pip install socksio`"),
        ("HTTPS_PROXY", "ftp://127.0.0.1:1", "is not a proxy.*http://host:port"),
        ("HTTP_PROXY", "http://[::1", "is not a proxy"),
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE cannot be used for certificates.*PEM or unset"),
        ("SSL_CERT_FILE", __file__, "SSL_CERT_FILE cannot be used for certificates"),
        ("HF_TOKEN", "hf_caf\u00e9", "the token in HF_TOKEN.*copy it again"),
        ("ALL_PROXY", "127.0.0.1:9", "cannot be reached through the proxy|does not answer.*proxy"),
    ],
)
def test_an_environment_that_leads_nowhere_is_said_without_the_token(hub, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.utils._http._GLOBAL_CLIENT", None)  # it keeps the environment of its first use
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(HubError, match=words) as error:
        denoiser(hub)
    assert "\n" not in str(error.value) and "hf_caf" not in str(error.value)
    assert left_behind(hub) == set()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://[::1", "https://"])
def test_a_mirror_s_address_that_is_none(tmp_path, address):
    with pytest.raises(HubError, match=f"HF_ENDPOINT, is {re.escape(repr(address))}, which is not an address"):
        denoiser(Hub(tmp_path / "cache", address))


def test_a_server_whose_certificate_is_not_trusted(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        serving = threading.Thread(target=listening.serve_forever, args=(0.05,))
        serving.start()
        try:
            with pytest.raises(HubUnreachable, match="certificate that is not trusted.*SSL_CERT_FILE"):
                denoiser(Hub(tmp_path / "cache", f"https://127.0.0.1:{listening.server_port}"))
        finally:
            listening.shutdown()
            serving.join()


@pytest.mark.parametrize("taken", [".", "folder/.lock"])
def test_a_cache_that_cannot_be_a_folder(tmp_path, taken):
    folder = tmp_path / "cache"
    if taken == ".":
        folder.write_bytes(b"a file")
        folder /= "assets"
    else:
        (folder / ".lock").mkdir(parents=True)
    with pytest.raises(HubError, match=f"{re.escape(str(folder))}.*HF_HOME"):
        denoiser(Hub(folder, "http://127.0.0.1:9"))


def test_a_token_goes_to_the_hub_and_never_to_the_deliverer(hub, server, monkeypatch):
    server.state.token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    server.state.drop_after = [300_000]
    denoiser(hub)
    assert all(request["token"] is None for request in server.state.deliveries())


@pytest.mark.parametrize("kind", ["lora", "another width", "another model", "cut short", "code"])
def test_what_is_no_checkpoint_of_the_network_leaves_nothing_behind(hub, server, published, tmp_path, kind):
    state = torch.load(published / "denoiser.bin", weights_only=True)
    path = tmp_path / "x.bin"
    if kind == "lora":
        torch.save({"unet.down_blocks.0.lora_A.weight": torch.zeros(4096)}, path)
    elif kind == "another width":
        torch.save({name: torch.cat([value, value]) if value.ndim else value for name, value in state.items()}, path)
    elif kind == "another model":
        torch.save({"conv.weight": torch.zeros(4096)}, path)
    elif kind == "cut short":
        path.write_bytes((published / "denoiser.bin").read_bytes()[:-1000])
    else:
        torch.save({"weight": _Runs(str(tmp_path / "ran")), "padding": torch.zeros(4096)}, path)
    server.state.files[DENOISER, PLACES] = path
    words = {
        "lora": "a LoRA",
        "another width": "with another width",
        "another model": "of another network",
        "cut short": "an incomplete or damaged",
        "code": "refused",
    }
    with pytest.raises(CheckpointError, match=words[kind]):
        denoiser(hub)
    assert left_behind(hub) == set() and not (tmp_path / "ran").exists()


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_disk_without_room_is_said_before_anything_is_fetched(hub, server, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(LabError, match=r"needs \d+ MB but only 1 MB are free"):
        denoiser(hub)
    assert not server.state.deliveries() and left_behind(hub) == set()


@pytest.mark.parametrize("by_hand", [False, True], ids=["while fetching", "while converting"])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(hub, server, published, by_hand):
    """The limit on a file's size stands for the disk's: both end a write with an error in the middle."""
    place = hub.folder / DENOISER / PLACES
    if by_hand:
        place.parent.mkdir(parents=True)
        shutil.copy(published / "denoiser.bin", place)
    limit = (published / "denoiser.bin").stat().st_size // 2
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(LabError, match="the disk is full"):
            denoiser(hub)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert left_behind(hub) == ({place.name} if by_hand else set())


def test_a_damaged_lock_file_is_named(hub):
    hub.folder.mkdir()
    (hub.folder / "lock.json").write_text("{", encoding="utf-8")
    with pytest.raises(HubError, match="lock.json is not JSON.*delete it"):
        denoiser(hub)


# -- what is pinned ----------------------------------------------------------------------------------------------------


def test_what_is_pinned_is_what_is_asked_for_and_names_its_source():
    """The Places2 denoiser and the autoencoder, as others saw them; see `hub.SEEN_BY`."""
    assert PINNED["revisions"].keys() == {DENOISER, VAE}
    assert PINNED["files"].keys() == {
        f"{DENOISER}/{PLACES}",
        f"{VAE}/vae/config.json",
        f"{VAE}/vae/diffusion_pytorch_model.bin",
    }
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in PINNED["revisions"].values())
    for entry in PINNED["files"].values():
        assert re.fullmatch("[0-9a-f]{64}", entry["sha256"]) and "github.com/" in entry["source"] and entry["bytes"] > 0
    parameters = sum(value.numel() for value in MoebiusNet(MOEBIUS).state_dict().values() if value.is_floating_point())
    assert 0 < PINNED["files"][f"{DENOISER}/{PLACES}"]["bytes"] - 4 * parameters < 2e6, (
        "32 bits a number, and a pickle's head"
    )
    autoencoder = sum(p.numel() for p in make_vae(MOEBIUS).parameters())
    assert 0 < PINNED["files"][f"{VAE}/vae/diffusion_pytorch_model.bin"]["bytes"] - 2 * autoencoder < 1e5, "16 bits a number"


def pins(published, sha256: str = "", revision: str = REVISION) -> dict:
    entry = {"bytes": 1, "sha256": sha256 or file_sha256(published / "denoiser.bin"), "source": "the notes of a friend"}
    return {"revisions": {DENOISER: revision}, "files": {f"{DENOISER}/{PLACES}": entry}}


def test_a_pinned_file_is_taken_and_goes_once_it_is_converted_also_after_an_interruption(hub, server, published):
    hub = Hub(hub.folder, server.url, pins(published))
    with hub.held():
        hub.fetch(DENOISER, (PLACES,))  # and the process ends here
    assert left_behind(hub) == {"diffusion_pytorch_model.bin"}
    assert denoiser(hub).is_file() and left_behind(hub) == {"denoiser.safetensors"}
    assert [request["path"] for request in server.state.requests if "/resolve/" in request["path"]][0].split("/")[
        4
    ] == REVISION


def test_another_file_than_the_pinned_one_is_not_fetched_and_the_way_on_works(hub, server, published):
    hub = Hub(hub.folder, server.url, pins(published, "ab" * 32))
    with pytest.raises(
        HubError,
        match="now has another file.*than abababababababab... as pinned in hub.py .source: the notes of a friend.; if its authors.*fetch NAME --unpinned`$",
    ):
        denoiser(hub)
    assert not server.state.deliveries() and left_behind(hub) == set()
    hub.unpin(DENOISER)
    path = denoiser(hub)
    assert denoiser(hub) == path
    lock = json.loads((hub.folder / "lock.json").read_text(encoding="utf-8"))
    assert lock["unpinned"] == [DENOISER] and lock["files"][f"{DENOISER}/{PLACES}"]["sha256"] == file_sha256(
        published / "denoiser.bin"
    )


def test_a_file_put_there_by_hand_is_held_to_its_pin(hub, server, published):
    hub = Hub(hub.folder, server.url, pins(published, "ab" * 32))
    place = hub.folder / DENOISER / PLACES
    place.parent.mkdir(parents=True)
    shutil.copy(published / "denoiser.bin", place)
    with pytest.raises(
        HubError,
        match="not abababababababab... as pinned in hub.py .source: the notes of a friend..*Delete it and run this again; if",
    ):
        denoiser(hub)
    assert place.is_file()


def test_a_pinned_revision_that_is_gone_says_who_named_it(hub, server, published):
    hub = Hub(hub.folder, server.url, pins(published, revision="cd" * 20))
    with pytest.raises(
        HubUnreachable,
        match=f"revision {'cd' * 20} .pinned in hub.py, see github.com/.* is no longer on .*; if .*--unpinned",
    ):
        denoiser(hub)


def test_unpinning_forgets_what_was_made_of_the_files_and_takes_the_new_ones(hub, server, published, tmp_path):
    path = denoiser(hub)
    changed = torch.load(published / "denoiser.bin", weights_only=True)
    changed["embedding_layer.weight"] += 1
    torch.save(changed, tmp_path / "changed.bin")
    server.state.files[DENOISER, PLACES], server.state.revision = tmp_path / "changed.bin", "ab" * 20
    hub.unpin(DENOISER)
    assert not path.exists()
    assert torch.equal(load_file(denoiser(hub))["embedding_layer.weight"], changed["embedding_layer.weight"])


def command(server, tmp_path, *options, **environment):
    """`python -m moebius_lab fetch ffhq`, whose denoiser's hash is not pinned, with the hub and the folders that the environment names."""
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")} | environment
    arguments = [sys.executable, "-m", "moebius_lab", "fetch", "ffhq", *options]
    return subprocess.run(arguments, capture_output=True, env=environment, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--unpinned",)])
def test_the_command_takes_hub_and_folder_from_the_environment(server, tmp_path, options, published):
    """The published network has another width than these small files, which shows that they did arrive."""
    server.state.files[DENOISER, "ft_ffhq/diffusion_pytorch_model.bin"] = published / "denoiser.bin"
    if not options:
        server.state.revision = PINNED["revisions"][DENOISER]
    done = command(server, tmp_path, *options)
    assert done.returncode == 2 and "of this network with another width" in done.stderr.splitlines()[-1]
    files = [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".bin", ".incomplete", ".part", ".safetensors"))]


@pytest.mark.slow
def test_the_command_gives_up_on_a_hub_that_says_nothing(server, tmp_path):
    server.state.silent = True
    done = command(server, tmp_path, HF_HUB_ETAG_TIMEOUT="1")
    assert done.returncode == 2
    assert "does not answer (ReadTimeout)" in done.stderr and "vae/config.json to " in done.stderr.splitlines()[-1]
