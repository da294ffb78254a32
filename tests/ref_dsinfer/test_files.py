"""A file is complete, or as it was."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from errors import CheckpointError, OutputError
from ref_dsinfer.files import write_json, write_text, write_whole


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(28, "No space left on device"), OutputError),
        (CheckpointError("a"), CheckpointError),
    ],
)
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, failure: Exception, raised: type[Exception]
) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"a": 1})

    def half(partial: Path) -> None:
        partial.write_text("{")
        raise failure

    with pytest.raises(raised):
        write_whole(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_its_text_and_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "whole ü")
    (tmp_path / "plain.txt").write_text("")
    assert (tmp_path / "a.txt").read_bytes() == "whole ü".encode()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    both_halfway = Barrier(2, timeout=30)

    def write(letter: str) -> None:
        def fill(partial: Path) -> None:
            with partial.open("w") as file:
                file.write(letter * 1000)
                file.flush()
                both_halfway.wait()
                file.write(letter * 1000)

        write_whole(path, fill)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))  # raises what a writer raised
    assert path.read_text() in ("a" * 2000, "b" * 2000)
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(OutputError, match=f"^{path}: can't be written: Not a directory$"):
        write_text(path, "")
