"""Talk to a model on a terminal, or answer a file of prompts, one a line.

The one place in this package that sees text. Start it with torchrun to use several processes.

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
from errors import EmptyDataError, InputFileError, ModelError
from ref_dsinfer.cpu import DTYPES
from ref_dsinfer.lookalike import HEAD, check_json, what_it_is

if TYPE_CHECKING:
    from ref_dsinfer.engine import Engine

ESCAPE = "surrogateescape"  # Python's name for keeping bytes that are no text, to be found later


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="ref_dsinfer.generate", description="Answer prompts from a terminal or a file."
    )
    parser.add_argument("--model-path", type=Path, required=True, help="model directory")
    parser.add_argument("--input-file", type=Path, help="prompts, one a line (default: ask)")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    return parser.parse_args()


def tokenizer(model_dir: Path) -> Any:
    """The model's tokenizer, with its chat template. Errors: ModelError."""
    from transformers import PreTrainedTokenizerFast

    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (model_dir / name).is_file():
            raise ModelError(f"{model_dir} has no {name}, so no tokenizer that can be read")
        check_json(model_dir / name)
    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{model_dir} has no tokenizer that can be read: {reason}") from error
    if not loaded.chat_template:
        raise ModelError(f"{model_dir} has no chat template")
    if loaded.eos_token_id is None:
        raise ModelError(f"{model_dir}/tokenizer_config.json names no eos_token")
    return loaded


def file_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank. Errors: InputFileError, EmptyDataError."""
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


def asked_prompts() -> Iterator[list[str]]:
    """What a person types, until end of file or `/exit`. Errors: InputFileError for bytes that are
    no text, but a person is asked again."""
    if sys.stdin is None:
        raise InputFileError("standard input is closed: name a file of prompts by --input-file")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # what is piped in is UTF-8, as a file of prompts is, wherever one is
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


def checked(line: str, place: str) -> str:
    """A line without its end, if it is text. Errors: InputFileError naming the first byte that is
    not, which `line` holds as `ESCAPE` has it."""
    for character in line:
        if "\udc80" <= character <= "\udcff":
            byte = ord(character) - 0xDC00
            raise InputFileError(f"{place} is not UTF-8: it has byte {byte:#04x}; save it as UTF-8")
    return line.removesuffix("\r")


def answer(engine: "Engine", prompts: list[dict[str, Any]]) -> list[list[int]]:
    """Run prompts, each given as `Engine.add`'s arguments, to their ends; every rank comes here."""
    answers: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        engine.add(number, **prompt)
    while engine.busy:
        for output in engine.step():
            answers[output.id] += output.token_ids
    return answers


def main() -> None:
    """Rank 0 reads and prints; all ranks run the model."""
    args = arguments()
    # Before the model, which takes longer: a file that can't be read ends all ranks at once.
    groups: Any = iter([file_prompts(args.input_file)]) if args.input_file else asked_prompts()
    words = tokenizer(args.model_path)

    from ref_dsinfer.engine import Engine

    engine = Engine(args.model_path, device=args.device, dtype=args.dtype)
    leads = engine.ranks.rank == 0
    while True:
        texts = next(groups, None) if leads else None
        prompts = [
            {
                "prompt_ids": ids_of(words, text),
                "max_new_tokens": args.max_new_tokens,
                "stop_ids": frozenset([words.eos_token_id]),
                "temperature": args.temperature,
                "top_p": args.top_p,
            }
            for text in texts or []
        ]
        for prompt in prompts:
            engine.check(prompt["prompt_ids"], args.max_new_tokens, args.temperature, args.top_p)
        shared = engine.ranks.share(prompts or None)
        if shared is None:
            break
        answers = answer(engine, shared)
        for text, ids in zip(texts or [], answers, strict=False):
            if args.input_file:
                print(f">>> {text}")
            print(words.decode(ids, skip_special_tokens=True), flush=True)
    engine.close()


def ids_of(words: Any, text: str) -> tuple[int, ...]:
    """A user's message in the model's template, as token ids. Errors: ModelError."""
    try:
        prompt = words.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program, and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{words.name_or_path}: the chat template can't be rendered: {reason}"
        ) from error
    return tuple(words.encode(prompt, add_special_tokens=False))


if __name__ == "__main__":
    entrypoint.run(main)
