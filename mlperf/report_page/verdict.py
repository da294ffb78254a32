"""What a report says first: did the run finish, is it valid, can it be submitted, and why not?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mlperf.compliance import NAME as COMPLIANCE_TEST
from mlperf.result_folder import ResultFolder

STALE_S = 60  # a run that lives updates its state every two seconds

Tone = Literal["good", "doubt", "bad"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run."""

    word: str
    tone: Tone
    lines: Sequence[str]  # what has to be known before any figure
    reasons: Sequence[str]  # why it can't be submitted


def verdict(folder: ResultFolder, now: datetime) -> Verdict:
    """The verdict on the run of a folder at the time `now`."""
    record = folder.record
    reasons = record["not_submittable_because"] if record and folder.finished else []
    lines = [*_resumed(folder), *folder.faults]
    state = (folder.state or {}).get("state", "done")
    if not folder.finished:
        word, about = _unfinished(folder, state, now)
        return Verdict(word, "bad", [*about, *lines], reasons)
    assert record is not None
    word, tone, about = _outcome(folder)
    about += [reason for reason in reasons if reason.startswith("INVALID: ")]
    reasons = [reason for reason in reasons if not reason.startswith("INVALID: ")]
    error = (folder.state or {}).get("error")
    if state == "failed" and not str(error).startswith("INVALID: "):
        about.append(f"The run ended with an error: {error}")
        tone = "bad"
    if record["not_submittable_because"]:
        word += ", can't be submitted" if tone == "bad" else ", but can't be submitted"
        tone = "doubt" if tone == "good" else tone
    elif tone == "good":
        word += ", and nothing in this run rules out its submission"
    if folder.faults:
        tone = "bad"
    return Verdict(word, tone, [*lines, *about], reasons)


def _outcome(folder: ResultFolder) -> tuple[str, Tone, list[str]]:
    """The outcome of a finished run's test."""
    record = folder.record
    assert record is not None
    if record["test"] == "accuracy":
        text = str((folder.grading or {}).get("verdict", "NOT VALID: its grades can't be read"))
        about = [f"{text[:1].upper()}{text[1:]}."]
        if text.startswith("valid"):
            return "Valid", "good", about
        bad = text.startswith("NOT")
        return ("Not valid" if bad else "Graded"), ("bad" if bad else "doubt"), about
    if record["test"] == "compliance":
        faults = [one for one in record["not_submittable_because"] if COMPLIANCE_TEST in one]
        word = f"{COMPLIANCE_TEST} {'failed' if faults else 'passed'}"
        return word, "bad" if faults else "good", []
    validity = record.get("loadgen_validity")
    if validity == "VALID":
        return "Valid", "good", []
    return "Invalid" if validity else "No verdict by LoadGen", "bad", []


def _unfinished(folder: ResultFolder, state: str, now: datetime) -> tuple[str, list[str]]:
    """The word for a run without figures, and what is known of it."""
    content = folder.state or {}
    error, updated = content.get("error"), content.get("updated")
    if state == "failed":
        word = {"interrupted": "Interrupted", "terminated": "Terminated"}.get(str(error), "Failed")
        about = [] if word != "Failed" else [f"The run ended with an error: {error}"]
    elif state == "done":
        word, about = "Unknown", ["The run has ended, but its figures can't be read."]
    elif updated and (now - datetime.fromisoformat(updated)).total_seconds() < STALE_S:
        word, about = "Not finished yet", [f"The run is {state}; this page shows what there is."]
    else:
        word = "Killed"
        about = [f"The run was {state} when it was last heard of, at {updated}."]
    about.append(
        f"{content.get('finished', 0):,} of {content.get('of', 0):,} samples were finished. What"
        " is below is of these, and no result."
    )
    if folder.record is not None:
        about.append("The other files in the folder are an earlier run's.")
    return word, about


def _resumed(folder: ResultFolder) -> Iterator[str]:
    resumed = (folder.record or {}).get("resumed") if folder.finished else None
    if resumed and resumed.get("samples"):
        yield (
            f"Resumed: {resumed['samples']:,} of {resumed.get('of', 0):,} samples were answered by"
            " an earlier run, and have no times here."
        )
