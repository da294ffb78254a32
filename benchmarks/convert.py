"""Peak memory of `ref_dsinfer.convert` beside the largest file it writes, on a made checkpoint.

The checkpoint is made in a temporary directory and removed again. The peak is the kernel's
high-water mark of the converting process, mapped pages of the source included.

    python benchmarks/convert.py [--gigabytes 4] [--model-parallel 4]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

LIMIT = 1.5  # peak over the largest rank's file
HIDDEN = 2048
INNER = 1024  # of an expert
LAYERS = 4


def configuration(experts: int) -> dict:
    """A model of which nearly all is experts, as R1 is."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": 16384,
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * INNER,
        "moe_intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "first_k_dense_replace": 0,
        "num_attention_heads": 16,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "max_position_embeddings": 4096,
    }


def layer_shapes(layer: int, experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one layer, as the hub has them."""
    name = f"model.layers.{layer}"
    heads = 16
    yield f"{name}.self_attn.q_a_proj.weight", (1536, HIDDEN)
    yield f"{name}.self_attn.q_b_proj.weight", (heads * 192, 1536)
    yield f"{name}.self_attn.kv_a_proj_with_mqa.weight", (576, HIDDEN)
    yield f"{name}.self_attn.kv_b_proj.weight", (heads * 256, 512)
    yield f"{name}.self_attn.o_proj.weight", (HIDDEN, heads * 128)
    for expert in ("shared_experts", *(f"experts.{number}" for number in range(experts))):
        yield f"{name}.mlp.{expert}.gate_proj.weight", (INNER, HIDDEN)
        yield f"{name}.mlp.{expert}.up_proj.weight", (INNER, HIDDEN)
        yield f"{name}.mlp.{expert}.down_proj.weight", (HIDDEN, INNER)


def make(folder: Path, gigabytes: float) -> None:
    """Write a bf16 checkpoint of about this size, a layer to a file."""
    import torch

    from ref_dsinfer import checkpoint, weight_files
    from ref_dsinfer.files import write_json

    expert_bytes = 3 * HIDDEN * INNER * 2
    experts = max(16, round(gigabytes * 1e9 / LAYERS / expert_bytes / 8) * 8)
    write_json(folder / "config.json", configuration(experts))
    embedding = (16384, HIDDEN)
    files: dict[str, list[tuple[str, tuple[int, ...]]]] = {
        "model-00000.safetensors": [
            ("model.embed_tokens.weight", embedding),
            ("lm_head.weight", embedding),
        ]
    }
    for layer in range(LAYERS):
        files[f"model-{layer + 1:05}.safetensors"] = list(layer_shapes(layer, experts))
    for name, tensors in files.items():
        entries = [checkpoint.Entry(tensor, "BF16", shape) for tensor, shape in tensors]
        zeros = ((tensor, torch.zeros(shape, dtype=torch.bfloat16)) for tensor, shape in tensors)
        checkpoint.write(folder / name, entries, zeros)
    index = {tensor: name for name, tensors in files.items() for tensor, _ in tensors}
    write_json(folder / weight_files.INDEX, {"metadata": {}, "weight_map": index})


def main() -> None:
    """Make, convert in a child, print the figures; exit code 1 if the peak is over the limit."""
    parser = argparse.ArgumentParser(description="peak memory of ref_dsinfer.convert")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--model-parallel", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "hf", Path(name) / "out"
        source.mkdir()
        make(source, args.gigabytes)
        size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        command = [sys.executable, "-m", "ref_dsinfer.convert", "--model-path", str(source)]
        command += ["--output-path", str(target), "--model-parallel", str(args.model_parallel)]
        subprocess.run(command, check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        largest = max(file.stat().st_size for file in target.glob("*.safetensors"))
    ratio = peak / largest
    print(f"checkpoint {size / 1e9:.2f} GB, largest rank file {largest / 1e9:.2f} GB")
    print(f"peak memory of convert {peak / 1e9:.2f} GB, {ratio:.2f}x (limit {LIMIT}x)")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
