"""Compiles the kernels for an H100, which needs none, and looks at what they take of it."""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ref_dsinfer.kernels import block_fp8, mla

SHARED = 227 * 1024  # bytes a program may have


def build(
    kernel: triton.JITFunction, types: dict[str, str], warps: int, stages: int, **fixed: int
) -> str:
    """The compiled kernel. Pointers and sizes are as aligned as R1's are."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in fixed else types.get(n, "i32") for n in names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(names)
        if signature[name].startswith("*") or name in ("OUT", "IN")
    }
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    built = triton.compile(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    assert built.metadata.shared <= SHARED, (kernel, fixed, built.metadata.shared)
    return built.asm["ptx"]


def products() -> None:
    for kind, size in (("bf16", 2), ("fp8e4nv", 1)):
        for tall in (16, 64, 128):
            types = dict.fromkeys(("x_ptr", "y_ptr"), "*bf16")
            types |= {"x_ptr": f"*{kind}", "w_ptr": "*fp8e4nv", "w_scale_ptr": "*fp32"}
            types |= {"x_scale_ptr": "*fp32", "ends_ptr": "*i32", "tokens_ptr": "*i64"}
            warps, stages = block_fp8.launch(tall, weight_bytes=1, x_bytes=size)
            ptx = build(
                *(block_fp8._product, types, warps, stages),
                BLOCK_T=tall,
                SPLITS=1,
                GROUPS=32,
                GATHERED=True,
                W_SCALED=True,
                X_SCALED=size == 1,
                EVEN=True,
            )
            kinds = "e4m3.e4m3" if size == 1 else "bf16.bf16"
            assert re.search(rf"wgmma\.mma_async\S*{kinds}", ptx), "no Hopper tensor cores"
            assert "cp.async" in ptx, "weights are not loaded ahead"


def attention() -> None:
    for tall in (16, 64):
        types = dict.fromkeys(("q_ptr", "blocks_ptr"), "*bf16")
        types |= dict.fromkeys(("table_ptr", "lengths_ptr"), "*i64")
        types |= {"part_ptr": "*fp32", "sum_ptr": "*fp32", "scale": "fp32"}
        rows, warps, stages = mla.launch(tall, item_bytes=2)
        ptx = build(
            *(mla._attend, types, warps, stages),
            KEPT=512,
            ROTATED=64,
            SIZE=64,
            PARTS=4,
            BLOCK_H=tall,
            BLOCK_L=rows,
            BLOCK_C=512,
            BLOCK_R=64,
        )
        assert "cp.async" in ptx, "latents are not loaded ahead"


if __name__ == "__main__":
    products()
    attention()
