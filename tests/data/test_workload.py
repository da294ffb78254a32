import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from backends.echo import EchoEngine
from backends.types import EngineConfig
from data import workload
from errors import LengthError, ModelError

EOS_ID, MODEL_LENGTH = 1, 163_840


def test_rows_become_requests(echo_model: Path, data_set: Callable[[int], Path]) -> None:
    requests = workload.build(data_set(9), None, EngineConfig(str(echo_model)), 50)
    assert len(requests) == 9
    request = requests.request(77, 3)
    assert request.id == 77
    assert request.prompt_ids == requests.prompts.ids("question 3???")
    assert request.max_new_tokens == 50
    assert request.stop_ids == {EOS_ID}
    assert request.sampling.temperature == 0


def test_the_first_rows_are_used(echo_model: Path, data_set: Callable[[int], Path]) -> None:
    requests = workload.build(data_set(9), 4, EngineConfig(str(echo_model)), 50)
    assert len(requests) == len(requests.frame) == len(requests.samples) == 4


def test_answers_are_held_to_what_the_model_s_length_leaves(
    echo_model: Path, data_set: Callable[[int], Path]
) -> None:
    config = EngineConfig(str(echo_model), max_model_len=30)
    requests = workload.build(data_set(9), None, config, 50)
    for index, ids in enumerate(requests.prompt_ids):
        assert requests.request(0, index).max_new_tokens == 30 - len(ids)
    assert requests.shortest_limit == 30 - max(map(len, requests.prompt_ids))


def test_a_prompt_that_leaves_no_room_is_named(
    echo_model: Path, data_set: Callable[[int], Path]
) -> None:
    longest = 3 + len("question 6??????")
    config = EngineConfig(str(echo_model), max_model_len=longest)
    with pytest.raises(LengthError, match=r"row 6: .* 19 tokens"):
        workload.build(data_set(9), None, config, 50)


def test_texts_that_were_rendered_already_are_warned_of_once(
    echo_model: Path, data_set: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = data_set(9)
    workload.build(path, None, EngineConfig(str(echo_model)), 50)
    assert "rendered" not in caplog.text
    frame = pd.read_parquet(path)
    for row in (2, 5):
        frame.loc[row, "text_input"] = "<｜begin▁of▁sentence｜><｜User｜>question<｜Assistant｜>"
    frame.to_parquet(path)
    requests = workload.build(path, None, EngineConfig(str(echo_model)), 50)
    assert requests.prompt_ids[2].count(0) == 2
    (message,) = (one.getMessage() for one in caplog.records if "twice" in one.getMessage())
    assert message == (
        f"{path}: row 2 and 1 more: text_input holds tokens that the chat template adds, so the"
        " prompt has them twice: <｜begin▁of▁sentence｜> (id 0), <｜User｜> (id 2),"
        " <｜Assistant｜> (id 3); text_input should be the text before the chat template is applied"
    )


def test_a_row_that_the_template_refuses_is_named(
    echo_model: Path, data_set: Callable[[int], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(echo_model, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    refuse = "{% if '??' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    config["chat_template"] = refuse + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    path = data_set(9)
    with pytest.raises(ModelError) as raised:
        workload.build(path, None, EngineConfig(str(model)), 50)
    assert f"{model}/tokenizer_config.json: the chat template can't be rendered: no" in str(
        raised.value
    )
    assert str(raised.value).endswith(f"({path}: row 2)")


class Reads(EchoEngine):
    """A server that has a tokenizer of its own, or none."""

    def __init__(self, config: EngineConfig, text: str | None) -> None:
        super().__init__(config)
        self.text = text

    async def detokenize(self, ids: Sequence[int]) -> str | None:
        return self.text


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (None, None),
        (lambda ours: ours, None),
        (lambda ours: ours.replace("question", "quark"), "decodes row 0's prompt to 'ark 0<"),
        (lambda ours: "", "prompt to '' from token 0 (id 0) on, not to '<｜begin"),
        (lambda ours: ours + "!", "prompt to '!' from token 12 (id 3) on, not to ''"),
    ],
)
def test_another_tokenizer_is_warned_of_once(
    echo_model: Path,
    data_set: Callable[[int], Path],
    caplog: pytest.LogCaptureFixture,
    theirs: Callable[[str], str] | None,
    message: str | None,
) -> None:
    config = EngineConfig(str(echo_model))
    requests = workload.build(data_set(3), None, config, 10)
    ours = requests.prompts.plain(requests.prompt_ids[0])
    caplog.clear()
    backend = Reads(config, theirs(ours) if theirs else None)
    asyncio.run(workload.compare_tokenizers(backend, requests))
    if message is None:
        assert not caplog.messages
    else:
        (line,) = caplog.messages
        assert message in line
        assert f"the server's tokenizer differs from that of {echo_model}" in line
