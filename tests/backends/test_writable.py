"""Read-only directories are replaced, with one warning."""

import logging
import os
import tempfile
from pathlib import Path

import pytest

from backends.writable import make_writable
from errors import LaunchError


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a home and a temporary directory, both writable and this test's own."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return {"HOME": str(tmp_path / "home"), "USER": "somebody"}


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A path in which nobody can create a file, not even root: it is a file itself."""
    path = tmp_path / "closed"
    path.touch()
    return path


def test_writable_directories_stay_and_nothing_is_logged(
    environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment |= {"VLLM_CACHE_ROOT": str(tmp_path / "not" / "there" / "yet")}
    before = dict(environment)
    make_writable(environment)
    assert environment == before
    assert not caplog.text
    assert not (tmp_path / "not").exists()
    assert not list((tmp_path / "home").iterdir())


def test_variables_are_replaced_and_named(
    environment: dict[str, str], closed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment |= {
        "TORCHINDUCTOR_CACHE_DIR": f"{closed}/torchinductor",
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "XDG_CACHE_HOME": str(closed),
    }
    make_writable(environment)
    folder = tmp_path / "tmp" / f"mlperf-caches-{os.getuid()}"
    assert environment == {
        "HOME": str(tmp_path / "home"),
        "USER": "somebody",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "XDG_CACHE_HOME": f"{folder}/XDG_CACHE_HOME",
        "HF_HOME": f"{closed}/huggingface",  # existing models are still found
    }
    assert folder.stat().st_mode & 0o77 == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"can't write to {closed} (XDG_CACHE_HOME), {closed}/torchinductor"
        f" (TORCHINDUCTOR_CACHE_DIR); engines keep their caches and what they compile in {folder}"
        " instead"
    )


@pytest.mark.parametrize("part", [".", ".cache", ".cache/vllm", ".triton"])
def test_a_home_with_a_read_only_directory_is_replaced(
    part: str, environment: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.rmdir()
    (home / part).parent.mkdir(parents=True, exist_ok=True)
    (home / part).touch()
    make_writable(environment)
    assert environment["HOME"] == str(tmp_path / "tmp" / f"mlperf-caches-{os.getuid()}" / "HOME")
    assert environment["HF_HOME"] == str(home / ".cache" / "huggingface")


def test_a_directory_for_temporary_files_is_found(
    environment: dict[str, str], closed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment["TMPDIR"] = str(closed)
    make_writable(environment)
    assert environment["TMPDIR"] == tempfile.gettempdir() != str(closed)
    assert f"{closed} (TMPDIR)" in caplog.text


def test_no_directory_for_temporary_files_is_an_error(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(LaunchError, match=r"\['/tmp'\]: set TMPDIR to"):
        make_writable(environment)


def test_a_directory_of_another_user_is_not_used(
    environment: dict[str, str], closed: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp" / f"mlperf-caches-{os.getuid()}").symlink_to(tmp_path)
    environment["TRITON_HOME"] = str(closed)
    make_writable(environment)
    assert Path(environment["TRITON_HOME"]).parent.parent == tmp_path / "tmp"
