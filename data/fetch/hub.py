"""Repositories of Hugging Face, in its cache, where every engine looks for them.

`huggingface_hub` downloads; its environment has addresses, tokens and proxies (HF_ENDPOINT,
HF_TOKEN, HF_HOME, HTTPS_PROXY). It compares sizes only, so every file is compared with its checksum
here, which is the name of its file in the cache: SHA-256, or Git's for small text files.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.fetch.bars import bar_class, progress_bar
from data.fetch.download import CHUNK, PASSING
from data.fetch.space import require_space
from errors import FetchError, OutputError
from ref_dsinfer.files import write_whole

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

log = logging.getLogger(__name__)

SHA256, GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
TRIES = 5  # in a row that bring nothing; the library itself repeats some requests
WAIT_S = 1.0  # after the first one; doubled after each further one


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
    """The cache that the environment says. A variable set later has no effect."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def fetch(repository: Repository, endpoint: str | None = None, workers: int = 8) -> Path:
    """Download a repository, or what is missing of it, and compare every file with its checksum.

    `endpoint`: a mirror's address instead of HF_ENDPOINT.
    Returns the folder of its files. Raises: FetchError, OutputError.
    """
    wanted = _ask(repository, lambda: _download(repository, endpoint, workers, dry_run=True))
    needed = sum(file.file_size for file in wanted if file.will_download)
    cache = cache_folder()
    _make(cache)
    require_space(cache, needed, repository.name)
    for last in (False, True):
        _insist(repository, lambda: _download(repository, endpoint, workers))
        folder = repository.snapshot(cache)
        wrong = list(check(folder, [file.filename for file in wanted], workers))
        if not wrong:
            return folder
        for problem, blob in wrong:
            log.warning("%s: removed", problem)
            blob.unlink(missing_ok=True)
        if last:
            raise FetchError(f"{wrong[0][0]}: twice, so it was not kept")
    raise AssertionError  # the last turn returns or raises


def copy(repository: Repository, mirror: Path, workers: int = 8) -> Path:
    """Copy a repository from another cache, comparing every file with its checksum.

    Returns the folder of its files. Raises: FetchError, OutputError.
    """
    source, target = repository.snapshot(mirror), repository.snapshot(cache_folder())
    if not source.is_dir():
        raise FetchError(f"{source}: not there: --mirror has no {repository.name} of this revision")
    if source.resolve() == target.resolve():
        raise FetchError(f"{source}: --mirror is the cache itself: --verify checks it")
    names = repository.files or tuple(_names(source))
    if wrong := list(check(source, names, workers)):
        raise FetchError(wrong[0][0])
    missing = [name for name in names if not (target / name).is_file()]
    _make(target)
    require_space(target, sum((source / n).stat().st_size for n in missing), repository.name)
    for name in missing:
        blob = (source / name).resolve()
        place = target.parents[1] / "blobs" / _published(source / name, blob)
        link = target / name
        for folder in (place.parent, link.parent):
            _make(folder)
        write_whole(place, lambda partial, blob=blob: shutil.copyfile(blob, partial))  # type: ignore[misc]
        link.unlink(missing_ok=True)  # a dangling one
        link.symlink_to(os.path.relpath(place, link.parent))
    if wrong := list(check(target, names, workers)):
        raise FetchError(wrong[0][0])
    return target


def check(
    folder: Path, names: tuple[str, ...] | list[str] = (), workers: int = 8
) -> Iterator[tuple[str, Path]]:
    """The files of a snapshot that are missing or differ from their checksums.

    `names`: all that are there if empty. Yields a message and the file that should be removed.
    """
    files = [folder / name for name in names or _names(folder)]
    total = sum(file.stat().st_size for file in files if file.is_file())
    name = f"checking {folder.name}"
    with progress_bar(total, name) as seen, ThreadPoolExecutor(workers) as pool:
        yield from filter(None, pool.map(lambda file: _check_file(file, seen), files))


def _check_file(file: Path, seen: Callable[[int], object]) -> tuple[str, Path] | None:
    if not file.is_file():
        return f"{file}: missing", file
    blob = file.resolve()
    published = _published(file, blob)
    if not published:
        log.warning("%s: its checksum is unknown", file)
        return None
    came = _checksum(blob, published, seen)
    if came == published:
        return None
    return f"{file}: expected the checksum {published}, and it has {came}", blob


def _published(file: Path, blob: Path) -> str:
    """The checksum of a file: the name of its link's target; empty if that is none."""
    name = Path(os.readlink(file)).name if file.is_symlink() else ""  # noqa: PTH115
    return name if SHA256.fullmatch(name) or GIT_SHA1.fullmatch(name) else ""


def _checksum(path: Path, like: str, seen: Callable[[int], object]) -> str:
    if SHA256.fullmatch(like):
        digest = hashlib.sha256(usedforsecurity=False)
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            seen(len(data))
    return digest.hexdigest()


def _names(folder: Path) -> Iterator[str]:
    return (str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if not p.is_dir())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be made: {error.strerror}") from error


def _download(
    repository: Repository, endpoint: str | None, workers: int, dry_run: bool = False
) -> "list[DryRunFileInfo]":
    from huggingface_hub import snapshot_download

    found: Any = snapshot_download(
        repository.name,
        repo_type=repository.kind,
        revision=repository.revision,
        allow_patterns=list(repository.files) or None,
        endpoint=endpoint,
        max_workers=workers,
        tqdm_class=bar_class(),
        dry_run=dry_run,
    )
    return found if dry_run else []


def _insist(repository: Repository, ask: "Callable[[], list[DryRunFileInfo]]") -> None:
    """Download until it succeeds, or has broken off too often without bringing anything.

    Raises: FetchError, OutputError.
    """
    failures, held = 0, -1
    while True:
        try:
            _ask(repository, ask)
            return
        except FetchError as error:
            blobs = cache_folder() / repository.folder / "blobs"
            now = sum(blob.stat().st_size for blob in blobs.glob("*") if blob.is_file())
            failures, held = (failures + 1 if now == held else 1), now
            if failures >= TRIES or not _is_passing(error.__cause__):
                raise
            log.warning("%s: continuing", error)
            time.sleep(WAIT_S * 2 ** (failures - 1))


def _ask(repository: Repository, ask: "Callable[[], list[DryRunFileInfo]]") -> Any:
    """Call the library. Raises: FetchError, OutputError."""
    import httpx
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{repository.name} is gated: accept its terms on its page, and set HF_TOKEN"
        ) from error
    except errors.HfHubHTTPError as error:
        raise FetchError(f"{repository.name}: {_line(error)}") from error
    except (errors.LocalEntryNotFoundError, httpx.HTTPError, errors.FileMetadataError) as error:
        raise FetchError(f"{repository.name}: {_line(error)}") from error
    except OSError as error:
        if error.errno is None:  # the library's own, such as for a file of the wrong size
            raise FetchError(f"{repository.name}: {_line(error)}") from error
        raise OutputError(
            f"{cache_folder()}: can't be written: {error.strerror or error}; what is there is kept,"
            " and the same command continues it"
        ) from error


def _is_passing(error: BaseException | None) -> bool:
    """Whether another try may help."""
    import httpx

    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in PASSING
    if isinstance(error, httpx.TransportError):
        return True
    if isinstance(error, OSError) and error.errno is None and error.__cause__ is None:
        return True
    return error is not None and _is_passing(error.__cause__)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
