"""The one command that sees text."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ref_dsinfer import generate
from ref_dsinfer.errors import EmptyDataError, InputFileError, ModelError

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
    model: Path, *arguments: str, world: int = 0, said: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m"]
    if world:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={world}", "-m"]
    command += ["ref_dsinfer.generate", "--model-path", str(model), "--max-new-tokens", "6"]
    return subprocess.run(
        [*command, "--dtype", "float32", "--device", "cpu", *arguments],
        input=said,
        capture_output=True,
        text=True,
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
    asked = run(talking_model, world=2, said="\n".join([*questions, "/exit", "w9"]))
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.replace(">>> ", "").splitlines() == answers


def test_a_prompt_that_does_not_fit_ends_in_one_line(talking_model: Path) -> None:
    done = run(talking_model, said="w3 " * 600)
    assert done.returncode == 8
    assert done.stderr.splitlines()[-1].startswith("error: a prompt of 602 tokens")
    assert "Traceback" not in done.stderr


def test_what_cannot_be_read_is_named(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="nowhere"):
        generate.file_prompts(tmp_path / "nowhere")
    (tmp_path / "blank").write_text("\n \n")
    with pytest.raises(EmptyDataError, match="blank"):
        generate.file_prompts(tmp_path / "blank")
    with pytest.raises(ModelError, match="tokenizer"):
        generate.tokenizer(random_model)
