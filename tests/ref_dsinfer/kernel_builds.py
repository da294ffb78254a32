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
from ref_dsinfer.kernels import block_fp8, experts, fused, mla, routing
from tests.effort import cases

CAPABILITIES = (90, 100)
SHARED = 227 * 1024  # bytes per program
REGISTERS = 255  # of a thread
TOOLS = Path(triton.__path__[0]) / "backends/nvidia/bin"
BYTES = {"bf16": 2, "fp8e4nv": 1, "fp32": 4}
# Arguments that are multiples of 16 in R1.
ALIGNED = {"OUT", "IN", "INNER", "D", "C", "R", "size", "stride", "token_stride", "head_stride"}


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
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return registers, stack, local


def products(capability: int) -> Iterator[Variant]:
    """Weights in block-fp8 or bf16, activations in bf16 or e4m3."""
    for x, w in (("bf16", "fp8e4nv"), ("fp8e4nv", "fp8e4nv"), ("bf16", "bf16")):
        most = block_fp8.most_rows(BYTES[x], blackwell=capability == 100)
        talls = [tall for tall in (16, 32, 64, 128) if tall <= most]
        groups = [(0, 1, False), (0, 4, False)]  # dense, whole or in parts
        if w == "fp8e4nv":  # experts of a rank of 8, of 16, or all; rows as they lie, or gathered
            counts = (32, 16, 256)[: cases(1, 3)]
            groups += [(count, 1, rows) for count in counts for rows in (False, True)]
        for tall, (count, splits, gathered) in product(talls, groups):
            types = {
                "x_ptr": f"*{x}",
                "w_ptr": f"*{w}",
                "y_ptr": "*fp32" if splits > 1 else "*bf16",
            }
            types |= dict.fromkeys(("x_scale_ptr", "w_scale_ptr"), "*fp32")
            types |= dict.fromkeys(("ends_ptr", "tokens_ptr"), "*i32")
            kinds = "e4m3.e4m3" if x == "fp8e4nv" else "bf16.bf16"
            fixed = {"BLOCK_T": tall, "SPLITS": splits, "GROUPS": count, "GATHERED": gathered}
            fixed |= {"STRIDED": count > 0 and block_fp8.strided(tall), "EVEN": True}
            fixed |= {"W_SCALED": w == "fp8e4nv", "X_SCALED": x == "fp8e4nv"}
            yield Variant(
                *(block_fp8._product, types, fixed),
                *block_fp8.launch(tall, BYTES[w], BYTES[x]),
                # Hopper's tensor cores, and weights that are loaded ahead.
                ptx=(rf"wgmma\.mma_async\S*{kinds}", r"cp\.async"),
            )


def others_of_products() -> Iterator[Variant]:
    for splits in range(2, 15):
        types = {"parts_ptr": "*fp32", "y_ptr": "*bf16"}
        yield Variant(block_fp8._add_up, types, {"PARTS": splits, "WIDTH": 1024})
    types = {"x_ptr": "*bf16", "q_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "count_ptr": "*i32"}
    for counted in (False, True):
        fixed = {"COUNTED": counted, "LARGEST": LARGEST, "SMALLEST": SMALLEST_AMAX}
        yield Variant(block_fp8._quantise, types, fixed, warps=1)


def attention(capability: int) -> Iterator[Variant]:
    """16 heads of a rank of 8, up to all 128; bf16, and fp32 for comparisons."""
    types = dict.fromkeys(("table_ptr", "lengths_ptr"), "*i64")
    types |= {"part_ptr": "*fp32", "sum_ptr": "*fp32", "scale": "fp32"}
    for kind, heads in product(("bf16", "fp32"), (8, 16, 32, 64, 128)):
        tall = mla.tile_heads(heads, BYTES[kind])
        rows, warps, stages = mla.launch(tall, BYTES[kind], blackwell=capability == 100)
        fixed = {"KEPT": 512, "ROTATED": 64, "SIZE": 64, "BLOCK_C": 512, "BLOCK_R": 64}
        fixed |= {"BLOCK_H": tall, "BLOCK_L": rows}
        own = types | dict.fromkeys(("q_ptr", "blocks_ptr"), f"*{kind}")
        yield Variant(mla._attend, own, fixed, warps, stages, ptx=(r"cp\.async",))
        own = types | {"out_ptr": f"*{kind}"}
        yield Variant(mla._combine, own, {"KEPT": 512, "BLOCK_C": 512})


def around_experts() -> Iterator[Variant]:
    types = dict.fromkeys(("tokens_ptr", "places_ptr", "ends_ptr", "count_ptr"), "*i32")
    types |= dict.fromkeys(("gate_up_ptr", "inner_ptr", "y_ptr"), "*bf16")
    types |= dict.fromkeys(("weights_ptr", "out_ptr"), "*fp32") | {"experts_ptr": "*i32"}
    yield Variant(experts._sort, types, {"ACTIVE": 8, "BLOCK": experts.SORT_BLOCK})
    for counted in (False, True):
        yield Variant(experts._gated, types, {"COUNTED": counted, "BLOCK": experts.WIDE})
    types |= {"shared_ptr": "*bf16"}
    for shared in (False, True):
        fixed = {"ACTIVE": 8, "BLOCK": experts.WIDE, "SHARED": shared}
        yield Variant(experts._combine, types, fixed)


def around_others() -> Iterator[Variant]:
    """Routing, norms and rotations: of hidden states, queries and latents."""
    types = dict.fromkeys(("logits_ptr", "bias_ptr", "weights_ptr", "scale", "eps"), "fp32")
    types |= {name: "*fp32" for name in types if name.endswith("ptr")}
    types |= dict.fromkeys(("rotation_ptr", "rotations_ptr", "weight_ptr"), "*fp32")
    types |= {"real_ptr": "*i1", "experts_ptr": "*i32", "slots_ptr": "*i64"}
    values = ("x_ptr", "part_ptr", "sum_ptr", "out_ptr", "latents_ptr", "cache_ptr")
    types |= dict.fromkeys(values, "*bf16")
    fixed = {"GROUPS": 8, "SIZE": 32, "KEPT": 4, "ACTIVE": 8, "BIASED": True, "SIGMOID": True}
    fixed |= {"NORMALISED": True, "BLOCK_G": 8, "BLOCK_S": 32, "BLOCK_A": 8}
    for masked in (False, True):
        yield Variant(routing._route, types, fixed | {"MASKED": masked}, warps=1)
    for size, added in ((8192, True), (8192, False), (2048, False)):
        warps = 8 if size > 2048 else 4
        yield Variant(fused._norm, types, {"ADDED": added, "BLOCK": size}, warps)
    yield Variant(fused._rotate, types, {"BLOCK_H": 16, "BLOCK_P": 32})
    yield Variant(fused._latents, types, {"BLOCK_C": 512, "BLOCK_P": 32})


def main() -> None:
    for capability in CAPABILITIES:
        of_both = chain(others_of_products(), around_experts(), around_others())
        for variant in chain(of_both, attention(capability), products(capability)):
            variant.build(capability)


if __name__ == "__main__":
    main()
