"""The output of scripts is harmless, in every encoding of a terminal."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from terminal import harmless, one_line, quoted

ROOT = Path(__file__).parents[1]
HOSTILE = "é \x1b[31mred\x07 \x9b2J \r \u202e \ud800 \t.\n"
PLAIN = ("LC_ALL=C.UTF-8", "PYTHONIOENCODING=ascii", "PYTHONIOENCODING=latin-1")
NO_LOCALE = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
SCRIPT = """
import argparse, logging, sys
import entrypoint
import errors
text = sys.argv.pop().encode().decode("unicode_escape")
def main():
    print(text)
    logging.getLogger("data").warning("%s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("data").exception("caught")
    if sys.argv.pop() == "help":
        argparse.ArgumentParser(description=text).parse_args(["--help"])
    raise errors.InputFileError(text)
entrypoint.run(main)
"""


def ended(what: str, setting: str) -> subprocess.CompletedProcess[bytes]:
    text = HOSTILE.encode("unicode_escape").decode()
    settings = dict(pair.split("=") for pair in setting.split())
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, what, text],
        cwd=ROOT,
        env={"PATH": "", **settings},
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize("setting", [*PLAIN, NO_LOCALE])
@pytest.mark.parametrize(("what", "code"), [("help", 0), ("error", 3)])
def test_all_output_is_harmless_in_every_encoding(setting: str, what: str, code: int) -> None:
    done = ended(what, setting)
    assert done.returncode == code, done.stderr
    output = (done.stdout + done.stderr).decode("latin-1" if "latin" in setting else "utf-8")
    assert harmless(output) == output
    letter = {"LC_ALL=C.UTF-8": "é".encode(), "PYTHONIOENCODING=latin-1": b"\xe9"}
    spelled = letter.get(setting, rb"\xe9") + rb" \x1b[31mred\x07 \x9b2J \r \u202e \ud800 " + b"\t."
    assert spelled in done.stdout
    assert done.stderr.count(spelled) == 2 + (what == "error")
    assert done.stderr.count(b"Traceback") == 1  # the one that was logged


def test_a_stream_that_is_closed_is_no_fault() -> None:
    script = "import entrypoint\nentrypoint.run(lambda: print('x'))"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, script]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")


def test_lines_and_tabs_stay_but_in_one_line() -> None:
    assert harmless("a\tb\nc\x00ä\x7f") == "a\tb\nc\\x00ä\\x7f"
    assert one_line("a\tb\nc") == r"a\tb\nc"


def _doubled(times: int) -> list:
    value: list = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(-1), "-1"),
        (np.float32(0.5), "0.5"),
        (np.array(7), "7"),
        (np.str_("a"), "'a'"),
        (None, "None"),
        ("a\x1b\n\ud800", r"'a\x1b\n\ud800'"),
        (Decimal("1e999999999"), "Decimal('1E+999999999')"),
        ([1, {"a": (2,)}], "[1, {'a': (2,)}]"),
    ],
)
def test_a_value_is_quoted_plainly(value: object, expected: str) -> None:
    assert quoted(value) == expected


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, [1] * 10**6, _doubled(60), b"x" * 10**6, 10**4000, [10**9999], list(range(99))],
)
def test_a_quoted_value_is_short_however_large_it_is(value: object) -> None:
    assert len(quoted(value)) < 120
