"""Files of every kind with some bytes changed are read or refused: one line, no hang, no growth."""

import pickle
import random
import signal
import sys
import tempfile
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data import frames
from data.samples import read_frame
from errors import UserError
from tests.apart import MEGABYTES, apart
from tests.data.frames.make import BASE
from tests.data.frames.make import frames as frames_to_write

COUNT = 3400  # of each kind: over 10,000 in all
BATCH = 20  # files of one seed: drawing every edit would take longer than reading the file
SECONDS = 10  # of a file
GROWTH = 100  # megabytes, from a tenth of the files to the last
RUN_S = 280

Edit = tuple[str, float, int, bytes]  # kind, place, bytes that it is about, other bytes
KINDS = ("change", "insert", "delete", "repeat", "cut", "swap")
PARTS = (b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"[" * 40, b'"', b"}", b"null")


def edits(chance: random.Random) -> list[Edit]:
    return [
        (
            chance.choice(KINDS),
            chance.random(),
            chance.randrange(1, 41),
            chance.choice((*PARTS, chance.randbytes(chance.randrange(1, 5)))),
        )
        for _ in range(chance.choice((1, 1, 2, 3)))
    ]


def mutate(content: bytes, edits: list[Edit]) -> bytes:
    """The content with parts changed, each near a place between its beginning, 0, and end, 1."""
    for kind, place, size, part in edits:
        at = int(place * len(content))
        before, middle, after = content[:at], content[at : at + size], content[at + size :]
        content = {
            "change": before + part[: len(middle)] + content[at + len(part[: len(middle)]) :],
            "insert": before + part + middle + after,
            "delete": before + after,
            "repeat": before + middle * 9 + after,
            "cut": before,
            "swap": middle + before + after,
        }[kind]
    return content


def seeds(ending: str, folder: Path) -> list[bytes]:
    """Whole files of a kind, of all types of columns."""
    contents = []
    for number, (name, frame, _) in enumerate(frames_to_write()):
        if name == "empty":
            continue
        path = folder / f"{number}.pkl"
        frame.to_pickle(path)
        if ending != ".pkl":
            source, path = path, folder / f"{number}{ending}"
            frames.write(read_frame(source), path, ending)
        contents.append(path.read_bytes())
    if ending == ".pkl":
        backed = BASE[["dataset", "tok_input_len", "score", "flag"]].convert_dtypes(
            dtype_backend="pyarrow"
        )
        lists = pd.Series([[1, 2], None, []], backed.index, pd.ArrowDtype(pa.list_(pa.int64())))
        contents.append(pickle.dumps(backed.assign(ids=lists)))
    return contents


def read_many(ending: str) -> str:
    """Read COUNT changed files; says how many were whole, refused, and the growth in MB."""
    whole = refused = 0
    process, sizes, lines = psutil.Process(), [], {0}

    with tempfile.TemporaryDirectory() as name:
        files = seeds(ending, Path(name))
        path = Path(name, f"fuzz{ending}")

        @settings(
            max_examples=COUNT // BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.randoms(use_true_random=True))
        def read(chance: random.Random) -> None:
            nonlocal whole, refused
            for _ in range(BATCH):
                content = mutate(chance.choice(files), edits(chance))
                path.write_bytes(content)
                signal.alarm(SECONDS)  # ends the process, which tells a hang
                try:
                    read_frame(path).head(2).to_string(max_colwidth=20)
                    whole += 1
                except UserError as error:
                    refused += 1
                    lines.add(str(error).count("\n"))
                except Exception as error:
                    raise AssertionError(f"{error!r} of {content!r}"[:4000]) from error
            sizes.append(process.memory_info().rss >> 20)

        read()
    assert lines == {0}
    growth = sizes[-1] - sizes[len(sizes) // 10]
    return f"{whole} {refused} {growth}"


@pytest.mark.slow
@pytest.mark.timeout(RUN_S + 20)
@pytest.mark.parametrize("ending", [".pkl", ".parquet", ".jsonl"])
def test_changed_files_are_read_or_refused(ending: str) -> None:
    message, code, megabytes = apart(lambda: read_many(ending), RUN_S)
    assert code == 0, message
    whole, refused, growth = map(int, message.split())
    assert whole + refused >= COUNT
    assert whole
    assert refused
    assert growth < GROWTH
    assert megabytes < MEGABYTES
    print(f"{ending}: {whole} read, {refused} refused, {growth} MB more", file=sys.stderr)
