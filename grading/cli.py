"""The options of grading: eval_accuracy's own, and those it shares with accuracy runs."""

import argparse
import os
from pathlib import Path
from typing import get_args

from backends.options import positive_int
from benchmark import ROWS
from errors import UsageError
from grading.evaluate import (
    GRADED,
    LOG_ENDING,
    Grading,
    beside,
    companions,
    evaluate,
    report,
    start_sandbox,
)
from grading.inputs import find_problems, read_results
from grading.sandbox.levels import LEVELS
from grading.tasks.livecodebench import TIME_LIMIT_S, Mode
from grading.tasks.table import Rules


def add_grading_options(parser: argparse.ArgumentParser) -> None:
    """How answers are graded, wherever that is done."""
    group = parser.add_argument_group("grading")
    group.add_argument(
        "--livecodebench-file",
        type=Path,
        metavar="FILE",
        help="LiveCodeBench's problems with their tests (default: livecodebench.jsonl beside the"
        " data set or the input file, then in data/)",
    )
    group.add_argument(
        "--lcb-mode",
        choices=get_args(Mode),
        default="reference",
        help="how a LiveCodeBench program's standard input is made: with the public grader's bugs,"
        " which are part of the official figure, or right (default: reference)",
    )
    group.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT_S,
        metavar="SECONDS",
        help="for a LiveCodeBench program to load, and for each test (default: 60, the official)",
    )
    group.add_argument(
        "--sandbox",
        choices=("auto", *(level for level in LEVELS if level != "none")),
        default="auto",
        help="what programs and formulas are confined by; auto: the strongest of full, kernel and"
        " bwrap that holds here; container: you vouch for one around this command (default: auto)",
    )
    group.add_argument(
        "--no-sandbox-i-trust-this-code",
        action="store_const",
        const="none",
        dest="sandbox",
        help="run what the model wrote with your own rights",
    )
    group.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="answers graded at once (default: one a core)",
    )
    group.add_argument(
        "--lenient",
        action="store_true",
        help="ask the math-verify package about MATH-500 and AIME as well: a column for your own"
        " use, which leaves the figure as it is",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of eval_accuracy."""
    parser.add_argument(
        "--input-file",
        type=Path,
        required=True,
        metavar="FILE",
        help="answers: .pkl, .parquet, .jsonl, or LoadGen's mlperf_log_accuracy.json",
    )
    parser.add_argument(
        "--dataset-file",
        type=Path,
        metavar="FILE",
        help="data set of the run: needed with LoadGen's log, compared with other answers",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="directory with the tokenizer, needed with LoadGen's log (default: that of --model)",
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("MLPERF_MODEL"),
        metavar="DIR",
        help="model directory, whose tokenizer is taken (default: $MLPERF_MODEL)",
    )
    parser.add_argument(
        "--expected-rows",
        type=positive_int,
        metavar="N",
        help="how many rows there should be (default: the data set's, else the benchmark's"
        f" {ROWS})",
    )
    parser.add_argument(
        "--output-file",
        type=Path,
        metavar="FILE",
        help="default: <input>_evaluated.pkl beside the input file; accuracy.txt, a report and the"
        " log of grades are written there too",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="grade every row anew; by default what an earlier run has graded is kept",
    )
    parser.add_argument(
        "--explain",
        type=int,
        metavar="ROW",
        help="show how one row, from 0, is graded; nothing is written",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER",
        help="compare two evaluated files, the input file and this one; nothing is graded",
    )
    add_grading_options(parser)


def grading(args: argparse.Namespace) -> Grading:
    """How to grade, by the options. Errors: UsageError."""
    if not 0 < args.time_limit < float("inf"):
        raise UsageError(f"--time-limit must be a number of seconds above 0, not {args.time_limit}")
    return Grading(
        Rules(args.time_limit, args.lcb_mode),
        args.sandbox,
        args.workers,
        args.lenient,
        getattr(args, "fresh", False),
    )


def run(args: argparse.Namespace) -> None:
    """What eval_accuracy does: grade a file, explain one row of it, or compare it with another.

    Errors: any UserError; GradingError, after everything is written, where a row was not judged.
    """
    from data.paths import keep_inputs
    from data.results import check_writable, twins

    how = grading(args)
    source = args.input_file
    if args.compare is not None:
        from data.samples import read_frame
        from grading.compare import comparison

        print(comparison(read_frame(source), read_frame(args.compare)))
        return
    with start_sandbox(how) as sandbox:
        frame, expected = read_results(
            source, args.dataset_file, args.tokenizer or args.model, args.expected_rows
        )
        near = [path for path in (args.dataset_file, source) if path is not None]
        problems = find_problems(args.livecodebench_file, near)
        if args.explain is not None:
            from grading.explain import explain

            print(explain(frame, args.explain, problems, how.rules, sandbox))
            return
        output = args.output_file or source.with_name(f"{source.stem}{GRADED}.pkl")
        written = [*twins(output), *companions(output)]
        keep_inputs(written, [source, args.dataset_file, problems])
        for path in twins(output):
            check_writable(path)
        evaluation = evaluate(frame, problems, how, beside(output, LOG_ENDING), expected, sandbox)
    report(evaluation, output, source, how, problems)
    evaluation.require_all()
