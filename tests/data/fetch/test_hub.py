"""Repositories from a hub on loopback into a cache, and their comparison with checksums."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.fetch import hub
from data.fetch.download import Patience, partial_of
from data.fetch.hub import Repository
from errors import FetchError, OutputError
from tests.data.fetch import server as faults
from tests.data.fetch.hub import publish
from tests.data.fetch.server import Server, serving

ROOT = Path(__file__).parents[3]
REPOSITORY = Repository("owner/name", "0123456789" * 4)
FILES = {
    "config.json": b'{"small": true}',
    "folder/notes.txt": b"notes",
    "same.txt": b"notes",
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(200_000),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(150_000),
}
QUICK = Patience(tries=4, wait_s=0.01, longest_wait_s=0.3, stall_s=5)
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving() as one:
        yield one


def fetch(server: Server, repository: Repository = REPOSITORY) -> Path:
    return hub.fetch(repository, QUICK, 4, server.url)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_repository_arrives_whole_and_is_not_fetched_twice(server: Server) -> None:
    publish(server, REPOSITORY, FILES)
    folder = fetch(server)
    assert folder == REPOSITORY.snapshot(hub.cache_folder())
    assert content(folder) == FILES
    gets = len(server.requests)
    assert fetch(server) == folder
    assert not [path for path, _ in server.requests[gets:] if "/cdn/" in path]
    assert not list(hub.check(folder))


def test_only_some_files_of_a_data_set(server: Server) -> None:
    repository = Repository("owner/rows", "a" * 40, "dataset", ("config.json", SHARD))
    publish(server, repository, FILES)
    assert content(fetch(server, repository)).keys() == {"config.json", SHARD}


@pytest.mark.parametrize(
    "fault",
    [
        *(faults.cut(100_000), faults.wrong_length(-1), faults.corrupt),
        *(faults.status(500), faults.status(429, Retry_After="0"), faults.chunks(cut_off=True)),
    ],
)
def test_a_download_that_breaks_off_is_continued(server: Server, fault: faults.Fault) -> None:
    paths = publish(server, REPOSITORY, FILES)
    server.faults[paths[SHARD]] = [fault]
    assert content(fetch(server)) == FILES


def test_a_file_that_is_always_corrupt_is_not_kept(server: Server) -> None:
    paths = publish(server, REPOSITORY, FILES)
    server.faults[paths[SHARD]] = [faults.corrupt] * 9
    with pytest.raises(FetchError, match=r"/resolve/.*expected sha256 \w+, and .* came: twice"):
        fetch(server)
    assert not (REPOSITORY.snapshot(hub.cache_folder()) / SHARD).is_file()


@pytest.mark.parametrize(
    ("code", "headers", "message"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "owner/name is gated: accept its terms .* HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, "owner/name is gated"),
        (404, {"X-Error-Code": "RepoNotFound"}, "owner/name: .*404"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "owner/name: .*404"),
    ],
)
def test_refusals(server: Server, code: int, headers: dict[str, str], message: str) -> None:
    api = f"/api/models/{REPOSITORY.name}/tree/{REPOSITORY.revision}"
    server.faults[api] = [faults.status(code, b"", **headers)] * 9
    with pytest.raises(FetchError, match=message):
        fetch(server)


def test_room_is_looked_at_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, REPOSITORY, FILES)
    usage = shutil.disk_usage(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(OutputError, match=r"owner/name needs 0\.3 MiB more, and 0\.1 MiB are free"):
        fetch(server)
    assert not [path for path, _ in server.requests if "/cdn/" in path]


CLIENT = """
import sys
from data.fetch.download import Patience
from data.fetch.hub import Repository, fetch
from entrypoint import run
run(lambda: fetch(Repository("owner/name", sys.argv[1]), Patience()))
"""


def start(server: Server, home: Path) -> subprocess.Popen[str]:
    """Fetch in a process of its own, to the same cache."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_ENDPOINT": server.url}
    words = [sys.executable, "-c", CLIENT, REPOSITORY.revision]
    return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_part(server: Server, size: int) -> None:
    digest = hashlib.sha256(FILES[SHARD]).hexdigest()
    part = partial_of(hub.cache_folder() / REPOSITORY.folder / "blobs" / digest)
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == size):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_killed_download_is_continued(server: Server, tmp_path: Path) -> None:
    paths = publish(server, REPOSITORY, FILES)
    server.faults[paths[SHARD]] = [faults.stall(150_000)]
    with start(server, tmp_path) as process:
        wait_for_part(server, 150_000)
        with pytest.raises(OutputError, match=rf"process {process.pid} on .* writes there"):
            fetch(server)
        process.kill()
    assert not (REPOSITORY.snapshot(hub.cache_folder()) / SHARD).exists()
    assert content(fetch(server)) == FILES
    assert server.ranges(paths[SHARD]) == [None, "bytes=150000-"]


def test_the_token_goes_to_the_hub_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    paths = publish(server, REPOSITORY, FILES)
    fetch(server)
    tokens = {path: headers.get("Authorization") for path, headers in server.requests}
    assert tokens.pop(paths[SHARD]) is None
    assert tokens[paths["config.json"]] == "Bearer hf_secret"
    resolved = [token for path, token in tokens.items() if "/cdn/" not in path]
    assert set(resolved) == {"Bearer hf_secret"}


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x"])
def test_a_path_that_leaves_the_cache_is_refused(server: Server, path: str) -> None:
    publish(server, REPOSITORY, {path: b"content"})
    with pytest.raises(FetchError, match="a file's path is"):
        fetch(server)


def test_what_is_no_hub_is_named(server: Server) -> None:
    server.files[f"/api/models/{REPOSITORY.name}/tree/{REPOSITORY.revision}"] = b"<html>"
    with pytest.raises(FetchError, match="owner/name: no list of files came"):
        fetch(server)
    with pytest.raises(FetchError, match=r"owner/name: the hub can't be reached: .*tried 4 times"):
        hub.fetch(REPOSITORY, QUICK, 4, "http://127.0.0.1:9")


def test_a_cache_is_copied_and_compared(server: Server, tmp_path: Path) -> None:
    publish(server, REPOSITORY, FILES)
    folder = fetch(server)
    mirror = tmp_path / "mirror"
    shutil.move(tmp_path / "hub", mirror)
    gets = len(server.requests)
    assert content(hub.copy(REPOSITORY, mirror, QUICK)) == FILES
    assert hub.copy(REPOSITORY, mirror, QUICK) == folder
    assert len(server.requests) == gets
    assert not list(hub.check(folder))
    shutil.rmtree(hub.cache_folder())
    (REPOSITORY.snapshot(mirror) / SHARD).resolve().write_bytes(b"another model's")
    with pytest.raises(FetchError, match=r"file:/.*: expected sha256 \w+, and 15 bytes of "):
        hub.copy(REPOSITORY, mirror, QUICK)
    with pytest.raises(FetchError, match="--mirror has no owner/name of this revision"):
        hub.copy(REPOSITORY, tmp_path / "elsewhere", QUICK)


def test_missing_and_wrong_files_are_found_without_a_network(server: Server) -> None:
    publish(server, REPOSITORY, FILES)
    folder = fetch(server)
    requests = len(server.requests)
    (folder / SHARD).resolve().unlink()
    config = (folder / "config.json").resolve()
    config.write_bytes(b"{}")
    messages = [str(error) for error in hub.check(folder)]
    assert messages[0] == f"{folder / SHARD}: missing"
    assert messages[1].startswith(f"{folder / 'config.json'}: expected sha1 ")
    assert messages[1].endswith(f": remove {config}, and fetch it again")
    assert len(messages) == 2
    assert len(server.requests) == requests


def test_a_directory_of_the_hubs_own_client_is_checked(server: Server, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    publish(server, REPOSITORY, FILES)
    folder = tmp_path / "local"
    snapshot_download(
        REPOSITORY.name, revision=REPOSITORY.revision, local_dir=folder, endpoint=server.url
    )
    assert not list(hub.check(folder))
    (folder / SHARD).write_bytes(FILES[SHARD][::-1])
    [error] = hub.check(folder)
    assert str(error).startswith(f"{folder / SHARD}: expected sha256 ")
    shutil.rmtree(folder / ".cache")
    [error] = hub.check(folder)
    assert str(error).startswith(f"{folder / 'config.json'} and 4 more: the checksum is unknown")


def test_a_cache_of_the_hubs_own_client_is_completed(server: Server) -> None:
    from huggingface_hub import snapshot_download

    paths = publish(server, REPOSITORY, FILES)
    folder = snapshot_download(
        REPOSITORY.name,
        revision=REPOSITORY.revision,
        allow_patterns=[SHARD],
        cache_dir=hub.cache_folder(),
        endpoint=server.url,
    )
    assert content(fetch(server)) == FILES
    assert len(server.ranges(paths[SHARD])) == 1
    assert folder == snapshot_download(
        REPOSITORY.name,
        revision=REPOSITORY.revision,
        cache_dir=hub.cache_folder(),
        local_files_only=True,
    )
