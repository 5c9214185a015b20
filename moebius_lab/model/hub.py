"""Published files: fetched from a hub, resumed after an interrupted download, checked against recorded hashes.

The folder mirrors the hub. A file that somebody puts in its place by hand is used as if it had been fetched.

    lock.json                                               revision of each repository, bytes and SHA-256 of each file
    hustvl/Moebius/ft_places2/diffusion_pytorch_model.bin   as published; deleted after conversion if it was fetched
    hustvl/Moebius/ft_places2/denoiser.safetensors          what `checkpoint.find_weights` made from it
    ....incomplete                                          an interrupted download; the next attempt resumes it

Revisions and hashes come from `PINNED` where it has them. Otherwise the first that arrive are recorded in lock.json, and all
later ones must match. `Hub.unpin` forgets both, for when the authors publish something new. The client is huggingface_hub's
and obeys its environment: HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, HF_HOME, HF_HUB_DOWNLOAD_TIMEOUT and the rest. Its own
cache is read but not written.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_token

from .. import LabError
from ..errors import NO_ROOM, explain_os_error, first_line
from ..files import SHA256, TEXT, DamagedFile, file_sha256, listed, mapping, read_json, record, require_room, write_json

SEEN_BY = (
    "github.com/dllu/rawpuppy, docs/inpainting-research.md (2026-10-09), and github.com/atik-efaz5/PixelForge, "
    "docs/experiments/MOEBIUS_MPS_VALIDATION.md and PIXELHACKER_FEASIBILITY.md (2026-08-24 and 27), whose authors fetched the files"
)
PINNED: dict[str, dict] = {
    "revisions": {
        "hustvl/Moebius": "cd01f47fb648219d3fa605806c5ce00b713faa5e",
        "hustvl/PixelHacker": "012fd343158936a265b8a0ee38a791a7a2841f45",
    },
    "files": {
        "hustvl/Moebius/ft_places2/diffusion_pytorch_model.bin": {
            "bytes": 905_298_356,  # float32, and int64 counters
            "sha256": "6525afb888e55f9b5c74fa0a5d19ca0762d720d6c716fb0f8422fbeb6868a09a",
            "source": SEEN_BY,
        },
        "hustvl/PixelHacker/vae/diffusion_pytorch_model.bin": {
            "bytes": 167_394_306,  # two bytes a number
            "sha256": "a59d7ea697f2942d22002dc3469e8c53db807a6b78f7f5ec03bd4c1f70f98efe",
            "source": SEEN_BY,
        },
        "hustvl/PixelHacker/vae/config.json": {
            "bytes": 788,
            "sha256": "caeb94d8607dbd24acd13719c6823e2525509de8a21eb6b56cf93d5267c04694",
            "source": SEEN_BY,
        },
    },
}
"""Known revisions and files, and who saw them: what lock.json begins with. No hub was reachable from here, so nobody on this
project has seen them. Size and hash of the other three denoisers are unknown; they are recorded on first use."""

LOCK = record(revisions=mapping(TEXT), files=mapping(record(sha256=SHA256)))
LOCK["properties"]["unpinned"] = listed(TEXT)  # present once `Hub.unpin` was called
"""What lock.json holds, as a JSON Schema."""

ROOM = 1.05  # free disk space required, as a multiple of what is still to be downloaded and converted
TRIES = 4  # to resume a download after a reset or an expired address, before giving up
RETRIED = (httpx2.ConnectError, httpx2.TimeoutException, httpx2.RemoteProtocolError)  # by the client itself, five times


class HubError(LabError):
    """A published file that is unavailable, or is not the one that was expected."""


class HubUnreachable(HubError):
    """A published file that no hub can supply now, for whatever reason; it can be put in its place by hand."""


@dataclass(frozen=True)
class Source:
    """A published file on this machine, checked."""

    path: Path
    sha256: str
    fetched: bool  # by us into our folder, so we may delete it


def default_folder() -> Path:
    """Where published files are kept: huggingface_hub's folder for assets of other libraries (HF_ASSETS_CACHE)."""
    return Path(constants.HF_ASSETS_CACHE) / "moebius-lab"


def require_address(address: str, what: str) -> None:
    """Raise HubError unless requests can be sent to `address`; `what` says where it was set."""
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise HubError(f"{what} is {address!r}, which is not an address; give one like https://host/path")


def require_network() -> None:
    """Raise HubError if the environment's network settings are unusable: proxy, certificates, token."""
    try:
        httpx2.Client().close()
    except ImportError:
        raise HubError(
            "ALL_PROXY, HTTP_PROXY or HTTPS_PROXY names a SOCKS proxy; `pip install socksio` or unset it"
        ) from None
    except (ValueError, httpx2.InvalidURL) as error:
        raise HubError(f"ALL_PROXY, HTTP_PROXY or HTTPS_PROXY is not a proxy ({error}); give http://host:port") from None
    except OSError as error:
        name = (
            "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        )  # the client reads only the first that is set
        reason = first_line(error.strerror or error)
        raise HubError(f"{name} cannot be used for certificates ({reason}); name a file in PEM or unset it") from None
    if not (get_token() or "").isascii():
        raise HubError("the token in HF_TOKEN, or kept by `hf auth login`, has characters that no token has; copy it again")


def explain_network(error: httpx2.HTTPError | httpx2.InvalidURL) -> str:
    """Why a request was not answered, and what to do."""
    if "certificate" in str(error).lower():
        return f"shows a certificate that is not trusted ({first_line(error)}); name those of your network in SSL_CERT_FILE"
    if isinstance(error, httpx2.ProxyError):
        return f"cannot be reached through the proxy ({first_line(error)}); check ALL_PROXY, HTTP_PROXY and HTTPS_PROXY"
    return f"does not answer ({type(error).__name__}); check address, connection and proxy"


@dataclass(frozen=True)
class Hub:
    """A hub, and the folder on this machine that holds its files."""

    folder: Path
    endpoint: str | None = None  # None: HF_ENDPOINT, or the public one
    pinned: Mapping[str, dict] = field(default_factory=lambda: PINNED)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from fetching or converting into the same folder meanwhile."""
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(WeakFileLock(self.folder / ".lock"))
            except OSError as error:
                raise HubError(f"{explain_os_error(error)}; HF_HOME says where published files are kept") from None
            yield

    def fetch(self, repo: str, names: tuple[str, ...]) -> Source:
        """The first of `names` that exists in `repo`: from the folder, from huggingface_hub's cache, or downloaded.

        Raises:
            HubUnreachable: offline, no answer, no access, no such file.
            HubError: no room, or a file that is not the one announced or recorded, of which nothing is kept.
        """
        names = tuple(sorted(names, key=lambda name: f"{repo}/{name}" not in self.recorded()["files"]))  # the recorded first
        for name in names:
            path = self.folder / repo / name
            if path.is_file():
                facts = self.check(path)
                return Source(path, facts["sha256"], bool(facts.get("fetched")))
            cached = try_to_load_from_cache(repo, name, revision=self.recorded()["revisions"].get(repo))
            if isinstance(cached, str):
                return Source(Path(cached), self.check(Path(cached), f"{repo}/{name}")["sha256"], False)
        for name in names:
            try:
                path = self._download(repo, name)
            except EntryNotFoundError:
                continue
            return Source(path, self.check(path, fetched=True)["sha256"], True)
        raise HubUnreachable(f"{repo} on {self._shown()} has no file {' or '.join(names)}")

    def check(self, path: Path, key: str = "", **facts: object) -> dict:
        """Check a file against its entry in lock.json, or make the entry. `facts` are added to it; returns the entry.

        Args:
            path: the file.
            key: its name in lock.json; empty for its path in the folder.

        Raises:
            HubError: the file has changed.
        """
        key = key or path.relative_to(self.folder).as_posix()
        lock = self.recorded()
        known, sha256 = lock["files"].get(key), file_sha256(path)
        if known and known["sha256"] != sha256:
            raise HubError(
                f"{path}: its SHA-256 is {sha256[:16]}..., not {self._expected(key)}: it is damaged or a different file. "
                f"Delete it and run this again{self._otherwise(key)}"
            )
        entry = (known or {"bytes": path.stat().st_size, "sha256": sha256}) | facts
        if entry != known:
            lock["files"][key] = entry
            self._write_lock(lock)
        return entry

    def unpin(self, *repos: str) -> None:
        """Forget pins and records of repositories, and what was made from their files: the hub's present files are next."""
        lock = self.recorded()
        lock["unpinned"] = sorted({*lock["unpinned"], *repos})
        for key, facts in list(lock["files"].items()):
            if _is_of(key, repos):
                if "made_from" in facts or facts.get("fetched"):
                    (self.folder / key).unlink(missing_ok=True)
                del lock["files"][key]
        lock["revisions"] = {repo: revision for repo, revision in lock["revisions"].items() if repo not in repos}
        self._write_lock(lock)

    # -- the lock file -------------------------------------------------------------------------------------------------

    def recorded(self) -> dict:
        """Pins and lock.json: {"revisions": by repository, "files": bytes and SHA-256 by name, "unpinned": repositories}."""
        path, kept = self.folder / "lock.json", {"revisions": {}, "files": {}}
        if path.exists():
            try:
                kept = read_json(path, LOCK, "delete it, and the files are recorded again")
            except DamagedFile as error:
                raise HubError(str(error)) from None
        unpinned = kept.get("unpinned", [])
        pins = {
            part: {k: v for k, v in self.pinned[part].items() if not _is_of(k, unpinned)} for part in ("revisions", "files")
        }
        files = kept["files"] | {key: kept["files"].get(key, {}) | entry for key, entry in pins["files"].items()}
        return {"revisions": kept["revisions"] | pins["revisions"], "files": files, "unpinned": unpinned}

    def _write_lock(self, lock: dict) -> None:
        write_json(self.folder / "lock.json", lock)

    # -- the network ---------------------------------------------------------------------------------------------------

    def _download(self, repo: str, name: str) -> Path:
        """Download one file to its place and return the path; EntryNotFoundError passes through."""
        target = self.folder / repo / name
        require_address(self._shown(), "the hub's address, HF_ENDPOINT,")
        require_network()
        try:
            revision = self.recorded()["revisions"].get(repo, constants.DEFAULT_REVISION)
            url = hf_hub_url(repo, name, revision=revision, endpoint=self.endpoint)
            found = get_hf_file_metadata(url, endpoint=self.endpoint)
            if not (found.commit_hash and found.etag and found.size is not None):
                raise HubUnreachable(f"{self._shown()} does not answer like a hub; check HF_ENDPOINT and the proxy")
            known = self.recorded()["files"].get(f"{repo}/{name}")
            if known and re.fullmatch("[0-9a-f]{64}", found.etag) and found.etag != known["sha256"]:
                raise self._another(f"{repo}/{name}", found.etag)  # before fetching any of it
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{found.etag[:16]}.incomplete")
            for stale in set(target.parent.glob(f"{target.name}.*.incomplete")) - {partial}:
                stale.unlink()
            fixed = hf_hub_url(repo, name, revision=found.commit_hash, endpoint=self.endpoint)
            self._receive(fixed, partial, found.size, name)
            self._accept(partial, found.etag, f"{repo}/{name}")
        except EntryNotFoundError:
            raise
        except (httpx2.HTTPError, OSError) as error:
            raise self._said(error, repo, name) from None
        lock = self.recorded()
        lock["revisions"].setdefault(repo, found.commit_hash)
        self._write_lock(lock)
        os.replace(partial, target)
        return target

    def _receive(self, url: str, partial: Path, size: int, shown: str) -> None:
        """Bring `partial` to `size` bytes. Every attempt asks the hub for a new signed address and resumes."""
        have = partial.stat().st_size if partial.exists() else 0
        if have > size:
            partial.unlink()
            have = 0
        require_room(partial.parent, ROOM * (2 * size - have), f"{shown}, once fetched and once converted,")
        headers = build_hf_headers()
        tries = 0
        while True:
            try:
                with partial.open("ab") as file:
                    http_get(url, file, resume_size=have, headers=headers, expected_size=size, displayed_filename=shown)
                return
            except (httpx2.TransportError, HfHubHTTPError) as error:
                came = partial.stat().st_size - have
                have, tries = have + came, 1 if came > 0 else tries + 1
                refused = isinstance(error, HfHubHTTPError) and error.response.status_code != 403
                if refused or tries == TRIES or (came <= 0 and isinstance(error, RETRIED)):
                    raise
                time.sleep(1)
            except OSError as error:
                if error.errno in NO_ROOM:
                    partial.unlink()
                raise

    def _accept(self, partial: Path, etag: str, key: str) -> None:
        """Compare what was received with the hub's own hash (SHA-256, or git's for a small file) and with lock.json."""
        sha256, expected = file_sha256(partial), self.recorded()["files"].get(key)
        if re.fullmatch("[0-9a-f]{64}", etag):
            whole = sha256 == etag
        elif re.fullmatch("[0-9a-f]{40}", etag):
            data = partial.read_bytes()
            whole = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == etag
        else:
            whole = True  # a mirror's own tag; the recorded hash still holds
        if whole and (not expected or expected["sha256"] == sha256):
            return
        partial.unlink()
        if whole:
            raise self._another(key, sha256)
        raise HubError(f"{key}: what arrived is not what {self._shown()} announced (SHA-256 {sha256[:16]}...); try again")

    def _another(self, key: str, sha256: str) -> HubError:
        return HubError(
            f"{key}: {self._shown()} now has another file (SHA-256 {sha256[:16]}...) than {self._expected(key)}{self._otherwise(key)}"
        )

    def _expected(self, key: str) -> str:
        """The SHA-256 that a file should have, and who says so."""
        entry = self.recorded()["files"][key]
        pinned = f"pinned in hub.py (source: {entry.get('source')})"
        says = pinned if "source" in entry else f"recorded in {self.folder / 'lock.json'}"
        return f"{entry['sha256'][:16]}... as {says}"

    def _otherwise(self, key: str) -> str:
        """What to do when a known file has been replaced by another."""
        known = key in self.recorded()["files"] or _is_of(key, list(self.recorded()["revisions"]))
        return (
            "; if its authors published another one that you want, `python -m moebius_lab fetch NAME --unpinned`"
            if known
            else ""
        )

    # -- words ---------------------------------------------------------------------------------------------------------

    def _shown(self) -> str:
        return self.endpoint or constants.ENDPOINT

    def by_hand(self, files: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
        """What to do without a hub: for each (repository, alternative names), address and place of the first name."""
        steps = []
        for repo, names in files:
            if not any((self.folder / repo / name).exists() for name in names):
                revision = self.recorded()["revisions"].get(repo)
                url = hf_hub_url(repo, names[0], revision=revision, endpoint=self.endpoint)
                other = "".join(f" (or {name})" for name in names[1:])
                steps.append(f"{url}{other} to {self.folder / repo / names[0]}")
        return "or download them by other means and run this again: " + ", ".join(steps)

    def _said(self, error: Exception, repo: str, name: str) -> HubError:
        what, hub = f"{repo}/{name}", self._shown()
        if isinstance(error, OfflineModeIsEnabled):
            words = "it is not on this machine, and HF_HUB_OFFLINE forbids fetching it; unset it"
        elif isinstance(error, GatedRepoError):
            words = f"its authors ask for an agreement; accept it on {hub}/{repo} and set HF_TOKEN"
        elif isinstance(error, RepositoryNotFoundError):
            words = f"{hub} does not have {repo}, or does not show it without the right HF_TOKEN"
        elif isinstance(error, RevisionNotFoundError):
            revision = self.recorded()["revisions"].get(repo)
            says = (
                f"pinned in hub.py, see {SEEN_BY}"
                if revision == self.pinned["revisions"].get(repo)
                else "recorded on first use"
            )
            words = f"revision {revision} ({says}) is no longer on {hub}{self._otherwise(what)}"
        elif isinstance(error, HfHubHTTPError):
            words = f"{hub} answers {error.response.status_code}; try again later"
        elif isinstance(error, httpx2.HTTPError):
            words = f"{hub} {explain_network(error)}; what has arrived is kept"
        elif error.errno in NO_ROOM:
            return HubError(f"{what}: the disk is full; free some space in {self.folder}, or set HF_HOME to another")
        elif error.errno:
            return HubError(f"{what}: cannot be written to {self.folder} ({error.strerror}); set HF_HOME to another folder")
        else:
            words = first_line(error)
        return HubUnreachable(f"{what}: {words}")


def _is_of(key: str, repos: Iterable[str]) -> bool:
    """Whether a name in lock.json is one of these repositories or a file in one."""
    return any(key == repo or key.startswith(f"{repo}/") for repo in repos)
