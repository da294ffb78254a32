"""requirements/uv_install.py: what uv is started with, under configurations of pip."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "requirements" / "uv_install.py"
NAMES = ("SSL_CERT_FILE", "ALL_PROXY", "UV_HTTP_TIMEOUT")
# Stands for uv, and prints what it got.
SHOWING = f"#!/bin/sh\nprintf '%s\\n' \"$@\" {' '.join(f'{name}=${name}' for name in NAMES)}\n"


@pytest.fixture
def uv(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "uv"
    path.parent.mkdir()
    path.write_text(SHOWING)
    path.chmod(0o755)
    return path


def install(uv: Path, file: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Install a package, where pip is configured by a file and by variables."""
    configuration = uv.with_name("pip.conf")
    configuration.write_text(file)
    return subprocess.run(
        [sys.executable, SCRIPT, "--quiet", "a==1"],
        env={
            "PATH": f"{uv.parent}:{os.environ['PATH']}",
            "HOME": str(uv.parent),
            "PIP_CONFIG_FILE": str(configuration),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_setting_of_pip_reaches_uv(uv: Path) -> None:
    ended = install(
        uv,
        "[global]\nindex-url = https://one/simple\nextra-index-url =\n    https://two\n    https://three\n"
        "find-links = /never\ncert = /a/ca.pem\nproxy = http://proxy:3128\ntimeout = 7\n"
        "[install]\nconstraint = /a/limits.txt\ntrusted-host = two\n[list]\nformat = columns\n",
        PIP_FIND_LINKS="/wheels",
        PIP_NO_CACHE_DIR="1",
        PIP_NO_INDEX="0",
        PIP_PROGRESS_BAR="off",
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"pip\ninstall\n--python\n{sys.executable}\n")
    words = ended.stdout.split()
    pairs = {" ".join(pair) for pair in pairwise(words)}
    assert pairs >= {
        "--index-url https://one/simple",
        "--extra-index-url https://two",
        "--extra-index-url https://three",
        "--find-links /wheels",
        "--constraints /a/limits.txt",
        "--allow-insecure-host two",
        "--index-strategy unsafe-best-match",
        "--quiet a==1",
        "SSL_CERT_FILE=/a/ca.pem ALL_PROXY=http://proxy:3128",
    }
    assert {"--no-cache", "UV_HTTP_TIMEOUT=7"} <= {*words}
    assert {"--no-index", "/never"}.isdisjoint(words)


def test_without_an_index_there_is_none(uv: Path) -> None:
    assert "--no-index" in install(uv, PIP_NO_INDEX="1").stdout.split()


def test_a_setting_that_uv_does_not_know_is_named(uv: Path) -> None:
    ended = install(uv, "[global]\nonly-binary = :all:\n")
    assert ended.returncode == 1
    assert ended.stderr == "uv has no counterpart of pip's setting only-binary\n"
    assert not ended.stdout
