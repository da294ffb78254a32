"""All runs of a submission, one after another: rate search, performance, accuracy, compliance.

Each is a process of run_mlperf with the same options. A run that is finished is not repeated: the
next call goes on with the first one that isn't.
"""

import argparse
import json
import logging
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from data.lock import locked
from errors import SubmissionError, UsageError
from mlperf import compliance, launch
from mlperf import run as mlperf_run
from mlperf.preflight import described_reasons
from mlperf.rate import RECORD as RATE
from mlperf.state import STATE
from mlperf.submission.tree import read_json
from ref_dsinfer.files import write_json

log = logging.getLogger(__name__)

OPTIONS = "options.json"  # in the --output-dir: of all its runs
USER_CONF = "user.conf"  # there too, with the rates that were found
LOCK = ".lock"
# Options of each test, in the order of the runs.
TESTS = {
    "rate": ("--find-target-qps",),
    "performance": (),
    "accuracy": ("--accuracy",),
    "compliance": ("--compliance",),
}
OURS = (  # options that differ from run to run
    *("--mode", "--scenario", "--output-dir", "--log-dir", "--output-file", "--user-conf"),
    *("--target-qps", "--resume", "--dry-run", "--write-user-conf", "--probe-duration"),
    *(word for words in TESTS.values() for word in words),
)


@dataclass(frozen=True)
class Plan:
    """What all the runs are to be."""

    output_dir: Path
    modes: tuple[str, ...]
    options: tuple[str, ...]  # of run_mlperf, the same for all runs
    processes: int  # of torchrun; 0: the script is started without it
    probe_s: float | None  # length of the rate search's probes; None: run_mlperf's default
    closed: bool  # division: no run may be shortened; none is resumed, but starts again


@dataclass(frozen=True)
class Step:
    """One run."""

    output_dir: Path
    mode: str
    test: str  # a key of TESTS

    @property
    def folder(self) -> Path:
        """Of its results."""
        folder = self.output_dir / self.mode / self.test
        return folder / compliance.NAME if self.test == "compliance" else folder

    @property
    def done(self) -> bool:
        """Whether it has ended well; a performance run has if LoadGen calls it VALID."""
        state = read_json(self.folder / STATE) or {}
        record = read_json(self.folder / (RATE if self.test == "rate" else mlperf_run.RECORD)) or {}
        if state.get("state") != "done" or not record:
            return False
        return self.test != "performance" or record.get("loadgen_validity") == "VALID"

    def words(self, plan: "Plan") -> list[str]:
        """Its own options of run_mlperf."""
        user_conf = self.output_dir / USER_CONF
        words = ["--mode", self.mode, *TESTS[self.test], "--output-dir", str(self.output_dir)]
        if user_conf.exists():
            words += ["--user-conf", str(user_conf)]
        if self.test == "rate":
            words += ["--write-user-conf", str(user_conf)]
            if plan.probe_s:
                words += ["--probe-duration", f"{plan.probe_s:g}"]
        if (
            self.test == "accuracy"
            and not plan.closed
            and (self.folder / mlperf_run.JOURNAL).exists()
        ):
            words.append("--resume")
        return words


def run_all(plan: Plan) -> None:
    """Run what is left of all modes' runs, up to the first that fails.

    Before the first engine starts, all of them are dry runs.

    Raises: UsageError for options that are set here, or differ from the folder's earlier runs;
    SubmissionError naming the run that failed, or that the closed division would refuse;
    OutputError.
    """
    _check(plan)
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    with locked(plan.output_dir / LOCK):
        options = _same_options(plan)
        steps = [Step(plan.output_dir, mode, test) for mode in plan.modes for test in TESTS]
        for step in steps:
            if not step.done:
                _rehearse(plan, step)
        write_json(plan.output_dir / OPTIONS, options)
        for number, step in enumerate(steps, 1):
            title = f"{number} of {len(steps)}: {step.mode}, {step.test}"
            if step.done:
                log.info("%s: done already, in %s", title, step.folder)
                continue
            command = [*launch.script(plan.processes), *step.words(plan), *plan.options]
            log.info("%s: %s", title, shlex.join(command))
            code = launch.run_to_end(command)
            if code or not step.done:
                outcome = f"ended with exit code {code}" if code else "is not valid"
                raise SubmissionError(
                    f"{step.folder}: the {step.test} run of {step.mode} {outcome}, see its messages"
                    " above; the same command continues with this run"
                )


def _rehearse(plan: Plan, step: Step) -> None:
    """Raises: SubmissionError if a run would end before its engine starts, or be refused."""
    log.info("dry run: %s, %s", step.mode, step.test)
    command = [*launch.script(plan.processes), *step.words(plan), *plan.options, "--dry-run"]
    dry_run = subprocess.run(command, capture_output=True, text=True, check=False)
    if dry_run.returncode:
        sys.stderr.write(dry_run.stderr)
        raise SubmissionError(
            f"the {step.test} run of {step.mode} would end with exit code {dry_run.returncode}, see"
            " its messages above; nothing was started"
        )
    reasons = described_reasons(dry_run.stdout)
    if plan.closed and reasons and step.test in ("performance", "accuracy"):
        raise SubmissionError(
            f"the {step.test} run of {step.mode} could not be submitted in the closed division"
            f" ({'; '.join(reasons)}); nothing was started"
        )


def _check(plan: Plan) -> None:
    """Raises: UsageError for what is set here; exits like argparse for what the script refuses."""
    for word in plan.options:
        if (name := word.partition("=")[0]) in OURS:
            raise UsageError(f"{name}: this is set for each run, leave it out")
    script = Path(launch.script(plan.processes)[-1])
    parser = argparse.ArgumentParser(prog=script.name, allow_abbrev=False)
    mlperf_run.add_options(parser, torchrun=plan.processes > 0)
    parser.parse_args(plan.options)


def _same_options(plan: Plan) -> list[str]:
    """The options of a folder's runs. Raises: UsageError if earlier runs had others."""
    current = list(plan.options)
    if plan.processes:
        current.insert(0, f"--nproc-per-node={plan.processes}")
    try:
        earlier = json.loads((plan.output_dir / OPTIONS).read_bytes())
    except (OSError, ValueError):
        return current
    if earlier != current:
        raise UsageError(
            f"{plan.output_dir} has runs with other options ({shlex.join(map(str, earlier))}): use"
            " the same, or another --output-dir"
        )
    return current
