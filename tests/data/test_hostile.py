"""Hostile files: no crash, nothing executed, little memory and time, a message of one line each."""

import pickle
import pickletools
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data import schema
from data.samples import is_missing, read_frame, require_text, samples
from errors import UserError
from tests.apart import MEGABYTES, SECONDS, apart
from tests.data import hostile
from tests.data.frames.make import frames
from tests.effort import cases, few_fast

FRAMES = sorted((Path(__file__).parent / "frames").glob("*/*.pkl"))
FOREIGN = sorted((Path(__file__).parent / "foreign").glob("*.pkl"))
HOSTILE = dict(hostile.files())
MUTANTS = cases(1_500, 20_000)


def _read(path: Path) -> pd.DataFrame:
    """All that run_eval and eval_accuracy do with a file before they use it."""
    frame = read_frame(path)
    if not set(schema.FOR_RUN) - set(frame.columns):
        samples(frame)
    if "model_output" in frame.columns:
        require_text(frame, ["model_output"], missing=True)
    return frame


def test_there_are_many_kinds() -> None:
    assert len(HOSTILE) >= 100


@pytest.mark.parametrize("name", few_fast([*HOSTILE]))
def test_a_hostile_pickle_ends_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(HOSTILE[name])
    message, code, megabytes = apart(lambda: f"a frame of {len(_read(path))} rows")
    assert code in (3, 4, 5), (code, message)  # an input file, its columns, no rows
    assert message.startswith(f"{path}: ") or message.startswith("row "), message
    assert "\n" not in message
    assert message.isprintable(), message
    assert len(message) < 600
    assert megabytes < MEGABYTES


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_what_other_libraries_pickle_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """Frames that cloudpickle writes without code of its own are those of the standard library."""
    monkeypatch.chdir(tmp_path)
    message, code, megabytes = apart(lambda: f"a frame of {len(_read(path))} rows")
    assert list(tmp_path.iterdir()) == []
    assert megabytes < MEGABYTES
    if path.stem == "cloudpickle-frame":
        assert message == "a frame of 2 rows"
        return
    assert code == 3
    assert message.startswith(f"{path}: not a .pkl data frame: it ")


def test_the_attacks_of_other_libraries_do_attack(tmp_path: Path) -> None:
    """Loaded as others load them, so that it is the reader here that keeps them from it."""
    path = next(path for path in FOREIGN if path.stem == "cloudpickle-attack-system")
    subprocess.run(
        [sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"],
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "path", few_fast(FRAMES), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_frames_of_every_pandas_are_read(path: Path) -> None:
    """The values are those that this pandas makes of the same frame."""
    expected = {name: frame for name, frame, _ in frames()}[path.stem]
    if path.stem == "empty":
        with pytest.raises(UserError, match="no rows"):
            read_frame(path)
        return
    frame = read_frame(path)
    assert list(frame.columns) == [str(name) for name in expected.columns]
    for name, old in expected.items():
        cells = zip(frame[str(name)], old, strict=True)
        assert all(_alike(new, cell) for new, cell in cells), frame[str(name)].tolist()
    if path.stem != "numbered":
        assert [row.prompt_text for row in samples(frame)] == expected["text_input"].tolist()


def _alike(new: Any, old: Any) -> bool:
    """Whether a cell that was read has the value of the original, as a plain type."""
    if is_missing(old):
        return is_missing(new)
    if isinstance(new, str) and not isinstance(old, str):
        text = str(old).replace("00:00:00", "").strip()
        return new.startswith(("1", "2", "3")) and (text[:4] in new or "seconds" in new)
    if hasattr(old, "tolist") and hasattr(new, "tolist"):
        return new.tolist() == old.tolist()
    if isinstance(old, list):
        return list(new) == old
    return new == old


class Mutants:
    """Pickled frames, mutated: opcodes changed, copied or left out; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._files = [_opcodes_of(path.read_bytes()) for path in FRAMES]
        self._everything = [part for file in self._files for part in file]

    def one(self) -> bytes:
        chance = self._random
        parts = list(chance.choice(self._files))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(parts))
            kind = chance.randrange(7)
            if kind == 0:
                parts[at] = chance.choice(self._everything)
            elif kind == 1:
                del parts[at]
            elif kind == 2:
                parts.insert(at, chance.choice(self._everything))
            elif kind == 3:
                other = chance.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            elif kind == 4:
                parts[at] = self._number(parts[at])
            elif kind == 5:
                start = chance.randrange(len(self._everything))
                parts[at:at] = self._everything[start : start + chance.randrange(1, 12)]
            else:
                part = bytearray(parts[at])
                part[chance.randrange(len(part))] = chance.randrange(256)
                parts[at] = bytes(part)
            parts = parts or [b"."]
        return b"".join(parts)

    def _number(self, part: bytes) -> bytes:
        """The opcodes of another number, or of another value."""
        edges = (0, 1, -1, 255, 1 << 31, -(1 << 31), (1 << 63) - 1, 1 << 63, 10**30, 10**5000)
        value = pickle.dumps(self._random.choice((*edges, None, (), [], {}, "a", b"b", 1.5)), 4)
        return value[2:-1] if value[2:3] != b"\x95" else value[11:-1]


def _opcodes_of(data: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _read_mutants(seed: int, count: int) -> str:
    """Read `count` mutants. Returns how many of them were frames, as text."""
    mutants, whole = Mutants(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.pkl")
        for _ in range(count):
            content = mutants.one()
            path.write_bytes(content)
            signal.alarm(SECONDS)
            try:
                _read(path).head(3).to_string(max_colwidth=20)
                whole += 1
            except UserError:
                continue
            except Exception as error:
                raise AssertionError(f"{error!r} of {content!r}"[:4000]) from error
    return f"{whole} of {count} were frames"


@pytest.mark.parametrize(
    "count", [500, pytest.param(MUTANTS, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_mutants_of_real_frames_are_read_or_refused(count: int) -> None:
    message, code, megabytes = apart(lambda: _read_mutants(count, count))
    assert code == 0, message
    assert 0 < int(message.split()[0]) < count
    assert megabytes < MEGABYTES
    print(message, file=sys.stderr)
