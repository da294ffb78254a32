"""Exit codes: one class, one code."""

import re
from pathlib import Path

import entrypoint
import errors

ROOT = Path(__file__).parent.parent
CLASSES = errors.UserError.__subclasses__()


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [error.exit_code for error in CLASSES]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, entrypoint.INTERRUPTED} & set(codes)


def test_the_readme_lists_every_code() -> None:
    rows = re.findall(
        r"^\| ([\d, ]+) \|",
        (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"),
        re.M,
    )
    listed = {int(code) for row in rows for code in row.split(",")}
    assert listed == {error.exit_code for error in CLASSES} | {
        entrypoint.INTERRUPTED,
        entrypoint.TERMINATED,
    }
