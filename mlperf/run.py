"""A LoadGen run from options to report: the logic of run_mlperf."""

import argparse
import asyncio
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from backends import registry
from backends.options import add_engine_options, choose_backend, engine_config
from backends.types import Backend, Completion, Reuse
from data import screen, trace
from data.inference import add_data_options
from data.journal import Answer, Journal, read_journal, resumable
from data.live import Limits, RunView
from data.lock import locked
from data.recorder import TIMELINE, Recorder
from errors import GradingError, LoadGenError, UsageError
from grading.cli import add_grading_options, grading_options
from grading.evaluate import LOG_ENDING, REPORT_ENDING, GradingOptions, evaluate_and_report
from grading.inputs import find_problems, no_problems
from mlperf import compliance, preflight, rate, report, settings
from mlperf.state import RunState
from ref_dsinfer.files import write_json

if TYPE_CHECKING:
    from data.workload import Workload

log = logging.getLogger(__name__)

JOURNAL = "completions.journal"
RECORD = "run.json"
LOCK = ".lock"
ENGINE_LOG = "engine.log"
RESULTS = "results"
REPORT = "report.html"
LOGS = [
    f"mlperf_log_{name}" for name in ("summary.txt", "detail.txt", "accuracy.json", "trace.json")
]
# The files of a run but the journal. Those of an earlier run are removed first, so that a directory
# never holds files of two runs.
RUN_FILES: tuple[str | Path, ...] = (
    *LOGS,
    *(f"{RESULTS}{end}" for end in (".pkl", ".parquet", "_evaluated.pkl", "_evaluated.parquet")),
    *(f"{RESULTS}{end}" for end in (LOG_ENDING, REPORT_ENDING)),
    RECORD,
    REPORT,
    TIMELINE,
    trace.TRACE,
    ENGINE_LOG,
    "engine.json",
    "accuracy.txt",
    compliance.VERDICT,
    compliance.ACCURACY_LOG,
    *(compliance.LOGS / name for name in LOGS),
)


def add_options(parser: argparse.ArgumentParser, torchrun: bool = False) -> None:
    """The options of run_mlperf and, with `torchrun`, of its twin."""
    settings.add_options(parser)
    add_data_options(parser)
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("mlperf_results"),
        metavar="DIR",
        help="results go to DIR/<mode>/performance, DIR/<mode>/accuracy or"
        f" DIR/<mode>/compliance/{compliance.NAME} and replace those of an earlier run: LoadGen's"
        " logs, results.pkl and .parquet, the journal of finished answers and run.json (default:"
        " mlperf_results)",
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="results go to this directory itself, instead of one in --output-dir",
    )
    parser.add_argument(
        "--output-file",
        type=Path,
        metavar="FILE",
        help="the answers are written to FILE, as .pkl and .parquet, instead of results.pkl and"
        " .parquet",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="with --accuracy: keep the finished answers of an interrupted run with the same"
        " inputs, and answer the rest; the result can't be submitted",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything that can be checked before the engine starts, print the effective"
        " configuration, and stop",
    )
    trace.add_option(parser)
    screen.add_option(parser)
    rate.add_options(parser)
    add_grading_options(parser)
    add_engine_options(parser, torchrun, loadgen=True)


def run(args: argparse.Namespace, torchrun: bool = False) -> None:
    """Run LoadGen on an engine, save the results, then grade or report. Every rank calls this.

    Raises: any UserError. Errors in the inputs are raised on every rank, before the engine starts;
    LoadGenError if a run that could have been submitted is invalid. OutputError if another run
    writes to the same folder.
    """
    from data.paths import keep_inputs
    from data.results import check_writable, result_paths
    from data.workload import build

    spec, world_size = choose_backend(args, torchrun)
    if args.mode not in spec.scenarios:
        raise UsageError(
            f"backend {spec.name} can't run --mode {args.mode} (it can run:"
            f" {', '.join(spec.scenarios)})"
        )
    if args.speculative and args.mode != "interactive":
        raise UsageError("--speculative is allowed in --mode interactive only")
    if args.resume and not args.accuracy:
        raise UsageError(
            "--resume needs --accuracy: LoadGen would time answers of the earlier run as if the"
            " engine had just made them"
        )
    rate.check(args)
    test = settings.test_name(args)
    folder = args.log_dir or args.output_dir / args.mode / test
    if args.compliance and not args.log_dir:
        folder /= compliance.NAME
    logs = folder / compliance.LOGS if args.compliance else folder
    check_writable(logs)
    if args.output_file:
        for path in result_paths(args.output_file):
            check_writable(path)
        keep_inputs(result_paths(args.output_file), [args.input_file, args.livecodebench_file])
    settings.refuse_audit()
    options = grading_options(args)
    mode = settings.MODES[args.mode]
    test_settings = settings.test_settings(args)
    config = engine_config(
        args, spec, world_size, coalesce=not mode.reads_tokens, log=folder / ENGINE_LOG
    )
    workload = build(
        args.input_file, args.num_samples, config, args.max_new_tokens, args.skip_samples
    )
    settings.check_size(test_settings, len(workload))
    log.info("%s", settings.describe(args, test_settings, len(workload)))
    problems = _problems(args, workload) if args.accuracy else None
    plan = preflight.Plan(args, spec, config, workload, test_settings, folder, logs)
    reasons = [
        *settings.reasons(args, test_settings, len(workload), workload.shortest_limit),
        *preflight.check(plan),
    ]
    # Not after the engine is made: a signal during these imports would find no state file yet.
    from mlperf.report_page.page import reported

    backend = registry.load(spec, config)
    if args.dry_run:
        if backend.leads:
            print(preflight.describe(plan, reasons))
        return
    if not backend.leads:
        backend.follow()
        return
    origins = {
        "model": str(Path(config.model).absolute()),
        "data_set": str(workload.source.absolute()),
        "skipped_rows": workload.skipped,
    }
    with locked(folder / LOCK) as lock:
        if args.find_target_qps:
            with RunState(folder, lock) as state:
                rate.find(args, backend, workload, test_settings, folder, state)
        else:
            with reported(folder), RunState(folder, lock, origins) as state:
                _lead(plan, backend, reasons, problems, options, state)


def _lead(
    plan: preflight.Plan,
    backend: Backend,
    known_reasons: list[str],
    problems: Path | None,
    options: GradingOptions,
    state: RunState,
) -> None:
    """The part of `run` that one process does."""
    from data.results import results_frame, write_frame

    args, spec, config, folder, logs = plan.args, plan.spec, plan.config, plan.folder, plan.logs
    workload, test_settings = plan.workload, plan.test_settings
    mode = settings.MODES[args.mode]
    for reason in known_reasons:
        log.warning("this run can't be submitted: %s", reason)
    path = folder / JOURNAL
    inputs = workload.inputs(spec.name, config) | {"--mode": args.mode, "--accuracy": args.accuracy}
    earlier = resumable(path, inputs) if args.resume else []
    if args.accuracy and not args.resume:
        _set_aside(path)
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    test = settings.test_name(args)
    limits = None
    if mode.reads_tokens and not args.accuracy:
        limits = Limits(test_settings.ttft_latency / 1e6, test_settings.tpot_latency / 1e6)
    title = f"{args.mode}, {test}, {spec.name}"
    with (
        Journal(path, inputs, earlier) as journal,
        RunView(args.live, title, limits, known_reasons) as view,
    ):
        recorder = Recorder(folder / TIMELINE, backend, args.mode, test, spec.name)
        # closes the engine, as grading may take long
        seconds, reuse = asyncio.run(
            _measure(plan, backend, journal, earlier, state, recorder, view)
        )
    if args.trace:
        trace.write_trace(folder / TIMELINE, folder / trace.TRACE)

    if args.accuracy:
        state.enter("grading")
    answers = read_journal(path)
    fresh = answers[len(earlier) :]
    results = results_frame(workload.frame, answers, workload.prompts, spec.name)
    _, answers_path = write_frame(results, args.output_file or folder / RESULTS)
    detail = report.read_detail(logs / report.DETAIL_LOG)
    failures: list[str] = []
    if args.accuracy:
        evaluation = evaluate_and_report(
            results, args.input_file, problems, folder, options, len(workload)
        )
        tokens = sum(len(completion.token_ids) for _, completion in fresh)
        figures = report.accuracy_figures(evaluation, len(fresh), tokens, seconds)
        reasons = report.accuracy_reasons(evaluation)
    else:
        figures = report.performance_figures(detail)
        if args.compliance:
            verification = compliance.conclude(folder, workload.prompts.eos_id, mode.reads_tokens)
            print(verification.text)
            reasons = failures = verification.faults
        else:
            reasons = report.performance_reasons(detail)
            failures = [] if known_reasons else reasons
    reasons = [
        *known_reasons,
        *report.resume_reasons(len(earlier)),
        *report.reuse_reasons(reuse, workload.prompts.shared_prefix, len(fresh)),
        *reasons,
        *(f"LoadGen logged an error: {error}" for error in detail.errors),
    ]
    outcome = report.Outcome(args.mode, test, folder, figures, reasons, detail, reuse)
    record = report.record(outcome) | {
        "known_before_the_run": known_reasons,
        "backend": spec.name,
        "process": state.process,
        "answers": answers_path.absolute(),
        "engine": asdict(config),
        "skipped_rows": workload.skipped,
        "mlperf_conf": args.mlperf_conf,
        "resumed": {"samples": len(earlier), "of": len(answers)} if args.resume else None,
    }
    write_json(folder / RECORD, record, default=str)  # paths as text
    print(report.table(outcome))
    if args.accuracy:
        evaluation.require_all()
    if failures:
        raise LoadGenError("; ".join(failures))


def _set_aside(journal: Path) -> None:
    """Keep the answers of an accuracy run that did not end, in case it was to be resumed."""
    if (journal.parent / RECORD).exists():
        return
    if journal.exists() and journal.stat().st_size:
        old = journal.replace(journal.with_name(f"{journal.name}.old"))
        log.warning(
            "an earlier run was not finished: its answers are now in %s; --resume continues a run",
            old,
        )


def _problems(args: argparse.Namespace, workload: "Workload") -> Path | None:
    """LiveCodeBench's problems, checked before the run rather than hours later.

    Raises: GradingError if rows need problems and there is no file, or it lacks some of them.
    """
    from data.problems import Problems
    from grading.tasks.table import TASKS

    path = find_problems(args.livecodebench_file, [args.input_file])
    rows = [sample for sample in workload.samples if TASKS[sample.task].needs_problems]
    if not rows:
        return path
    if path is None:
        raise no_problems()
    problems = Problems(path)
    missing = [row for row in rows if str(row.ground_truth) not in problems]
    if missing:
        raise GradingError(
            f"{path} has no problem {str(missing[0].ground_truth)!a}, the ground truth of row"
            f" {missing[0].index} of {args.input_file}, nor those of {len(missing) - 1} more rows:"
            " does it belong to another data set?"
        )
    return path


async def _measure(
    plan: preflight.Plan,
    backend: Backend,
    journal: Journal,
    earlier: list[Answer],
    state: RunState,
    recorder: Recorder,
    view: RunView,
) -> tuple[float, Reuse]:
    """Start the engine, run LoadGen's test on it, and close it.

    Returns the test's duration in seconds, and the use of the prefix cache.
    """
    from backends.drive import running
    from data.progress import EVERY_S, Progress
    from data.workload import compare_tokenizers
    from mlperf.qsl import query_sample_library
    from mlperf.sut import Sut, loadgen_test

    workload, test_settings = plan.workload, plan.test_settings
    reads_tokens = settings.MODES[plan.args.mode].reads_tokens
    total = settings.expected_samples(test_settings, len(workload))
    lines_s = math.inf if view.shown else EVERY_S
    with query_sample_library(len(workload)) as library:
        async with running(backend):
            await compare_tokenizers(backend, workload)
            state.enter("running", total)
            with Progress(total, every_s=lines_s, bar=False) as progress:

                def on_done(completion: Completion) -> None:
                    progress.add(len(completion.token_ids))
                    state.count()

                sut = Sut(
                    *(backend, workload, journal, reads_tokens, on_done),
                    earlier=dict(earlier),
                    recorder=recorder,
                )
                test = loadgen_test(test_settings, library, plan.logs)
                async with recorder:
                    view.follow(recorder, total - len(earlier))
                    await sut.serve(test)
                    seconds = recorder.elapsed_s
            reuse = await backend.reuse()
    if not sut.issued:
        raise LoadGenError(f"LoadGen issued no samples: see its logs in {plan.logs}")
    return seconds, reuse
