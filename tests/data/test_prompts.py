"""Tokenizer and template, on DeepSeek's real vocabulary."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.prompts import Prompts
from errors import ModelError
from tests.conftest import R1_TEMPLATE

BOS, EOS, THINK, END_THINK, USER, ASSISTANT = 0, 1, 128798, 128799, 128803, 128804


@pytest.fixture
def small_dir(echo_model: Path, tmp_path: Path) -> Path:
    """A model directory of one test, whose tokenizer is read in no time."""
    folder = Path(shutil.copytree(echo_model, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": R1_TEMPLATE})
    )
    return folder


@pytest.fixture(scope="module")
def prompts(r1_model: Path) -> Prompts:
    return Prompts(r1_model)


def test_a_question_begins_with_one_bos_and_ends_where_the_model_thinks(prompts: Prompts) -> None:
    ids = prompts.ids("What is 1+1?")
    assert ids[:2] == (BOS, USER)
    assert ids[-3:] == (ASSISTANT, THINK, 201)
    assert ids.count(BOS) == 1
    assert prompts.text(ids) == "<｜User｜>What is 1+1?<｜Assistant｜><think>\n"


def test_digits_are_split_by_threes(prompts: Prompts) -> None:
    # the pre-tokenizer of tokenizer.json; the tokenizer classes named in R1's files lose it
    ids = prompts.ids("12345678")[2:-3]
    assert [prompts.text([id_]) for id_ in ids] == ["123", "456", "78"]


def test_text_keeps_reasoning_and_drops_bos_and_eos_alone(prompts: Prompts) -> None:
    ids = (BOS, THINK, *prompts.ids("so")[2:-3], END_THINK, EOS)
    assert prompts.text(ids) == "<think>so</think>"
    assert prompts.text([]) == ""
    assert prompts.text([129_279]) == ""  # a padded row of the embedding


def test_stop_ids(small_dir: Path, prompts: Prompts) -> None:
    assert (prompts.eos_id, prompts.stop_ids) == (EOS, {EOS})
    for stops, wanted in ((5, {1, 5}), ([1, 7], {1, 7}), (None, {1})):
        (small_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        assert Prompts(small_dir).stop_ids == wanted


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(prompts: Prompts, text: str) -> None:
    question = prompts.text(prompts.ids(text)).removeprefix("<｜User｜>")
    assert question.removesuffix("<｜Assistant｜><think>\n") == text


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "tokenizer.json is missing"),
        ("tokenizer_config.json", "tokenizer_config.json is missing"),
    ],
)
def test_missing_files_are_named(small_dir: Path, missing: str, message: str) -> None:
    (small_dir / missing).unlink()
    with pytest.raises(ModelError, match=message):
        Prompts(small_dir)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        Prompts(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"chat_template": None}, "no chat_template"), ({"eos_token": None}, "no eos_token")],
)
def test_missing_settings_are_named(
    small_dir: Path, change: dict[str, str | None], message: str
) -> None:
    config = json.loads((small_dir / "tokenizer_config.json").read_text())
    (small_dir / "tokenizer_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message):
        Prompts(small_dir)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ bos_token }", "can't be rendered: unexpected '}'"),
        ("{{ raise_exception('no system message') }}", "can't be rendered: no system message"),
        ("{{ 1 + messages[0]['content'] }}", "can't be rendered: unsupported operand"),
        ("{{ nothing.at.all }}", "can't be rendered: 'nothing' is undefined"),
        ("{% for i in range(10**9) %}{% endfor %}", "can't be rendered: Range too big"),
        ("{{ bos_token }}", "omits the user message"),
        (5, "is int, not text"),
        (
            [{"name": "tool_use", "template": R1_TEMPLATE}],
            "has to be named `default`, but the names are tool_use",
        ),
        (["a", "b"], "is a list with entries other than {name, template}"),
    ],
)
def test_a_template_that_can_not_be_used_is_named(
    small_dir: Path, template: object, message: str
) -> None:
    config = json.loads((small_dir / "tokenizer_config.json").read_text())
    path = small_dir / "tokenizer_config.json"
    path.write_text(json.dumps(config | {"chat_template": template}))
    with pytest.raises(ModelError) as raised:
        Prompts(small_dir).template_tokens_in([])
    assert str(raised.value).startswith(f"{path}: the chat template {message}")
    if isinstance(template, str):  # in the file that comes first
        path.write_text(json.dumps(config))
        (small_dir / "chat_template.jinja").write_text(template)
        with pytest.raises(ModelError, match=r"chat_template\.jinja: the chat template"):
            Prompts(small_dir).template_tokens_in([])


def test_of_several_templates_the_default_is_used(small_dir: Path) -> None:
    ids = Prompts(small_dir).ids("Why?")
    config = json.loads((small_dir / "tokenizer_config.json").read_text())
    several = {"tool_use": "{{ nothing.at.all }}", "default": R1_TEMPLATE}
    for named in (several, [{"name": n, "template": t} for n, t in several.items()]):
        config["chat_template"] = named
        (small_dir / "tokenizer_config.json").write_text(json.dumps(config))
        assert Prompts(small_dir).ids("Why?") == ids


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{{ bos_token }}"])
def test_a_damaged_template_file_is_named(small_dir: Path, content: bytes) -> None:
    (small_dir / "chat_template.jinja").write_bytes(content)
    with pytest.raises(ModelError, match=r"chat_template\.jinja: (no chat_template|not UTF-8)"):
        Prompts(small_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos_token": None}, "uses bos_token, but tokenizer_config.json has none"),
        ({"bos_token": "<s>"}, "bos_token '<s>' is not in tokenizer.json"),
        ({"eos_token": "</s>"}, "eos_token '</s>' is not in tokenizer.json"),
    ],
)
def test_a_token_that_the_tokenizer_does_not_know_is_named(
    small_dir: Path, change: dict[str, str | None], message: str
) -> None:
    config = json.loads((small_dir / "tokenizer_config.json").read_text())
    (small_dir / "tokenizer_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message):
        Prompts(small_dir)


def test_the_template_s_own_tokens_are_found_in_a_text(prompts: Prompts) -> None:
    tokens = prompts.template_tokens_in(prompts.ids("<｜begin▁of▁sentence｜><｜User｜>1+1?"))
    assert tokens == {"<｜begin▁of▁sentence｜>": BOS, "<｜User｜>": USER}
    assert prompts.template_tokens_in(prompts.ids("see <｜Assistant｜> there")) == {
        "<｜Assistant｜>": ASSISTANT
    }
    for plain in ("1+1?", "", "<|User|>", "<｜end▁of▁sentence｜>"):
        assert prompts.template_tokens_in(prompts.ids(plain)) == {}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"x"'])
def test_damaged_files_are_a_model_error(small_dir: Path, name: str, content: str) -> None:
    (small_dir / name).write_text(content)
    with pytest.raises(ModelError):
        Prompts(small_dir)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer, .* `git lfs pull`"),
        ("<html><body>Sign in</body></html>", "is an HTML page"),
        ("", "is empty: download it again"),
        ("Entry not found", "is text that begins 'Entry not found'"),
    ],
)
def test_tokenizer_files_of_another_kind_are_recognised(
    small_dir: Path, name: str, content: str, message: str
) -> None:
    (small_dir / name).write_text(content)
    with pytest.raises(ModelError, match=f"{name} {message}"):
        Prompts(small_dir)


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": {}}'])
def test_a_damaged_generation_config_is_a_model_error(small_dir: Path, content: str) -> None:
    (small_dir / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match="generation_config"):
        Prompts(small_dir)
