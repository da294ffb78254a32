"""Give the tiny DeepSeek-V3 the MTP layer that its answers are drafted with.

    python -m data.tiny.train_mtp --model data/tiny/model

The model itself is frozen and stays as it is, bit for bit. Its last layer's copy learns what the
model will say after the next token, over the answers of the training questions (DeepSeek-V3's
report, section 2.2), against the model's own distribution. In decoding the layer goes on from its
own hidden states for three steps, so it is trained in just these three. Seeded; on two CPU cores
it takes some ten minutes.
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
    """What the MTP layer drafts at every place of a batch, in each of its steps.

    Entry i holds the hidden state after token i, and token i + 1; from it comes token i + 2.
    """

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.layer = model.model.layers[-1]

    def forward(self, ids: Tensor, hidden: Tensor) -> list[Tensor]:
        """Logits [B, T - 1, V] of each step, the first from the model's `hidden` [B, T, D]."""
        layer, count = self.layer, ids.shape[1] - 1
        following = self.model.model.embed_tokens(ids[:, 1:])
        following[:, 0] = 0  # as in DeepSeek's own
        positions = torch.arange(count, device=ids.device)[None]
        turns = self.model.model.rotary_emb(hidden, positions)
        cache, logits, before = DynamicCache(), [], hidden[:, :-1]
        for step in range(MTP_STEPS):
            joined = layer.eh_proj(torch.cat([layer.enorm(following), layer.hnorm(before)], -1))
            done = layer(
                joined,
                attention_mask=mask(count, step).to(ids.device),
                position_embeddings=turns,
                past_key_values=cache,
            )
            done = layer.shared_head.norm(done)
            logits.append(self.model.lm_head(done))
            before = F.pad(done, (0, 0, 1, 0))[:, :-1]  # entry i goes on from entry i - 1
        return logits


def mask(count: int, step: int) -> Tensor:
    """What the entries of a step see of all steps' up to it, [1, 1, count, (step + 1) · count].

    Of an entry of this step: itself, the entry before as of the step before, and so on down to
    the first step, and of the first step all entries before.
    """
    entry = torch.arange(count)
    parts = [entry[:, None] - entry == step - earlier for earlier in range(step + 1)]
    parts[0] = entry[:, None] - entry >= step
    return torch.cat(parts, dim=1)[None, None]


def with_layer(model_dir: Path) -> DeepseekV3ForCausalLM:
    """The model, frozen, and behind its layers the new one: its last layer's copy."""
    config = DeepseekV3Config.from_pretrained(model_dir)
    config.num_hidden_layers += 1
    model = DeepseekV3ForCausalLM.from_pretrained(model_dir, config=config, dtype=torch.float32)
    model.config.num_hidden_layers -= 1  # so many are run: the model's own
    model.requires_grad_(False)
    last, layer = model.model.layers[-2:]
    layer.load_state_dict(last.state_dict())
    size, eps = config.hidden_size, config.rms_norm_eps
    layer.enorm, layer.hnorm = (DeepseekV3RMSNorm(size, eps) for _ in range(2))
    layer.eh_proj = nn.Linear(2 * size, size, bias=False)
    layer.eh_proj.weight = nn.Parameter(torch.eye(size).repeat(1, 2))  # at first the sum of both
    layer.shared_head = nn.Module()
    layer.shared_head.norm = copy.deepcopy(model.model.norm)
    layer.requires_grad_(True)
    return model


def labels_of(labels: Tensor, step: int) -> Tensor:
    """The token that each entry is to draft in a step; entry i of step 0 drafts token i + 2.

    The first `step` entries have no step before.
    """
    wanted = F.pad(labels[:, 2:], (0, 1), value=IGNORED)
    wanted[:, :step] = IGNORED
    return wanted


@torch.inference_mode()
def accepted(drafting: Drafting, tests: list[tuple[Tensor, ...]]) -> list[float]:
    """The share of held-out tokens that each step drafts as the model would say them."""
    right, total = [0] * MTP_STEPS, [0] * MTP_STEPS
    for ids, labels in tests:
        hidden = drafting.model.model(input_ids=ids, use_cache=False).last_hidden_state
        said = drafting.model.lm_head(hidden[:, 1:]).argmax(-1)
        for step, logits in enumerate(drafting(ids, hidden)):
            counted = labels_of(labels, step) != IGNORED
            right[step] += int((logits.argmax(-1) == said)[counted].sum())
            total[step] += int(counted.sum())
    return [round(one / all_, 3) for one, all_ in zip(right, total, strict=True)]


def train(model_dir: Path, steps: int, decay: int, device: str) -> DeepseekV3ForCausalLM:
    torch.manual_seed(SEED)
    encode = encoder(model_dir)
    model = with_layer(model_dir)
    nn.Module.to(model, device)
    drafting = Drafting(model)
    balance(drafting.layer)
    drafting.layer.train()
    made = optimizers(drafting.layer)
    tests = [tuple(part.to(device) for part in batch) for batch in held_out(encode, 12).values()]
    stream, started = batches(encode, BATCH_TOKENS), time.monotonic()
    for step in range(1, steps + 1):
        ids, labels = (part.to(device) for part in next(stream))
        rate = PEAK_RATE * min(step / WARM_UP, (steps + 1 - step) / decay, 1)
        with torch.no_grad():
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            said = model.lm_head(hidden[:, 1:]).softmax(-1)
        loss = torch.zeros((), device=device)
        for number, logits in enumerate(drafting(ids, hidden)):
            counted = labels_of(labels, number) != IGNORED
            loss = loss + F.cross_entropy(logits[counted], said[counted])
        loss.backward()
        nn.utils.clip_grad_norm_(drafting.layer.parameters(), 1.0)
        for optimizer in made:
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
            print(f"step {step} drafted right: {accepted(drafting, tests)}", flush=True)
            drafting.layer.train()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("data/tiny/model"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--decay", type=int, default=160, help="steps of the final fall")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model = train(args.model, args.steps, args.decay, args.device)
    layer = model.model.layers[-1]
    # R1's checkpoint repeats these, and other engines may ask for them there.
    layer.embed_tokens = copy.deepcopy(model.model.embed_tokens)
    layer.shared_head.head = copy.deepcopy(model.lm_head)
    save(model, args.model)


if __name__ == "__main__":
    main()
