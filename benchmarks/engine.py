"""Tokens a second of this engine beside transformers' `generate`, on the same model in one run.

64 prompts of mixed lengths, answers of 8 to 256 tokens, stop ids off so that lengths are exact.
transformers runs one static batch, padded on the left, as long as its longest answer; only tokens
that were asked for count.

    python -m benchmarks.engine [--model DIR] [--dtype float32]
"""

import argparse
import os
import random
import time
from pathlib import Path

PROMPTS = 64
PROMPT_TOKENS = (16, 256)
ANSWER_TOKENS = (8, 256)


def workload(vocabulary: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of random ids, and how long each answer shall be; long ones are rare."""
    chance = random.Random(0)
    prompts = [
        [chance.randrange(2, vocabulary) for _ in range(chance.randint(*PROMPT_TOKENS))]
        for _ in range(PROMPTS)
    ]
    low, high = ANSWER_TOKENS
    answers = [round(low * (high / low) ** chance.random()) for _ in range(PROMPTS - 2)]
    return prompts, [low, high, *answers]


def engine_seconds(model: Path, dtype: str, threads: int) -> tuple[float, list[list[int]]]:
    """Time of this engine for the workload, the model loaded and warm; and the answers."""
    from ref_dsinfer.engine import Engine

    engine = Engine(model, device="cpu", dtype=dtype, max_running=PROMPTS, threads=threads)
    prompts, lengths = workload(engine.config.vocab_size)

    def run(limit: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            engine.add(number, tuple(prompt), min(length, limit))
        while engine.busy:
            for output in engine.step():
                answers[output.id] += output.token_ids
        return answers

    run(limit=4)
    began = time.perf_counter()
    answers = run(limit=max(lengths))
    return time.perf_counter() - began, answers


def transformers_seconds(model: Path, dtype: str, threads: int) -> tuple[float, list[list[int]]]:
    """Time of transformers' `generate` for the same, and the answers cut to the asked lengths."""
    import torch
    from transformers import DeepseekV3ForCausalLM

    torch.set_num_threads(threads)
    loaded = DeepseekV3ForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    prompts, lengths = workload(loaded.config.vocab_size)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def run(limit: int) -> list[list[int]]:
        out = loaded.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=None,
            pad_token_id=0,
        )
        rows = out[:, width:].tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    run(limit=4)
    began = time.perf_counter()
    answers = run(limit=max(lengths))
    return time.perf_counter() - began, answers


def main() -> None:
    """Measure both and print a line each: name, tokens a second, ratio."""
    parser = argparse.ArgumentParser(description="tokens/s of this engine beside transformers'")
    parser.add_argument("--model", type=Path, default=Path("data/tiny/model"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    theirs, their_answers = transformers_seconds(args.model, args.dtype, args.threads)
    ours, our_answers = engine_seconds(args.model, args.dtype, args.threads)
    tokens = sum(map(len, our_answers))
    assert tokens == sum(map(len, their_answers)), "both must do the same work"
    same = sum(a == b for a, b in zip(our_answers, their_answers, strict=True))
    print(f"{PROMPTS} prompts, {tokens} tokens, {args.dtype}, {args.threads} threads")
    print(f"answers equal to transformers': {same} of {PROMPTS}")
    print(f"{'transformers generate':24} {tokens / theirs:10.0f} tokens/s {1:8.2f}x")
    print(f"{'ref_dsinfer':24} {tokens / ours:10.0f} tokens/s {theirs / ours:8.2f}x")


if __name__ == "__main__":
    main()
