"""vLLM's asynchronous engine: token ids in, a stream of sampled ids out.

The engine runs in processes that vLLM starts; its client runs in this one, on our event loop.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import vllm
from vllm import SamplingParams
from vllm.config.logging import LoggingConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMError
from vllm.inputs.engine import tokens_input
from vllm.logger import configure_logging
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from backends.children import Children
from backends.nodes import Nodes, Span
from backends.options import own_arguments, own_names, refuse_unknown, require_mtp
from backends.types import NO_REUSE, Backend, Delta, EngineConfig, Finish, Request, Reuse, Stats
from benchmark import MTP_STEPS
from errors import EngineError, ModelError, UsageError
from ref_dsinfer.config import CONFIG_FILE, read_config
from ref_dsinfer.cpu import dtype_for
from ref_dsinfer.network import check_interfaces
from ref_dsinfer.weight_files import check_for_others

log = logging.getLogger(__name__)
LOG_LINE = "%(asctime)s %(levelname)s %(processName)s %(filename)s:%(lineno)d] %(message)s"
SPECULATIVE = {"method": "mtp", "num_speculative_tokens": MTP_STEPS}
SHUTDOWN_S = 10.0  # for vLLM to end its processes by itself; what is left then is killed
WORKER_DIED = "died unexpectedly"  # in its log, some time before it ends
CPU_CACHE_BYTES = 1 << 30  # default limit of the KV cache, which vLLM writes to at its start
# Of vLLM's arguments, those that differ from host to host.
OF_ONE_HOST = (
    *("node_rank", "data_parallel_start_rank"),
    *("model", "logging_config"),
    "kv_cache_memory_bytes",  # vLLM takes the least
)
# vLLM's names of options that have a flag of their own here.
OWN_FLAGS = own_names("vllm") | {
    "model": "--model",
    "tokenizer": "--model",
    "revision": "--revision",
}


class VllmBackend(Backend):
    """vLLM, in child processes.

    Raises: UsageError for options, ModelError for a model that vLLM does not support, LaunchError
    for an unknown network interface; EngineError from `start` and `stream`, with the last lines of
    vLLM's log.
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        device = current_platform.device_type
        if config.device not in ("auto", device):
            raise UsageError(
                f"--device {config.device}: the installed vLLM runs on {device or 'no device here'}"
                f" (./setup.sh --backend vllm --device {config.device})"
            )
        processes = config.tensor_parallel * config.pipeline_parallel * config.data_parallel
        check_interfaces(on_gpu=device == "cuda" and processes > 1)
        _check_architecture(config.model)
        if config.speculative:
            require_mtp(config.model)
        self._args = engine_args(config)
        self._nodes = Nodes(config, span(self._args))
        self._children: Children | None = None
        self._engine: AsyncLLM | None = None
        self._cached: list[int] = []  # of each prompt: tokens from the prefix cache

    @property
    def leads(self) -> bool:
        return not self.config.join

    def follow(self) -> None:
        """Run this host's workers or engines until the first host's run is done."""
        asyncio.run(self._follow())

    async def start(self) -> None:
        address = await self._nodes.meet(self._settings())
        self._children = children = Children(self._nodes.log)
        loading = asyncio.create_task(asyncio.to_thread(self._launch, children, address))
        async with children.starting("vLLM"):
            done, _ = await asyncio.wait({loading}, timeout=self.config.start_timeout)
        if not done:
            seconds = self.config.start_timeout
            raise children.failure(f"vLLM was not ready within {seconds:g} s (--start-timeout)")
        if error := loading.exception():
            raise await self._nodes.failure(children, "vLLM did not start") from error
        self._engine = loading.result()
        children.started()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        if self._engine is None:
            raise EngineError("vLLM has not been started")
        prompt = tokens_input(list(request.prompt_ids))
        outputs = self._engine.generate(prompt, self._params(request), str(request.id))
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    if output.finished:
                        self._cached.append(output.num_cached_tokens or 0)
                    if delta := _delta(output, request):
                        yield delta
        except VLLMError as error:
            await self._fail(request, error)

    def effective(self) -> Mapping[str, Any]:
        assert self._engine
        config = self._engine.vllm_config
        parts = ("model", "cache", "parallel", "scheduler", "compilation", "speculative")
        settings = {part: _plain(getattr(config, f"{part}_config")) for part in parts}
        return {"version": vllm.__version__, "arguments": _plain(self._args), **settings}

    async def reuse(self) -> Reuse:
        if not self._args.enable_prefix_caching:
            return NO_REUSE
        return Reuse(True, sum(self._cached), max(self._cached, default=0))

    async def stats(self) -> Stats:
        manager = self._engine and self._engine.logger_manager
        if not manager:
            return Stats()
        (logger,) = (one for one in manager.stat_loggers if isinstance(one, _StatLogger))
        return logger.stats()

    async def close(self) -> None:
        """End vLLM's processes: shut them down, then kill what is left."""
        self._nodes.leave()
        engine, self._engine = self._engine, None
        if engine:
            await asyncio.to_thread(engine.shutdown, SHUTDOWN_S)
        if self._children:
            await asyncio.to_thread(self._children.close)

    async def _follow(self) -> None:
        from vllm.entrypoints.cli.serve import run_headless  # with vLLM's server, which takes long

        address = await self._nodes.meet(self._settings())
        self._children = children = Children(self._nodes.log)
        # what `vllm serve --headless` does with these arguments
        options = {field.name: getattr(self._args, field.name) for field in fields(self._args)}
        words = argparse.Namespace(**options, api_server_count=0)
        process = multiprocessing.get_context("spawn").Process(target=run_headless, args=(words,))
        try:
            with children.spawning(**_environment(children, address)):
                process.start()
            log.info("this host's part of vLLM has started; its log is %s", children.log)
            await self._nodes.follow(
                children,
                "vLLM",
                lambda: process.exitcode is not None or children.log_contains(WORKER_DIED),
            )
        finally:
            await asyncio.to_thread(children.close)

    def _settings(self) -> dict[str, object]:
        """What the hosts must have in common."""
        options = {
            field.name: _plain(getattr(self._args, field.name)) for field in fields(self._args)
        }
        own = {name: options[name] for name in options if name not in OF_ONE_HOST}
        return {"vLLM": vllm.__version__, "device": current_platform.device_type, **own}

    def _launch(self, children: Children, address: str) -> AsyncLLM:
        """Start vLLM; blocks until it is ready or has failed, so it runs in a thread."""
        self._args.logging_config = _logging(children.log, children.folder)
        configure_logging(self._args.logging_config)
        try:
            with children.spawning(**_environment(children, address)):
                return AsyncLLM.from_engine_args(self._args, stat_loggers=[_StatLogger])
        except BaseException:
            logging.getLogger("vllm").exception("vLLM did not start")
            raise

    def _params(self, request: Request) -> SamplingParams:
        whole = self.config.coalesce
        return SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.max_new_tokens,
            stop_token_ids=sorted(request.stop_ids),
            ignore_eos=True,  # the request names all its stop ids
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
        )

    async def _fail(self, request: Request, error: Exception) -> NoReturn:
        if isinstance(error, EngineDeadError) and self._children:
            raise await self._nodes.failure(self._children, "vLLM's engine has died") from error
        raise EngineError(f"{request.name}: vLLM: {error}") from error


class _StatLogger(PrometheusStatLogger):
    """Keeps the newest numbers of each engine process.

    It stands for vLLM's logger for Prometheus, which vLLM would add otherwise: nobody reads that
    one's histograms, to which every token is added.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self._newest = {index: SchedulerStats() for index in engine_indexes}
        self._preemptions = 0

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats:
            self._newest[engine_idx] = scheduler_stats
        if iteration_stats:
            self._preemptions += iteration_stats.num_preempted_reqs

    def stats(self) -> Stats:
        parts = self._newest.values()
        return Stats(
            sum(part.num_running_reqs for part in parts),
            sum(part.num_waiting_reqs + part.num_skipped_waiting_reqs for part in parts),
            sum(part.kv_cache_usage for part in parts) / len(parts),
            self._preemptions,
        )

    def log_engine_initialized(self) -> None:
        pass

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        pass

    def record_admission_rejection(self, reason: str) -> None:
        pass


def engine_args(config: EngineConfig) -> AsyncEngineArgs:
    """vLLM's arguments, checked by its own parser.

    Raises: UsageError; CheckpointError for weight files that vLLM would refuse only minutes later.
    """
    known = {field.name for field in fields(AsyncEngineArgs)}
    options = {key.replace("-", "_"): value for key, value in config.options.items()}
    for key in options:
        if key in OWN_FLAGS:
            raise UsageError(f"engine option {key}: use {OWN_FLAGS[key]}")
    refuse_unknown("vllm", options, known)
    if "load_format" not in options:  # which may be for other formats, or no weights
        check_for_others(Path(config.model))

    parser = _Parser(add_help=False)
    AsyncEngineArgs.add_cli_args(parser)
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(_words(parser, options)))
    for name, value in own_arguments("vllm", config).items():
        setattr(args, name, value)
    args.model = config.model
    args.skip_tokenizer_init = True
    args.dtype = dtype_for(config.dtype, current_platform.device_type)
    cpu_cache = current_platform.is_cpu() and "kv_cache_memory_bytes" not in options
    if cpu_cache and config.memory_share is None:
        args.kv_cache_memory_bytes = min(CPU_CACHE_BYTES, psutil.virtual_memory().available // 4)
    if current_platform.is_cpu() and args.dtype != "bfloat16" and args.attention_backend is None:
        # on a CPU with AMX, vLLM would choose AMX_MLA, which has bfloat16 only
        args.attention_backend = AttentionBackendEnum.CPU_MLA
    if config.compile:
        args.compilation_config.mode = 3
    if config.speculative:
        args.speculative_config = dict(SPECULATIVE)
    # the benchmark's rules: no query may reuse another's prefix
    if "enable_prefix_caching" not in options:
        args.enable_prefix_caching = False
    if "disable_log_stats" not in options:
        args.disable_log_stats = True
    return args


class _Parser(FlexibleArgumentParser):
    """Raises UsageError where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"vLLM: {message} (--engine-arg)")


def _words(parser: argparse.ArgumentParser, options: Mapping[str, str]) -> list[str]:
    """Options as words of a command line."""
    words = []
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        action = parser._option_string_actions.get(flag)
        if action is None:
            raise UsageError(f"engine option {key}: vLLM has no command-line flag for it")
        if not isinstance(action, argparse.BooleanOptionalAction):
            words.append(f"{flag}={value}")
        elif value.lower() in ("true", "false"):
            words.append(flag if value.lower() == "true" else "--no-" + flag[2:])
        else:
            raise UsageError(f"engine option {key}={value}: it must be true or false")
    return words


def _check_architecture(model: str) -> None:
    """Refuse what vLLM itself would refuse only minutes later. Raises: ModelError."""
    path = Path(model) / CONFIG_FILE
    names = read_config(model).get("architectures")
    if not isinstance(names, list):
        raise ModelError(f"{path}: architectures is missing")
    if not any(name in vllm.ModelRegistry.get_supported_archs() for name in names):
        raise ModelError(
            f"{path}: vLLM {vllm.__version__} does not support {', '.join(map(str, names))}"
        )


def _delta(output: RequestOutput, request: Request) -> Delta | None:
    """The new part of an output; None if nothing is new. Raises: EngineError if vLLM dropped the
    request."""
    now = time.monotonic_ns()
    (answer,) = output.outputs
    ids = tuple(answer.token_ids)
    finish: Finish | None = None
    if answer.finish_reason == "stop":
        finish = "stop"
        if not ids or ids[-1] not in request.stop_ids:
            raise EngineError(f"{request.name}: vLLM stopped, but not at a stop id of the request")
        ids = ids[:-1]
    elif answer.finish_reason == "length":
        finish = "length"
    elif answer.finish_reason:
        raise EngineError(f"{request.name}: vLLM dropped it ({answer.finish_reason})")
    return Delta(ids, finish, now) if ids or finish else None


def span(args: AsyncEngineArgs) -> Span | None:
    """The hosts that vLLM's arguments name: parts of its workers, or of its data-parallel
    engines."""
    if args.nnodes > 1:
        return Span(args.node_rank, args.nnodes, args.master_addr, args.master_port)
    local = args.data_parallel_size_local
    if not local or not args.data_parallel_address or not args.data_parallel_rpc_port:
        return None
    return Span(
        (args.data_parallel_start_rank or 0) // local,
        args.data_parallel_size // local,
        args.data_parallel_address,
        args.data_parallel_rpc_port,
    )


def _environment(children: Children, address: str) -> dict[str, str]:
    """Variables of vLLM's processes. `address`: this host's, among several."""
    variables = {
        "VLLM_RPC_BASE_PATH": str(children.folder),  # its sockets, removed with the processes
        "VLLM_NO_USAGE_STATS": "1",
    }
    if address and "VLLM_HOST_IP" not in os.environ:  # else it looks for a way to the internet
        variables["VLLM_HOST_IP"] = address
    return variables


def _logging(log_file: Path, folder: Path) -> LoggingConfig:
    """Logging of all vLLM's processes to `log_file`, configured by a file in `folder`."""
    settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": LOG_LINE}},
        "handlers": {
            "file": {"class": "logging.FileHandler", "filename": str(log_file), "formatter": "line"}
        },
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    path = folder / "logging.json"
    path.write_text(json.dumps(settings))
    return LoggingConfig(pylogging_config_file=str(path))


def _plain(value: Any) -> Any:
    """A configuration as JSON values; what JSON has no type for, as text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)
