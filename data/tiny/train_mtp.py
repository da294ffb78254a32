"""Train the MTP layer of the tiny DeepSeek-V3, which drafts tokens in speculative decoding.

    python -m data.tiny.train_mtp --model data/tiny/model

The model itself is frozen and does not change by a bit. A copy of its last layer learns to predict
the token after the next one (DeepSeek-V3's report, section 2.2), in the answers of the training
questions, with the model's own distribution as the target. In decoding, the layer drafts three
tokens, each from its own hidden state of the one before, so it is trained for these three steps.
Seeded; it takes about ten minutes on two CPU cores.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from benchmark import MTP_STEPS
from data.tiny.train import IGNORED, SEED, balance, batches, encoder, held_out, optimizers, save

BATCH_TOKENS = 1024
PEAK_RATE, WARM_UP = 1.5e-3, 20  # learning rate, steps


class Drafting(nn.Module):
    """The MTP layer's drafts at every position of a batch, in each of its steps.

    Entry i combines the hidden state after token i with token i + 1, and drafts token i + 2.
    """

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.layer = model.model.layers[-1]

    def forward(self, ids: Tensor, hidden: Tensor) -> list[Tensor]:
        """Logits [B, T - 1, V] of each step, the first from the model's `hidden` [B, T, D]."""
        layer, count = self.layer, ids.shape[1] - 1
        following = self.model.model.embed_tokens(ids[:, 1:])
        following[:, 0] = 0  # as in DeepSeek's own code
        positions = torch.arange(count, device=ids.device)[None]
        rotary = self.model.model.rotary_emb(hidden, positions)
        cache, logits, before = DynamicCache(), [], hidden[:, :-1]
        for step in range(MTP_STEPS):
            joined = layer.eh_proj(torch.cat([layer.enorm(following), layer.hnorm(before)], -1))
            output = layer(
                joined,
                attention_mask=mask(count, step).to(ids.device),
                position_embeddings=rotary,
                past_key_values=cache,
            )
            output = layer.shared_head.norm(output)
            logits.append(self.model.lm_head(output))
            before = F.pad(output, (0, 0, 1, 0))[:, :-1]  # entry i continues entry i - 1
        return logits


def mask(count: int, step: int) -> Tensor:
    """The attention mask of a step, [1, 1, count, (step + 1) · count]: this step's entries by all.

    An entry attends to itself, to the entry before in the previous step, and so on back to the
    first step, and to all earlier entries of the first step.
    """
    entry = torch.arange(count)
    parts = [entry[:, None] - entry == step - earlier for earlier in range(step + 1)]
    parts[0] = entry[:, None] - entry >= step
    return torch.cat(parts, dim=1)[None, None]


def with_layer(model_dir: Path) -> DeepseekV3ForCausalLM:
    """The model, frozen, with a new layer at the end: a copy of its last layer."""
    config = DeepseekV3Config.from_pretrained(model_dir)
    config.num_hidden_layers += 1
    model = DeepseekV3ForCausalLM.from_pretrained(model_dir, config=config, dtype=torch.float32)
    model.config.num_hidden_layers -= 1  # the forward pass runs only the model's own layers
    model.requires_grad_(False)
    last, layer = model.model.layers[-2:]
    layer.load_state_dict(last.state_dict())
    size, eps = config.hidden_size, config.rms_norm_eps
    layer.enorm, layer.hnorm = (DeepseekV3RMSNorm(size, eps) for _ in range(2))
    layer.eh_proj = nn.Linear(2 * size, size, bias=False)
    layer.eh_proj.weight = nn.Parameter(torch.eye(size).repeat(1, 2))  # initially the sum of both
    layer.shared_head = nn.Module()
    layer.shared_head.norm = copy.deepcopy(model.model.norm)
    layer.requires_grad_(True)
    return model


def labels_of(labels: Tensor, step: int) -> Tensor:
    """The token that each entry is to draft in a step; entry i of step 0 drafts token i + 2.

    The first `step` entries have no entry to continue, and are ignored.
    """
    targets = F.pad(labels[:, 2:], (0, 1), value=IGNORED)
    targets[:, :step] = IGNORED
    return targets


@torch.inference_mode()
def accepted(drafting: Drafting, tests: list[tuple[Tensor, ...]]) -> list[float]:
    """The fraction of drafts per step that the model would accept, on held-out questions."""
    right, total = [0] * MTP_STEPS, [0] * MTP_STEPS
    for ids, labels in tests:
        hidden = drafting.model.model(input_ids=ids, use_cache=False).last_hidden_state
        tokens = drafting.model.lm_head(hidden[:, 1:]).argmax(-1)
        for step, logits in enumerate(drafting(ids, hidden)):
            counted = labels_of(labels, step) != IGNORED
            right[step] += int((logits.argmax(-1) == tokens)[counted].sum())
            total[step] += int(counted.sum())
    return [round(count / all_, 3) for count, all_ in zip(right, total, strict=True)]


def train(model_dir: Path, steps: int, decay: int, device: str) -> DeepseekV3ForCausalLM:
    torch.manual_seed(SEED)
    encode = encoder(model_dir)
    model = with_layer(model_dir)
    nn.Module.to(model, device)
    drafting = Drafting(model)
    balance(drafting.layer)
    drafting.layer.train()
    both_optimizers = optimizers(drafting.layer)
    tests = [tuple(part.to(device) for part in batch) for batch in held_out(encode, 12).values()]
    stream, started = batches(encode, BATCH_TOKENS), time.monotonic()
    for step in range(1, steps + 1):
        ids, labels = (part.to(device) for part in next(stream))
        rate = PEAK_RATE * min(step / WARM_UP, (steps + 1 - step) / decay, 1)
        with torch.no_grad():
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            targets = model.lm_head(hidden[:, 1:]).softmax(-1)
        loss = torch.zeros((), device=device)
        for number, logits in enumerate(drafting(ids, hidden)):
            counted = labels_of(labels, number) != IGNORED
            loss = loss + F.cross_entropy(logits[counted], targets[counted])
        loss.backward()
        nn.utils.clip_grad_norm_(drafting.layer.parameters(), 1.0)
        for optimizer in both_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step}/{steps} loss {loss.item() / MTP_STEPS:.4f} {seconds:.0f} s",
                flush=True,
            )
        if step % 100 == 0 or step == steps:
            drafting.layer.eval()
            print(f"step {step} accepted drafts: {accepted(drafting, tests)}", flush=True)
            drafting.layer.train()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("data/tiny/model"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--decay", type=int, default=160, help="steps of the final decay")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model = train(args.model, args.steps, args.decay, args.device)
    layer = model.model.layers[-1]
    # copies, as in R1's checkpoint, since other engines may need them there
    layer.embed_tokens = copy.deepcopy(model.model.embed_tokens)
    layer.shared_head.head = copy.deepcopy(model.lm_head)
    save(model, args.model)


if __name__ == "__main__":
    main()
