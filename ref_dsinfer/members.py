"""What the ranks of a run tell one another at the rendezvous, and must agree in.

Ranks of one host start alike, but hosts may have other trees, other models, or other CPUs, for
which `auto` chooses another data type. The ranks would then compute parts of different results.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import entrypoint
from errors import LaunchError
from ref_dsinfer.files import combined_sha256, fingerprint

TREE = Path(__file__).parents[1]
OF_ONE_HOST = ("threads",)  # options that may differ from host to host


@dataclass(frozen=True)
class Member:
    """A rank, as the others see it."""

    process: str  # what messages call it
    address: str  # of its machine, towards rank 0's; empty on that machine itself
    settings: Mapping[str, str]  # that must be the same on every rank, by names for people

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "Member":
        return cls(**json.loads(text))


def settings(model_dir: Path, options: Mapping[str, object]) -> dict[str, str]:
    """All that decides what a rank computes; of `options`, by name, those that must be the same."""
    return {
        "the program": program(),
        "torch": torch.__version__,
        "the model": fingerprint(model_dir),
        **{name: str(value) for name, value in options.items() if name not in OF_ONE_HOST},
    }


def program() -> str:
    """The hash of this tree's Python files."""
    files = sorted(TREE.glob("*.py"))
    for package in entrypoint.OURS:
        files += sorted((TREE / package).rglob("*.py"))
    names = (str(path.relative_to(TREE)).encode() for path in files)
    return combined_sha256(part for pair in zip(names, files, strict=True) for part in pair)


def require_same(members: Sequence[Member]) -> None:
    """Raises: LaunchError naming the first rank whose settings are not rank 0's, and both."""
    expected = members[0].settings
    for rank, member in enumerate(members):
        names = sorted({*expected, *member.settings})
        faults = [
            f"{name} is {member.settings.get(name)} on it and {expected.get(name)} on rank 0"
            for name in names
            if member.settings.get(name) != expected.get(name)
        ]
        if faults:
            raise LaunchError(
                f"rank {rank} ({member.process}) does not fit rank 0 ({members[0].process}):"
                f" {', '.join(faults)}; every host needs the same program, model and options"
            )
