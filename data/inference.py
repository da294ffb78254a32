"""Answer every row of a data set once, without LoadGen: the logic of run_eval.

Next to the output file is `<name>.journal`, every answer in the order they finished, from which an
interrupted run is resumed. `<name>.engine.log` holds the engine's output, `<name>.engine.json` the
settings it ran with, `<name>.timeline.parquet` when each request came and went.
"""

import argparse
import asyncio
import logging
import math
import time
from pathlib import Path

from backends import registry
from backends.options import (
    add_engine_options,
    choose_backend,
    engine_config,
    positive_int,
    whole_number,
)
from backends.types import Backend, Completion
from data import screen, trace
from data.journal import Answer, Journal, resumable
from data.live import RunView
from data.lock import locked
from data.recorder import TIMELINE, Recorder
from data.workload import Workload, build, compare_tokenizers

log = logging.getLogger(__name__)

JOURNAL, LOCK, ENGINE_LOG = ".journal", ".lock", ".engine.log"


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options that select the samples."""
    parser.add_argument(
        "--input-file",
        type=Path,
        default=Path("data/final_output.pkl"),
        metavar="FILE",
        help="data set: .pkl, .parquet or .jsonl (default: data/final_output.pkl)",
    )
    parser.add_argument(
        "--num-samples",
        type=positive_int,
        metavar="N",
        help="answer the first N rows only",
    )
    parser.add_argument(
        "--skip-samples",
        type=whole_number,
        default=0,
        metavar="N",
        help="leave out the first N rows; --num-samples counts from there (default: 0)",
    )


def add_options(parser: argparse.ArgumentParser, torchrun: bool = False) -> None:
    """The options of run_eval and, with `torchrun`, of its twin."""
    add_data_options(parser)
    parser.add_argument(
        "--output-file",
        type=Path,
        metavar="FILE",
        help="written as .pkl and .parquet, next to the journal of finished answers"
        " (default: <backend>_output.pkl in --output-dir)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="default: the working directory",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the finished answers of an interrupted run with the same inputs, and answer the"
        " rest",
    )
    parser.add_argument(
        "--async",
        action="store_true",
        dest="in_flight",
        help="has no effect, accepted for old command lines: all samples are always in flight",
    )
    trace.add_option(parser)
    screen.add_option(parser)
    add_engine_options(parser, torchrun)


def run(args: argparse.Namespace, torchrun: bool = False) -> None:
    """Answer the data set and write the results. Under torchrun, every rank calls this.

    Raises: any UserError. Errors in the inputs are raised on every rank, before the engine starts.
    After a later failure, the finished answers are in the journal.
    """
    from data.paths import keep_inputs
    from data.results import check_writable, result_paths, results_frame, write_frame

    spec, world_size = choose_backend(args, torchrun)
    output = args.output_dir / (args.output_file or f"{spec.name}_output.pkl")
    check_writable(output)
    keep_inputs(result_paths(output), [args.input_file])
    log_file = _beside(output, ENGINE_LOG)
    config = engine_config(args, spec, world_size, coalesce=True, failover=True, log=log_file)
    workload = build(
        args.input_file, args.num_samples, config, args.max_new_tokens, args.skip_samples
    )
    backend = registry.load(spec, config)
    if not backend.leads:
        backend.follow()
        return

    path, timeline = _beside(output, JOURNAL), _beside(output, f".{TIMELINE}")
    inputs = workload.inputs(spec.name, config)
    with locked(_beside(output, LOCK)):
        earlier = resumable(path, inputs) if args.resume else []
        recorder = Recorder(timeline, backend, None, "eval", spec.name)
        with (
            Journal(path, inputs, earlier) as journal,
            RunView(args.live, f"run_eval, {spec.name}") as view,
        ):
            answers = earlier + asyncio.run(
                _answer(backend, workload, journal, earlier, recorder, view)
            )
        if args.trace:
            trace.write_trace(timeline, _beside(output, f".{trace.TRACE}"))
        results = results_frame(workload.frame, answers, workload.prompts, spec.name)
        for path in write_frame(results, output):
            log.info("wrote %s", path)


async def _answer(
    backend: Backend,
    workload: Workload,
    journal: Journal,
    earlier: list[Answer],
    recorder: Recorder,
    view: RunView,
) -> list[Answer]:
    """Answer the rows that `earlier` lacks; every answer is journalled as it finishes."""
    from backends.drive import run_all, running
    from data.progress import EVERY_S, Progress

    done = {index for index, _ in earlier}
    requests = [
        workload.request(index, index) for index in range(len(workload)) if index not in done
    ]

    def on_done(completion: Completion) -> None:
        journal.add(completion.request_id, completion)
        recorder.finish(completion)
        progress.add(len(completion.token_ids))

    async with running(backend):
        await compare_tokenizers(backend, workload)
        lines_s = math.inf if view.shown else EVERY_S
        async with recorder:
            view.follow(recorder, len(requests))
            for request in requests:
                recorder.arrive(request, time.monotonic_ns())
            with Progress(len(requests), every_s=lines_s, bar=False) as progress:
                fresh = await run_all(backend, requests, on_done, recorder.start, recorder.watch)
    return [(completion.request_id, completion) for completion in fresh]


def _beside(output: Path, ending: str) -> Path:
    stem = output.with_suffix("") if output.suffix in (".pkl", ".pickle", ".parquet") else output
    return stem.with_name(stem.name + ending)
