"""Prepare a data set: read its rows, build the prompts, check their lengths."""

import logging
from array import array
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.options import model_length
from backends.types import TOKEN, Backend, EngineConfig, Request
from errors import ColumnsError, LengthError, ModelError, UsageError
from ref_dsinfer.files import combined_sha256, fingerprint

if TYPE_CHECKING:
    import pandas as pd

    from data.prompts import Prompts
    from data.samples import Sample

log = logging.getLogger(__name__)

SHOWN = 20  # characters of a text that a message quotes


@dataclass(frozen=True)
class Workload:
    """All the requests of a run."""

    source: Path  # the data set's file
    frame: "pd.DataFrame"  # the data set's rows, in order
    samples: "tuple[Sample, ...]"  # of each row
    prompts: "Prompts"
    prompt_ids: tuple[tuple[int, ...], ...]  # of each row
    max_new_tokens: int  # tokens, as requested by the user
    max_len: int  # tokens of prompt and answer together
    skipped: int = 0  # rows of the file before the first one

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def request(self, request_id: int, index: int) -> Request:
        """Row `index` as a request; max_new_tokens is reduced to what fits the model's length."""
        ids = self.prompt_ids[index]
        limit = min(self.max_new_tokens, self.max_len - len(ids))
        return Request(request_id, ids, limit, self.prompts.stop_ids, row=index)

    @property
    def shortest_limit(self) -> int:
        """The smallest max_new_tokens of any request."""
        return min(self.max_new_tokens, self.max_len - max(map(len, self.prompt_ids)))

    def inputs(self, backend: str, config: EngineConfig) -> dict[str, Any]:
        """What the answers depend on, by names for people; not the device and the batch sizes,
        which may change when a run is resumed."""
        prompts = (array(TOKEN, ids) for ids in self.prompt_ids)
        return {
            "the backend": backend,
            "the model": model_identity(Path(config.model)),
            "the served model": config.served_model,
            "dtype": config.dtype,
            "quantization": config.quantization,
            "the KV cache's dtype": config.kv_dtype,
            "the seed": config.seed,
            "the data set": combined_sha256([self.source]),
            "the number of rows": len(self),
            "the rows skipped": self.skipped,
            "the prompts": combined_sha256(prompts),
            "max_new_tokens": self.max_new_tokens,
            "the model's length": self.max_len,
        }


def model_identity(model: Path) -> str:
    """A model's name, and the hash that tells it from others."""
    return f"{model.resolve().name} {fingerprint(model)}"


async def compare_tokenizers(backend: Backend, workload: Workload) -> None:
    """Warn if the server's tokenizer decodes the first row's prompt to another text.

    Texts are compared, not ids: the ids of a text depend on the pre-tokenizer, which transformers
    changes for R1; the text of ids does not.
    """
    ids = workload.prompt_ids[0]
    server_text, text = await backend.detokenize(ids), workload.prompts.plain(ids)
    if server_text is None or server_text == text:
        return
    same = takewhile(lambda pair: pair[0] == pair[1], zip(server_text, text, strict=False))
    start = sum(1 for _ in same)
    # the position of the id to which the first different character belongs
    position = sum(len(workload.prompts.plain(ids[: n + 1])) <= start for n in range(len(ids) - 1))
    log.warning(
        "the server's tokenizer differs from that of %s: it decodes row 0's prompt to %r from token"
        " %d (id %d) on, not to %r: does it serve another model?",
        backend.config.model,
        server_text[start : start + SHOWN],
        position,
        ids[position],
        text[start : start + SHOWN],
    )


def build(
    input_file: Path,
    num_samples: int | None,
    config: EngineConfig,
    max_new_tokens: int,
    skip_samples: int = 0,
) -> Workload:
    """Read a data set and build the prompts of its rows: without the first `skip_samples`, and of
    the others all or the first `num_samples`. Rows are then numbered from 0 again.

    A data set without texts has token ids, which are the prompts as they are. Warns once if the
    chat template was applied to text_input already.

    Raises: InputFileError, EmptyDataError, ColumnsError, ModelError; UsageError if all rows are
    skipped; LengthError naming the first row whose prompt leaves no room for an answer.
    """
    from data.prompts import Prompts
    from data.samples import naming, read_frame, samples

    frame = read_frame(input_file)
    total = len(frame)
    if skip_samples >= total:
        raise UsageError(f"--skip-samples {skip_samples}: {input_file} has only {total} rows")
    frame = frame.iloc[skip_samples:].head(num_samples or total).reset_index(drop=True)
    where = f"{input_file}, after its first {skip_samples} rows" if skip_samples else input_file
    with naming(where):
        rows = tuple(samples(frame))
    max_len = model_length(config)
    prompts = Prompts(config.model)
    with naming(where):
        prompt_ids = tuple(_prompt(input_file, row, prompts) for row in rows)
    if rows[0].prompt_ids is None:
        _warn_if_templated(input_file, prompts, prompt_ids)
    for index, ids in enumerate(prompt_ids):
        if len(ids) >= max_len:
            raise LengthError(
                f"{input_file}: row {index}: the prompt has {len(ids)} tokens, which leaves no room"
                f" for an answer within the model's length of {max_len} tokens"
            )
    workload = Workload(
        input_file, frame, rows, prompts, prompt_ids, max_new_tokens, max_len, skip_samples
    )
    log.info("%s: %d of %d rows%s", input_file, len(rows), total, _origin(workload))
    if workload.shortest_limit < max_new_tokens:
        log.warning(
            "some answers are limited to fewer than %d tokens by the model's length, %d tokens"
            " for prompt and answer",
            max_new_tokens,
            max_len,
        )
    return workload


def _prompt(input_file: Path, row: "Sample", prompts: "Prompts") -> tuple[int, ...]:
    """A row's prompt ids.

    Raises: ModelError naming the row if the chat template fails on it; ColumnsError if its ids are
    not the tokenizer's.
    """
    if row.prompt_ids is not None:
        _check_ids(row.index, row.prompt_ids, prompts)
        return row.prompt_ids
    try:
        return prompts.ids(row.prompt_text)
    except ModelError as error:
        raise ModelError(f"{error} ({input_file}: row {row.index})") from error


def _check_ids(row: int, ids: tuple[int, ...], prompts: "Prompts") -> None:
    """Raises: ColumnsError if the ids of a row's prompt can't be of this tokenizer."""
    for position, id_ in enumerate(ids):
        if not 0 <= id_ < prompts.vocabulary:
            raise ColumnsError(
                f"row {row}: token id {id_} at position {position} of the prompt is outside the"
                f" tokenizer's vocabulary of {prompts.vocabulary}: is it another model's data set?"
            )
    if prompts.starts_with_bos and ids[0] != prompts.bos_id:
        raise ColumnsError(
            f"row {row}: the prompt starts with token id {ids[0]}, not with BOS, {prompts.bos_id},"
            " as the chat template does: ids without text have to be those of the whole prompt"
        )


def _origin(workload: Workload) -> str:
    """What the log says of rows that are skipped, and of prompts that are not made of texts."""
    skipped = f", without the first {workload.skipped}" if workload.skipped else ""
    by_ids = workload.samples[0].prompt_ids is not None
    return skipped + (", whose token ids are used as they are" if by_ids else "")


def _warn_if_templated(
    input_file: Path, prompts: "Prompts", prompt_ids: tuple[tuple[int, ...], ...]
) -> None:
    """Warn once if texts hold special tokens that the chat template adds."""
    templated = [
        (index, marks)
        for index, ids in enumerate(prompt_ids)
        if (marks := prompts.template_tokens_in(ids))
    ]
    if not templated:
        return
    index, marks = templated[0]
    log.warning(
        "%s: row %d%s: text_input holds tokens that the chat template adds, so the prompt has them"
        " twice: %s; text_input should be the text before the chat template is applied",
        input_file,
        index,
        f" and {len(templated) - 1} more" if len(templated) > 1 else "",
        ", ".join(f"{token} (id {id_})" for token, id_ in marks.items()),
    )
