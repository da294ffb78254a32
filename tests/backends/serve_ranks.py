"""What each rank of test_pytorch runs under torchrun.

    serve_ranks.py MODEL FOLDER answer|wait|busy

`answer` writes rank 0's answers to FOLDER/answers. The other two write every rank's process id to
FOLDER/pid.RANK and then do not end by themselves: `wait` is idle, `busy` decodes.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import entrypoint
from backends.pytorch import PyTorchBackend
from backends.types import EngineConfig, Request


async def lead(backend: PyTorchBackend, folder: Path, mode: str) -> None:
    """Run rank 0."""
    await backend.start()

    async def answer(number: int, limit: int) -> list[int]:
        request = Request(number, tuple(range(number + 2)), limit, frozenset())
        return [i async for delta in backend.stream(request) for i in delta.token_ids]

    if mode == "answer":
        early = backend.stream(Request(99, (1, 2), 400, frozenset()))
        await anext(early)
        await early.aclose()
        await asyncio.sleep(0.5)  # followers wait for the next request
        answers = await asyncio.gather(*(answer(number, 9 + number) for number in range(6)))
        (folder / "answers").write_text(json.dumps(answers))
        await backend.close()
        return
    await answer(0, 3)
    write_pid(folder, 0)
    while mode == "busy":
        await asyncio.gather(*(answer(number, 400) for number in range(6)))
    await asyncio.sleep(1000)


def write_pid(folder: Path, rank: int) -> None:
    """Write this rank's process id, once it is up."""
    path = folder / f"pid.{rank}"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)


def main() -> None:
    """Lead or follow."""
    model, folder, mode = sys.argv[1:]
    backend = PyTorchBackend(
        EngineConfig(
            model, device="cpu", dtype="float32", tensor_parallel=int(os.environ["WORLD_SIZE"])
        )
    )
    if backend.leads:
        asyncio.run(lead(backend, Path(folder), mode))
    else:
        if mode != "answer":
            write_pid(Path(folder), int(os.environ["RANK"]))
        backend.follow()


if __name__ == "__main__":
    entrypoint.run(main)
