"""Text to token ids and back: the only place that knows tokenizer and chat template."""

from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from ref_dsinfer.errors import ModelError
from ref_dsinfer.lookalike import check_json, read_object

FILES = ("tokenizer.json", "tokenizer_config.json")


class Prompts:
    """A model directory's tokenizer and chat template.

    The directory's tokenizer.json is taken as it stands: the tokenizer classes that transformers
    would choose by name replace R1's pre-tokenizer by another one, and so give other ids.

    Errors: ModelError where a file, the template or the end-of-sequence token is missing.
    """

    def __init__(self, model_dir: str | Path) -> None:
        folder = Path(model_dir)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such model directory")
        for name in FILES:
            if not (folder / name).is_file():
                raise ModelError(f"{folder}: {name} is missing")
            check_json(folder / name)

        from transformers import PreTrainedTokenizerFast

        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(
                folder, local_files_only=True, clean_up_tokenization_spaces=False
            )
        except Exception as error:  # the tokenizers library raises bare Exception
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(f"{folder}: the tokenizer can't be loaded: {reason}") from error
        if not self._tokenizer.chat_template:
            raise ModelError(f"{folder}: tokenizer_config.json has no chat_template")
        if self._tokenizer.eos_token_id is None:
            raise ModelError(f"{folder}: tokenizer_config.json names no eos_token")
        self.eos_id: int = self._tokenizer.eos_token_id
        self.stop_ids: frozenset[int] = frozenset({self.eos_id, *_generation_stops(folder)})
        self.vocabulary = len(self._tokenizer)  # ids below this have a text
        self._silent = {self.eos_id, self._tokenizer.bos_token_id}

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` as one user message, ending where the assistant begins."""
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        # the template writes BOS itself
        return self.encode(rendered)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` alone, without the template."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def shared_head(self) -> int:
        """How many tokens all prompts begin with, by the template."""
        pairs = zip(self.ids("0"), self.ids("x"), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def text(self, ids: Iterable[int]) -> str:
        """The text of an answer: all but BOS and EOS, reasoning marks included.

        An id beyond the vocabulary (a model's embedding is padded) has no text.
        """
        return str(self._tokenizer.decode([id_ for id_ in ids if id_ not in self._silent]))


def _generation_stops(folder: Path) -> list[int]:
    """The stop ids that generation_config.json adds, if there is one."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    stops = read_object(path).get("eos_token_id")
    try:
        listed = [] if stops is None else stops if isinstance(stops, list) else [stops]
        return [int(stop) for stop in listed]
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: eos_token_id can't be read: {error}") from error
