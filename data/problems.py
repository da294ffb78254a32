"""LiveCodeBench's problems and their tests, one at a time.

All tests of release_v5 take 21 GB as Python objects. A store is an SQLite database in which every
test is compressed by itself, so that reading one costs neither memory nor time for the others. A
JSON-lines file in LiveCodeBench's own schema, or a folder of them, can be read directly: only the
positions of its lines are kept.

    from data.problems import Problems, build
    build([Path("test.jsonl")], Path("livecodebench.sqlite"))
    Problems("livecodebench.sqlite").read("3154").tests[0].input
"""

import hashlib
import json
import sqlite3
import threading
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from data.livecodebench import (
    Case,
    Problem,
    files_in,
    json_lines,
    parse,
    problem_lines,
    question_id_of,
    row_count,
)
from data.progress import Progress
from errors import GradingError, OutputError
from ref_dsinfer.files import write_whole

PROBLEM_FILES = ("livecodebench.sqlite", "livecodebench.jsonl")  # looked for in this order
VERSION = 1  # of a store's tables
_OURS = 0x4C434250  # the application id in the header of a store
_SQLITE = b"SQLite format 3\0"
_LEVEL = 1  # zlib's fastest: tests are repetitive, and a build compresses many gigabytes
_PROBLEM = "SELECT content FROM problems WHERE id = ?"
_TEST = "SELECT content FROM tests WHERE problem = ? AND number = ?"
_TABLES = """
    CREATE TABLE problems (id TEXT PRIMARY KEY, content BLOB) WITHOUT ROWID;
    CREATE TABLE tests (problem TEXT, number INTEGER, content BLOB, PRIMARY KEY (problem, number));
"""


class Problems:
    """The problems in a store, in a JSON-lines file, or in all JSON-lines files of a folder.

    Raises: GradingError if the path can't be read or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._source: _Source = _Store(self.path) if _is_database(self.path) else _Lines(self.path)

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._source

    def read(self, question_id: str) -> Problem:
        """A problem by its question_id.

        Raises: GradingError if there is none, or it can't be read. Reading a test of a problem from
        a store raises it too.
        """
        if question_id not in self:
            raise GradingError(f"{self.path.name} has no problem {question_id}")
        return self._source.read(question_id)

    def digest(self, question_id: str) -> str:
        """The SHA-256 hash of the line that a problem came in, in hexadecimal.

        The problem must exist.
        """
        return self._source.digest(question_id)


def build(sources: Sequence[Path], store: Path) -> int:
    """Make a store of the problems in JSON-lines and parquet files, or folders of such files.

    The store appears under its name whole, or not at all. Returns the number of problems in it.

    Raises: GradingError naming a file and line that is not a problem, or two different problems of
    one id; OutputError if the store can't be written.
    """
    files = [file for source in sources for file in files_in(source, (".jsonl", ".parquet"))]
    problems = 0

    def write(partial: Path) -> None:
        nonlocal problems
        partial.unlink(missing_ok=True)  # what a killed build has left
        with (
            closing(sqlite3.connect(partial)) as database,
            Progress(sum(map(row_count, files)), "problems", "problem") as progress,
        ):
            # the file is not used before it is whole: it needs neither journal nor flushes
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES)
            for file in files:
                for where, line in problem_lines(file):
                    problems += _insert(database, line, where)
                    progress.add()
            database.executescript(
                f"PRAGMA application_id = {_OURS}; PRAGMA user_version = {VERSION};"
            )

    try:
        write_whole(store, write)
    except sqlite3.Error as error:  # such as a full disk
        raise OutputError(f"{store}: can't be written: {error}") from error
    return problems


class _Source(Protocol):
    def __contains__(self, question_id: str) -> bool: ...

    def read(self, question_id: str) -> Problem: ...

    def digest(self, question_id: str) -> str: ...


class _Lines:
    """JSON-lines files, whose lines are found by their positions."""

    def __init__(self, path: Path) -> None:
        self._lines: dict[str, tuple[Path, int, int]] = {}  # file, offset and length in bytes
        for file in files_in(path, (".jsonl",)):
            for number, offset, line in json_lines(file):
                question_id = question_id_of(line, f"{file}: line {number}")
                self._lines[question_id] = file, offset, len(line)

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._lines

    def read(self, question_id: str) -> Problem:
        file = self._lines[question_id][0]
        return parse(self._line(question_id), f"{file}: problem {question_id}")

    def digest(self, question_id: str) -> str:
        return hashlib.sha256(self._line(question_id)).hexdigest()

    def _line(self, question_id: str) -> bytes:
        path, offset, length = self._lines[question_id]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


class _Store:
    """An SQLite database that `build` has made. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # immutable: nothing writes a store, and on a read-only disk SQLite can't lock it
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        self._database = sqlite3.connect(address, uri=True, check_same_thread=False)
        (ours,), (version,) = self._rows("PRAGMA application_id"), self._rows("PRAGMA user_version")
        if ours != (_OURS,):
            raise GradingError(f"{path}: an SQLite database, but not one of LiveCodeBench problems")
        if version != (VERSION,):
            raise GradingError(
                f"{path}: its version is {version[0]}, and only {VERSION} can be read: build it"
                " again from LiveCodeBench's files"
            )
        ((pages,),), ((page,),) = self._rows("PRAGMA page_count"), self._rows("PRAGMA page_size")
        if pages * page != (size := path.stat().st_size):
            raise self._damaged(f"it has {size} bytes instead of {pages * page}")
        self._ids = {question_id for (question_id,) in self._rows("SELECT id FROM problems")}

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._ids

    def read(self, question_id: str) -> Problem:
        function, _, count = self._values(_PROBLEM, question_id)[0]
        return Problem(question_id, function, _Tests(self, question_id, count))

    def digest(self, question_id: str) -> str:
        return str(self._values(_PROBLEM, question_id)[0][1])

    def test(self, question_id: str, number: int) -> Case:
        """Test `number`, from 0, of a problem. Raises: GradingError if it is damaged."""
        (length,), texts = self._values(_TEST, question_id, number)
        return Case(_text(texts[:length]), _text(texts[length:]))

    def _values(self, query: str, *key: object) -> tuple[list[Any], bytes]:
        """What `_packed` packed under a key: the other values, and the texts in one piece."""
        rows = self._rows(query, *key)
        try:
            ((content,),) = rows
            # zlib's checksum covers all of it
            head, _, texts = zlib.decompress(content).partition(b"\n")
            values: list[Any] = json.loads(head)
            if values[: len(key)] != list(key):
                raise ValueError("it belongs to another")
        except (ValueError, TypeError, zlib.error) as error:
            raise self._damaged(f"at {', '.join(map(repr, key))}") from error
        return values[len(key) :], texts

    def _rows(self, query: str, *values: object) -> list[Any]:
        try:
            with self._lock:
                return self._database.execute(query, values).fetchall()
        # the text of SQLite's own error may quote damaged bytes
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> GradingError:
        return GradingError(
            f"{self._path}: the store is damaged ({what}): build it again from"
            " LiveCodeBench's files"
        )


class _Tests(Sequence[Case]):
    """The tests of a problem in a store, each read when it is asked for."""

    def __init__(self, store: _Store, question_id: str, count: int) -> None:
        self._store, self._id, self._count = store, question_id, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(self._count)[number]]
        return self._store.test(self._id, range(self._count)[number])


def _is_database(path: Path) -> bool:
    try:
        if path.is_dir():
            return False
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise GradingError(f"{path}: can't be read: {error.strerror}") from error


def _insert(database: sqlite3.Connection, line: bytes, where: str) -> int:
    """Add a problem to a store. Returns 0 if it is in it already, else 1."""
    digest = hashlib.sha256(line).hexdigest()
    problem = parse(line, where)
    content = _packed([problem.id, problem.function, digest, len(problem.tests)])
    known = database.execute(_PROBLEM, (problem.id,)).fetchone()
    if known == (content,):
        return 0
    if known:
        raise GradingError(f"{where}: another problem has the id {problem.id}")
    database.execute("INSERT INTO problems VALUES (?, ?)", (problem.id, content))
    database.executemany(
        "INSERT INTO tests VALUES (?, ?, ?)",
        (
            (problem.id, number, _packed_test(problem.id, number, test))
            for number, test in enumerate(problem.tests)
        ),
    )
    database.commit()
    return 1


def _packed_test(question_id: str, number: int, test: Case) -> bytes:
    texts = [text.encode(errors="surrogatepass") for text in (test.input, test.output)]
    return _packed([question_id, number, len(texts[0])], *texts)


def _packed(values: list[object], *texts: bytes) -> bytes:
    """Values as a line of JSON, and texts, which take longer to read as JSON; all compressed.

    The values begin with their key: a damaged index finds other rows.
    """
    return zlib.compress(b"\n".join([json.dumps(values).encode(), b"".join(texts)]), _LEVEL)


def _text(content: bytes) -> str:
    return content.decode(errors="surrogatepass")
