"""A data set made ready to be answered: rows read, prompts built, lengths checked."""

import logging
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from backends.options import model_length
from backends.types import Backend, EngineConfig, Request
from errors import LengthError, ModelError

if TYPE_CHECKING:
    import pandas as pd

    from data.prompts import Prompts
    from data.samples import Sample

log = logging.getLogger(__name__)

SHOWN = 20  # characters


@dataclass(frozen=True)
class Workload:
    """Every request of a run, before it starts."""

    frame: "pd.DataFrame"  # the data set's rows, in order
    samples: "tuple[Sample, ...]"  # of each row
    prompts: "Prompts"
    prompt_ids: tuple[tuple[int, ...], ...]  # of each row
    max_new_tokens: int  # tokens, as asked for
    max_len: int  # tokens of prompt and answer that the model allows

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def request(self, request_id: int, index: int) -> Request:
        """Row `index` as a request; its answer is held to what the model's length leaves."""
        ids = self.prompt_ids[index]
        limit = min(self.max_new_tokens, self.max_len - len(ids))
        return Request(request_id, ids, limit, self.prompts.stop_ids, row=index)

    @property
    def shortest_limit(self) -> int:
        """The smallest number of tokens that any answer is held to."""
        return min(self.max_new_tokens, self.max_len - max(map(len, self.prompt_ids)))


async def compare_tokenizers(backend: Backend, workload: Workload) -> None:
    """Warn where a server reads the first row's prompt as another text: it has another tokenizer.

    Texts are compared, not ids: which ids a text gets depends on how a tokenizer splits it, which
    transformers changes for R1's; what ids mean does not.
    """
    ids = workload.prompt_ids[0]
    theirs, ours = await backend.detokenize(ids), workload.prompts.plain(ids)
    if theirs is None or theirs == ours:
        return
    same = takewhile(lambda pair: pair[0] == pair[1], zip(theirs, ours, strict=False))
    at = sum(1 for _ in same)
    # the id that the first other character is of
    place = sum(len(workload.prompts.plain(ids[: n + 1])) <= at for n in range(len(ids) - 1))
    log.warning(
        "the server has another tokenizer than %s: row 0's prompt goes on with %r from id %d (place"
        " %d) on, and not with %r: does it serve another model?",
        backend.config.model,
        theirs[at : at + SHOWN],
        ids[place],
        place,
        ours[at : at + SHOWN],
    )


def build(
    input_file: Path, num_samples: int | None, config: EngineConfig, max_new_tokens: int
) -> Workload:
    """Read a data set and build all its prompts, or those of its first `num_samples` rows.

    A text that was rendered already, so that the template's own tokens are in its prompt twice, is
    warned of once.
    Errors: InputFileError, EmptyDataError, ColumnsError, ModelError; LengthError naming the first
    row whose prompt leaves no room for an answer.
    """
    from data.prompts import Prompts
    from data.samples import read_frame, samples

    frame = read_frame(input_file)
    total = len(frame)
    if num_samples is not None:
        frame = frame.head(num_samples)
    rows = tuple(samples(frame))
    max_len = model_length(config)
    prompts = Prompts(config.model)
    prompt_ids = tuple(_prompt(input_file, row, prompts) for row in rows)
    _warn_of_marks(input_file, prompts, prompt_ids)
    for index, ids in enumerate(prompt_ids):
        if len(ids) >= max_len:
            raise LengthError(
                f"{input_file}: row {index}: the prompt of {len(ids)} tokens leaves no room for an"
                f" answer in the model's length of {max_len}"
            )
    workload = Workload(frame, rows, prompts, prompt_ids, max_new_tokens, max_len)
    log.info("%s: %d of %d rows", input_file, len(rows), total)
    if workload.shortest_limit < max_new_tokens:
        log.warning(
            "the model's length of %d tokens holds some answers to fewer than %d tokens",
            max_len,
            max_new_tokens,
        )
    return workload


def _prompt(input_file: Path, row: "Sample", prompts: "Prompts") -> tuple[int, ...]:
    """A row's prompt. Errors: ModelError naming the row that the template can't take."""
    try:
        return prompts.ids(row.prompt_text)
    except ModelError as error:
        raise ModelError(f"{error} ({input_file}: row {row.index})") from error


def _warn_of_marks(
    input_file: Path, prompts: "Prompts", prompt_ids: tuple[tuple[int, ...], ...]
) -> None:
    """Say it once where texts hold what the chat template writes."""
    found = [
        (index, marks)
        for index, ids in enumerate(prompt_ids)
        if (marks := prompts.marks_in_text(ids))
    ]
    if not found:
        return
    index, marks = found[0]
    log.warning(
        "%s: row %d%s: the text holds tokens that the chat template writes, so that they are in the"
        " prompt twice: %s; text_input should be the question alone, not rendered yet",
        input_file,
        index,
        f" and {len(found) - 1} more" if len(found) > 1 else "",
        ", ".join(f"{token} (id {id_})" for token, id_ in marks.items()),
    )
