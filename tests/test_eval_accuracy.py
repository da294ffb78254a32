"""eval_accuracy.py as users start it: a pickle and LoadGen's log of one run get the same score."""

import ast
import json
import os
import signal
import struct
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backends.types import TOKEN, Completion
from data.prompts import Prompts
from data.results import results_frame, write_frame
from data.samples import read_frame
from terminal import harmless
from tests import forked

ROOT = Path(__file__).parents[1]
PROBLEM = {
    "question_id": "double",
    "public_test_cases": json.dumps([{"input": "2", "output": "4", "testtype": "stdin"}] * 3),
    "private_test_cases": "[]",
    "metadata": "{}",
}
ROWS = [
    ("gpqa", "B", "<think>hm</think>ANSWER: B"),
    ("aime1983", "42", r"\boxed{42}"),
    ("aime1983", "7", ""),
    ("math500", r"\frac12", r"\boxed{0.5}"),
    ("livecodebench", "double", "```python\nprint(2 * int(input()))\n```"),
    ("livecodebench", "double", "```python\nprint(input())\n```"),
    ("mmlu_pro", "C", "I think it is C"),
]
EXACT_MATCH = 100 * 5 / 7


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return forked.run("eval_accuracy.py", *arguments, timeout=120, **options)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single bytes: <s> 0, </s> 1, byte b is b + 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("model")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ bos_token }}",
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def a_run(tmp_path: Path, model_dir: Path) -> Path:
    """The files of a run: data set, problems, results, and LoadGen's log."""
    prompts = Prompts(model_dir)
    names, truths, texts = zip(*ROWS, strict=True)
    dataset = pd.DataFrame({"dataset": names, "ground_truth": truths})
    dataset["question"] = dataset["text_input"] = "q"
    dataset.to_pickle(tmp_path / "data.pkl")
    (tmp_path / "livecodebench.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    answers = [tuple(prompts._tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    completions = [
        (i, Completion(i, array(TOKEN, ids), "stop", 0, 0)) for i, ids in enumerate(answers)
    ]
    write_frame(results_frame(dataset, completions, prompts, "test"), tmp_path / "results")
    log = [
        {"seq_id": i, "qsl_idx": i, "data": struct.pack(f"<{len(ids)}i", *ids).hex()}
        for i, ids in enumerate(ids or (prompts.eos_id,) for ids in answers)
    ]
    (tmp_path / "mlperf_log_accuracy.json").write_text(json.dumps(log))
    return tmp_path


@pytest.mark.slow
def test_pickle_parquet_and_log_of_one_run_have_the_same_score(
    a_run: Path, model_dir: Path
) -> None:
    lines = {}
    for name in ("results.pkl", "results.parquet", "mlperf_log_accuracy.json"):
        more = ("--dataset-file", a_run / "data.pkl", "--model", model_dir) if "log" in name else ()
        done = run("--input-file", a_run / name, *more)
        assert done.returncode == 0, done.stderr
        lines[name] = next(line for line in done.stdout.splitlines() if "exact_match'" in line)
        stem = Path(name).stem
        graded = read_frame(a_run / f"{stem}_evaluated.pkl")
        assert graded["prompt_accuracy"].sum() == 500.0
        assert read_frame(a_run / f"{stem}_evaluated.parquet").columns.tolist() == list(graded)
        assert ("hash=" in (a_run / "accuracy.txt").read_text()) == ("log" in name)
    assert len(set(lines.values())) == 1, lines
    figures = ast.literal_eval(lines["results.pkl"])
    assert figures["exact_match"] == pytest.approx(EXACT_MATCH)
    assert figures["num-samples"] == 7
    texts = [len(text) for _, _, text in ROWS]
    assert figures["tokens_per_sample"] == pytest.approx(sum(texts) / 7)


def test_the_output_file_has_the_name_of_the_option(a_run: Path) -> None:
    output = a_run / "graded" / "mine.pkl"
    done = run("--input-file", a_run / "results.pkl", "--output-file", output)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "accuracy.txt",
        "mine.parquet",
        "mine.pkl",
        "mine_grades.jsonl",
        "mine_report.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.pkl"], 3, "none.pkl"),
        (["data.pkl"], 4, "model_output"),
        (["mlperf_log_accuracy.json"], 2, "--dataset-file"),
        (["mlperf_log_accuracy.json", "--dataset-file", "none.pkl", "--model", "m"], 3, "none.pkl"),
        (["mlperf_log_accuracy.json", "--dataset-file", "data.pkl", "--model", "m"], 6, "m:"),
        (["cut.json", "--dataset-file", "data.pkl", "--model", "m"], 13, "did not finish"),
        (["results.pkl", "--livecodebench-file", "none"], 13, "--livecodebench-file"),
        (["results.pkl", "--output-file", "data.pkl/out.pkl"], 11, "can't be written"),
        (["results.pkl", "--time-limit", "0"], 2, "--time-limit"),
    ],
)
def test_bad_input_ends_in_one_line_and_its_code(
    a_run: Path, arguments: list[str], code: int, message: str
) -> None:
    (a_run / "cut.json").write_text('[\n{ "seq_id" : 0, "qsl_idx"')
    before = sorted(a_run.iterdir())
    done = run("--input-file", *arguments, cwd=a_run, env={"PATH": ""})
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(a_run.iterdir()) == before


FORGED = """import os, time
def f(a):
    os.write(3, b'{"ok": true, "value": {"fraction": "1e1000000000"}}\\n')
    time.sleep(60)
"""
CALL = PROBLEM | {
    "question_id": "call",
    "public_test_cases": '[{"input": "2", "output": "4", "testtype": "functional"}]',
    "metadata": '{"func_name": "f"}',
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "code"),
    [("double", "import time\nwhile True: time.sleep(1)"), ("call", FORGED)],
    ids=["while a program runs", "while its answer is compared"],
)
def test_an_interrupt_ends_it_and_its_children_at_once(
    a_run: Path, problem: str, code: str
) -> None:
    with (a_run / "livecodebench.jsonl").open("a") as file:
        file.write(json.dumps(CALL) + "\n")
    row: dict[str, object] = {
        "dataset": "livecodebench",
        "ground_truth": problem,
        "tok_model_output_len": 1,
    }
    rows = [row | {"model_output": f"```python\n{code}\n```"}] * 4
    (a_run / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = (
        "import entrypoint, eval_accuracy, grading.tasks.livecodebench as graded\n"
        "graded.COMPARE_LIMIT_S = 600\n"
        "entrypoint.run(eval_accuracy.main)"
    )
    command = [sys.executable, "-c", script, "--input-file", str(a_run / "a.jsonl")]
    command += ["--time-limit", "600"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def children() -> list[str]:
        lists = Path(f"/proc/{process.pid}/task").glob("*/children")
        return [child for tasks in lists for child in tasks.read_text().split()]

    deadline = time.monotonic() + 30
    while not (alive := children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive
    time.sleep(1)  # by then they are running
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)  # less than any limit
    assert process.returncode == 130
    assert "interrupted" in stderr
    deadline = time.monotonic() + 60  # the process that inherits them has to reap them
    while any(Path(f"/proc/{child}").exists() for child in alive):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_json_lines_with_odd_text_are_graded(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"dataset": "gpqa", "ground_truth": "B", "model_output": "\ud800 ANSWER: B"},
        {"dataset": "math500", "ground_truth": "\ud800", "model_output": r"\boxed{\ud800 \0}"},
        {"dataset": "aime", "ground_truth": 1, "model_output": r"\boxed{2}"},
        {"dataset": "aime", "ground_truth": None, "model_output": None},
    ]
    rows = [row | {"tok_model_output_len": 3} for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("--input-file", tmp_path / "a.jsonl")
    assert done.returncode == 0, done.stderr
    assert "'exact_match': 25.0" in done.stdout


@pytest.mark.parametrize(
    ("column", "value"),
    [("model_output", 1.5), ("model_output", ["A"]), ("ground_truth", [1]), ("ground_truth", {})],
)
def test_what_is_no_text_is_refused_with_its_row(
    tmp_path: Path, column: str, value: object
) -> None:
    row: dict[str, object] = {
        "dataset": "aime",
        "ground_truth": 1,
        "model_output": "1",
        "tok_model_output_len": 3,
    }
    rows = [row, row | {column: value}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for more in ([], ["--explain", 0]):
        done = run("--input-file", tmp_path / "a.jsonl", *more)
        assert done.returncode == 4
        assert f"row 1: {column} is {type(value).__name__}, " in done.stderr
        assert "Traceback" not in done.stderr


def test_fewer_rows_are_stamped_and_more_refused(a_run: Path) -> None:
    results = a_run / "results.pkl"
    done = run("--input-file", results, "--expected-rows", 9)
    assert done.returncode == 0, done.stderr
    stamp = "not comparable with the official limits: 7 of 9 rows"
    assert done.stdout.splitlines()[-1] == stamp
    assert stamp in (a_run / "accuracy.txt").read_text()
    assert run("--input-file", results, "--expected-rows", 6).returncode == 13
    read_frame(results).drop(index=[2, 3]).to_pickle(a_run / "few.pkl")
    done = run("--input-file", a_run / "few.pkl")
    assert done.returncode == 13
    assert "no answers to samples 2, 3, but answers to later ones" in done.stderr


def test_ids_of_eight_bytes_are_graded_and_reported(a_run: Path, model_dir: Path) -> None:
    log = a_run / "mlperf_log_accuracy.json"
    entries = json.loads(log.read_text())
    for entry in entries:
        ids = struct.unpack(f"<{len(entry['data']) // 8}i", bytes.fromhex(entry["data"]))
        entry["data"] = struct.pack(f"<{len(ids)}q", *ids).hex()
    log.write_text(json.dumps(entries))
    options = ("--input-file", log, "--dataset-file", a_run / "data.pkl", "--tokenizer", model_dir)
    done = run(*options)
    assert done.returncode == 0, done.stderr
    assert f"'exact_match': {EXACT_MATCH}" in done.stdout
    assert "ids have 8 bytes" in done.stderr
    entries[0]["data"] = struct.pack("<3f", 1, 2, 3).hex()
    log.write_text(json.dumps(entries))
    done = run(*options)
    assert done.returncode == 13
    assert "sample 0 are not token ids" in done.stderr


def test_another_tokenizer_is_noticed(a_run: Path, model_dir: Path) -> None:
    log = a_run / "mlperf_log_accuracy.json"
    entries = json.loads(log.read_text())
    entries[1]["data"] = struct.pack("<2i", 128_000, 3).hex()
    log.write_text(json.dumps(entries))
    options = ("--dataset-file", a_run / "data.pkl", "--tokenizer", model_dir)
    done = run("--input-file", log, *options)
    assert done.returncode == 0, done.stderr
    assert "1 token ids are outside the tokenizer's vocabulary of 258" in done.stderr


def test_one_row_is_explained_and_nothing_written(a_run: Path) -> None:
    before = sorted(a_run.iterdir())
    done = run("--input-file", a_run / "results.pkl", "--explain", 5)
    assert done.returncode == 0, done.stderr
    assert "program's output of the failing test: '2\\n'" in done.stdout
    assert sorted(a_run.iterdir()) == before


@pytest.mark.slow
def test_two_gradings_are_compared(a_run: Path) -> None:
    options = ("--input-file", a_run / "results.pkl", "--output-file")
    assert run(*options, a_run / "one.pkl").returncode == 0
    frame = read_frame(a_run / "results.pkl")
    frame["model_output"] = frame["model_output"].where(frame.index != 5, frame["model_output"][4])
    frame.to_parquet(a_run / "other.parquet")
    assert run("--input-file", a_run / "other.parquet").returncode == 0
    before = sorted(a_run.iterdir())
    done = run("--input-file", a_run / "one.pkl", "--compare", a_run / "other_evaluated.parquet")
    assert done.returncode == 0, done.stderr
    first, second, row = done.stdout.splitlines()
    assert first == "rows 7, both right 5, neither 1, only the first 0, only the second 1"
    assert second.endswith("p = 1")
    assert row.startswith("row 5, livecodebench: ")
    assert sorted(a_run.iterdir()) == before
    done = run("--input-file", a_run / "one.pkl", "--compare", a_run / "results.pkl")
    assert done.returncode == 4


@pytest.mark.slow
def test_how_programs_read_is_chosen_and_kept_apart(a_run: Path) -> None:
    options = ("--input-file", a_run / "results.pkl")
    assert run(*options).returncode == 0
    done = run(*options, "--lcb-mode", "fixed-stdio")
    assert "5 of 7 rows were graded by an earlier run" in done.stderr
    assert "not the official figure: graded with --lcb-mode fixed-stdio" in done.stdout
    assert json.loads((a_run / "results_report.json").read_text())["livecodebench"]["mode"] == (
        "fixed-stdio"
    )
    assert "7 of 7 rows were graded by an earlier run" in run(*options).stderr
    assert "graded already" not in run(*options, "--fresh").stderr


def test_running_without_a_sandbox_needs_the_long_option(a_run: Path) -> None:
    done = run("--input-file", a_run / "results.pkl", "--no-sandbox-i-trust-this-code")
    assert done.returncode == 0, done.stderr
    report = json.loads((a_run / "results_report.json").read_text())
    assert report["sandbox"]["level"] == "none"
    assert run("--input-file", a_run / "results.pkl", "--sandbox", "none").returncode == 2


def test_without_a_sandbox_the_end_is_an_error_after_all_is_written(a_run: Path) -> None:
    script = """
import eval_accuracy
from grading.sandbox import levels
import entrypoint
levels.find = lambda *_: levels.ProbeResult(None, "nothing holds here")  # as on an old machine
entrypoint.run(eval_accuracy.main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "--input-file", a_run / "results.pkl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 13, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: 3 of 7 rows could not be judged and count as wrong here; the first: no sandbox"
        " level holds: nothing holds here"
    )
    assert "NOT A RESULT: 3 of 7 rows" in done.stdout
    graded = read_frame(a_run / "results_evaluated.pkl")
    assert graded["grading_status"].value_counts()["not_graded"] == 3
    assert json.loads((a_run / "results_report.json").read_text())["sandbox"]["level"] is None


@pytest.mark.slow
def test_programs_over_their_limit_are_timeouts_and_a_hostile_answer_is_one(a_run: Path) -> None:
    (a_run / "livecodebench.jsonl").write_text(f"{json.dumps(PROBLEM)}\n{json.dumps(CALL)}\n")
    rows = [("double", "while True: pass"), ("call", FORGED), ("call", "f = lambda a: a + a")]
    names = ("ground_truth", "model_output")
    frame = pd.DataFrame(((name, f"```python\n{code}\n```") for name, code in rows), columns=names)
    frame.assign(dataset="livecodebench", tok_model_output_len=1).to_pickle(a_run / "a.pkl")
    done = run("--input-file", a_run / "a.pkl", "--time-limit", 1)
    assert done.returncode == 0, done.stderr
    graded = read_frame(a_run / "a_evaluated.pkl")
    assert graded["grading_status"].tolist() == ["timeout", "timeout", "ok"]
    counts = json.loads((a_run / "a_report.json").read_text())["tasks"]["livecodebench"]
    assert (counts["timeouts"], counts["right"], counts["ungraded"]) == (2, 1, 0)
    head, line, *_ = (text.split() for text in done.stdout.splitlines()[1:])
    assert line[head.index("timeouts") - len(head)] == "2"


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("results.pkl", "results.pkl"),
        ("results.pkl", "results"),
        ("results.parquet", "results.pkl"),
        ("link.pkl", "results.pkl"),
        ("results.pkl", "link.pkl"),
    ],
)
def test_what_is_read_is_not_written_over(a_run: Path, source: str, output: str) -> None:
    (a_run / "link.pkl").symlink_to("results.pkl")
    before = {path: path.read_bytes() for path in a_run.iterdir()}
    done = run("--input-file", source, "--output-file", output, cwd=a_run)
    assert done.returncode == 2, done.stderr
    assert f"would overwrite the input {source}" in done.stderr
    assert "choose another --output-file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in a_run.iterdir()} == before


def test_nor_are_data_set_and_problems(a_run: Path) -> None:
    options = ("--input-file", "results.pkl", "--dataset-file", "data.pkl", "--output-file")
    assert run(*options, "data.parquet", cwd=a_run).returncode == 2
    (a_run / "livecodebench.jsonl").rename(a_run / "mine_grades.jsonl")
    done = run(*options, "mine.pkl", "--livecodebench-file", "mine_grades.jsonl", cwd=a_run)
    assert done.returncode == 2
    assert "mine_grades.jsonl would overwrite the input mine_grades.jsonl" in done.stderr


def test_a_log_with_a_byte_order_mark_is_graded(a_run: Path, model_dir: Path) -> None:
    log = a_run / "mlperf_log_accuracy.json"
    log.write_bytes("\ufeff".encode() + log.read_bytes())
    done = run("--input-file", log, "--dataset-file", a_run / "data.pkl", "--model", model_dir)
    assert done.returncode == 0, done.stderr
    assert f"'exact_match': {EXACT_MATCH}" in done.stdout


HOSTILE = "\x1b]0;title\x07\x1b[2J\ud800\r\n\u202e\x9b é"
HOSTILE_ID = HOSTILE.replace("\ud800", "")  # which has to be valid Unicode


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Answers and problems with terminal control sequences in every field."""
    test = {"input": "1", "output": HOSTILE, "testtype": "stdin"}
    problem = PROBLEM | {"question_id": HOSTILE_ID, "public_test_cases": json.dumps([test])}
    (tmp_path / "livecodebench.jsonl").write_text(json.dumps(problem) + "\n")
    code = "```python\n{}\n```"
    rows = [
        ("gpqa", HOSTILE, f"{HOSTILE} ANSWER: B"),
        ("math500", HOSTILE, rf"\boxed{{{HOSTILE} x}}"),
        ("aime", HOSTILE, r"\boxed{7}"),
        ("livecodebench", HOSTILE_ID, code.format("print(input())")),
        ("livecodebench", HOSTILE_ID, code.format("raise ValueError('\\x1b[2J\\ud800 é')")),
        ("livecodebench", f"no {HOSTILE}", code.format("1")),
    ]
    names = ("dataset", "ground_truth", "model_output")
    with (tmp_path / "a.jsonl").open("w") as file:
        for name, *more in rows:
            row = dict(zip(names, (name + HOSTILE, *more), strict=True))
            file.write(json.dumps(row | {"tok_model_output_len": 1}) + "\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_files_hold_steers_no_terminal_and_fits_its_encoding(
    hostile: Path, encoding: str
) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "eval_accuracy.py", "--input-file", *arguments],
            cwd=hostile,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        text = (done.stdout + done.stderr).decode(encoding)
        assert harmless(text) == text
        assert "Traceback" not in text
        return text

    letter = "é" if encoding == "utf-8" else r"\xe9"
    spelled = rf"\x1b]0;title\x07\x1b[2J\ud800\r\n\u202e\x9b {letter}"
    graded = said("a.jsonl", code=13)
    assert f"has no problem no {spelled}\n" in graded
    for row in (1, 4):
        assert spelled in said("a.jsonl", "--explain", str(row))
    frame = read_frame(hostile / "a_evaluated.pkl")
    frame.loc[1, "prompt_accuracy"] = 100.0
    frame.to_pickle(hostile / "other.pkl")
    assert f"row 1, math500{spelled}: " in said("a_evaluated.pkl", "--compare", "other.pkl")
