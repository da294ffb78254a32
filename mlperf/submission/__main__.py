"""From a machine to a checked submission: python -m mlperf.submission init|build|check|all"""

import argparse
from collections.abc import Collection
from pathlib import Path

import entrypoint
from backends.options import positive_int
from benchmark import ROUND
from errors import InputFileError, SubmissionError, UsageError
from mlperf import rate
from mlperf.settings import USER_CONF, option
from mlperf.submission.findings import RELAXABLE, Finding, as_json, count, counted, verdict
from mlperf.submission.rounds import ROUNDS, lookup
from mlperf.submission.tree import DIVISIONS, SCENARIOS, System, load_json


def add_options(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Add the commands. Returns the parser of each."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    parsers = {
        name: commands.add_parser(name, help=text, description=text[0].upper() + text[1:])
        for name, text in (
            ("init", "write the description of this machine, with the rest to be filled in"),
            ("build", "add the results of finished runs to the tree"),
            ("check", "check a tree by the rules, and name each violation"),
            ("all", "run everything that a submission needs, then build and check the tree"),
        )
    }
    for name, one in parsers.items():
        one.add_argument("tree", type=Path, metavar="TREE", help="folder of the submission")
        one.add_argument(
            "--round",
            default=ROUND,
            metavar="ROUND",
            help=f"round of MLPerf Inference: {' or '.join(ROUNDS)} (default: {ROUND})",
        )
        if name != "check":
            one.add_argument(
                "--org", required=True, metavar="NAME", help="the submitting organisation's name"
            )
            one.add_argument(
                "--division", choices=DIVISIONS, default="closed", help="default: closed"
            )
    parsers["init"].add_argument(
        "--system", required=True, metavar="NAME", help="the system's name"
    )
    parsers["build"].add_argument(
        "--system",
        required=True,
        metavar="NAME|FILE",
        help="the name of a system that init has described in the tree, or a description"
        " (NAME.json) that is copied into it",
    )
    parsers["build"].add_argument(
        "results", type=Path, nargs="+", metavar="RESULTS", help="an --output-dir of run_mlperf"
    )
    _add_all_options(parsers["all"])
    parsers["build"].add_argument(
        "--user-conf",
        type=Path,
        default=USER_CONF,
        metavar="FILE",
        help="the user.conf that the runs had (default: mlperf/user.conf)",
    )
    for name in ("build", "all"):
        parsers[name].add_argument(
            "--demo",
            action="store_true",
            help="open division only: accept another data set than the benchmark's, such as the"
            " bundled one. The tree and check name the rules that this breaks, which may be"
            f" {', '.join(RELAXABLE)} only",
        )
    parsers["check"].add_argument(
        "--allow-relaxed",
        action="store_true",
        help="succeed although the tree names rules that it breaks (build --demo)",
    )
    parsers["check"].add_argument("--json", action="store_true", help="print the findings as JSON")
    return parsers


def _add_all_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--system",
        required=True,
        metavar="NAME",
        help="the system's name; unless init has described it, it is described first",
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=tuple(SCENARIOS),
        default=["offline", "server"],
        help="in which order (default: offline server)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("mlperf_results"),
        metavar="DIR",
        help="folder of all runs, whose finished ones are not repeated, and of their user.conf with"
        " the rates found (default: mlperf_results)",
    )
    parser.add_argument(
        "--nproc-per-node",
        type=positive_int,
        default=0,
        metavar="N",
        help="run the pytorch backend in so many processes, by torchrun",
    )
    parser.add_argument(
        "--probe-duration",
        type=option(rate.seconds),
        metavar="SECONDS",
        help="length of the rate search's probes (default: run_mlperf's)",
    )
    parser.add_argument(
        "options",
        nargs="+",
        metavar="OPTION",
        help="after --: options of run_mlperf.py, the same for all runs, such as"
        " -- --backend vllm --tensor-parallel 8",
    )


def run(args: argparse.Namespace) -> None:
    """Run a command. Raises: any UserError; SubmissionError if the tree breaks rules."""
    from mlperf.submission import check, init  # not for --help

    if args.command == "check":
        findings = check.check(args.tree, lookup(args.round))
        print(as_json(findings) if args.json else _report(findings))
        _require(args.tree, findings, args.allow_relaxed)
    elif args.command == "init":
        system = _system(args, args.system)
        for path in init.begin(system):
            print(f"wrote {path}")
    elif args.command == "build":
        _build(args)
    else:
        _all(args)


def _all(args: argparse.Namespace) -> None:
    from mlperf.submission import init, steps
    from mlperf.submission.rules.description import missing_scenarios, placeholders

    _require_open(args)
    system = _system(args, args.system)
    modes = {*args.modes, *(result.mode for result in system.results)}
    if system.closed and (missing := list(missing_scenarios(modes))):
        raise UsageError(f"--modes {' '.join(args.modes)}: {missing[0]}")
    if not system.description.is_file():
        for path in init.begin(system):
            print(f"wrote {path}")
    unfilled = [fault.path for fault in placeholders(system)]
    for path in dict.fromkeys(unfilled):
        fields = counted(unfilled.count(path), "field")
        print(f"{path}: {fields} to be filled in before the runs end", flush=True)
    plan = steps.Plan(
        args.output_dir,
        tuple(args.modes),
        tuple(args.options),
        args.nproc_per_node,
        args.probe_duration,
        system.closed,
    )
    steps.run_all(plan)
    args.results, args.user_conf = [args.output_dir], args.output_dir / steps.USER_CONF
    _build(args, args.modes)


def _require_open(args: argparse.Namespace) -> None:
    if args.demo and args.division == "closed":
        raise UsageError("--demo: the closed division takes the benchmark's data set only")


def _build(args: argparse.Namespace, modes: Collection[str] = tuple(SCENARIOS)) -> None:
    from mlperf.submission import build, check, init

    _require_open(args)
    description = Path(args.system)
    is_file = description.suffix == ".json"
    system = _system(args, description.stem if is_file else args.system)
    sources = build.find(args.results, system.closed, modes)
    if not is_file and not system.description.is_file():
        raise InputFileError(
            f"{system.description}: missing: run init first, or pass --system FILE.json"
        )
    fields = load_json(description if is_file else system.description)
    folders = build.build(system, sources, args.user_conf, args.demo)
    if is_file:
        build.adopt(system, fields)
    for path in [*init.write_sources(system), *folders]:
        print(f"wrote {path}")
    findings = check.check(args.tree, system.round)
    print(_report(findings))
    _require(args.tree, findings, allow_relaxed=args.demo)


def _system(args: argparse.Namespace, name: str) -> System:
    """Raises: UsageError for an unknown round, or a name that is not one of a folder."""
    for flag, text in (("--org", args.org), ("--system", name)):
        if not text or Path(text).name != text or text.startswith("."):
            raise UsageError(f"{flag} {text!r}: must be a name that a folder can have")
    return System(lookup(args.round), args.tree, args.division, args.org, name)


def _report(findings: list[Finding]) -> str:
    return "\n".join([*map(str, findings), verdict(findings)])


def _require(tree: Path, findings: list[Finding], allow_relaxed: bool) -> None:
    """Raises: SubmissionError if there are errors or, unless they are allowed, relaxed rules."""
    if errors := count(findings, "error"):
        first = next(finding for finding in findings if finding.level == "error")
        raise SubmissionError(
            f"{tree}: {counted(errors, 'error')}; the first: {first.file}: {first.message}"
        )
    if count(findings, "relaxed") and not allow_relaxed:
        raise SubmissionError(
            f"{tree}: breaks no rules but those that it names itself, so it is a demonstration"
            " (--allow-relaxed accepts that)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mlperf.submission", description=__doc__)
    add_options(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    entrypoint.run(main)
