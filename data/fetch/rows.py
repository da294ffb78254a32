"""The files of rows, from MLCommons' store into a folder, and the checksums kept beside them."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data.fetch import sources
from data.fetch.download import Patience, Remote, download_all, partial_of, size_of
from data.fetch.sources import ROWS_NAME
from data.fetch.space import require_space
from data.fetch.store import LIST, files_of, listing
from data.samples import DATA_SET
from errors import FetchError, OutputError
from ref_dsinfer.files import write_whole

log = logging.getLogger(__name__)


def fetch(
    names: Iterable[str], folder: Path, root: str, patience: Patience, workers: int = 8
) -> list[Path]:
    """Download the files of these names into `folder`; those that are there and right stay.

    `root`: the address of the store or of a mirror. The published list is kept beside the files, as
    `verify` needs it. The data set is also linked to as DATA_SET, unless there is such a file.

    Returns the files. Raises: FetchError, OutputError.
    """
    content, published = listing(ROWS_NAME, root, patience)
    wanted = {folder / name: _find(name, published, root) for name in names}
    missing = {path: remote for path, remote in wanted.items() if not _is_right(path, remote)}
    with ThreadPoolExecutor(workers) as pool:
        sizes = list(pool.map(lambda remote: size_of(remote.url, patience), missing.values()))
    for (path, remote), size in zip(missing.items(), sizes, strict=True):
        missing[path] = replace(remote, size=size)
    here = sum(part.stat().st_size for path in missing if (part := partial_of(path)).is_file())
    require_space(folder, sum(size or 0 for size in sizes) - here, ROWS_NAME)
    total = None if None in sizes else sum(size or 0 for size in sizes)
    if missing:
        download_all(missing, total, patience, workers)
    write_whole(folder / f"{ROWS_NAME}{LIST}", lambda partial: partial.write_bytes(content))
    _link(folder)
    return list(wanted)


def verify(names: Iterable[str], folder: Path) -> Iterator[FetchError | str]:
    """Compare files with the published list beside them, without a network.

    Yields a line for a file that is right, an error for one that is not.
    """
    source = folder / f"{ROWS_NAME}{LIST}"
    try:
        published = files_of(str(source), source.read_bytes())
    except OSError as error:
        yield FetchError(f"{source}: the list of checksums can't be read: {error.strerror}")
        return
    except FetchError as error:
        yield error
        return
    for name in names:
        path = folder / name
        try:
            expected = _find(name, published, str(source)).digest
            came = expected.of(path)
        except FetchError as error:
            yield error
        except OSError as error:
            yield FetchError(f"{path}: can't be read: {error.strerror}")
        else:
            if came == expected:
                yield f"{path} is the published file ({expected})"
            else:
                yield FetchError(f"{path}: expected {expected}, and it has {came}")


def _find(name: str, published: Mapping[str, Remote], source: str) -> Remote:
    """The file of a name, in whatever folder. Raises: FetchError."""
    for path, remote in published.items():
        if PurePosixPath(path).name == name:
            return remote
    raise FetchError(f"{source}: {ROWS_NAME}{LIST} has no {name}, but: {', '.join(published)}")


def _is_right(path: Path, remote: Remote) -> bool:
    """Whether a file is there and as published. One that is wrong will be replaced."""
    try:
        came = remote.digest.of(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{path}: can't be read: {error.strerror}") from error
    if came != remote.digest:
        log.warning("%s: expected %s, and it has %s: replacing it", path, remote.digest, came)
    return came == remote.digest


def _link(folder: Path) -> None:
    """Let DATA_SET be the data set, unless something of that name exists."""
    used = folder / DATA_SET
    if (folder / sources.DATA_SET).is_file() and not used.exists():
        try:
            used.unlink(missing_ok=True)  # a dangling link
            used.symlink_to(sources.DATA_SET)
        except OSError as error:
            raise OutputError(f"{used}: can't be written: {error.strerror}") from error
