"""The only command of the package that reads text."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from errors import EmptyDataError, InputFileError
from ref_dsinfer import generate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def talking_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model with a tokenizer of one word an id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("talking") / "model"
    shutil.copytree(random_model, path)
    words = {"<bos>": 0, "<eos>": 1} | {f"w{number}": number for number in range(2, 96)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<eos>"
    )
    fast.chat_template = "<bos> {{ messages[0]['content'] }} w2"
    fast.save_pretrained(path)
    return path


def run(
    model: Path, *arguments: str, world: int = 0, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m"]
    if world:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={world}", "-m"]
    command += ["ref_dsinfer.generate", "--model-path", str(model), "--max-new-tokens", "6"]
    return subprocess.run(
        [*command, "--dtype", "float32", "--device", "cpu", *arguments],
        input=typed,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=100,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.mark.slow
def test_a_file_and_a_person_get_the_same_answers(talking_model: Path, tmp_path: Path) -> None:
    questions = ["w3 w4 w5", "w50"]
    (tmp_path / "questions.txt").write_text("\n\n".join(questions))
    done = run(talking_model, "--input-file", str(tmp_path / "questions.txt"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[::2] == [f">>> {question}" for question in questions]
    answers = lines[1::2]
    assert all(1 <= len(answer.split()) <= 6 for answer in answers)
    dialogue = run(talking_model, world=2, typed="\n".join([*questions, "/exit", "w9"]))
    assert dialogue.returncode == 0, dialogue.stderr
    assert dialogue.stdout.replace(">>> ", "").splitlines() == answers


@pytest.mark.slow
def test_bytes_that_are_no_text_end_in_one_line(talking_model: Path) -> None:
    done = run(talking_model, typed="w3 w4\nw5 \udcff\n")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 2  # an answer, and the next question
    assert done.stderr.splitlines()[-1] == (
        "error: standard input, line 2 is not UTF-8: it has byte 0xff; save it as UTF-8"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_ends_in_one_line(talking_model: Path) -> None:
    done = run(talking_model, typed="w3 " * 600)
    assert done.returncode == 8
    assert done.stderr.splitlines()[-1].startswith("error: a prompt of 602 tokens")
    assert "Traceback" not in done.stderr


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="nowhere"):
        generate.file_prompts(tmp_path / "nowhere")
    (tmp_path / "blank").write_text("\n \n")
    with pytest.raises(EmptyDataError, match="blank"):
        generate.file_prompts(tmp_path / "blank")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"w3\nfa\xe7ade\n", "line 2 is not UTF-8: it has byte 0xe7"),
        (b"w3 " * 300 + b"\xff", "line 1 is not UTF-8: it has byte 0xff"),
        ("中\n".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
        (gzip.compress(b"w3\n", mtime=0), "compressed by gzip: unpack it"),
    ],
)
def test_a_file_that_is_not_text_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=message) as caught:
        generate.file_prompts(path)
    assert str(caught.value).startswith(str(path))


def test_prompts_are_lines_whatever_begins_or_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "\ufeffw3\r\n\n w4\u2028\x85w5 \n中".encode()
    (tmp_path / "prompts.txt").write_bytes(content)
    expected = ["w3", " w4\u2028\x85w5 ", "中"]
    assert generate.file_prompts(tmp_path / "prompts.txt") == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    assert [prompt for (prompt,) in generate.typed_prompts()] == expected


def test_a_closed_input_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputFileError, match="--input-file"):
        next(generate.typed_prompts())


def test_further_stop_ids_of_the_generation_config_end_an_answer(
    talking_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in every other run; the token that stops is no part of the answer."""
    folder = Path(shutil.copytree(talking_model, tmp_path / "model"))
    (tmp_path / "prompts.txt").write_text("w3 w4 w5")

    def answer() -> list[str]:
        words = (
            f"generate --model-path {folder} --input-file {tmp_path}/prompts.txt --dtype float32"
        )
        monkeypatch.setattr("sys.argv", [*words.split(), "--device", "cpu"])
        generate.main()
        return capsys.readouterr().out.splitlines()[1].split()

    whole = answer()
    stop = whole[5]
    assert stop not in ("<bos>", "<eos>")
    stops = json.dumps({"eos_token_id": [1, int(stop.removeprefix("w"))]})
    (folder / "generation_config.json").write_text(stops)
    assert answer() == whole[: whole.index(stop)]
