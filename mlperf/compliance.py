"""Compliance test TEST06: are the tokens that LoadGen times those of the answers?

LoadGen runs its performance test with the audit's settings and logs its 100 answers. Of each
answer, the first token that was reported by itself is the first of the answer, the answer does not
end with more than one end-of-sequence id, and its number of tokens is the number that LoadGen
counted. Source: compliance/TEST06 of mlcommons/inference, whose script compares an
end-of-sequence id that it is passed as text, so that no answer can fail; here ids are integers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import LoadGenError
from grading import accuracy_log
from ref_dsinfer.files import write_text

if TYPE_CHECKING:
    import numpy as np

NAME = "TEST06"
# Where the submission tree has its files, within the test's folder.
LOGS = Path("performance", "run_1")
ACCURACY_LOG = Path("accuracy", "mlperf_log_accuracy.json")
VERDICT = Path("verify_accuracy.txt")

# The settings of the test's audit.config, by key, in its units.
ANSWERS = 100
AUDIT = {
    "accuracy_log_rng_seed": 720381539243781796,
    "accuracy_log_sampling_target": ANSWERS,
    "min_query_count": ANSWERS,
    "min_duration": 0,
    "sample_concatenate_permutation": 0,
}


@dataclass(frozen=True)
class Verification:
    """The samples (rows of the data set) whose answers fail a check; None: it does not apply."""

    first_token: tuple[int, ...] | None  # Offline has no first tokens
    eos: tuple[int, ...]
    length: tuple[int, ...]

    @property
    def text(self) -> str:
        """The contents of verify_accuracy.txt, as the official script writes them."""
        checks = {
            "First token": self.first_token,
            "EOS": self.eos,
            "Sample length": self.length,
        }
        lines = [
            f"{name} check pass: {'Skipped' if samples is None else not samples}"
            for name, samples in checks.items()
        ]
        outcome = "failed" if self.faults else "complete"
        return "\n".join([*lines, f"{NAME} verification {outcome}", ""])

    @property
    def faults(self) -> list[str]:
        """What is wrong, with the samples."""
        meanings = (
            ("the first token reported is not the answer's first token", self.first_token or ()),
            ("the answer ends with more than one end-of-sequence id", self.eos),
            ("LoadGen counted another number of tokens than the answer has", self.length),
        )
        return [
            f"{NAME}: {meaning}: samples {accuracy_log.first_few(samples)}"
            for meaning, samples in meanings
            if samples
        ]


def conclude(folder: Path, eos_id: int, reads_tokens: bool) -> Verification:
    """Check the log of a compliance run, and leave it and the verdict in their places.

    `folder`: the test's, with LoadGen's logs in LOGS. `reads_tokens`: LoadGen read first tokens.

    Raises: LoadGenError if not every answer was logged; GradingError for a damaged log.
    """
    (folder / ACCURACY_LOG).parent.mkdir(exist_ok=True)
    (folder / LOGS / ACCURACY_LOG.name).replace(folder / ACCURACY_LOG)
    verification = verify(folder / ACCURACY_LOG, eos_id, reads_tokens)
    write_text(folder / VERDICT, verification.text)
    return verification


def verify(path: Path, eos_id: int, reads_tokens: bool) -> Verification:
    """Check every answer of an accuracy log.

    Raises: LoadGenError if it has fewer than the audit's answers; InputFileError, GradingError if
    it is not LoadGen's log.
    """
    first_token, eos, length = [], [], []
    count = 0
    for count, entry in enumerate(accuracy_log.entries(path), 1):
        where = f"{path}: entry {count - 1}"
        index = accuracy_log.sample_index(entry, where)
        ids = accuracy_log.int32_values(entry["data"], where)
        if reads_tokens and not _starts(ids, entry, where):
            first_token.append(index)
        if len(ids) > 1 and (ids[-2:] == eos_id).all():
            eos.append(index)
        if entry.get("token_count") != len(ids):
            length.append(index)
    if count < ANSWERS:
        raise LoadGenError(
            f"{path}: LoadGen has logged {count} answers, not the {ANSWERS} of {NAME}"
        )
    return Verification(
        _distinct(first_token) if reads_tokens else None, _distinct(eos), _distinct(length)
    )


def _starts(ids: "np.ndarray", entry: dict[str, Any], where: str) -> bool:
    """Whether an answer begins with the token that was reported by itself, exactly one."""
    token_data = entry.get("token_data")
    if not isinstance(token_data, str) or not token_data:
        return False
    return accuracy_log.int32_values(token_data, where).tolist() == ids[:1].tolist()


def _distinct(samples: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(samples)))
