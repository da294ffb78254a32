"""What a check finds in a submission tree."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

# error: the rules forbid it; relaxed: they do too, but the tree names it in relaxations.json;
# note: allowed, but a reader of the results should know it
Level = Literal["error", "relaxed", "note"]
# What a data set of another size forces. `build --demo` names those that it breaks in the tree.
RELAXABLE = ("rows", "graded-rows", "data-set")
PLACEHOLDER = "FILL IN"  # begins the value of a field that only the submitter knows


@dataclass(frozen=True)
class Fault:
    """Something that a rule finds in a file."""

    path: Path
    message: str
    line: int | None = None  # from 1; None: the file as a whole
    level: Level = "error"


@dataclass(frozen=True)
class Finding:
    """A fault with the rule that finds it."""

    file: str  # relative to the tree
    line: int | None  # from 1
    rule: str
    level: Level
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{self.level}: {place}: {self.rule}: {self.message}"


def count(findings: Iterable[Finding], level: Level) -> int:
    """The number of findings of a level."""
    return sum(finding.level == level for finding in findings)


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def verdict(findings: Sequence[Finding]) -> str:
    """The last line of a report."""
    counts = [counted(count(findings, "error"), "error")]
    if relaxed := count(findings, "relaxed"):
        counts.append(counted(relaxed, "relaxed rule"))
    if notes := count(findings, "note"):
        counts.append(counted(notes, "note"))
    return ", ".join(counts)


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as a JSON object."""
    return json.dumps(
        {
            "errors": count(findings, "error"),
            "relaxed": count(findings, "relaxed"),
            "findings": [asdict(finding) for finding in findings],
        },
        indent=2,
    )
