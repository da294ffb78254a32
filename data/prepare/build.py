"""Make the data set of the sources' rows: choose, order, tokenize, and say what it was made of."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import LONGEST_PROMPT, PROMPT_TOKENS, TASK_ROWS
from data import schema
from data.prepare import formats, sources
from data.prepare.formats import Row
from data.progress import Progress
from data.prompts import FILES, TEMPLATE, Prompts
from data.samples import require_unicode
from errors import InputFileError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Candidates = Mapping[str, Sequence[Sequence[Row]]]
RULES = {
    "aime": "the problems whose answer is an integer, in the source's order",
    "gpqa": "all rows in the source's order; choices in the order of the SHA-256 hashes of question"
    " and choice",
    "livecodebench": "349 of 400 rows, evenly spaced in the source's order",
    "math500": "499 of 500 rows, evenly spaced in the source's order: all but the last",
    "mmlu_pro": "2410 of 12032 rows, evenly spaced in the source's order, which is by category",
}


def candidates(files: Mapping[str, Path]) -> Candidates:
    """All rows that each task's source has, in its order, each with its variants.

    A variant is an order of the choices, of which only GPQA's rows have several; the first is the
    one to choose if nothing is known. `files`: one of each source.

    Raises: InputFileError, ColumnsError.
    """
    read = {name: sources.read(files[name], source) for name, source in sources.SOURCES.items()}
    math_examples = read["math_train_examples"] + read["math_test_examples"]
    single = {
        "aime": formats.aime(read["aime"]),
        "livecodebench": formats.livecodebench(read["livecodebench"]),
        "math500": formats.math500(read["math500"], math_examples),
        "mmlu_pro": formats.mmlu_pro(read["mmlu_pro"], read["mmlu_pro_examples"]),
    }
    return {
        **{task: [[row] for row in rows] for task, rows in single.items()},
        "gpqa": formats.gpqa(read["gpqa"], read["gpqa_examples"]),
    }


def chosen(candidates: Candidates) -> list[Row]:
    """The benchmark's number of rows of each task, evenly spaced in the source's order.

    Raises: InputFileError if a task has too few.
    """
    rows = []
    for task, count in TASK_ROWS.items():
        whole = candidates[task]
        if len(whole) < count:
            raise InputFileError(f"{task}: {len(whole)} usable rows, but {count} are needed")
        rows += [whole[number * len(whole) // count][0] for number in range(count)]
    return rows


def data_set(rows: Sequence[Row], prompts: Prompts) -> "pd.DataFrame":
    """The data set's frame, with the official file's columns apart from R1's own answers.

    `tok_input`: the prompt's token ids as int32, with the chat template; `tok_input_len`: their
    number; `templated_text_input`: the text that they are of.

    Raises: ModelError if the chat template can't be rendered; ColumnsError for invalid Unicode.
    """
    import numpy as np
    import pandas as pd

    names = ("dataset", "question", "text_input", "ground_truth", "metric")
    # as objects: pandas before version 3 can't open a pickle of version 3's own text type
    cells = {name: [getattr(row, name) for row in rows] for name in names}
    frame = pd.DataFrame(cells, dtype=object)
    require_unicode(frame, ("question", schema.TEXT))
    texts, ids = [], []
    with Progress(len(rows), "tokenizing", "prompt") as progress:
        for row in rows:
            texts.append(prompts.templated(row.text_input))
            ids.append(np.array(prompts.encode(texts[-1]), np.int32))
            progress.add(len(ids[-1]))
    return frame.assign(
        templated_text_input=pd.Series(texts, dtype=object),
        tok_input=pd.Series(ids, dtype=object),
        tok_input_len=[len(one) for one in ids],
    )


def token_statistics(frame: "pd.DataFrame") -> dict[str, float]:
    """Prompts' lengths in tokens, and the official file's beside them."""
    lengths = frame["tok_input_len"]
    return {
        "mean": round(float(lengths.mean()), 1),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "official_mean": PROMPT_TOKENS,
        "official_longest": LONGEST_PROMPT,
    }


def origin(files: Mapping[str, Path], hashes: Mapping[str, str]) -> dict[str, Any]:
    """What the manifest says of each source."""
    origins = {}
    for name, source in sources.SOURCES.items():
        origins[name] = {
            "page": source.page,
            "revision": source.revision,
            "path": source.path,
            "licence": source.licence,
            "rows": source.rows,
            "file": files[name].name,
            "sha256": hashes[name],
            "is_pinned": source.sha256 and source.sha256 == hashes[name],
        }
        if source.sha256 and source.sha256 != hashes[name]:
            log.warning(
                "%s is not %s of %s at the pinned revision: its SHA-256 hash is another",
                *(files[name], source.path, source.page),
            )
    return origins


def tokenizer(model: Path) -> dict[str, str]:
    """The hashes of the tokenizer's files, and of the chat template's if it has its own."""
    return {
        name: sources.sha256(model / name)
        for name in (*FILES, TEMPLATE)
        if (model / name).is_file()
    }
