"""Talk to a model on a terminal, or answer a file of prompts, one a line.

An entry script, the one of this package: it imports `data.prompts`, so that prompts and stop ids
are those of every other run. Start it with torchrun to use several processes.

    python -m ref_dsinfer.generate --model-path DIR [--input-file PROMPTS]
"""

import argparse
import io
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entrypoint
from data.prompts import Prompts
from errors import EmptyDataError, InputFileError
from ref_dsinfer.cpu import DTYPES
from ref_dsinfer.lookalike import HEAD, what_it_is

if TYPE_CHECKING:
    from ref_dsinfer.engine import Engine

ESCAPE = "surrogateescape"  # keeps bytes that are not UTF-8, for `checked` to report


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="ref_dsinfer.generate", description="Answer prompts from a terminal or a file."
    )
    parser.add_argument("--model-path", type=Path, required=True, help="model directory")
    parser.add_argument(
        "--input-file", type=Path, help="prompts, one a line (default: the terminal)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    return parser.parse_args()


def file_prompts(path: Path) -> list[str]:
    """A file's lines that are not blank. Raises: InputFileError, EmptyDataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputFileError(f"{path} can't be read: {error.strerror}") from error
    text = content.decode("utf-8-sig", errors=ESCAPE)
    try:
        prompts = [checked(line, f"{path}, line {n}") for n, line in enumerate(text.split("\n"), 1)]
    except InputFileError as error:
        head = content[:HEAD]
        if not head.isascii() and (phrase := what_it_is(head)):
            raise InputFileError(f"{path} is {phrase}") from error
        raise
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise EmptyDataError(f"{path} holds no prompts")
    return prompts


def typed_prompts() -> Iterator[list[str]]:
    """What a person types, until end of file or `/exit`.

    Raises: InputFileError where piped input is not UTF-8; on a terminal the prompt is asked again.
    """
    if sys.stdin is None:
        raise InputFileError("standard input is closed: name a file of prompts by --input-file")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # piped input is UTF-8, as files of prompts are, whatever the locale says
        sys.stdin.reconfigure(encoding=None if sys.stdin.isatty() else "utf-8-sig", errors=ESCAPE)
    for number in count(1):
        try:
            prompt = checked(input(">>> "), f"standard input, line {number}")
        except EOFError:
            return
        except InputFileError as error:
            if not sys.stdin.isatty():
                raise
            print(error, file=sys.stderr)
            continue
        if prompt.strip() == "/exit":
            return
        if prompt.strip():
            yield [prompt]


def checked(line: str, source: str) -> str:
    """A line without its line ending. Raises: InputFileError naming the first byte that is not
    UTF-8."""
    for character in line:
        if "\udc80" <= character <= "\udcff":
            byte = ord(character) - 0xDC00
            raise InputFileError(
                f"{source} is not UTF-8: it has byte {byte:#04x}; save it as UTF-8"
            )
    return line.removesuffix("\r")


def answer(engine: "Engine", requests: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of each request's answer; a request holds `Engine.add`'s arguments. Every rank
    calls this with the same requests."""
    answers: list[list[int]] = [[] for _ in requests]
    for number, request in enumerate(requests):
        engine.add(number, **request)
    while engine.busy:
        for output in engine.step():
            answers[output.id] += output.token_ids
    return answers


def main() -> None:
    """Rank 0 reads and prints; all ranks run the model."""
    args = arguments()
    # Before the model, which takes longer: a file that can't be read ends all ranks at once.
    batches = iter([file_prompts(args.input_file)]) if args.input_file else typed_prompts()
    prompts = Prompts(args.model_path)

    from ref_dsinfer.engine import Engine
    from ref_dsinfer.options import EngineOptions

    engine = Engine(args.model_path, EngineOptions(device=args.device, dtype=args.dtype))
    while True:
        texts = next(batches, None) if engine.ranks.rank == 0 else None
        requests = [
            {
                "prompt_ids": prompts.ids(text),
                "max_new_tokens": args.max_new_tokens,
                "stop_ids": prompts.stop_ids,
                "temperature": args.temperature,
                "top_p": args.top_p,
            }
            for text in texts or []
        ]
        for request in requests:
            engine.check(request["prompt_ids"], args.max_new_tokens, args.temperature, args.top_p)
        requests = engine.ranks.broadcast(requests or None)
        if requests is None:
            break
        answers = answer(engine, requests)
        for text, ids in zip(texts or [], answers, strict=False):  # other ranks have no texts
            if args.input_file:
                print(f">>> {text}")
            print(prompts.text(ids), flush=True)
    engine.close()


if __name__ == "__main__":
    entrypoint.run(main)
