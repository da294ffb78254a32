"""MLCommons' store: which files a published name stands for, where they are, and their checksums.

`NAME.uri` (`NAME.url` in older stores) holds one line, the address of the folder with the files.
`NAME.md5` beside it is what md5sum writes: a checksum and a path in that folder on each line. The
protocol is that of MLCommons' R2 downloader, which leaves `NAME.md5` beside the files too.

A mirror is the same, from another root: `metadata/NAME.uri`, and the folder at the path that its
address has in the store. The folder of an earlier download is a mirror as well.
"""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urljoin, urlsplit

from data.fetch.download import MissingError, Patience, Remote, read_text
from data.fetch.sink import md5
from errors import FetchError, UsageError
from ref_dsinfer.lookalike import HEAD, what_it_is
from terminal import quoted

STORE = "https://inference.mlcommons-storage.org"
METADATA = "metadata"
POINTERS = (".uri", ".url")
LIST = ".md5"
LONGEST_ADDRESS = 4096  # characters
LINE = re.compile(r"([0-9a-fA-F]{32})[ \t]+\*?(.+)")


def mirror_root(mirror: str | None) -> str:
    """The address that the store's files are below: the store's, or that of a mirror.

    Raises: UsageError if `mirror` is neither an address nor a folder.
    """
    if mirror is None:
        return STORE
    if mirror.startswith(("http://", "https://")):
        return mirror.rstrip("/")
    if "://" in mirror or not Path(mirror).is_dir():
        raise UsageError(f"--mirror {mirror}: neither a folder nor an http:// or https:// address")
    return Path(mirror).absolute().as_uri()


def listing(name: str, root: str, patience: Patience) -> tuple[bytes, dict[str, Remote]]:
    """The list of files that a name stands for, as it is published, and the files by path.

    Raises: FetchError.
    """
    for pointer in POINTERS:
        url = f"{root}/{METADATA}/{name}{pointer}"
        try:
            folder = _folder(url, read_text(url, patience), root)
        except MissingError as error:
            missing = error
        else:
            source = url.removesuffix(pointer) + LIST
            content = read_text(source, patience)
            return content, files_of(source, content, folder)
    if root == STORE:
        raise missing
    source = f"{root}/{name}{LIST}"  # of the folder of an earlier download
    try:
        content = read_text(source, patience)
    except MissingError as error:
        raise FetchError(f"no mirror: neither {missing}, nor {error}") from error
    return content, files_of(source, content, f"{root}/")


def files_of(source: str, content: bytes, folder: str = "") -> dict[str, Remote]:
    """The files that a list names, by their paths below `folder`, an address.

    Raises: FetchError, with the line of a path that is absolute or leaves the folder.
    """
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise FetchError(f"{source}: {_not_a_list(content)}") from error
    files: dict[str, Remote] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise FetchError(f"{source}, line {number}: {_not_a_list(content, line)}")
        path = inside(match[2].strip())
        if path is None:
            raise FetchError(
                f"{source}, line {number}: expected a path inside the folder of the files, and"
                f" {quoted(match[2])} came"
            )
        digest = md5(match[1])
        if path in files and files[path].digest != digest:
            raise FetchError(f"{source}, line {number}: {path} has two checksums")
        files[path] = Remote(folder + quote(path), digest)
    if not files:
        raise FetchError(f"{source}: expected a list of checksums and files, and it is empty")
    return files


def _folder(url: str, content: bytes, root: str) -> str:
    """The address of the files' folder, with `/` at its end, from the content of a pointer."""
    address = content.decode("utf-8", errors="replace").strip()
    if len(address) > LONGEST_ADDRESS or not address.isprintable() or " " in address or not address:
        phrase = what_it_is(content[:HEAD]) or "something else"
        raise FetchError(f"{url}: expected the address of a folder, and it is {phrase}")
    folder = urlsplit(urljoin(url, address))
    if root != STORE:  # the mirror has it at the same path
        return f"{root}/{folder.path.strip('/')}/"
    if folder.scheme not in ("http", "https") or not folder.hostname:
        raise FetchError(f"{url}: expected an https:// address, and {quoted(address)} came")
    return folder.geturl().rstrip("/") + "/"


def inside(text: str) -> str | None:
    """A path of a list without `./`; None if it is not one inside the folder."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts or not text.isprintable():
        return None
    return None if "\\" in text or text.endswith("/") else str(path)


def _not_a_list(content: bytes, line: str = "") -> str:
    phrase = what_it_is(content[:HEAD])
    if phrase and not phrase.startswith("text"):
        return f"expected a list of checksums and files, and it is {phrase}"
    return f"expected a checksum and a path, and {quoted(line)} came"
