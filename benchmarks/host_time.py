"""CPU time around the model in a step in which all sequences decode.

The engine schedules, prepares the step's inputs, reads tokens and appends them, and the backend
hands its outputs to the event loop, all as always. Only the model's forward is left out: every
token is 0. A copy to the GPU is one on the CPU here, and counts in full. What the event loop does
runs beside the next step, and does not count. The peer is the same engine where it treats each
sequence by itself, as it does prompts and drafts.

    python benchmarks/host_time.py [--sequences 512] [--steps 256] [--max-model-len 4096]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from backends.pytorch import PyTorchBackend
from backends.types import EngineConfig
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions

PROMPT, SPREAD = 16, 64  # tokens of the shortest prompt; how many lengths there are above it
WARM = 8  # steps before those that are measured
TURNS = 3
WAYS = {  # whether sequences lie in columns, whether answers are put out whole
    "whole answers (Offline)": (True, True),
    "each token (Server)": (True, False),
    "each token, one by one": (False, False),
}


def made(args: argparse.Namespace, in_columns: bool, coalesce: bool) -> tuple[Engine, Any]:
    """An engine without its model's forward, and what delivers its outputs."""
    tokens = PROMPT + SPREAD + 2 * (WARM + args.steps)
    options = EngineOptions(
        device="cpu",
        dtype="float32",
        threads=1,
        max_running=args.sequences,
        max_model_len=args.max_model_len,
        cache_tokens=max(args.max_model_len, args.sequences * tokens),
        coalesce=coalesce,
    )
    engine = Engine(args.model, options)
    engine.in_columns = in_columns
    engine.runner.fix_shapes(options.step_tokens, args.sequences, args.max_model_len)
    setattr(engine.runner.decoder, "_forward", lambda size: None)  # noqa: B010
    backend = PyTorchBackend(EngineConfig(str(args.model), device="cpu", coalesce=coalesce))
    loop: Any = SimpleNamespace(call_soon_threadsafe=lambda *_: None)
    return engine, lambda outputs: backend._deliver(loop, outputs)


def spent(engine: Engine, deliver: Callable[[Any], None], sequences: int, steps: int) -> float:
    """Milliseconds of CPU time a step."""
    for number in range(sequences):  # of even lengths, so that few need a block in the same step
        engine.add(number, (1,) * (PROMPT + number % SPREAD), engine.max_model_len)
    while engine.scheduler.waiting:
        engine.step()
    for _ in range(WARM):
        engine.step()
    began = time.process_time_ns()
    for _ in range(steps):
        deliver(engine.step())
    ended = time.process_time_ns()
    for number in range(sequences):
        engine.abort(number)
    return (ended - began) / steps / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("data/tiny/model"))
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--max-model-len", type=int, default=4096)
    args = parser.parse_args()
    engines = {name: made(args, *way) for name, way in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(TURNS):
        for name, engine in engines.items():
            times[name].append(spent(*engine, args.sequences, args.steps))
    peer = min(times["each token, one by one"])
    print(f"{args.sequences} sequences, the least of {TURNS} turns of {args.steps} steps")
    for name, values in times.items():
        print(f"{name:30}{min(values):8.3f} ms of CPU a step{peer / min(values):8.1f}x")


if __name__ == "__main__":
    main()
