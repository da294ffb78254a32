"""run_mlperf on an engine that fails in every way: run as a script, with --backend faulty.

`--engine-arg fault=NAME` says what happens, at request number `at` (counted from 1), or `after_s`
seconds after the engine was made; `fill` fills the folder `disk` at the start. Each finished answer
is noted in the file `sent`, in the same iteration of the event loop in which the run gets it.
"""

import asyncio
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from backends import registry  # noqa: E402
from backends.echo import EchoEngine  # noqa: E402
from backends.types import BackendSpec, Delta, EngineConfig, Finish, Request  # noqa: E402
from errors import EngineError  # noqa: E402

TOKEN_S = 0.004
LONG = 20_000  # tokens
SIGNALS = {"kill": signal.SIGKILL, "crash": signal.SIGSEGV} | {
    name: signal.Signals[name] for name in ("SIGINT", "SIGTERM")
}


class FaultyEngine(EchoEngine):
    """Answers each row by its prompt, repeated to 1 to 40 tokens, one token every `TOKEN_S`."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(replace(config, options={}))
        self._fault = config.options["fault"]
        self._at = int(config.options.get("at", 0))
        self._room = int(config.options.get("room", 0))
        self._sent = os.open(config.options["sent"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if after_s := config.options.get("after_s"):
            timer = threading.Timer(float(after_s), self._signal)
            timer.daemon = True
            timer.start()

    async def start(self) -> None:
        if self._fault == "fill":  # the disk, to `room` bytes, as others may once a run is checked
            disk = os.statvfs("disk")
            filler = Path("disk", "filler")
            filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - self._room))
        if self._fault == "start":
            raise EngineError("it does not start")
        if self._fault == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        self._requests += 1
        fault = self._fault if self._requests == self._at else ""
        assert request.row is not None
        count = LONG if fault == "long" else 0 if fault == "empty" else 1 + request.row * 7 % 40
        ids = tuple(islice(cycle(request.prompt_ids), count))
        step = max(1, count // 20)
        for start in range(0, count, step):
            await asyncio.sleep(TOKEN_S)
            if fault and start >= count // 2:
                await self._fail(fault)
                if fault == "partial":
                    return
                if fault == "wrong id":
                    yield Delta((1 << 31,), None, time.monotonic_ns())
            yield Delta(ids[start : start + step], None, time.monotonic_ns())
        finish: Finish = "length" if count == request.max_new_tokens else "stop"
        yield Delta((), finish, time.monotonic_ns())
        if fault == "twice":
            yield Delta((), finish, time.monotonic_ns())
        self._note({"row": request.row, "ids": ids})

    async def _fail(self, fault: str) -> None:
        if fault == "exception":
            raise EngineError("the engine has failed")
        if fault == "bug":
            raise RuntimeError("a bug")
        if fault == "hang":
            await asyncio.Event().wait()
        if fault in SIGNALS:
            self._signal()
            await asyncio.Event().wait()

    def _signal(self) -> None:
        self._note({})
        os.kill(os.getpid(), SIGNALS[self._fault])

    def _note(self, values: dict) -> None:
        values = {"at_s": round(time.monotonic(), 3), **values}
        note = json.dumps(values, separators=(",", ":"))  # shorter than the journal's record
        with suppress(OSError):  # the full disk is full for notes too, once the journal has ended
            os.write(self._sent, note.encode() + b"\n")


if __name__ == "__main__":
    registry._TABLE += (  # type: ignore[assignment]  # it has a fixed length elsewhere
        BackendSpec(
            name="faulty",
            target="tests.mlperf.faulty:FaultyEngine",
            scenarios=registry.SCENARIOS,
            torchrun=False,
            hidden=True,
        ),
    )
    runpy.run_path(str(ROOT / "run_mlperf.py"), run_name="__main__")
