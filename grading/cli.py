"""The command line of eval_accuracy, and the grading options that run_mlperf shares."""

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from backends.options import positive_int, whole_number
from benchmark import ROWS
from data import screen
from errors import UsageError
from grading.evaluate import (
    GRADED,
    LOG_ENDING,
    GradingOptions,
    companions,
    evaluate,
    report,
    sibling,
    start_sandbox,
)
from grading.inputs import find_problems, read_results
from grading.sandbox.levels import LEVELS
from grading.tasks.livecodebench import TIME_LIMIT_S, Mode
from grading.tasks.table import Rules


def add_grading_options(parser: argparse.ArgumentParser) -> None:
    """The options of grading, for eval_accuracy and accuracy runs."""
    group = parser.add_argument_group("grading")
    group.add_argument(
        "--livecodebench-file",
        type=Path,
        metavar="FILE",
        help="LiveCodeBench's problems with their tests: a store, a .jsonl file or a folder of them"
        " (default: livecodebench.sqlite or .jsonl next to the data set, next to the input file or"
        " in data/)",
    )
    group.add_argument(
        "--lcb-mode",
        choices=get_args(Mode),
        default="reference",
        help="standard input of LiveCodeBench programs: reference has the public grader's bugs,"
        " which are part of the official figure; fixed-stdio has none (default: reference)",
    )
    group.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT_S,
        metavar="SECONDS",
        help="time limit of a LiveCodeBench program, for loading and for each test (default: 60,"
        " the official limit)",
    )
    group.add_argument(
        "--sandbox",
        choices=("auto", *(level for level in LEVELS if level != "none")),
        default="auto",
        help="sandbox level for programs and formulas; auto: the strongest of full, kernel and"
        " bwrap that works here; container: for use in a container that you consider safe enough"
        " (default: auto)",
    )
    group.add_argument(
        "--no-sandbox-i-trust-this-code",
        action="store_const",
        const="none",
        dest="sandbox",
        help="no sandbox: programs that the model wrote run with all of your rights",
    )
    group.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="answers graded in parallel (default: one per core)",
    )
    group.add_argument(
        "--lenient",
        action="store_true",
        help="also judge MATH-500 and AIME with the math-verify package: an extra column, which"
        " does not change the figure",
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
        help="data set of the run: required for LoadGen's log; other input files are checked"
        " against it",
    )
    parser.add_argument(
        "--skip-samples",
        type=whole_number,
        default=0,
        metavar="N",
        help="the run's --skip-samples: its answers belong to the data set's rows from N on"
        " (default: 0)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="directory with the tokenizer, required for LoadGen's log (default: --model)",
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("MLPERF_MODEL"),
        metavar="DIR",
        help="model directory with the tokenizer (default: $MLPERF_MODEL)",
    )
    parser.add_argument(
        "--expected-rows",
        type=positive_int,
        metavar="N",
        help="number of rows expected (default: as many as the data set has, or the benchmark's"
        f" {ROWS})",
    )
    parser.add_argument(
        "--output-file",
        type=Path,
        metavar="FILE",
        help="default: <input>_evaluated.pkl next to the input file; accuracy.txt, a report and the"
        " log of grades are written to the same directory",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="grade every row again (default: keep the grades of an earlier run)",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="log every row's grade: task, extracted answer, truth, and the rule that decided",
    )
    parser.add_argument(
        "--explain",
        type=int,
        metavar="ROW",
        help="show how one row (counted from 0) is graded, without writing anything",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER",
        help="compare the input file with this one, both evaluated, without grading anything",
    )
    screen.add_option(parser)
    add_grading_options(parser)


def grading_options(args: argparse.Namespace) -> GradingOptions:
    """The grading options on the command line. Raises: UsageError for a bad --time-limit."""
    if not 0 < args.time_limit < float("inf"):
        raise UsageError(f"--time-limit must be a number of seconds above 0, not {args.time_limit}")
    return GradingOptions(
        Rules(args.time_limit, args.lcb_mode),
        args.sandbox,
        args.workers,
        args.lenient,
        getattr(args, "fresh", False),
        args.live,
    )


def run(args: argparse.Namespace, on_graded: Callable[[Path], None]) -> None:
    """Run eval_accuracy: grade a file, explain one row of it, or compare it with another file.

    `on_graded` is called with the path of the graded frame once all files are written.

    Raises: any UserError; GradingError, after all files are written, if a row could not be judged.
    """
    from data.paths import keep_inputs
    from data.results import check_writable, result_paths
    from data.samples import naming

    if args.verbose:
        logging.getLogger(__package__).setLevel(logging.DEBUG)
    options = grading_options(args)
    source = args.input_file
    if args.compare is not None:
        from data.samples import read_frame
        from grading.compare import comparison

        print(comparison(read_frame(source), read_frame(args.compare)))
        return
    with start_sandbox(options) as sandbox:
        frame, expected = read_results(
            source,
            args.dataset_file,
            args.tokenizer or args.model,
            args.expected_rows,
            args.skip_samples,
        )
        neighbours = [path for path in (args.dataset_file, source) if path is not None]
        problems = find_problems(args.livecodebench_file, neighbours)
        if args.explain is not None:
            from grading.explain import explain

            with naming(source):
                print(explain(frame, args.explain, problems, options.rules, sandbox))
            return
        output = args.output_file or source.with_name(f"{source.stem}{GRADED}.pkl")
        outputs = [*result_paths(output), *companions(output)]
        keep_inputs(outputs, [source, args.dataset_file, problems])
        for path in result_paths(output):
            check_writable(path)
        log_path = sibling(output, LOG_ENDING)
        with naming(source):
            evaluation = evaluate(frame, problems, options, log_path, expected, sandbox)
    report(evaluation, output, source, options, problems)
    on_graded(output)
    evaluation.require_all()
