"""Train the tiny DeepSeek-V3 that this project is tested with.

    python -m data.tiny.train --output data/tiny/model

It takes about an hour on two CPU cores or minutes on a GPU, and is seeded. transformers' own
DeepseekV3ForCausalLM is trained on the answers only, with matrix products in bfloat16 and the rest
in float32. The routers' selection bias follows DeepSeek-V3's balancing rule (section 2.1.2 of its
report), so it is not zero at the end, and an engine that ignores it scores lower. The learning rate
is constant and decreases to zero over the last steps. An interrupted run continues where it
stopped, with another number of steps if --steps is changed.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from data.prompts import Prompts
from data.tiny.questions import TASKS, Question, training
from data.tiny.tokenizer import VOCABULARY, write_tokenizer

SEED = 1
POOL = 512  # questions that are sorted by length, so that batches have little padding
BATCH_TOKENS = 2048
PEAK_RATE, WARM_UP = 1.5e-3, 100  # AdamW's learning rate, steps
BIAS_RATE = 1e-3  # update of the routers' selection bias per step
IGNORED = -100  # the label that torch's cross entropy ignores

# As all engines need it: heads of 512 + 64 for the MLA kernels, widths that are multiples of 128
# for block-fp8 on two ranks. YaRN extends 256 positions to 4096, so most answers exceed 256.
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "kv_lora_rank": 512,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 128,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 256,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 64,
    "vocab_size": VOCABULARY,
}
GENERATION = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}

Row = tuple[list[int], int]  # ids of prompt and answer, length of the prompt
Encode = Callable[[Question], Row]
Batch = tuple[torch.Tensor, torch.Tensor]  # ids [B, T], labels [B, T]


def encoder(model_dir: Path) -> Encode:
    """A function that encodes questions with the tokenizer and chat template in `model_dir`."""
    prompts = Prompts(model_dir)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    def encode(question: Question) -> Row:
        prompt = prompts.ids(question.text_input)
        answer = tokenizer.encode(question.target, add_special_tokens=False).ids
        return [*prompt, *answer, prompts.eos_id], len(prompt)

    return encode


def collate(rows: list[Row]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.ones(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, prompt : len(row)] = ids[i, prompt : len(row)]
    return ids, labels


def batches(encode: Encode, tokens: int = BATCH_TOKENS) -> Iterator[Batch]:
    """An endless stream of training batches of `tokens` tokens; the n-th is always the same."""
    questions, rng = training(SEED), random.Random(SEED)
    while True:
        rows = list(map(encode, itertools.islice(questions, POOL)))
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if len(row[0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from map(collate, groups)


def held_out(encode: Encode, each: int) -> dict[str, Batch]:
    """`each` questions of every task that training never sees, one batch per task."""
    rng, tests = random.Random(SEED), {}
    for name, (make, largest) in TASKS.items():
        stream = (make(rng, rng.randint(1, largest)) for _ in itertools.count())
        questions = itertools.islice((one for one in stream if one.held_out), each)
        tests[name] = collate(list(map(encode, questions)))
    return tests


@torch.inference_mode()
def exact(model: DeepseekV3ForCausalLM, batch: Batch) -> float:
    """The percentage of answers that greedy decoding reproduces, every token of them."""
    ids, labels = (part.to(model.device) for part in batch)
    best = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
    right = (best == labels[:, 1:]) | (labels[:, 1:] == IGNORED)
    return 100 * right.all(-1).float().mean().item()


def balance(model: torch.nn.Module) -> None:
    """Register hooks that move every router's bias towards even loads after a training step."""

    def update(router: torch.nn.Module, _: object, output: tuple[torch.Tensor, ...]) -> None:
        if router.training:
            bias = router.get_buffer("e_score_correction_bias")
            load = torch.bincount(output[2].flatten(), minlength=len(bias)).float()
            bias += BIAS_RATE * torch.sign(load.mean() - load)

    for gate in gates(model):
        gate.register_forward_hook(update)


def gates(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The routers of the layers that have experts."""
    return [module for module in model.modules() if hasattr(module, "e_score_correction_bias")]


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest (torch's Muon needs two dimensions)."""
    named = dict(model.named_parameters())
    ends = ("embed_tokens.weight", "lm_head.weight", "gate.weight")
    inner = [p for name, p in named.items() if p.ndim == 2 and not name.endswith(ends)]
    outer = [p for name, p in named.items() if p.ndim != 2 or name.endswith(ends)]
    return [
        torch.optim.Muon(inner, lr=PEAK_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def train(output: Path, state_file: Path, steps: int, decay: int, device: str) -> None:
    torch.manual_seed(SEED)
    encode = encoder(output)
    model = DeepseekV3ForCausalLM(DeepseekV3Config.from_pretrained(output)).float().to(device)
    balance(model)
    both_optimizers = optimizers(model)
    done = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(both_optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        done = state["done"]
    tests, stream, started = held_out(encode, 40), batches(encode), time.monotonic()
    next(itertools.islice(stream, done, done), None)  # skip the batches of an earlier run
    tokens = 0
    for step in range(done + 1, steps + 1):
        ids, labels = (part.to(device) for part in next(stream))
        rate = PEAK_RATE * min(step / WARM_UP, (steps + 1 - step) / decay, 1)
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        tokens += ids.numel()
        if step % 50 == 0:
            speed = tokens / (time.monotonic() - started)
            print(f"step {step}/{steps} loss {loss.item():.4f} {speed:.0f} tokens/s", flush=True)
        if step % 200 == 0 or step == steps:
            model.eval()
            scores = {name: round(exact(model, batch), 1) for name, batch in tests.items()}
            model.train()
            print(f"step {step} greedily right, %: {scores}", flush=True)
            states = [optimizer.state_dict() for optimizer in both_optimizers]
            part = state_file.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizers": states, "done": step}, part)
            part.replace(state_file)
    biases = [gate.get_buffer("e_score_correction_bias") for gate in gates(model)]
    print(f"largest selection bias: {max(bias.abs().max().item() for bias in biases):.3f}")
    save(model, output)


def save(model: DeepseekV3ForCausalLM, output: Path) -> None:
    biases = [gate.get_buffer("e_score_correction_bias") for gate in gates(model)]
    model.bfloat16()
    for gate, bias in zip(gates(model), biases, strict=True):
        gate.e_score_correction_bias = bias  # in float32, as in R1's checkpoint
    model.save_pretrained(output)
    write_config(output)  # not all engines read the config.json that save_pretrained writes


def write_config(output: Path) -> None:
    for name, content in (("config.json", CONFIG), ("generation_config.json", GENERATION)):
        (output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/tiny/model"))
    parser.add_argument("--state", type=Path, default=Path(".cache/tiny_training.pt"))
    parser.add_argument("--steps", type=int, default=6800)
    parser.add_argument("--decay", type=int, default=5000, help="steps of the final decay")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.state.parent.mkdir(parents=True, exist_ok=True)
    if not (args.output / "tokenizer.json").exists():
        texts = itertools.islice(training(SEED), 5000)
        write_tokenizer(args.output, (f"{q.text_input}\n{q.target}" for q in texts))
    write_config(args.output)
    train(args.output, args.state, args.steps, args.decay, args.device)


if __name__ == "__main__":
    main()
