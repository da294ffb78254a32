"""Text to token ids and back: the only place that knows tokenizer and chat template."""

import json
from collections.abc import Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from errors import ModelError
from ref_dsinfer.lookalike import check_json, read_object

FILES = ("tokenizer.json", "tokenizer_config.json")
TOKENIZER, CONFIG = FILES
TEMPLATE = "chat_template.jinja"  # where there is one, it comes before the one in CONFIG
PROBE = "What is 12+7-5?"


class Prompts:
    """A model directory's tokenizer and chat template.

    The directory's tokenizer.json is taken as it stands: the tokenizer classes that transformers
    would choose by name replace R1's pre-tokenizer by another one, and so give other ids.

    Errors: ModelError where a file, the template, or a token that is needed is missing; where the
    template can't be rendered, from what renders it.
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
            raise ModelError(f"{folder}: {CONFIG} names no eos_token")
        self._template = self._chosen_template()
        for name in ("bos_token", "eos_token"):
            self._check_known(folder, name)
        self.eos_id: int = self._tokenizer.eos_token_id
        self.stop_ids: frozenset[int] = frozenset({self.eos_id, *_generation_stops(folder)})
        self.vocabulary = len(self._tokenizer)  # ids below this have a text
        self._silent = {self.eos_id, self._tokenizer.bos_token_id}

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` as one user message, ending where the assistant begins.

        Errors: ModelError where the template can't be rendered.
        """
        # the template writes BOS itself
        return self.encode(self._rendered(text))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` alone, without the template."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def shared_head(self) -> int:
        """How many tokens all prompts begin with, by the template."""
        pairs = zip(self.ids("0"), self.ids("x"), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    @cached_property
    def _marks(self) -> dict[int, int]:
        """How often the template itself writes tokens that are taken whole, by id.

        Errors: ModelError where it can't be rendered, or loses the prompt.
        """
        if PROBE not in self._rendered(PROBE):
            raise self._unusable("does not write what the user says")
        written, whole = self.ids(PROBE), self._tokenizer.added_tokens_decoder
        return {id_: written.count(id_) for id_ in written if id_ in whole}

    def marks_in_text(self, ids: Iterable[int]) -> dict[str, int]:
        """Of the tokens that the template itself writes, BOS among them, those that a prompt holds
        more often than that, with their ids: its text was rendered before."""
        ids = tuple(ids)
        return {
            str(self._tokenizer.convert_ids_to_tokens(id_)): id_
            for id_, count in self._marks.items()
            if ids.count(id_) > count
        }

    def plain(self, ids: Iterable[int]) -> str:
        """The text of any ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids)))

    def text(self, ids: Iterable[int]) -> str:
        """The text of an answer: all but BOS and EOS, reasoning marks included.

        An id beyond the vocabulary (a model's embedding is padded) has no text.
        """
        return str(self._tokenizer.decode([id_ for id_ in ids if id_ not in self._silent]))

    def _rendered(self, text: str) -> str:
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

    def _check_template_file(self) -> None:
        """Refuse what transformers would stumble over, naming no file."""
        try:
            text = self._template_file.read_bytes().decode()
            if self._template_file.name == TEMPLATE:
                return
            named = json.loads(text)["chat_template"]
        except UnicodeDecodeError as error:
            raise ModelError(f"{self._template_file}: not UTF-8: {error}") from error
        except (ValueError, TypeError, KeyError):
            return  # what is wrong with the rest, transformers can say
        if isinstance(named, list) and not all(
            isinstance(one, dict) and {"name", "template"} <= one.keys() for one in named
        ):
            raise self._unusable("is a list whose entries are no {name, template}")

    def _chosen_template(self) -> str:
        """The template of prompts: the only one, or of several the one named default."""
        template = self._tokenizer.chat_template
        if template and isinstance(template, dict):
            if "default" not in template:
                raise self._unusable(
                    f"is one of {', '.join(sorted(template))}, none of them `default`"
                )
            template = template["default"]
        if not template:
            more = "" if self._template_file.name == TEMPLATE else f", and no {TEMPLATE} beside it"
            raise ModelError(f"{self._template_file}: no chat_template{more}")
        if not isinstance(template, str):
            raise self._unusable(f"is no text but {type(template).__name__}")
        if "bos_token" in template and self._tokenizer.bos_token_id is None:
            raise self._unusable(f"writes bos_token, and {CONFIG} names none")
        return template

    def _check_known(self, folder: Path, name: str) -> None:
        """A token that tokenizer.json lacks would get a new id, which the model does not know."""
        token = getattr(self._tokenizer, name)
        if token is None:
            return
        written = (json.dumps(token), json.dumps(token, ensure_ascii=False))
        content = (folder / TOKENIZER).read_bytes()
        if not any(form.encode() in content for form in written):
            raise ModelError(f"{folder}/{CONFIG}: {name} {token!r} is not in {TOKENIZER}")

    def _unusable(self, why: str) -> ModelError:
        return ModelError(
            f"{self._template_file}: the chat template {why}; take the model's own file"
        )


def _line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
