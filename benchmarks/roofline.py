"""How long a full run of the benchmark takes on eight GPUs, from memory and network alone.

A decode step reads the weights that its tokens touch and every sequence's latents, and adds up over
the ranks twice a layer. What is measured replaces what is assumed: `--layer-us` is the time of one
MoE layer of a rank, or `--measured` a file that `kernels.py --json` has written.

    python benchmarks/roofline.py [--gpu h100] [--attention dp] [--gemm fp8] [--batch 256 ...]
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from benchmark import MAX_NEW_TOKENS, ROWS, TOKENS_PER_SAMPLE
from benchmarks import simulate
from benchmarks.r1 import R1
from ref_dsinfer import memory

HIDDEN, VOCABULARY, LAYERS, DENSE_LAYERS = R1.hidden, R1.vocab_size, R1.layers, R1.dense_layers
HEADS, NOPE, ROPE, V_DIM = R1.heads, R1.nope_dim, R1.rope_dim, R1.v_dim
Q_LORA, KV_LORA = cast(int, R1.q_lora), R1.kv_lora
EXPERTS, ACTIVE, INNER, DENSE_INNER = (
    *(R1.experts, R1.active_experts),
    *(R1.expert_intermediate, R1.dense_intermediate),
)
EXPERT = 3 * HIDDEN * INNER
DENSE = 3 * HIDDEN * DENSE_INNER
LATENTS = R1.latent_dim * 2  # bytes of a token and layer, bf16
# Of attention, what every rank has whole, and what heads split.
Q_A_KV_A = HIDDEN * (Q_LORA + KV_LORA + ROPE)
BY_HEAD = HEADS * (Q_LORA * (NOPE + ROPE) + V_DIM * HIDDEN)
KV_B = HEADS * (NOPE + V_DIM) * KV_LORA * 2  # bytes: unfolded once, kept in bf16
GATE = EXPERTS * HIDDEN * 2  # bytes: R1's are exact in bf16
HEAD = VOCABULARY * HIDDEN * 2  # bytes, the same
FP8_SCALES = 1 + 4 / 128**2  # bytes a value, its share of a block's scale included


@dataclass(frozen=True)
class Gpu:
    """One GPU and its share of the node's network, by data sheet, and what of it is reached."""

    bandwidth: float  # bytes/s
    memory: float  # bytes
    bf16: float  # FLOP/s, dense
    network: float = 450e9  # bytes/s each way, NVLink 4
    network_share: float = 0.7
    latency: float = 10e-6  # seconds of one collective, however small
    kernel: float = 2.2e-6  # seconds of one kernel in a graph, however small


GPUS = {
    "h100": Gpu(bandwidth=3.35e12, memory=memory.GPUS["H100-80GB"], bf16=989e12),
    "h200": Gpu(bandwidth=4.8e12, memory=memory.GPUS["H200"], bf16=989e12),
}


@dataclass(frozen=True)
class Plan:
    """A run to predict."""

    gpu: Gpu
    ranks: int = 8
    # tp: heads are split over the ranks; dp: sequences; once: each byte is read by one rank only,
    # and the network costs nothing, which no layout can beat.
    attention: str = "tp"
    gemm: str = "bf16"  # or fp8: both operands, twice the FLOP/s
    samples: int = ROWS
    answer: float = round(TOKENS_PER_SAMPLE, 1)  # tokens, mean
    longest: int = MAX_NEW_TOKENS  # tokens of the longest answer
    context: float = 4000  # tokens, mean while decoding
    prompt: float = 800  # tokens, mean
    efficiency: float = 1.0  # share of the bandwidth that kernels reach
    compute_share: float = 0.5  # of the FLOP/s, in prompts and large batches
    layer_s: dict[int, float] | None = None  # measured: batch → seconds of a MoE layer of a rank


def experts_touched(batch: float) -> float:
    """Different experts that a layer's tokens choose, if all are equally likely."""
    return EXPERTS * (1 - (1 - ACTIVE / EXPERTS) ** batch)


def weight_bytes(plan: Plan, batch: float) -> float:
    """Bytes of weights that all ranks together read in one step."""
    copies = plan.ranks if plan.attention == "dp" else 1
    whole = 1 if plan.attention == "once" else plan.ranks
    attention = whole * Q_A_KV_A * FP8_SCALES + copies * (BY_HEAD * FP8_SCALES + KV_B)
    routed = experts_touched(batch) * EXPERT * FP8_SCALES
    moe = routed + EXPERT * FP8_SCALES + whole * GATE
    return (
        LAYERS * attention
        + DENSE_LAYERS * DENSE * FP8_SCALES
        + (LAYERS - DENSE_LAYERS) * moe
        + HEAD
    )


def cache_bytes(plan: Plan, batch: float) -> float:
    """Bytes of latents that all ranks together read in one step."""
    copies = plan.ranks if plan.attention == "tp" else 1
    return copies * batch * plan.context * LATENTS * LAYERS


def collectives(plan: Plan) -> int:
    """Of one step: two a layer, those of the embedding, and of the greedy choice."""
    return 2 * LAYERS + (4 if plan.attention == "dp" else 2)


def exchanged_bytes(plan: Plan, batch: float) -> float:
    """Bytes that each rank sends in one step.

    tp: fp32 sums, all-reduced, twice a layer. dp: hidden states in bf16 are gathered, and fp32 sums
    scattered, once a layer each.
    """
    value = 2 * 2 * 4 if plan.attention == "tp" else 2 + 4
    return LAYERS * batch * HIDDEN * value * (plan.ranks - 1) / plan.ranks


def network_s(plan: Plan, batch: float) -> float:
    """Seconds of one step's collectives."""
    if plan.attention == "once" or plan.ranks == 1:
        return 0.0
    gpu = plan.gpu
    sent = exchanged_bytes(plan, batch) / (gpu.network * gpu.network_share)
    return collectives(plan) * gpu.latency + sent


@cache
def step_counts(ranks: int, attention: str, batch: int) -> simulate.Counts:
    """What a decode step does on a rank, from the engine's own code."""
    with simulate.ranks_without_network(ranks):
        return _simulation(ranks, attention).step("decode", batch)


@cache
def _simulation(ranks: int, attention: str) -> simulate.Simulation:
    return simulate.Simulation.of(simulate.run_of(ranks, attention, 1024))


def overhead_s(plan: Plan, batch: float) -> float:
    """Seconds that a decode step's kernels take for all that is neither weights nor KV cache."""
    if plan.attention == "once":
        return 0.0
    counts = step_counts(plan.ranks, plan.attention, 1 << math.ceil(math.log2(max(batch, 1))))
    return counts.seconds(plan.gpu.bandwidth * plan.efficiency, plan.gpu.kernel)


def flops_a_token(plan: Plan, context: float) -> float:
    """Of one token through the whole model, decoded with absorbed attention."""
    active = LAYERS * (Q_A_KV_A + BY_HEAD + KV_B / 2) + DENSE_LAYERS * DENSE
    active += (LAYERS - DENSE_LAYERS) * (ACTIVE + 1) * EXPERT
    return 2 * active + 2 * LAYERS * HEADS * context * (2 * KV_LORA + ROPE)


def step_s(plan: Plan, batch: float) -> float:
    """Seconds of one decode step of so many sequences."""
    gpu = plan.gpu
    if plan.layer_s:  # its latents are in it, and dense layers take about as long
        layers = LAYERS * _interpolated(plan.layer_s, batch)
        return layers + HEAD / plan.ranks / gpu.bandwidth + network_s(plan, batch)
    read = (weight_bytes(plan, batch) + cache_bytes(plan, batch)) / plan.ranks
    reached = gpu.bf16 * (2 if plan.gemm == "fp8" else 1) * plan.compute_share
    compute = batch * flops_a_token(plan, plan.context) / plan.ranks / reached
    floor = max(read / gpu.bandwidth / plan.efficiency, compute)
    return floor + overhead_s(plan, batch) + network_s(plan, batch)


def run_s(plan: Plan, batch: int) -> tuple[float, float, float]:
    """Seconds of a full run: prompts, steps at the full batch, and the drain.

    Answers all start as soon as there is room. In the drain no sample waits: the batch shrinks as
    answers end, from all to one over the steps that the longest still has, lengths exponential.
    """
    gpu = plan.gpu
    reached = gpu.bf16 * (2 if plan.gemm == "fp8" else 1) * plan.compute_share * plan.ranks
    prompts = plan.samples * plan.prompt * flops_a_token(plan, plan.prompt / 2) / reached
    batch = min(batch, plan.samples)
    tokens = plan.samples * plan.answer
    drained, drain, left, step = 0.0, 0.0, float(batch), 0
    while left >= 1 and step < plan.longest:
        drain += DRAIN_STEP * step_s(plan, left)
        drained += DRAIN_STEP * left
        left *= math.exp(-DRAIN_STEP / plan.answer)
        step += DRAIN_STEP
    drain += max(0, plan.longest - step) * step_s(plan, 1)
    full = max(0.0, tokens - drained) / batch * step_s(plan, batch)
    return prompts, full, drain


DRAIN_STEP = 100  # steps that the drain takes at one batch size


def fits(plan: Plan) -> float:
    """Sequences of the mean context whose latents fit beside all else that a GPU must hold."""
    attention = "tp" if plan.attention == "tp" else "dp"
    needed = memory.need(simulate.run_of(plan.ranks, attention, 512))
    free = plan.gpu.memory - (needed.total - needed.cache)
    ranks = 1 if plan.attention == "tp" else plan.ranks
    return max(0.0, free) * ranks / (plan.context * LATENTS * LAYERS)


def _interpolated(measured: dict[int, float], batch: float) -> float:
    """A line between the two measured batches around; beyond them the nearest one's value or,
    above, the last line's continuation."""
    known = sorted(measured)
    if len(known) == 1 or batch <= known[0]:
        return measured[known[0]]
    above = next((k for k in known[1:] if k >= batch), known[-1])
    below = known[known.index(above) - 1]
    slope = (measured[above] - measured[below]) / (above - below)
    return measured[below] + slope * (batch - below)


def table(plan: Plan, batches: list[int]) -> str:
    """The prediction, one line a batch, and before it every assumption."""
    lines = [f"{name}: {value}" for name, value in vars(plan).items() if name != "gpu"]
    lines += [f"gpu.{name}: {value:g}" for name, value in vars(plan.gpu).items()]
    lines += [f"sequences that fit: {fits(plan):.0f}", ""]
    lines.append(
        "batch  experts  weights GB  KV GB  network ms  ms/step  tok/s  prompts+steps+drain h"
    )
    for batch in batches:
        step, parts = step_s(plan, batch), run_s(plan, batch)
        note = "" if batch <= fits(plan) else "  (does not fit)"
        lines.append(
            f"{batch:5}  {experts_touched(batch):7.0f}  {weight_bytes(plan, batch) / 1e9:10.0f}"
            f"  {cache_bytes(plan, batch) / 1e9:5.1f}  {network_s(plan, batch) * 1e3:10.2f}"
            f"  {step * 1e3:7.2f}  {batch / step:5.0f}  "
            f"{' + '.join(f'{part / 3600:.2f}' for part in parts)}"
            f" = {sum(parts) / 3600:.2f}{note}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--gpu", choices=GPUS, default="h200")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--attention", choices=("tp", "dp", "once"), default="tp")
    parser.add_argument("--gemm", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 128, 256, 512, 1024])
    parser.add_argument("--efficiency", type=float, default=1.0, help="share of the bandwidth")
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument("--layer-us", type=float, help="measured: a MoE layer of a rank")
    measured.add_argument("--measured", type=Path, help="what kernels.py --json wrote")
    args = parser.parse_args()
    layer_s = None
    if args.layer_us:
        layer_s = {1: args.layer_us * 1e-6}
    elif args.measured:
        layer_us = json.loads(args.measured.read_text())["moe_layer_us"]
        layer_s = {int(batch): us * 1e-6 for batch, us in layer_us.items()}
    plan = Plan(
        gpu=GPUS[args.gpu],
        ranks=args.ranks,
        attention=args.attention,
        gemm=args.gemm,
        efficiency=args.efficiency,
        layer_s=layer_s,
    )
    print(table(plan, args.batch))


if __name__ == "__main__":
    main()
