"""Each kernel on this GPU beside the time that its bytes alone take, at R1's shapes.

The floor is what a kernel must read and write, over the bandwidth of a copy measured in the same
run. All calls are replayed as CUDA graphs; weights are so many that none is still in the L2 cache
when its turn comes again. The slice is one dense and three MoE layers as one rank of eight has
them, without the other ranks, on random weights; `--json` writes what `roofline.py` reads.

    python benchmarks/kernels.py [--json FILE]
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import roofline
from ref_dsinfer import fp8, gemm, rope
from ref_dsinfer.batch import Batch, Decodes
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.config import ModelConfig, Yarn
from ref_dsinfer.layers import Weight
from ref_dsinfer.model import Layer
from ref_dsinfer.parallel import RankInfo, Ranks

NO_GPU = 3  # exit code
RANKS = 8
CONTEXT, BLOCK = 4096, 64  # tokens
L2 = 256 * 2**20  # bytes, more than any L2 cache holds
GPU = torch.device("cuda")
R1 = ModelConfig(
    vocab_size=roofline.VOCABULARY,
    hidden=roofline.HIDDEN,
    dense_intermediate=roofline.DENSE_INNER,
    expert_intermediate=roofline.INNER,
    layers=4,
    dense_layers=1,
    heads=roofline.HEADS,
    q_lora=roofline.Q_LORA,
    kv_lora=roofline.KV_LORA,
    nope_dim=roofline.NOPE,
    rope_dim=roofline.ROPE,
    v_dim=roofline.V_DIM,
    experts=roofline.EXPERTS,
    shared_experts=1,
    active_experts=roofline.ACTIVE,
    groups=8,
    kept_groups=4,
    routed_scale=2.5,
    scoring="sigmoid",
    routing_bias=True,
    normalise_weights=True,
    eps=1e-6,
    rope_theta=10_000.0,
    yarn=Yarn(factor=40.0, original_length=4096, mscale_all_dim=1.0),
    max_positions=163_840,
    fp8=True,
)
# Dense products of a rank of eight, [out, in].
DENSE = {
    "q_a": (1536, 7168),
    "kv_a": (576, 7168),
    "q_b": (3072, 1536),
    "o": (7168, 2048),
    "shared gate, up": (512, 7168),
    "dense gate, up": (4608, 7168),
    "dense down": (7168, 2304),
}


def seconds(calls: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Of one call, on average over all of them, replayed as one graph."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats / len(calls)


def bandwidth() -> float:
    """Bytes a second that a copy within the GPU's memory reads and writes."""
    source = torch.ones(2**30, dtype=torch.uint8, device=GPU)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds([lambda: target.copy_(source)])


def weights(*shape: int) -> tuple[Tensor, Tensor]:
    """A random block-fp8 weight, and its scales."""
    values = torch.empty(shape, dtype=fp8.E4M3, device=GPU)
    for part in values if len(shape) > 2 else [values]:
        part.copy_(torch.randn(part.shape, device=GPU))
    return values, torch.full(fp8.scale_shape(shape), 0.02, device=GPU)


def decode_inputs(batch: int) -> Decodes:
    """So many sequences of CONTEXT tokens, their blocks spread over the cache."""
    columns = CONTEXT // BLOCK
    table = torch.randperm(batch * columns, device=GPU).view(batch, columns)
    return Decodes(table, torch.full((batch,), CONTEXT, device=GPU))


def attention(batch: int, heads: int) -> tuple[float, float]:
    """Seconds and bytes of a layer's decode attention."""
    from ref_dsinfer.kernels import mla

    width = R1.latent_dim
    shape = (batch * CONTEXT // BLOCK, BLOCK, width)
    blocks = torch.randn(shape, device=GPU, dtype=torch.bfloat16)
    q = torch.randn(batch, heads, width, device=GPU, dtype=torch.bfloat16)
    see = decode_inputs(batch)
    took = seconds(
        [lambda: mla.attend(q, blocks, see.tables_NM, see.lengths_N, R1.kv_lora, R1.softmax_scale)]
    )
    return took, blocks.nbytes + q.nbytes + batch * heads * R1.kv_lora * 2


def experts(batch: int, arithmetic: gemm.Arithmetic) -> tuple[float, float]:
    """Seconds and bytes of a rank's 32 experts: both products, each expert chosen equally often."""
    count = R1.experts // RANKS
    gate_up, down = (
        weights(count, 2, R1.expert_intermediate, R1.hidden),
        weights(count, R1.hidden, R1.expert_intermediate),
    )
    x = torch.randn(batch, R1.hidden, device=GPU, dtype=torch.bfloat16)
    pairs = batch * R1.active_experts // RANKS
    inner = torch.randn(pairs, R1.expert_intermediate, device=GPU, dtype=torch.bfloat16)
    tokens = torch.randint(batch, (pairs,), device=GPU)
    ends = (torch.arange(1, count + 1, device=GPU) * pairs // count).int()

    def both() -> None:
        gemm.grouped(x, *gate_up, ends, tokens, arithmetic)
        gemm.grouped(inner, *down, ends, None, arithmetic)

    read = sum(part.nbytes for part in (*gate_up, *down)) * min(1.0, pairs / count)
    return seconds([both]), read


def dense(shape: tuple[int, int], batch: int, arithmetic: gemm.Arithmetic) -> tuple[float, float]:
    """Seconds and bytes of one product."""
    copies = [weights(*shape) for _ in range(-(-L2 // (shape[0] * shape[1])))]
    x = torch.randn(batch, shape[1], device=GPU, dtype=torch.bfloat16)
    calls = [partial(gemm.dense, x, weight, scale, arithmetic) for weight, scale in copies]
    took = seconds(calls)
    return took, shape[0] * shape[1] + 2 * batch * sum(shape)


class Slice:
    """One dense and three MoE layers of a rank of eight."""

    def __init__(self, arithmetic: gemm.Arithmetic) -> None:
        ranks = Ranks(RankInfo(), GPU)
        ranks.world_size = RANKS  # for the sizes; from then on alone, so that nothing is sent
        with torch.device("meta"):
            layers = [Layer(R1, number, torch.bfloat16, ranks) for number in range(R1.layers)]
        ranks.world_size = 1
        modules = nn.ModuleList(layers).to_empty(device=GPU)
        for parameter in modules.parameters():
            many = parameter.dim() > 2
            for part in parameter if many else [parameter]:
                part.data.copy_(torch.randn(part.shape, device=GPU) * 0.02)
        for name, parameter in modules.named_parameters():
            if parameter.dtype == fp8.E4M3:
                parameter.data.view(torch.uint8).bitwise_or_(0x20)  # no tiny values
            elif name.endswith("weight_scale_inv") or "norm" in name:
                parameter.data.fill_(0.02 if "scale" in name else 1.0)
        self.layers = layers
        for layer in layers:
            layer.self_attn.prepare()
        for module in modules.modules():
            if isinstance(module, Weight):
                module.arithmetic = arithmetic
        self.rotation = rope.table(R1, CONTEXT).to(GPU)[-1:]

    @torch.inference_mode()
    def measure(self, batch: int, layers: int) -> tuple[float, float]:
        """Seconds and bytes of a decode step through the first so many layers."""
        see = decode_inputs(batch)
        cache = PagedCache(R1, see.tables_NM.numel(), BLOCK, torch.bfloat16, GPU)
        rows = see.tables_NM[:, -1] * BLOCK + BLOCK - 1
        ids = torch.zeros(batch, dtype=torch.int64, device=GPU)
        step = Batch(ids, ids, rows, see, (), width=batch)
        x = torch.randn(batch, R1.hidden, device=GPU, dtype=torch.bfloat16)
        rotations = self.rotation.expand(batch, -1)

        def run() -> None:
            hidden = x
            for layer in self.layers[:layers]:
                hidden = layer(hidden, rotations, step, cache)

        read: float = layers * batch * CONTEXT * R1.latent_dim * 2
        touched = roofline.experts_touched(batch) / R1.experts
        for layer in self.layers[:layers]:
            read += layer.self_attn.unfold.nbytes
            for name, parameter in layer.named_parameters():
                read += parameter.nbytes * (touched if ".experts." in name else 1)
        return seconds([run]), read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the MoE layer's times for roofline")
    parser.add_argument("--gemm", choices=gemm.ARITHMETICS, default="bf16")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs an NVIDIA GPU, and torch finds none", file=sys.stderr)
        sys.exit(NO_GPU)
    torch.manual_seed(0)
    rate = bandwidth()
    print(f"{torch.cuda.get_device_name()}, copy {rate / 1e12:.2f} TB/s, gemm {args.gemm}")
    print(f"{'what':44}  {'µs':>8}  {'floor':>8}  ratio")

    def line(what: str, took: float, read: float) -> None:
        floor = read / rate
        print(f"{what:44}  {took * 1e6:8.1f}  {floor * 1e6:8.1f}  {took / floor:5.2f}", flush=True)

    line("attention, 128 × 4096, 16 heads", *attention(128, 16))
    line("attention, 32 × 4096, 128 heads", *attention(32, 128))
    for batch in (16, 64, 128, 256):
        line(f"32 experts, batch {batch}", *experts(batch, args.gemm))
    for name, shape in DENSE.items():
        for batch in (16, 64, 128, 256):
            line(f"{name} {list(shape)}, batch {batch}", *dense(shape, batch, args.gemm))
    layers = Slice(args.gemm)
    found = {}
    for batch in (16, 64, 128, 256):
        whole, first = layers.measure(batch, 4), layers.measure(batch, 1)
        line(f"1 dense and 3 MoE layers, batch {batch}", *whole)
        each, read = ((w - f) / 3 for w, f in zip(whole, first, strict=True))
        line(f"a MoE layer, batch {batch}", each, read)
        found[batch] = each * 1e6
    if args.json:
        args.json.write_text(json.dumps({"moe_layer_us": found}) + "\n")


if __name__ == "__main__":
    main()
