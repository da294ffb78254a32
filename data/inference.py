"""Answer every row of a data set once, without LoadGen: the logic of run_eval.

Next to the output file are `<name>.journal.jsonl`, every answer in the order they finished, and
`<name>.run.json`, the inputs they depend on: an interrupted run is resumed from these two.
`<name>.engine.log` holds the engine's output, `<name>.engine.json` the settings it ran with.
"""

import argparse
import asyncio
import hashlib
import json
import logging
from pathlib import Path

from backends import registry
from backends.options import add_engine_options, choose_backend, engine_config, positive_int
from backends.types import Backend, Completion, EngineConfig
from data.workload import Workload, build, compare_tokenizers
from errors import InputFileError
from ref_dsinfer.files import write_json

log = logging.getLogger(__name__)

JOURNAL, RECORD, ENGINE_LOG = ".journal.jsonl", ".run.json", ".engine.log"


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
    config = engine_config(args, spec, world_size, coalesce=True, log=_beside(output, ENGINE_LOG))
    workload = build(args.input_file, args.num_samples, config, args.max_new_tokens)
    backend = registry.load(spec, config)
    if not backend.leads:
        backend.follow()
        return

    inputs = _inputs(workload, spec.name, config)
    earlier = _earlier(output, inputs) if args.resume else []
    answers = asyncio.run(_answer(backend, workload, output, inputs, earlier))
    results = results_frame(workload.frame, answers, workload.prompts, spec.name)
    for path in write_frame(results, output):
        log.info("wrote %s", path)


async def _answer(
    backend: Backend,
    workload: Workload,
    output: Path,
    inputs: dict,
    earlier: list[tuple[int, Completion]],
) -> list[tuple[int, Completion]]:
    """Answer the rows that `earlier` lacks; every answer is journalled as it finishes."""
    from backends.drive import run_all, running
    from data.progress import Progress
    from data.results import Journal

    done = {index for index, _ in earlier}
    requests = [
        workload.request(index, index) for index in range(len(workload)) if index not in done
    ]
    journal_path, run_path = _beside(output, JOURNAL), _beside(output, RECORD)
    # the old journal is replaced once the new one holds all the answers kept from it, and the
    # inputs are replaced last: a run killed here leaves nothing that could be resumed wrongly
    with Journal(journal_path.with_name(journal_path.name + ".new")) as journal:
        for index, completion in earlier:
            journal.add(index, completion)
        journal.path = journal.path.replace(journal_path)
        write_json(run_path, inputs)

        def on_done(completion: Completion) -> None:
            journal.add(completion.request_id, completion)
            progress.add(len(completion.token_ids))

        async with running(backend):
            await compare_tokenizers(backend, workload)
            with Progress(len(requests)) as progress:
                fresh = await run_all(backend, requests, on_done)
    return earlier + [(completion.request_id, completion) for completion in fresh]


def _earlier(output: Path, inputs: dict) -> list[tuple[int, Completion]]:
    """The answers of an interrupted run. Raises: InputFileError if it had other inputs."""
    from data.results import read_journal

    journal_path, run_path = _beside(output, JOURNAL), _beside(output, RECORD)
    if not journal_path.exists():
        log.warning("%s: no journal to resume from, all samples will be answered", journal_path)
        return []
    try:
        before = json.loads(run_path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputFileError(
            f"{run_path}: can't be read, so the inputs of the journal's answers are unknown: run"
            " without --resume"
        ) from error
    changes = [
        key for key in inputs if not isinstance(before, dict) or before.get(key) != inputs[key]
    ]
    if changes:
        raise InputFileError(
            f"{journal_path}: its answers were made with another {', '.join(changes)}: run without"
            " --resume"
        )
    earlier = read_journal(journal_path)
    log.info("%s: %d answers kept", journal_path, len(earlier))
    return earlier


def _inputs(workload: Workload, backend: str, config: EngineConfig) -> dict:
    """What the answers depend on; not the device and the batch sizes, which may change."""
    return {
        "prompts": hashlib.sha256(repr(workload.prompt_ids).encode()).hexdigest(),
        "max_new_tokens": workload.max_new_tokens,
        "model_length": workload.max_len,
        "backend": backend,
        "model": config.model,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "kv_dtype": config.kv_dtype,
        "seed": config.seed,
    }


def _beside(output: Path, ending: str) -> Path:
    stem = output.with_suffix("") if output.suffix in (".pkl", ".pickle", ".parquet") else output
    return stem.with_name(stem.name + ending)
