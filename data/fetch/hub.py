"""Repositories of Hugging Face, in its cache, where every engine looks for them.

`huggingface_hub` knows addresses, tokens and the cache, by its environment (HF_ENDPOINT, HF_TOKEN,
HF_HOME). The files are downloaded here, since it compares only sizes, and begins a file again after
its process was killed. In a cache a file's name is its checksum: SHA-256, or Git's for small files.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.fetch.bars import progress_bar
from data.fetch.download import (
    PASSING,
    FailedError,
    Patience,
    Remote,
    download_all,
    insist,
    partial_of,
)
from data.fetch.sink import Digest, git, git_lfs
from data.fetch.space import require_space
from data.fetch.store import inside
from data.identity import local_notes
from data.lock import locked
from errors import FetchError, OutputError

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

LOCK = ".fetch.lock"
SHA256, GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """What is fetched of a repository."""

    name: str  # OWNER/NAME
    revision: str  # commit
    kind: str = "model"  # or dataset
    files: tuple[str, ...] = ()  # all if empty

    @property
    def folder(self) -> str:
        """Its folder's name in a cache."""
        return f"{self.kind}s--{self.name.replace('/', '--')}"

    def snapshot(self, cache: Path) -> Path:
        """The folder of its files in a cache."""
        return cache / self.folder / "snapshots" / self.revision


def cache_folder() -> Path:
    """The cache that the environment says, when the library is imported first."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def fetch(
    repository: Repository, patience: Patience, workers: int = 8, endpoint: str | None = None
) -> Path:
    """Download what the cache lacks of a repository, every file compared with its checksum.

    `endpoint`: a mirror's address instead of HF_ENDPOINT.
    Returns the folder of its files. Raises: FetchError, OutputError.
    """
    return _get(repository, _published(repository, patience, endpoint), patience, workers)


def copy(repository: Repository, mirror: Path, patience: Patience, workers: int = 8) -> Path:
    """Copy what the cache lacks of a repository from another cache, with the same comparison.

    Returns the folder of its files. Raises: FetchError, OutputError.
    """
    source = repository.snapshot(mirror)
    if not source.is_dir():
        raise FetchError(f"{source}: not there: --mirror has no {repository.name} of this revision")
    files = {}
    for path in repository.files or _names(source):
        digest = _checksum(source / path)
        if not digest:
            raise FetchError(f"{source / path}: missing, or its checksum is unknown")
        blob = (source / path).resolve()
        files[path] = Remote(blob.as_uri(), digest, blob.stat().st_size)
    return _get(repository, files, patience, workers)


def check(folder: Path, names: Sequence[str] = (), workers: int = 8) -> Iterator[FetchError]:
    """The files of a directory that are missing, or differ from their checksums.

    Checksums are known in a cache, and where `hf download --local-dir` has noted them. `names`: all
    that are there if empty.
    """
    files = {name: folder / name for name in names or _names(folder)}
    yield from (FetchError(f"{file}: missing") for file in files.values() if not file.is_file())
    notes = local_notes(folder)
    known, unknown = {}, []
    for name, file in files.items():
        if digest := _checksum(file, notes.get(name, ("", ""))[1]):
            known[file] = digest
        elif file.is_file():
            unknown.append(file)

    total = sum(file.stat().st_size for file in known)
    with progress_bar(total, f"checking {folder.name}") as seen:

        def compare(file: Path) -> FetchError | None:
            try:
                came = known[file].of(file, seen)
            except OSError as error:
                return FetchError(f"{file}: can't be read: {error.strerror}")
            if came == known[file]:
                return None
            place = file.resolve()
            return FetchError(
                f"{file}: expected {known[file]}, not {came}: remove {place}, and fetch it again"
            )

        with ThreadPoolExecutor(workers) as pool:
            yield from filter(None, pool.map(compare, known))
    if unknown:
        yield FetchError(
            f"{unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}: the checksum is"
            " unknown, as this is neither a cache nor what `hf download --local-dir` made"
        )


def _get(
    repository: Repository, files: Mapping[str, Remote], patience: Patience, workers: int
) -> Path:
    """Bring files into the cache. Raises: FetchError, OutputError."""
    base = cache_folder() / repository.folder
    snapshot = repository.snapshot(cache_folder())
    _make(base / "blobs")
    with locked(base / LOCK):
        blobs = {base / "blobs" / remote.digest.value: remote for remote in files.values()}
        missing = {
            blob: remote
            for blob, remote in blobs.items()
            if not (blob.is_file() and blob.stat().st_size == remote.size)
        }
        total = sum(remote.size or 0 for remote in missing.values())
        parts = [part for blob in missing if (part := partial_of(blob)).is_file()]
        require_space(base, total - sum(p.stat().st_size for p in parts), repository.name)
        if missing:
            download_all(missing, total, patience, workers)
        for path, remote in files.items():
            _link(snapshot / path, base / "blobs" / remote.digest.value)
    return snapshot


def _link(link: Path, blob: Path) -> None:
    """Let a name in a snapshot be a file of the cache. Raises: OutputError."""
    _make(link.parent)
    target = os.path.relpath(blob, link.parent)
    try:
        if link.is_symlink() and os.readlink(link) == target:  # noqa: PTH115
            return
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    except OSError as error:
        raise OutputError(f"{link}: can't be written: {error.strerror}") from error


def _published(
    repository: Repository, patience: Patience, endpoint: str | None
) -> dict[str, Remote]:
    """The hub's list of a repository's files. Raises: FetchError."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    authorization = build_hf_headers().get("authorization", "")
    tree = insist(repository.name, lambda: _ask(repository, endpoint), patience)
    remotes = {}
    for entry in tree:
        if inside(entry.path) != entry.path:
            raise FetchError(f"{repository.name}: a file's path is {entry.path!r}")
        url = hf_hub_url(
            repository.name,
            entry.path,
            repo_type=repository.kind,
            revision=repository.revision,
            endpoint=endpoint,
        )
        digest = git_lfs(entry.lfs.sha256) if entry.lfs else git(entry.blob_id, entry.size)
        if not (SHA256 if entry.lfs else GIT_SHA1).fullmatch(digest.value):
            raise FetchError(f"{repository.name}: the checksum of {entry.path} is {digest}")
        remotes[entry.path] = Remote(url, digest, entry.size, authorization)
    if missing := [path for path in repository.files if path not in remotes]:
        raise FetchError(f"{repository.name}: the hub has no {missing[0]} at this revision")
    return {path: remotes[path] for path in repository.files or remotes}


def _ask(repository: Repository, endpoint: str | None) -> "list[RepoFile]":
    """Raises: FetchError; FailedError if another try may help."""
    import httpx
    from huggingface_hub import HfApi, RepoFile, errors

    try:
        tree = HfApi(endpoint).list_repo_tree(
            repository.name,
            recursive=True,
            revision=repository.revision,
            repo_type=repository.kind,
        )
        return [entry for entry in tree if isinstance(entry, RepoFile)]
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{repository.name} is gated: accept its terms on its page, and set HF_TOKEN"
        ) from error
    except errors.HfHubHTTPError as error:
        reason = _line(error)
        if error.response.status_code in PASSING:
            raise FailedError(reason) from error
        raise FetchError(f"{repository.name}: {reason}") from error
    except (httpx.TransportError, ConnectionError) as error:
        raise FailedError(f"the hub can't be reached: {_line(error)}") from error
    except httpx.InvalidURL as error:
        raise FetchError(f"{repository.name}: the hub's address: {_line(error)}") from error
    except (ValueError, KeyError, TypeError) as error:  # its answer is no list of files
        raise FetchError(f"{repository.name}: no list of files came: {_line(error)}") from error


def _checksum(file: Path, noted: str = "") -> Digest | None:
    """The checksum of a file, if it is there and one is known: `noted`, or in a cache the name of
    the link's target."""
    if not file.is_file():
        return None
    name = Path(os.readlink(file)).name if file.is_symlink() else noted  # noqa: PTH115
    if SHA256.fullmatch(name):
        return git_lfs(name)
    return git(name, file.stat().st_size) if GIT_SHA1.fullmatch(name) else None


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [str(path) for path in paths if path.parts[0] != ".cache"]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be made: {error.strerror}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
