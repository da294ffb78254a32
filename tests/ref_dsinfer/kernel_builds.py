"""Compiles the kernels for Hopper (sm_90a) and Blackwell (sm_100a), which needs neither, and looks
at what they take: shared memory and registers within the limits, nothing spilled.

Every variant is built that the launchers can choose at R1's shapes, on eight ranks, or with
THOROUGH=1 on any number.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ref_dsinfer.fp8_format import LARGEST, SMALLEST_AMAX
from ref_dsinfer.kernels import block_fp8, dense, fused, grouped, mla, routing
from tests.effort import THOROUGH, cases

CAPABILITIES = (90, 100)
SHARED = 227 * 1024  # bytes per program
REGISTERS = 255  # of a thread
TOOLS = Path(triton.__path__[0]) / "backends/nvidia/bin"
BYTES = {"bf16": 2, "fp8e4nv": 1, "fp32": 4}
# Arguments that are multiples of 16 in R1.
ALIGNED = {"OUT", "IN", "D", "C", "R", "Q", "stride", "q_stride"}
ALIGNED |= {"token_stride", "head_stride", "out_token_stride", "out_head_stride"}
PLAIN = {"GATED": False, "ACTIVE": 0}
WGMMA = {"bf16": "bf16.bf16", "fp8e4nv": "e4m3.e4m3"}  # in Hopper's code


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel; `types` holds those of arguments that are not int32."""

    kernel: triton.JITFunction
    types: dict[str, str]
    fixed: dict[str, Any]
    warps: int = 4
    stages: int = 3
    ptx: tuple[str, ...] = field(default=())  # patterns that Hopper's code contains

    def build(self, capability: int) -> None:
        """Compile, and check what is taken."""
        names = self.kernel.arg_names
        kinds = {n: "constexpr" if n in self.fixed else self.types.get(n, "i32") for n in names}
        aligned = {
            (number,): [["tt.divisibility", 16]]
            for number, name in enumerate(names)
            if kinds[name].startswith("*") or name in ALIGNED
        }
        constants = {(names.index(name),): value for name, value in self.fixed.items()}
        source = ASTSource(self.kernel, signature=kinds, constexprs=constants, attrs=aligned)
        built = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": self.warps, "num_stages": self.stages},
        )
        about = f"{self.kernel.fn.__name__} for {capability}: {self.types} {self.fixed}"
        assert built.metadata.shared <= SHARED, f"{about}: {built.metadata.shared} bytes shared"
        registers, stack, local = taken(built.asm["cubin"])
        assert registers <= REGISTERS, f"{about}: {registers} registers"
        assert not stack + local, f"{about}: {stack + local} bytes spilled"
        for pattern in self.ptx if capability == 90 else ():
            assert re.search(pattern, built.asm["ptx"]), f"{about}: no {pattern}"


def taken(cubin: bytes) -> tuple[int, int, int]:
    """Registers, and bytes of stack and of local memory, of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert usage, text
    registers, stack, local = map(int, usage.groups())
    return registers, stack, local


def products(capability: int) -> Iterator[Variant]:
    """Weights in block-fp8 or bf16, activations in bf16 or e4m3."""
    for x, w in (("bf16", "fp8e4nv"), ("fp8e4nv", "fp8e4nv"), ("bf16", "bf16")):
        most = block_fp8.most_rows(BYTES[x], blackwell=capability == 100)
        types = {"x_ptr": f"*{x}", "w_ptr": f"*{w}", "pairs_ptr": "*bf16"}
        types |= dict.fromkeys(("x_scale_ptr", "w_scale_ptr", "parts_ptr", "weights_ptr"), "*fp32")
        types |= dict.fromkeys(("ends_ptr", "tokens_ptr", "places_ptr", "arrivals_ptr"), "*i32")
        fixed = {"W_SCALED": w == "fp8e4nv", "X_SCALED": x == "fp8e4nv", "EVEN": True}
        for tall in (tall for tall in (16, 32, 64, 128) if tall <= most):
            for variant in chain(dense_products(), grouped_products(tall)):
                if w == "bf16" and not variant.fixed.items() >= PLAIN.items():
                    continue  # gate and head
                yield Variant(
                    variant.kernel,
                    types | variant.types,
                    variant.fixed | fixed | {"BLOCK_T": tall},
                    *block_fp8.launch(tall, BYTES[w], BYTES[x], variant.fixed["GATED"]),
                    # Hopper's tensor cores, and weights that are loaded ahead.
                    ptx=(rf"wgmma\.mma_async\S*{WGMMA[x]}", r"cp\.async"),
                )


def dense_products() -> Iterator[Variant]:
    """Whole or in parts: plain, of gate and up, or with experts' pairs added, which R1 does only
    with whole ones."""
    for splits, (gated, active) in product((1, 4), ((False, 0), (True, 0), (False, 8))):
        if splits == 1 or not active or THOROUGH:
            fixed = {"SPLITS": splits, "GATED": gated, "ACTIVE": active}
            yield Variant(dense._product, {"y_ptr": "*fp32" if active else "*bf16"}, fixed)


def grouped_products(tall: int) -> Iterator[Variant]:
    """Experts of a rank of 8, of 16, or all: gate and up of rows that are gathered, or down."""
    for count, first in product((32, 16, 256)[: cases(1, 3)], (True, False)):
        fixed = {"GROUPS": count, "GATHERED": first, "GATED": first}
        fixed |= {"STRIDED": grouped.strided(tall)}
        yield Variant(grouped._product, {"y_ptr": "*bf16"}, fixed)


def quantisation() -> Iterator[Variant]:
    types = {"x_ptr": "*bf16", "q_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "count_ptr": "*i32"}
    for counted in (False, True):
        fixed = {"COUNTED": counted, "LARGEST": LARGEST, "SMALLEST": SMALLEST_AMAX}
        yield Variant(block_fp8._quantise, types, fixed, warps=1)


def attention(capability: int) -> Iterator[Variant]:
    """16 heads of a rank of 8, up to all 128; bf16, and fp32 for comparisons."""
    types = dict.fromkeys(("table_ptr", "lengths_ptr", "order_ptr"), "*i64")
    types |= {"part_ptr": "*fp32", "sum_ptr": "*fp32", "scale": "fp32"}
    for kind, heads in product(("bf16", "fp32"), (8, 16, 32, 64, 128)):
        tall = mla.tile_heads(heads, BYTES[kind])
        rows, warps, stages = mla.launch(tall, BYTES[kind], blackwell=capability == 100)
        fixed = {"KEPT": 512, "ROTATED": 64, "SIZE": 64, "BLOCK_C": 512, "BLOCK_R": 64}
        fixed |= {"BLOCK_H": tall, "BLOCK_L": rows}
        own = types | dict.fromkeys(("q_ptr", "blocks_ptr", "out_ptr"), f"*{kind}")
        yield Variant(mla._attend, own, fixed, warps, stages, ptx=(r"cp\.async",))
        yield Variant(mla._combine, own, {"KEPT": 512, "BLOCK_C": 512})


def around_products() -> Iterator[Variant]:
    """Routing, norms and rotations: of hidden states, queries and latents."""
    types = dict.fromkeys(("logits_ptr", "bias_ptr", "weights_ptr", "scale", "eps"), "fp32")
    types |= {name: "*fp32" for name in types if name.endswith("ptr")}
    types |= dict.fromkeys(("rotations_ptr", "weight_ptr", "q_weight_ptr"), "*fp32")
    types |= {"real_ptr": "*i1", "experts_ptr": "*i32", "slots_ptr": "*i64"}
    values = ("x_ptr", "sum_ptr", "out_ptr", "latents_ptr", "cache_ptr", "q_ptr", "queries_ptr")
    types |= dict.fromkeys(values, "*bf16")
    fixed = {"GROUPS": 8, "SIZE": 32, "KEPT": 4, "ACTIVE": 8, "BIASED": True, "SIGMOID": True}
    fixed |= {"NORMALISED": True, "BLOCK_G": 8, "BLOCK_S": 32, "BLOCK_A": 8}
    for masked in (False, True):
        yield Variant(routing._route, types, fixed | {"MASKED": masked}, warps=1)
    counts = dict.fromkeys(("tokens_ptr", "places_ptr", "ends_ptr"), "*i32")
    yield Variant(routing._sort, types | counts, {"ACTIVE": 8, "BLOCK": routing.SORT_BLOCK})
    for added, part in ((True, "fp32"), (True, "bf16"), (False, "bf16")):
        own = types | {"part_ptr": f"*{part}"}
        yield Variant(fused._norm, own, {"ADDED": added, "BLOCK": 8192}, warps=8)
    yield Variant(fused._rotate, types, {"BLOCK_H": 16, "BLOCK_P": 32})
    yield Variant(fused._latents, types, {"BLOCK_C": 512, "BLOCK_P": 32, "BLOCK_Q": 2048})


def main() -> None:
    for capability in CAPABILITIES:
        of_both = chain(quantisation(), around_products())
        for variant in chain(of_both, attention(capability), products(capability)):
            variant.build(capability)


if __name__ == "__main__":
    main()
