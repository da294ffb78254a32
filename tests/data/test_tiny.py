"""The bundled model and data set, on which all accuracy tests depend."""

import itertools
import json
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from data.prompts import Prompts
from data.samples import read_frame, samples
from data.tiny import rows
from data.tiny.questions import TASKS, training
from data.tiny.tokenizer import BOS, EOS
from grading.evaluate import evaluate
from ref_dsinfer import fp8

TINY = Path(__file__).parents[2] / "data" / "tiny"
MIB = 2**20


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = read_frame(TINY / "final_output.pkl")
    return rows.assign(tok_input=rows.tok_input.map(list))


def test_rows_have_the_benchmarks_columns_and_tasks(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == [
        "dataset",
        "question",
        "text_input",
        "tok_input",
        "tok_input_len",
        "ground_truth",
        "metric",
    ]
    assert len(frame) >= 200
    assert set(frame.dataset) == {"aime1983", "gpqa", "livecodebench", "math500", "mmlu_pro"}
    assert len(samples(frame)) == len(frame)
    assert frame.text_input.is_unique


def test_parquet_holds_the_same_rows(frame: pd.DataFrame) -> None:
    parquet = read_frame(TINY / "final_output.parquet")
    for name in frame.columns:
        assert list(map(str, parquet[name])) == list(map(str, frame[name])) or [
            list(ids) for ids in parquet[name]
        ] == list(frame[name])


def test_the_script_makes_just_these_rows(frame: pd.DataFrame) -> None:
    made = rows.questions()
    again = rows.frame(made, Prompts(TINY / "model"))
    assert again.to_dict("records") == frame.to_dict("records")
    problems = [json.loads(line) for line in (TINY / "livecodebench.jsonl").open(encoding="utf-8")]
    assert problems == [question.problem for question in made if question.problem]


def test_no_row_is_seen_in_training(frame: pd.DataFrame) -> None:
    assert all(question.held_out for question in rows.questions())
    seen = {question.text_input for question in itertools.islice(training(1), 20_000)}
    assert seen.isdisjoint(frame.text_input)


@pytest.mark.parametrize("name", TASKS)
def test_what_the_model_is_taught_is_graded_right_and_nothing_else(
    name: str, tmp_path: Path
) -> None:
    make, largest = TASKS[name]
    rng = random.Random(5)
    made = [make(rng, size) for size in range(1, largest + 1) for _ in range(2)]
    taught = pd.DataFrame(
        {
            "dataset": name,
            "ground_truth": [question.ground_truth for question in made] * 2,
            "model_output": [q.target for q in made] + ["I do not know."] * len(made),
            "tok_model_output_len": 1,
        }
    )
    problems = tmp_path / "livecodebench.jsonl"
    problems.write_text("".join(json.dumps(q.problem) + "\n" for q in made if q.problem))
    graded = evaluate(taught, problems)
    assert (graded.total.timeouts, graded.total.ungraded) == (0, 0)
    assert list(graded.frame.prompt_accuracy) == [100.0] * len(made) + [0.0] * len(made)


def test_prompts_have_r1s_shape() -> None:
    prompts = Prompts(TINY / "model")
    ids = prompts.ids("What is 2 + 3?")
    assert ids[0] == 0
    assert prompts.eos_id == 1
    config = json.loads((TINY / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (config["bos_token"], config["eos_token"]) == (BOS, EOS)
    assert prompts.text(ids) == "<｜User｜>What is 2 + 3?<｜Assistant｜><think>\n"


def test_weights_are_small_trained_and_keep_a_float32_bias() -> None:
    file = TINY / "model" / "model.safetensors"
    assert file.stat().st_size <= 16 * MIB
    weights = load_file(file)
    biases = [weight for name, weight in weights.items() if name.endswith("correction_bias")]
    assert len(biases) == 4  # the MTP layer's among them
    for bias in biases:
        assert bias.dtype == torch.float32
        assert bias.abs().max() > 0.05
    others = (weight for name, weight in weights.items() if not name.endswith("correction_bias"))
    assert all(weight.dtype == torch.bfloat16 for weight in others)


def test_the_fp8_twin_is_what_our_quantiser_makes(tmp_path: Path) -> None:
    fp8.write_twin(TINY / "model", tmp_path)
    ours, kept = (load_file(d / "model.safetensors") for d in (tmp_path, TINY / "model-fp8"))
    assert ours.keys() == kept.keys()
    for name, weight in ours.items():
        assert torch.equal(weight.view(torch.uint8), kept[name].view(torch.uint8)), name


def test_the_kept_scores_are_neither_trivial_nor_hopeless() -> None:
    scores = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))
    assert 60 <= scores["exact_match"] <= 95
    assert set(scores["tasks"]) == set(TASKS)
    for name, score in scores["tasks"].items():
        assert 50 < score < 100, name
    assert scores["longest_answer"] >= 10 * scores["shortest_answer"]
