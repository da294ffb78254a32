"""Each kernel on this GPU beside the time that its bytes alone take, at R1's shapes.

The floor is what a kernel must read and write, over the bandwidth of a copy measured in the same
run. All calls are replayed as CUDA graphs; weights are so many that none is still in the L2 cache
when its turn comes again. The slice is one dense and three MoE layers as one rank of eight has
them, without the other ranks, on random weights; `--json` writes what `roofline.py` reads.

    python benchmarks/kernels.py [--json FILE]
    TRITON_INTERPRET=1 python benchmarks/kernels.py --check

`--check` makes every call once, at small shapes and without times, on a CPU, in fp32: Triton's
interpreter does not multiply bf16.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import roofline
from benchmarks.r1 import R1
from ref_dsinfer import fp8_format, gemm, rope
from ref_dsinfer.attention import attend
from ref_dsinfer.batch import Batch, Decodes
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.kernels import flashinfer_mla
from ref_dsinfer.kernels.flashinfer_mla import Plan, Requests
from ref_dsinfer.layers import RMSNorm, Weight, narrow
from ref_dsinfer.model import Layer
from ref_dsinfer.moe import Experts, MoE, route
from ref_dsinfer.parallel import RankInfo, Ranks
from ref_dsinfer.rounding import ceil_div

NO_GPU = 3  # exit code
RANKS = 8
BLOCK = 64  # tokens
L2 = 256 * 2**20  # bytes, more than any L2 cache holds
COPY = 2**30  # bytes
SLICE = replace(R1, layers=4, dense_layers=1)
SMALL = replace(
    SLICE,
    hidden=256,
    dense_intermediate=1024,
    expert_intermediate=128,
    heads=8,
    q_lora=64,
    kv_lora=128,
    nope_dim=128,
    rope_dim=64,
    experts=64,
)
# Dense products of a rank of eight, [out, in].
DENSE = {
    "q_a, kv_a": (2112, 7168),
    "q_b": (3072, 1536),
    "o": (7168, 2048),
    "shared gate, up": (512, 7168),
    "dense gate, up": (4608, 7168),
    "dense down": (7168, 2304),
}


@dataclass(frozen=True)
class Bench:
    """What is measured, and where. With `timed` False each call is made once, and no time is."""

    device: torch.device
    config: ModelConfig = SLICE
    context: int = 4096  # tokens
    dense: Mapping[str, tuple[int, int]] = field(default_factory=lambda: DENSE)
    batches: tuple[int, ...] = (16, 64, 128, 256)
    attention_batches: tuple[tuple[int, int], ...] = ((128, 16), (32, 128))  # and heads
    timed: bool = True
    dtype: torch.dtype = torch.bfloat16

    def seconds(self, calls: Sequence[Callable[[], object]], repeats: int = 20) -> float:
        """Of one call, on average over all of them, replayed as one graph."""
        for call in calls:
            call()
        if not self.timed:
            return 1.0
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

    def bandwidth(self) -> float:
        """Bytes a second that a copy within the GPU's memory reads and writes."""
        source = torch.ones(COPY if self.timed else 2**10, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds([lambda: target.copy_(source)])

    def weights(self, *shape: int) -> tuple[Tensor, Tensor]:
        """A random block-fp8 weight, and its scales."""
        values = torch.empty(shape, dtype=fp8_format.E4M3, device=self.device)
        for part in values if len(shape) > 2 else [values]:
            part.copy_(torch.randn(part.shape, device=self.device))
        return values, torch.full(fp8_format.scale_shape(shape), 0.02, device=self.device)

    def decode_inputs(self, batch: int) -> Decodes:
        """So many sequences of `context` tokens, their blocks spread over the cache."""
        columns = self.context // BLOCK
        table = torch.randperm(batch * columns, device=self.device).view(batch, columns)
        return Decodes(table, torch.full((batch,), self.context, device=self.device))

    def attention(self, batch: int, heads: int, library: bool = False) -> tuple[float, float]:
        """Seconds and bytes of a layer's decode attention, by our kernel or by flashinfer's."""
        width = self.config.latent_dim
        shape = (batch * self.context // BLOCK, BLOCK, width)
        blocks = self.activations(*shape)
        q = self.activations(batch, heads, width)
        kept, scale = self.config.kv_lora, self.config.softmax_scale
        see = self.decode_inputs(batch)
        if library:
            see = replace(see, planned=self.planned(see, heads))
        call = partial(attend, q, blocks, see, kept, scale)
        return self.seconds([call]), blocks.nbytes + q.nbytes + batch * heads * kept * 2

    def planned(self, see: Decodes, heads: int) -> Plan:
        """flashinfer's attention of rows; its planning is not in its time."""
        shape = (heads, BLOCK, self.dtype, self.device)
        plan = flashinfer_mla.load(self.config, *shape, rows=len(see.lengths_N)).plan()
        owners, tables = np.arange(len(see.lengths_N)), see.tables_NM.cpu().numpy()
        plan.fill(Requests.of(owners, see.lengths_N.cpu().numpy(), tables, BLOCK))
        return plan

    def experts(self, batch: int, arithmetic: gemm.Arithmetic) -> tuple[float, float]:
        """Seconds and bytes of a rank's experts, tokens spread over all experts by chance."""
        config = self.config
        with torch.device("meta"):
            module = Experts(config, self.dtype, self.ranks)
        for weight in (module.gate_up_proj, module.down_proj):
            weight.arithmetic = arithmetic
            values, scale = self.weights(*weight.weight.shape)
            weight.weight = nn.Parameter(values, requires_grad=False)
            weight.weight_scale_inv = nn.Parameter(scale, requires_grad=False)
        x = self.activations(batch, config.hidden)
        chosen = torch.rand(batch, config.experts, device=self.device)
        chosen = chosen.topk(config.active_experts).indices
        weights = torch.rand(batch, config.active_experts, device=self.device)
        touched = roofline.experts_touched(batch) / config.experts
        read = sum(parameter.nbytes for parameter in module.parameters()) * touched
        pairs = batch * config.active_experts // RANKS
        read += x.nbytes + pairs * config.hidden * x.itemsize
        return self.seconds([partial(module, x, weights, chosen)]), read

    @property
    def ranks(self) -> Ranks:
        """One of eight, which sends nothing."""
        ranks = Ranks(RankInfo(), self.device)
        ranks.world_size = RANKS
        return ranks

    def activations(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def small(self, batch: int) -> dict[str, tuple[float, float]]:
        """Seconds and bytes of the kernels between the products."""
        config = self.config
        x = self.activations(batch, config.hidden)
        norm = RMSNorm(config.hidden, config.eps).to(self.device)
        norm.weight.data.fill_(1)
        logits = torch.randn(batch, config.experts, device=self.device)
        q = self.activations(batch, config.heads // RANKS, config.nope_dim + config.rope_dim)
        q_rope = q[..., config.nope_dim :]
        rotations = torch.ones(batch, config.rope_dim // 2, dtype=torch.complex64).to(self.device)
        gate = torch.randn(config.experts, config.hidden, device=self.device).to(self.dtype)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "add and norm": (partial(norm.added, x, x), 4 * x.nbytes),
            "rotation": (
                partial(rope.rotate, q_rope, rotations, q_rope),
                2 * q_rope.numel() * q_rope.itemsize,
            ),
            "gate": (partial(gemm.in_fp32, x, gate), gate.nbytes + x.nbytes + logits.nbytes),
            "routing": (partial(route, logits, None, config), logits.nbytes),
        }
        return {name: (self.seconds([call]), read) for name, (call, read) in calls.items()}

    def product(
        self, shape: tuple[int, int], batch: int, arithmetic: gemm.Arithmetic
    ) -> tuple[float, float]:
        """Seconds and bytes of one product."""
        count = ceil_div(L2, shape[0] * shape[1]) if self.timed else 1
        copies = [self.weights(*shape) for _ in range(count)]
        x = self.activations(batch, shape[1])
        calls = [partial(gemm.dense, x, weight, scale, arithmetic) for weight, scale in copies]
        took = self.seconds(calls)
        return took, shape[0] * shape[1] + 2 * batch * sum(shape)


class Slice:
    """One dense and three MoE layers of a rank of eight."""

    def __init__(self, bench: Bench, arithmetic: gemm.Arithmetic) -> None:
        self.bench = bench
        config, device = bench.config, bench.device
        ranks = bench.ranks  # for the sizes; from then on alone, so that nothing is sent
        with torch.device("meta"):
            layers = [Layer(config, number, bench.dtype, ranks) for number in range(config.layers)]
        ranks.world_size = 1
        modules = nn.ModuleList(layers).to_empty(device=device)
        for parameter in modules.parameters():
            many = parameter.dim() > 2
            for part in parameter if many else [parameter]:
                part.data.copy_(torch.randn(part.shape, device=device) * 0.02)
        for name, parameter in modules.named_parameters():
            if parameter.dtype == fp8_format.E4M3:
                parameter.data.view(torch.uint8).bitwise_or_(0x20)  # no tiny values
            elif name.endswith("weight_scale_inv") or "norm" in name:
                parameter.data.fill_(0.02 if "scale" in name else 1.0)
        self.layers = layers
        for layer in layers:
            layer.self_attn.prepare()
            if isinstance(layer.mlp, MoE):
                gate = layer.mlp.gate.weight
                gate.data = gate.data.bfloat16().float()  # as the checkpoint's are
                narrow(gate)
        for module in modules.modules():
            if isinstance(module, Weight):
                module.arithmetic = arithmetic
        self.rotation = rope.table(config, bench.context).to(device)[-1:]

    @torch.inference_mode()
    def measure(self, batch: int, layers: int) -> tuple[float, float]:
        """Seconds and bytes of a decode step through the first so many layers."""
        config, device, context = self.bench.config, self.bench.device, self.bench.context
        see = self.bench.decode_inputs(batch)
        cache = PagedCache(config, see.tables_NM.numel(), BLOCK, self.bench.dtype, device)
        rows = see.tables_NM[:, -1] * BLOCK + BLOCK - 1
        ids = torch.zeros(batch, dtype=torch.int64, device=device)
        step = Batch(ids, ids, rows, see, (), width=batch)
        x = self.bench.activations(batch, config.hidden)
        rotations = self.rotation.expand(batch, -1)

        def run() -> None:
            hidden, part = x, None
            for layer in self.layers[:layers]:
                hidden, part = layer(hidden, part, rotations, step, cache)

        read: float = layers * batch * context * config.latent_dim * 2
        touched = roofline.experts_touched(batch) / config.experts
        for layer in self.layers[:layers]:
            read += layer.self_attn.unfold.nbytes
            for name, parameter in layer.named_parameters():
                read += parameter.nbytes * (touched if ".experts." in name else 1)
        return self.bench.seconds([run]), read


def run(bench: Bench, arithmetic: gemm.Arithmetic, times: Path | None) -> None:
    """Measure and print everything; `times` is the file for roofline."""
    torch.manual_seed(0)
    rate = bench.bandwidth()
    if bench.timed:
        name = torch.cuda.get_device_name()
        print(f"{name}, copy {rate / 1e12:.2f} TB/s, gemm {arithmetic}")
        print(f"{'what':44}  {'µs':>8}  {'floor':>8}  ratio")

    def line(what: str, took: float, read: float) -> None:
        if not bench.timed:
            print(f"{what}: runs", flush=True)
            return
        floor = read / rate
        print(f"{what:44}  {took * 1e6:8.1f}  {floor * 1e6:8.1f}  {took / floor:5.2f}", flush=True)

    for batch, heads in bench.attention_batches:
        took, read = bench.attention(batch, heads)
        line(f"attention, {batch} × {bench.context}, {heads} heads", took, read)
        if bench.timed and find_spec("flashinfer"):
            took, read = bench.attention(batch, heads, library=True)
            line("  the same by flashinfer", took, read)
    for batch in bench.batches:
        line(f"experts, batch {batch}", *bench.experts(batch, arithmetic))
    for name, shape in bench.dense.items():
        for batch in bench.batches:
            line(f"{name} {list(shape)}, batch {batch}", *bench.product(shape, batch, arithmetic))
    for batch in bench.batches:
        for name, (took, read) in bench.small(batch).items():
            line(f"{name}, batch {batch}", took, read)
    layers = Slice(bench, arithmetic)
    layer_us = {}
    for batch in bench.batches:
        whole, first = layers.measure(batch, 4), layers.measure(batch, 1)
        line(f"1 dense and 3 MoE layers, batch {batch}", *whole)
        each, read = ((w - f) / 3 for w, f in zip(whole, first, strict=True))
        line(f"a MoE layer, batch {batch}", each, read)
        layer_us[batch] = each * 1e6
    if times:
        times.write_text(json.dumps({"moe_layer_us": layer_us}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the MoE layer's times for roofline")
    parser.add_argument("--gemm", choices=gemm.ARITHMETICS, default="bf16")
    parser.add_argument(
        "--check", action="store_true", help="make every call once, small, without times"
    )
    args = parser.parse_args()
    if args.check:
        small = dict.fromkeys(DENSE, (128, 256))
        bench = Bench(
            torch.device("cpu"), SMALL, 128, small, (8,), ((2, 16),), False, torch.float32
        )
        run(bench, args.gemm, None)
        return
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs an NVIDIA GPU, and torch finds none", file=sys.stderr)
        sys.exit(NO_GPU)
    run(Bench(torch.device("cuda")), args.gemm, args.json)


if __name__ == "__main__":
    main()
