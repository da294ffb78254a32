"""DeepSeek-R1's configuration, from its config.json at `benchmark.REVISION`."""

from ref_dsinfer.config import ModelConfig, Yarn

R1 = ModelConfig(
    vocab_size=129_280,
    hidden=7168,
    dense_intermediate=18_432,
    expert_intermediate=2048,
    layers=61,
    dense_layers=3,
    heads=128,
    q_lora=1536,
    kv_lora=512,
    nope_dim=128,
    rope_dim=64,
    v_dim=128,
    experts=256,
    shared_experts=1,
    active_experts=8,
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
