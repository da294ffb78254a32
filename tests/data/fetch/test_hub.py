"""Repositories from a hub on loopback into a cache, by the library that gets them from the real one."""

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
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(200_000),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(150_000),
}
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving() as one:
        yield one


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_repository_arrives_whole_and_is_not_fetched_twice(server: Server) -> None:
    publish(server, REPOSITORY, FILES)
    folder = hub.fetch(REPOSITORY, server.url)
    assert folder == REPOSITORY.snapshot(hub.cache_folder())
    assert content(folder) == FILES
    gets = len(server.requests)
    assert hub.fetch(REPOSITORY, server.url) == folder
    assert not [path for path, _ in server.requests[gets:] if "/cdn/" in path]
    assert not list(hub.check(folder))


def test_only_some_files_of_a_data_set(server: Server) -> None:
    repository = Repository("owner/rows", "a" * 40, "dataset", ("config.json", SHARD))
    publish(server, repository, FILES)
    assert content(hub.fetch(repository, server.url)).keys() == {"config.json", SHARD}


@pytest.mark.parametrize(
    "fault", [faults.cut(100_000), faults.status(500), faults.status(429, Retry_After="0")]
)
def test_a_download_that_breaks_off_is_continued(server: Server, fault: faults.Fault) -> None:
    paths = publish(server, REPOSITORY, FILES)
    server.faults[paths[SHARD]] = [fault]
    assert content(hub.fetch(REPOSITORY, server.url)) == FILES


def test_a_corrupt_file_is_fetched_again(server: Server) -> None:
    paths = publish(server, REPOSITORY, FILES)
    server.faults[paths[SHARD]] = [faults.corrupt]
    assert content(hub.fetch(REPOSITORY, server.url)) == FILES


def test_a_file_that_is_always_corrupt_is_not_kept(server: Server) -> None:
    paths = publish(server, REPOSITORY, FILES)
    server.faults[paths[SHARD]] = [faults.corrupt] * 9
    with pytest.raises(FetchError, match=rf"{SHARD}: expected the checksum \w+, and it has"):
        hub.fetch(REPOSITORY, server.url)
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
    server.faults[api] = [faults.status(code, **headers)] * 9
    with pytest.raises(FetchError, match=message):
        hub.fetch(REPOSITORY, server.url)


def test_room_is_looked_at_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, REPOSITORY, FILES)
    usage = shutil.disk_usage(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(OutputError, match=r"owner/name needs 0.0 GiB more, and 0.0 GiB are free"):
        hub.fetch(REPOSITORY, server.url)
    assert not [path for path, _ in server.requests if "/cdn/" in path]


CLIENT = """
import sys
from data.fetch.hub import Repository, fetch
from entrypoint import run
run(lambda: fetch(Repository("owner/name", sys.argv[1])))
"""


def test_a_killed_download_is_continued(server: Server, tmp_path: Path) -> None:
    paths = publish(server, REPOSITORY, FILES)
    server.faults[paths[SHARD]] = [faults.stall(150_000)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)}
    words = [sys.executable, "-c", CLIENT, REPOSITORY.revision]
    process = subprocess.Popen(words, env=env | {"HF_ENDPOINT": server.url})
    until = time.monotonic() + 60
    while not any(p.stat().st_size for p in tmp_path.rglob("*.incomplete")):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (REPOSITORY.snapshot(hub.cache_folder()) / SHARD).exists()
    assert content(hub.fetch(REPOSITORY, server.url)) == FILES
    assert len(server.ranges(paths[SHARD])) == 2


def test_a_cache_is_copied_and_compared(server: Server, tmp_path: Path) -> None:
    publish(server, REPOSITORY, FILES)
    folder = hub.fetch(REPOSITORY, server.url)
    mirror = tmp_path / "mirror"
    shutil.move(tmp_path / "hub", mirror)
    gets = len(server.requests)
    assert content(hub.copy(REPOSITORY, mirror)) == FILES
    assert hub.copy(REPOSITORY, mirror) == folder
    assert len(server.requests) == gets
    assert not list(hub.check(folder))
    (REPOSITORY.snapshot(mirror) / SHARD).resolve().write_bytes(b"another model's")
    with pytest.raises(FetchError, match=f"{SHARD}: expected the checksum"):
        hub.copy(REPOSITORY, mirror)
    with pytest.raises(FetchError, match="--mirror has no owner/name of this revision"):
        hub.copy(REPOSITORY, tmp_path / "elsewhere")


def test_missing_and_wrong_files_are_found_without_a_network(server: Server) -> None:
    publish(server, REPOSITORY, FILES)
    folder = hub.fetch(REPOSITORY, server.url)
    requests = len(server.requests)
    (folder / SHARD).resolve().unlink()
    config = (folder / "config.json").resolve()
    config.write_bytes(b"{}")
    found = dict(hub.check(folder))
    assert [path for path in found.values()] == [config, folder / SHARD]
    assert [message.split(":")[1].split()[0] for message in found] == ["expected", "missing"]
    assert len(server.requests) == requests
