"""Drafts of the MTP layer: their logits, and that they change no answer."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmark import MTP_STEPS
from errors import CheckpointError, ModelError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.convert import convert
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.speculative import accepted
from tests.effort import cases

LONGEST = 400  # tokens
TINY = Path(__file__).parents[2] / "data/tiny"
Answers = dict[int, tuple[list[int], str | None]]


def made(model: Path, speculative: bool = True, **arguments: Any) -> Engine:
    defaults: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "max_model_len": LONGEST,
    }
    return Engine(model, EngineOptions(speculative=speculative, **(defaults | arguments)))


@pytest.fixture(scope="module")
def engines(drafting_model: Path) -> tuple[Engine, Engine]:
    """An engine without drafts, and one with drafts."""
    return made(drafting_model, False, max_running=3), made(drafting_model, max_running=3)


def prompt(number: int, length: int, vocabulary: int = 32) -> tuple[int, ...]:
    chance = random.Random(number)
    return tuple(chance.randrange(vocabulary) for _ in range(length))


def finish(engine: Engine) -> Answers:
    """Step until no request is left. Returns answers and finish reasons."""
    answers: Answers = {}
    while engine.busy:
        for output in engine.step():
            tokens, end = answers.get(output.id, ([], None))
            assert end is None
            assert output.token_ids or output.finish
            answers[output.id] = tokens + list(output.token_ids), output.finish
    [pool] = engine.scheduler.pools
    assert pool.free == pool.blocks
    return answers


@pytest.mark.parametrize(
    ("drafts", "sampled", "expected"),
    [
        ([], [5], [5]),
        ([5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8]),
        ([5, 6, 7], [5, 6, 8, 7], [5, 6, 8]),
        ([5, 6, 7], [4, 6, 7, 8], [4]),
    ],
)
def test_drafts_hold_up_to_the_first_wrong_one(
    drafts: list[int], sampled: list[int], expected: list[int]
) -> None:
    assert accepted(drafts, sampled) == expected


def written_out(model: Path, ids: tuple[int, ...], depth: int) -> Tensor:
    """The drafts' logits after `ids`, step by step, by transformers' layers and the checkpoint."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

    config = DeepseekV3Config.from_pretrained(model)
    peer = DeepseekV3ForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    config._attn_implementation = "eager"
    last = f"model.layers.{config.num_hidden_layers}."
    weights = load_file(model / "model.safetensors")
    weights = {n.removeprefix(last): w.float() for n, w in weights.items() if n.startswith(last)}
    layer = DeepseekV3DecoderLayer(config, config.num_hidden_layers).eval()
    experts = layer.mlp.experts
    for number in range(config.n_routed_experts):
        parts = [weights[f"mlp.experts.{number}.{p}_proj.weight"] for p in ("gate", "up")]
        experts.gate_up_proj.data[number] = torch.cat(parts)
        experts.down_proj.data[number] = weights[f"mlp.experts.{number}.down_proj.weight"]
    left = layer.load_state_dict(weights, strict=False)
    assert set(left.missing_keys) == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}

    def norm(name: str, x: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps)
        return weights[f"{name}.weight"] * scaled

    tokens = list(ids)
    with torch.no_grad():
        hidden = peer.model(torch.tensor([ids])).last_hidden_state[0]
        tokens.append(int(peer.lm_head(hidden[-1]).argmax()))
        drafts = []
        for _ in range(depth):
            count = len(tokens) - 1
            embedded = peer.model.embed_tokens(torch.tensor(tokens[1:]))
            embedded[0] = 0
            joined = torch.cat([norm("enorm", embedded), norm("hnorm", hidden)], dim=-1)
            x = nn.functional.linear(joined, weights["eh_proj.weight"])[None]
            mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
            positions = peer.model.rotary_emb(x, torch.arange(count)[None])
            x = layer(x, attention_mask=mask, position_embeddings=positions)[0]
            x = norm("shared_head.norm", x)
            drafts.append(peer.lm_head(x[-1]))
            tokens.append(int(drafts[-1].argmax()))
            hidden = torch.cat([hidden, x[-1:]])
    return torch.stack(drafts)


@pytest.mark.parametrize("step_tokens", [500, 37])
@pytest.mark.parametrize("which", ["random", "tiny"])
def test_the_drafts_are_those_of_the_layer_written_out(
    which: str, drafting_model: Path, step_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a prompt that is prefilled at once, and in chunks."""
    model = drafting_model if which == "random" else TINY / "model"
    engine = made(model, step_tokens=step_tokens, max_running=2)
    seen: list[Tensor] = []
    draft_logits = engine.runner.model.logits

    def logits(x_ND: Tensor) -> Tensor:
        seen.append(draft_logits(x_ND))
        return seen[-1]

    monkeypatch.setattr(engine.runner.model, "logits", logits)
    ids = prompt(1, 90, engine.config.vocab_size)
    engine.add(0, ids, 20)
    while not engine.step():
        pass
    [sequence] = engine.scheduler.running
    expected = written_out(model, ids, MTP_STEPS)
    assert (expected.amax(-1) - expected.amin(-1)).min() > 0.5  # else nothing is compared
    torch.testing.assert_close(torch.cat(seen[-MTP_STEPS:]), expected, rtol=0, atol=5e-4)
    assert sequence.drafts == expected.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_the_same_with_drafts_and_without(
    engines: tuple[Engine, Engine], temperature: float
) -> None:
    answers = []
    for engine in engines:
        for number in range(9):
            ids = prompt(number, 1 + 11 * number)
            engine.add(number, ids, 1 + 7 * number, temperature=temperature, top_p=0.95)
        answers.append(finish(engine))
    assert answers[0] == answers[1]
    assert [len(tokens) for tokens, _ in answers[0].values()] == [1 + 7 * n for n in range(9)]
    assert engines[1].verified > 100
    assert 1.05 < engines[1].accepted / engines[1].verified < MTP_STEPS  # right and wrong ones


def test_a_step_yields_several_tokens_and_never_more_than_requested(
    engines: tuple[Engine, Engine],
) -> None:
    _, engine = engines
    most = 0
    for limit in range(1, 12):
        engine.add(limit, prompt(limit, 5), limit)
    counts = dict.fromkeys(range(1, 12), 0)
    while engine.busy:
        for output in engine.step():
            most = max(most, len(output.token_ids))
            counts[output.id] += len(output.token_ids)
    assert 1 < most <= MTP_STEPS + 1
    assert all(limit == count for limit, count in counts.items())


@pytest.mark.slow
def test_a_stop_id_ends_an_answer_also_among_right_drafts(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes: each token of an answer is tried as the stop id."""
    plain, engine = engines
    among = 0

    def counted(drafts: list[int], sampled: list[int]) -> list[int]:
        nonlocal among
        tokens = accepted(drafts, sampled)
        among += any(stop in tokens[:-1] for stop in stops)
        return tokens

    ids = prompt(3, 9)
    plain.add(0, ids, 60)
    for stop in set(finish(plain)[0][0]):
        stops = frozenset([stop])
        for one in engines:
            one.add(0, ids, 60, stops)
        expected = finish(plain)
        with monkeypatch.context() as patched:
            patched.setattr("ref_dsinfer.engine.accepted", counted)
            assert finish(engine) == expected
        assert expected[0][1] == "stop"
    assert among


def test_the_model_length_ends_an_answer(drafting_model: Path) -> None:
    """Drafts reach up to it and not beyond; the cache holds no token more."""
    results = []
    for speculative in (False, True):
        engine = made(drafting_model, speculative, max_model_len=32, block_size=4, cache_tokens=32)
        for number, length in enumerate((31, 30, 29, 20, 3)):
            engine.add(number, prompt(number, length), 500)
        results.append(finish(engine))
    assert results[0] == results[1]
    lengths = [(len(tokens), end) for _, (tokens, end) in sorted(results[0].items())]
    assert lengths == [(n, "length") for n in (1, 2, 3, 12, 29)]


def test_an_abort_frees_its_slot(engines: tuple[Engine, Engine]) -> None:
    plain, engine = engines
    for number in range(5):
        engine.add(number, prompt(number, 4), 30)
    for _ in range(3):
        engine.step()
    for number in (0, 2, 4):  # two run, one waits
        engine.abort(number)
    answers = finish(engine)
    assert set(answers) == {1, 3}
    plain.add(3, prompt(3, 4), 30)
    assert finish(plain)[3] == answers[3]


def test_without_drafts_the_layer_costs_nothing(drafting_model: Path) -> None:
    plain, drafting = made(drafting_model, False), made(drafting_model)
    assert plain.runner.model.mtp is None
    assert (plain.runner.drafts, drafting.runner.drafts) == (0, 3)
    layers = [len(engine.runner.cache._layers) for engine in (plain, drafting)]
    assert layers == [3, 4]
    assert plain.scheduler.lookahead == 0


def test_a_converted_model_keeps_the_layer_and_no_repetition(
    drafting_model: Path, tmp_path: Path
) -> None:
    [file] = convert(drafting_model, tmp_path, 1)
    names = {name for name in load_file(file) if name.startswith("model.layers.3.")}
    assert "model.layers.3.eh_proj.weight" in names
    assert not any("embed_tokens" in name or "head.head" in name for name in names)
    engines = made(drafting_model), made(tmp_path), made(tmp_path, False)
    for engine in engines:
        engine.add(0, prompt(0, 20), 50)
    answers = [finish(engine) for engine in engines]
    assert answers[0] == answers[1] == answers[2]
    assert engines[0].accepted == engines[1].accepted


def test_a_model_without_the_layer_is_refused(
    random_model: Path, drafting_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="this model has no MTP layer for --speculative"):
        made(random_model)
    # its configuration names a layer that was left out when it was converted
    config = json.loads((drafting_model / "config.json").read_text())
    without = shutil.copytree(drafting_model, tmp_path / "without")
    (without / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    convert(without, tmp_path / "old", 1)
    shutil.copy(drafting_model / "config.json", tmp_path / "old")
    with pytest.raises(CheckpointError, match=r"lacks .* model\.layers\.3\."):
        made(tmp_path / "old")
    assert made(tmp_path / "old", False)


def test_the_mtp_layer_is_skipped_if_the_configuration_omits_it(
    drafting_model: Path,
) -> None:
    assert ModelConfig.read(drafting_model).mtp
    assert ModelConfig.read(drafting_model).layers == 3


@pytest.fixture(scope="module")
def tiny_prompts() -> list[tuple[int, ...]]:
    import pandas as pd

    frame = pd.read_parquet(TINY / "final_output.parquet")
    return [tuple(map(int, ids)) for ids in frame.tok_input]


def tiny_answers(folder: str, prompts: list[tuple[int, ...]], dtype: str) -> float:
    """Holds the answers with drafts against those without; tokens in a step."""
    answers = []
    for speculative in (False, True):
        engine = made(TINY / folder, speculative, dtype=dtype, max_running=64, threads=None)
        for number, ids in enumerate(prompts):
            engine.add(number, ids, 200, frozenset([1]))
        answers.append(finish(engine))
    assert answers[0] == answers[1]
    assert sum(end == "stop" for _, end in answers[0].values()) > 0.9 * len(prompts)
    return engine.accepted / engine.verified


def test_some_tiny_rows_are_answered_as_without_drafts(
    tiny_prompts: list[tuple[int, ...]],
) -> None:
    assert tiny_answers("model", tiny_prompts[::80], "float32") > 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "every"), [("model", cases(4, 1)), ("model-fp8", cases(12, 5))])
def test_tiny_rows_are_answered_as_without_drafts(
    folder: str, every: int, tiny_prompts: list[tuple[int, ...]]
) -> None:
    assert tiny_answers(folder, tiny_prompts[::every], "float32") > 1.5
