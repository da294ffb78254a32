"""Text to token ids and back: the only module that uses the tokenizer and the chat template."""

import json
from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from errors import ModelError
from ref_dsinfer.lookalike import check_json, read_object

FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER, CONFIG = FILES
TEMPLATE = "chat_template.jinja"  # takes precedence over the chat template in CONFIG
PROBE = "What is 12+7-5?"


class Prompts:
    """A model directory's tokenizer and chat template.

    tokenizer.json is used as it is: the tokenizer classes that transformers selects by name replace
    R1's pre-tokenizer, which changes token ids.

    Raises: ModelError if a file, the chat template or a special token is missing or unusable. A
    template that can't be rendered is an error of the methods that render it.
    """

    def __init__(self, model_dir: str | Path) -> None:
        folder = Path(model_dir)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such model directory")
        for name in FILES:
            if not (folder / name).is_file():
                raise ModelError(f"{folder}: {name} is missing")
            check_json(folder / name)

        self._template_file = folder / TEMPLATE
        if not self._template_file.is_file():
            self._template_file = folder / CONFIG
        self._check_template_file()

        from transformers import PreTrainedTokenizerFast

        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(
                folder, local_files_only=True, clean_up_tokenization_spaces=False
            )
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ModelError(f"{folder}: the tokenizer can't be loaded: {_line(error)}") from error
        if self._tokenizer.eos_token_id is None:
            raise ModelError(f"{folder}: {CONFIG} has no eos_token")
        self._template = self._select_template()
        for name in ("bos_token", "eos_token"):
            self._check_known(folder, name)
        self.eos_id: int = self._tokenizer.eos_token_id
        self.stop_ids: frozenset[int] = frozenset({self.eos_id, *_generation_stops(folder)})
        self.vocabulary = len(self._tokenizer)  # ids below this have a text
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self._omitted = {self.eos_id, self.bos_id}

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of the chat template with `text` as the user message, ready for generation.

        Raises: ModelError if the template can't be rendered.
        """
        # the template includes BOS
        return self.encode(self.templated(text))

    def templated(self, text: str) -> str:
        """The chat template with `text` as the user message, ready for generation.

        Raises: ModelError if the template can't be rendered.
        """
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise self._unusable(f"can't be rendered: {_line(error)}") from error
        return rendered

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, without the chat template."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def shared_prefix(self) -> int:
        """The length in tokens of the prefix that the chat template gives every prompt."""
        pairs = zip(self.ids("0"), self.ids("x"), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    @cached_property
    def starts_with_bos(self) -> bool:
        """Whether the chat template starts with BOS."""
        return self.ids(PROBE)[0] == self.bos_id

    @cached_property
    def _template_tokens(self) -> dict[int, int]:
        """How often the chat template adds each special token, by id.

        Raises: ModelError if the template can't be rendered, or omits the user message.
        """
        if PROBE not in self.templated(PROBE):
            raise self._unusable("omits the user message")
        ids, special = self.ids(PROBE), self._tokenizer.added_tokens_decoder
        return {id_: ids.count(id_) for id_ in ids if id_ in special}

    def template_tokens_in(self, ids: Iterable[int]) -> dict[str, int]:
        """Special tokens and their ids that a prompt has more often than the template adds them.

        If there are any, the chat template was applied to the prompt's text before.
        """
        ids = tuple(ids)
        return {
            str(self._tokenizer.convert_ids_to_tokens(id_)): id_
            for id_, count in self._template_tokens.items()
            if ids.count(id_) > count
        }

    def plain(self, ids: Iterable[int]) -> str:
        """The text of token ids, including special tokens."""
        return str(self._tokenizer.decode(list(ids)))

    def text(self, ids: Iterable[int]) -> str:
        """The text of an answer, without BOS and EOS but with other special tokens.

        An id outside the vocabulary (a model's embedding is padded) has no text.
        """
        return str(self._tokenizer.decode([id_ for id_ in ids if id_ not in self._omitted]))

    def _check_template_file(self) -> None:
        """Raises: ModelError for errors that transformers would report without naming the file."""
        try:
            text = self._template_file.read_bytes().decode()
            if self._template_file.name == TEMPLATE:
                return
            templates = json.loads(text)["chat_template"]
        except UnicodeDecodeError as error:
            raise ModelError(f"{self._template_file}: not UTF-8: {error}") from error
        except (ValueError, TypeError, KeyError):
            return  # transformers reports other errors well
        if isinstance(templates, list) and not all(
            isinstance(one, dict) and {"name", "template"} <= one.keys() for one in templates
        ):
            raise self._unusable("is a list with entries other than {name, template}")

    def _select_template(self) -> str:
        """The chat template for prompts: the only one, or the one named default of several."""
        template = self._tokenizer.chat_template
        if template and isinstance(template, dict):
            if "default" not in template:
                raise self._unusable(
                    f"has to be named `default`, but the names are {', '.join(sorted(template))}"
                )
            template = template["default"]
        if not template:
            also = "" if self._template_file.name == TEMPLATE else f", and there is no {TEMPLATE}"
            raise ModelError(f"{self._template_file}: no chat_template{also}")
        if not isinstance(template, str):
            raise self._unusable(f"is {type(template).__name__}, not text")
        if "bos_token" in template and self._tokenizer.bos_token_id is None:
            raise self._unusable(f"uses bos_token, but {CONFIG} has none")
        return template

    def _check_known(self, folder: Path, name: str) -> None:
        """Raises: ModelError for a token that tokenizer.json lacks.

        transformers would give it a new id, which the model has not been trained with.
        """
        token = getattr(self._tokenizer, name)
        if token is None:
            return
        spellings = (json.dumps(token), json.dumps(token, ensure_ascii=False))
        content = (folder / TOKENIZER).read_bytes()
        if not any(spelling.encode() in content for spelling in spellings):
            raise ModelError(f"{folder}/{CONFIG}: {name} {token!r} is not in {TOKENIZER}")

    def _unusable(self, reason: str) -> ModelError:
        return ModelError(
            f"{self._template_file}: the chat template {reason}; use the model's original file"
        )


def _line(error: Exception) -> str:
    """The first line of a library's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _generation_stops(folder: Path) -> list[int]:
    """The stop ids in generation_config.json, if there is one."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    stops = read_object(path).get("eos_token_id")
    try:
        ids = [] if stops is None else stops if isinstance(stops, list) else [stops]
        return [int(stop) for stop in ids]
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: eos_token_id is not a token id or a list: {error}") from error
