"""The system under test: LoadGen's queries in, an engine's streams out, on one event loop.

LoadGen runs in its own thread and passes each batch of samples to the loop in one call; every
sample becomes an asyncio task. First tokens and completions that arrive in the same iteration of
the loop are reported to LoadGen together; it copies them during the call.
"""

import asyncio
import gc
import threading
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backends.drive import Watch, cancel, collect
from backends.types import TOKEN, Backend, Completion, Delta, Request
from data.journal import Journal
from data.recorder import Recorder
from data.workload import Workload
from mlperf.settings import loadgen

COLLECTION = (200_000, 100, 100)  # new objects, and younger collections, before one
Report = tuple[int, array]  # query id, token ids


class Sut:
    """Completes every sample that LoadGen issues, exactly once.

    A completion goes into the journal under its query id, and is reported to LoadGen. If the model
    stops at once, the end-of-sequence id is reported in place of an empty completion. Samples that
    an `earlier` run has completed are reported at once.
    """

    def __init__(
        self,
        backend: Backend,
        workload: Workload,
        journal: Journal,
        reads_tokens: bool,
        on_done: Callable[[Completion], None],
        earlier: Mapping[int, Completion] = MappingProxyType({}),
        recorder: Recorder | None = None,
    ) -> None:
        """`reads_tokens`: report the first token of each completion to LoadGen as it arrives.
        `earlier`: by sample index; in the journal already. `recorder`: records all others."""
        self.issued = 0
        self._backend = backend
        self._workload = workload
        self._journal = journal
        self._reads_tokens = reads_tokens
        self._on_done = on_done
        self._earlier = earlier
        self._lg = loadgen()
        self._recorder = recorder
        self._watch = recorder.watch if recorder else Watch(backend.config.stall_timeout)
        self._tasks: set[asyncio.Task] = set()
        self._first_tokens: list[Report] = []
        self._completions: list[Report] = []
        self._report_due = False

    async def serve(self, test: Callable[[int], None]) -> None:
        """Complete samples until `test`, called with LoadGen's handle of this SUT, returns.

        Raises: the first exception of a sample or of `test`. All other samples are then cancelled.
        LoadGen has no call for that and keeps waiting in its thread, so the process has to exit.
        """
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        handle = self._lg.ConstructFastSUT(self._issue, _nothing_to_flush)
        thread = threading.Thread(target=self._run, args=(test, handle), daemon=True)
        thread.start()
        self._spawn(self._watch.run())
        try:
            with _rare_collections():
                await self._over
        finally:
            await cancel(self._tasks)
        thread.join()
        self._lg.DestroyFastSUT(handle)

    def _run(self, test: Callable[[int], None], handle: int) -> None:
        """The whole test, in LoadGen's thread."""
        try:
            test(handle)
        except Exception as error:  # noqa: BLE001
            self._call(self._end, error)  # raised by `serve`, in the main thread
        else:
            self._call(self._end, None)

    def _issue(self, query_ids: list[int], indices: list[int]) -> None:
        """LoadGen's callback for a batch of samples, called in its thread."""
        self._call(self._begin, query_ids, indices, time.monotonic_ns())

    def _call(self, function: Callable[..., None], *args: object) -> None:
        # a closed loop means that the run has failed and the process is about to exit
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def _begin(self, query_ids: list[int], indices: list[int], at_ns: int) -> None:
        if self._over.done():
            return
        self.issued += len(query_ids)
        for query_id, index in zip(query_ids, indices, strict=True):
            if completion := self._earlier.get(index):
                self._repeat(query_id, completion)
                continue
            request = self._workload.request(query_id, index)
            if self._recorder:
                self._recorder.arrive(request, at_ns)
            self._spawn(self._answer(request))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._over.done():
            return
        if error:
            self._over.set_exception(error)
        else:
            self._over.set_result(None)

    def _repeat(self, query_id: int, completion: Completion) -> None:
        ids = array(TOKEN, completion.token_ids.tobytes())
        if self._reads_tokens:
            self._report(self._first_tokens, query_id, ids[:1])
        self._report(self._completions, query_id, ids)
        self._on_done(completion)

    async def _answer(self, request: Request) -> None:
        completion = await collect(self._backend, request, self._start, self._watch)
        assert request.row is not None
        self._journal.add(request.row, completion)
        if self._recorder:
            self._recorder.finish(completion)
        assert isinstance(completion.token_ids, array)
        self._report(self._completions, request.id, completion.token_ids)
        self._on_done(completion)

    def _start(self, request: Request, delta: Delta) -> None:
        """An answer's first delta has arrived."""
        if self._recorder:
            self._recorder.start(request, delta)
        if self._reads_tokens:
            self._report(self._first_tokens, request.id, array(TOKEN, delta.token_ids[:1]))

    def _report(self, reports: list[Report], query_id: int, ids: array) -> None:
        reports.append((query_id, ids or array(TOKEN, [self._workload.prompts.eos_id])))
        if not self._report_due:
            self._report_due = True
            self._spawn(self._send())

    async def _send(self) -> None:
        """Report what has arrived; runs in the loop's next iteration, after all of this one's."""
        self._report_due = False
        first_tokens, self._first_tokens = self._first_tokens, []
        completions, self._completions = self._completions, []
        if first_tokens:
            self._lg.FirstTokenComplete(self._responses(first_tokens))
        if completions:
            self._lg.QuerySamplesComplete(self._responses(completions))

    def _responses(self, reports: list[Report]) -> list:
        """Responses that point into the arrays of `reports`, which must outlive the report."""
        responses = []
        for query_id, ids in reports:
            address, count = ids.buffer_info()
            responses.append(
                self._lg.QuerySampleResponse(query_id, address, count * ids.itemsize, count)
            )
        return responses


def loadgen_test(settings: Any, library: int, folder: Path) -> Callable[[int], None]:
    """A LoadGen test for `Sut.serve`. `library`: a handle of samples; logs go to `folder`."""
    lg = loadgen()
    log_settings = lg.LogSettings()
    log_settings.log_output.outdir = str(folder)
    log_settings.enable_trace = False

    def test(handle: int) -> None:
        # "" disables audit.config, which LoadGen would read from the working directory
        lg.StartTestWithLogSettings(handle, library, settings, log_settings, "")

    return test


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect cyclic garbage rarely: each collection visits what all open requests are made of,
    which takes as long as the requests themselves, and hardly any of it is ever garbage."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*COLLECTION)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _nothing_to_flush() -> None:
    """Every query is submitted to the engine as soon as it is issued."""
