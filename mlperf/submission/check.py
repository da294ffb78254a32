"""Check a submission tree: everything that the official checker reads, and what it overlooks."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from mlperf.submission.findings import RELAXABLE, Fault, Finding
from mlperf.submission.rounds import Round
from mlperf.submission.rules import (
    accuracy,
    compliance,
    description,
    endpoints,
    files,
    performance,
    runs,
)
from mlperf.submission.tree import RELAXATIONS, Result, System, line_with, read_json, systems

SystemRule = Callable[[System], Iterator[Fault]]
ResultRule = Callable[[Result], Iterator[Fault]]
Subject = TypeVar("Subject", System, Result)


def _relaxations(result: Result) -> Iterator[Fault]:
    """Rules that the tree itself says it breaks, in relaxations.json: in the open division only."""
    path = result.folder / RELAXATIONS
    for rule, reason in (read_json(path) or {}).items():
        line = line_with(path, f'"{rule}"')
        if result.system.closed:
            yield Fault(path, f"the rule {rule} can't be relaxed in the closed division", line)
        elif rule not in RELAXABLE:
            message = f"the rule {rule} can't be relaxed: only {', '.join(RELAXABLE)} can"
            yield Fault(path, message, line)
        else:
            yield Fault(path, f"{rule}: {reason}", line, "relaxed")


SYSTEM_RULES: dict[str, SystemRule] = {
    "system": description.system_fields,
    "power": description.power,
    "sources": description.sources,
    "placeholder": description.placeholders,
    "scenarios": description.scenarios,
    "one-system": runs.one_system,
}
RULES: dict[str, ResultRule] = {  # of every result
    "files": files.required,
    "file-size": files.sizes,
    "readable": files.readable,
    "measurements": description.measurements,
    "relaxations": _relaxations,
}
LOADGEN_RULES: dict[str, ResultRule] = {
    "test": performance.test,
    "valid": performance.valid,
    "loadgen-errors": performance.errors,
    "seeds": performance.seeds,
    "settings": performance.settings,
    "latency": performance.latencies,
    "rows": performance.rows,
    "user-conf": performance.user_conf,
    "score": accuracy.score,
    "graded-rows": accuracy.graded_rows,
    "accuracy-log": accuracy.log_hash,
    "test06": compliance.verified,
    "test06-answers": compliance.answers,
    "test06-errors": compliance.errors,
    "submittable": runs.submittable,
    "data-set": runs.data_set,
    "one-configuration": runs.one_configuration,
}
ENDPOINTS_RULES: dict[str, ResultRule] = {
    "endpoints": endpoints.allowed,
    "endpoints-files": endpoints.readable,
    "endpoints-scenario": endpoints.scenario,
    "endpoints-settings": endpoints.settings,
    "endpoints-failures": endpoints.failures,
    "endpoints-latency": endpoints.latencies,
    "endpoints-score": endpoints.score,
}


def check(root: Path, round_: Round) -> list[Finding]:
    """The findings in a tree, system by system.

    Raises: InputFileError if the folder is not a submission tree.
    """
    findings: list[Finding] = []
    for system in systems(root, round_):
        findings += check_system(system)
        for result in system.results:
            findings += check_result(result)
    return findings


def check_system(system: System) -> list[Finding]:
    """The findings of the rules on a system as a whole."""
    return list(_findings(system.root, SYSTEM_RULES, system))


def check_result(result: Result) -> list[Finding]:
    """The findings of the rules on one result.

    Where relaxations.json names a finding of a rule that can be relaxed, its entry stands for it.
    """
    root = result.system.root
    own_rules = ENDPOINTS_RULES if result.of_endpoints else LOADGEN_RULES
    findings = [*_findings(root, RULES, result), *_findings(root, own_rules, result)]
    if result.system.closed:
        return findings
    named = read_json(result.folder / RELAXATIONS) or {}
    relaxed = {rule: str(named[rule]) for rule in RELAXABLE if rule in named}
    return [one for one in findings if one.message not in relaxed.get(one.rule, "")]


def _findings(
    root: Path, rules: Mapping[str, Callable[[Subject], Iterator[Fault]]], subject: Subject
) -> Iterator[Finding]:
    for name, rule in rules.items():
        for fault in rule(subject):
            file = str(fault.path.relative_to(root))
            yield Finding(file, fault.line, name, fault.level, fault.message)
