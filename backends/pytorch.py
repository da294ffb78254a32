"""`ref_dsinfer` behind the backend interface.

The engine is synchronous and runs in a thread of its own. The event loop puts requests into its
inbox and gets deltas back once a step. Under torchrun rank 0 leads: before each step it broadcasts
the commands that have arrived (requests, aborts, stop), and all ranks run the same step.
"""

import asyncio
import gc
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# OpenMP reads it when torch is loaded. By default torch's threads wait actively for one another, so
# long that an engine comes to a standstill where other processes use its cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
import torch

from backends.options import refuse_unknown
from backends.types import NO_REUSE, Backend, Delta, EngineConfig, Request, Reuse, Stats
from errors import EngineError, LaunchError, UsageError, UserError
from ref_dsinfer.cpu import keep_freed_memory
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.parallel import RankInfo
from ref_dsinfer.sequence import Output

log = logging.getLogger(__name__)

END_CHECK_S = 0.02  # between two checks whether the engine's thread has ended
COUNTS = ("threads", "cache_tokens", "step_tokens")  # what --engine-arg takes, all 1 or more
SWITCHES = ("graphs", "symmetric_memory")  # and 0 or 1


@dataclass(frozen=True)
class Abort:
    """The request's stream was closed."""

    id: int


@dataclass(frozen=True)
class Stop:
    """The run is over; open requests are aborted."""


Command = Request | Abort | Stop


def engine_options(config: EngineConfig) -> EngineOptions:
    """`ref_dsinfer`'s options, from those that all engines share and from `--engine-arg`.

    Raises: UsageError, for an unknown name with the nearest known one.
    """
    refuse_unknown("pytorch", config.options, (*COUNTS, *SWITCHES))
    own: dict[str, Any] = {}
    for name, text in config.options.items():
        if name in SWITCHES:
            if text not in ("0", "1"):
                raise UsageError(f"engine option {name}={text}: it must be 0 or 1")
            own[name] = text == "1"
        elif text.isdecimal() and int(text) > 0:
            own[name] = int(text)
        else:
            raise UsageError(f"engine option {name}={text}: it must be 1 or more")
    return EngineOptions(
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
        max_model_len=config.max_model_len,
        max_running=config.max_running or EngineOptions.max_running,
        seed=config.seed,
        gemm=config.gemm or EngineOptions.gemm,
        kernels=config.kernels,
        coalesce=config.coalesce,
        speculative=config.speculative,
        **own,
    )


class PyTorchBackend(Backend):
    """The project's own engine, over as many processes as torchrun started.

    Raises: UsageError for options, LaunchError if the world size is not `tensor_parallel`; from
    `start` and `follow` as `Engine`.
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._options = engine_options(config)
        self._info = RankInfo.from_environment()
        if config.tensor_parallel != self._info.world_size:
            raise LaunchError(
                f"tensor_parallel {config.tensor_parallel} needs as many processes, not "
                f"{self._info.world_size}: start the _mpi script with torchrun "
                f"--nproc_per_node={config.tensor_parallel}"
            )
        if config.device == "cpu" or not torch.cuda.is_available():
            keep_freed_memory()
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._open: dict[int, asyncio.Queue[Delta | BaseException]] = {}
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def leads(self) -> bool:
        return self._info.rank == 0

    def follow(self) -> None:
        """Load the model, and run the same steps as rank 0 until it stops."""
        engine = self._load()
        _serve(engine, commands=engine.ranks.broadcast, deliver=lambda outputs: None)
        engine.close()

    async def start(self) -> None:
        """Load the model on this rank while the others do the same."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Engine] = loop.create_future()
        self._thread = threading.Thread(target=self._lead, args=(loop, ready), name="engine")
        self._thread.daemon = (
            True  # a collective that never returns must not keep the process alive
        )
        self._thread.start()
        self._engine = await ready

    def effective(self) -> Mapping[str, Any]:
        assert self._engine
        pools = self._engine.scheduler.pools
        return {
            **asdict(self._options),
            "processes": self._info.world_size,
            "device": str(self._engine.ranks.device),
            "dtype": self._engine.dtype,
            "kernels": self._engine.kernels,
            "max_model_len": self._engine.max_model_len,
            "cache_tokens": sum(pool.blocks * pool.block_size for pool in pools),
        }

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Raises: LengthError, ModelError, UsageError for this request alone, EngineError before
        `start`, otherwise whatever stopped the engine."""
        if self._failure:
            raise _for_thread(self._failure)
        if self._engine is None:
            raise EngineError("the pytorch engine has not been started")
        sampling = request.sampling
        self._engine.check(
            request.prompt_ids, request.max_new_tokens, sampling.temperature, sampling.top_p
        )
        if request.id in self._open:
            raise ValueError(f"request {request.id} is open already")
        deltas = self._open[request.id] = asyncio.Queue()
        self._inbox.put(request)
        finished = False
        try:
            while not finished:
                delta = await deltas.get()
                if isinstance(delta, BaseException):
                    finished = True
                    raise _for_thread(delta)
                finished = delta.finish is not None
                yield delta
        finally:
            del self._open[request.id]
            if not finished:
                self._inbox.put(Abort(request.id))

    async def reuse(self) -> Reuse:
        return NO_REUSE

    async def stats(self) -> Stats:
        """By the scheduler, while its thread goes on: a number may be a step older than another."""
        if self._engine is None:
            return Stats()
        scheduler = self._engine.scheduler
        blocks = sum(pool.blocks for pool in scheduler.pools)
        free = sum(pool.free for pool in scheduler.pools)
        return Stats(
            len(scheduler.running), len(scheduler.waiting), 1 - free / blocks, scheduler.preempted
        )

    async def close(self) -> None:
        """End the engine on every rank, and free it; streams still open raise EngineError."""
        if self._thread is None:
            return
        self._inbox.put(Stop())
        thread, self._thread = self._thread, None
        while thread.is_alive():  # not joined in another thread, which would outlive a time limit
            await asyncio.sleep(END_CHECK_S)
        self._fail(self._failure or EngineError("the pytorch engine was closed"))
        self._engine = None  # grading comes next, may take long, and needs the memory
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _load(self) -> Engine:
        return Engine(self.config.model, self._options)

    def _lead(self, loop: asyncio.AbstractEventLoop, ready: "asyncio.Future[Engine]") -> None:
        """The engine thread of rank 0."""
        try:
            engine = self._load()
            loop.call_soon_threadsafe(self._started, ready, engine)

            def commands() -> list[Command] | None:
                received = self._received(wait=not engine.busy)
                everyones: list[Command] | None = engine.ranks.broadcast(received or None)
                return everyones

            _serve(engine, commands, deliver=lambda outputs: self._deliver(loop, outputs))
            engine.close()
        except BaseException as error:
            log.debug("the engine thread ends", exc_info=True)
            loop.call_soon_threadsafe(self._failed, ready, error)

    def _received(self, wait: bool) -> list[Command]:
        """The commands in the inbox; with `wait` at least one."""
        commands = [self._inbox.get()] if wait else []
        while not self._inbox.empty():
            commands.append(self._inbox.get())
        return commands

    def _deliver(self, loop: asyncio.AbstractEventLoop, outputs: list[Output]) -> None:
        """Pass a step's outputs to the event loop, waking it once."""
        if outputs:
            loop.call_soon_threadsafe(self._dispatch, outputs, time.monotonic_ns())

    def _dispatch(self, outputs: list[Output], now: int) -> None:
        """Make deltas, on the event loop: while a GPU runs the next step."""
        for request_id, token_ids, finish in outputs:
            if request_id in self._open:  # else its stream was closed during the step
                self._open[request_id].put_nowait(Delta(token_ids, finish, now))

    def _started(self, ready: "asyncio.Future[Engine]", engine: Engine) -> None:
        if not ready.done():  # else `start` was cancelled
            ready.set_result(engine)

    def _failed(self, ready: "asyncio.Future[Engine]", error: BaseException) -> None:
        if ready.done():
            self._fail(error)
        else:
            ready.set_exception(_for_thread(error))

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        for deltas in self._open.values():
            deltas.put_nowait(error)


def _serve(
    engine: Engine,
    commands: Callable[[], list[Command] | None],
    deliver: Callable[[list[Output]], None],
) -> None:
    """Execute commands and run steps, the same on every rank, until a Stop."""
    while True:
        for command in commands() or []:
            if isinstance(command, Stop):
                return
            if isinstance(command, Abort):
                engine.abort(command.id)
            else:
                sampling = command.sampling
                engine.add(
                    command.id,
                    command.prompt_ids,
                    command.max_new_tokens,
                    command.stop_ids,
                    sampling.temperature,
                    sampling.top_p,
                )
        if engine.busy:
            deliver(engine.step())


def _for_thread(error: BaseException) -> BaseException:
    """An error to raise in another thread: a user's error as it is, that of a missing package too
    (see `entrypoint`), a bug with its traceback."""
    if isinstance(error, UserError | ModuleNotFoundError):
        return error
    wrapped = RuntimeError("the engine stopped")
    wrapped.__cause__ = error
    return wrapped
