"""Complete runs of run_eval, each in a process of its own, as users start them."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from data.journal import read_journal

if TYPE_CHECKING:
    from tests.conftest import Script


def test_every_row_is_answered_and_saved_twice(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    code, _, err = script.run("run_eval.py", "--input-file", data_set(20), "--output-file", "a.pkl")
    assert code == 0, err
    frame = pd.read_parquet(script.folder / "a.parquet")
    assert list(frame["sample_index"]) == list(range(20))
    assert list(pd.read_pickle(script.folder / "a.pkl")["model_output"]) == list(
        frame["model_output"]
    )
    for question, answer in zip(frame["text_input"], frame["model_output"], strict=True):
        assert question in answer
    journal = dict(read_journal(script.folder / "a.journal"))
    assert {index: list(one.token_ids) for index, one in journal.items()} == {
        index: list(ids) for index, ids in enumerate(frame["tok_model_output"])
    }


def test_options_limit_the_rows_and_the_answers(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    code, _, err = script.run(
        *("run_eval.py", "--async", "--input-file", data_set(20), "--num-samples", 3),
        *("--max-new-tokens", 4, "--output-dir", "out"),
    )
    assert code == 0, err
    frame = pd.read_parquet(script.folder / "out" / "echo_output.parquet")
    assert list(frame["sample_index"]) == [0, 1, 2]
    assert list(frame["tok_model_output_len"]) == [4, 4, 4]
    assert set(frame["finish"]) == {"length"}


def test_a_failed_run_is_resumed_where_it_ended(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    options = ("--input-file", data_set(20), "--output-file", "a.pkl")
    code, _, err = script.run("run_eval.py", *options, "--engine-arg", "fail_at=15")
    assert code == 12
    assert err.splitlines()[-1] == "error: echo: told to fail at request 15"
    assert not (script.folder / "a.pkl").exists()
    kept = len(read_journal(script.folder / "a.journal"))

    # the 6 to 20 rows that are left do not reach request 21
    code, _, err = script.run("run_eval.py", *options, "--resume", "--engine-arg", "fail_at=21")
    assert code == 0, err
    assert f"{kept} answers kept" in err
    assert f"{20 - kept} of {20 - kept} samples" in err
    frame = pd.read_parquet(script.folder / "a.parquet")
    assert list(frame["sample_index"]) == list(range(20))
    assert len(read_journal(script.folder / "a.journal")) == 20


def test_an_interrupted_run_keeps_what_is_finished_and_is_resumed(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    options = ("--input-file", data_set(20), "--output-file", "a.pkl")
    process = script.start("run_eval.py", *options, "--engine-arg", "hang_at=4")
    journal = script.folder / "a.journal"
    end = time.monotonic() + 30
    while not (journal.exists() and len(read_journal(journal)) == 19):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err

    # one row is left, so the second request that would fail is never made
    code, _, err = script.run("run_eval.py", *options, "--resume", "--engine-arg", "fail_at=2")
    assert code == 0, err
    assert len(pd.read_parquet(script.folder / "a.parquet")) == 20


def test_answers_to_other_inputs_are_not_resumed(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    options = ("--input-file", data_set(4), "--output-file", "a.pkl")
    assert script.run("run_eval.py", *options)[0] == 0
    before = (script.folder / "a.journal").read_bytes()
    code, _, err = script.run(
        "run_eval.py", *options, "--resume", "--max-new-tokens", 5, "--num-samples", 2
    )
    assert code == 3
    assert "the number of rows was 4 and is 2, the prompts was" in err.splitlines()[-1]
    assert "max_new_tokens was 20000 and is 5:" in err.splitlines()[-1]
    assert (script.folder / "a.journal").read_bytes() == before


def test_without_resume_a_run_begins_anew(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    options = ("--input-file", data_set(4), "--output-file", "a.pkl")
    assert script.run("run_eval.py", *options, "--engine-arg", "fail_at=3")[0] == 12
    assert script.run("run_eval.py", *options)[0] == 0
    journal = [index for index, _ in read_journal(script.folder / "a.journal")]
    assert sorted(journal) == [0, 1, 2, 3]


def test_nothing_to_resume_is_reported(script: "Script", data_set: Callable[[int], Path]) -> None:
    code, _, err = script.run("run_eval.py", "--input-file", data_set(2), "--resume")
    assert code == 0
    assert "no journal to resume from" in err
