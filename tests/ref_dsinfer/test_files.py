"""A file is there whole, or as it was."""

import json
from pathlib import Path

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


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.partial").write_text("half of an earlier run's")
    write_text(tmp_path / "a.txt", "whole ü")
    assert (tmp_path / "a.txt").read_bytes() == "whole ü".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(OutputError, match=f"^{path}: can't be written: Not a directory$"):
        write_text(path, "")
