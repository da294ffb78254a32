"""R1's steps on eight ranks, run on the meta device by the engine's own code."""

import pytest

from benchmarks import simulate
from benchmarks.simulate import Counts, Simulation


def counted(attention: str, batch: int, *kinds: str) -> dict[str, Counts]:
    drafts = bool({"verify", "draft"}.intersection(kinds))
    with simulate.ranks_without_network(8):
        simulation = Simulation.of(simulate.run_of(8, attention, batch, mtp=drafts))
        return {kind: simulation.step(kind, batch) for kind in kinds}


@pytest.mark.slow
def test_the_steps_of_data_parallel_ranks() -> None:
    counts = counted("dp", 512, "decode", "mixed", "prompt", "idle")
    for kind, count in counts.items():
        assert count.collectives == {
            "_allgather_base_": 61 + 1 + 2,  # tokens a layer and of the embedding; scores
            "_reduce_scatter_base_": 61 + 1,
        }, kind
    decode = counts["decode"]
    assert decode.kernels.total() <= MOST_KERNELS
    assert counts["mixed"].kernels.total() <= MOST_KERNELS < counts["prompt"].kernels.total()
    assert decode.moved.total() <= MOST_BYTES
    assert counts["idle"].kernels["attend"] == 0
    assert counts["idle"].kernels.total() < decode.kernels.total()


@pytest.mark.slow
def test_the_steps_of_tensor_parallel_ranks() -> None:
    counts = counted("tp", 64, "decode", "verify", "draft")
    for kind, layers in (("decode", 61), ("verify", 61), ("draft", 1)):
        assert counts[kind].collectives == {"allreduce_": 2 * layers + 1, "_allgather_base_": 1}
    assert counts["decode"].kernels.total() <= MOST_KERNELS
    assert counts["verify"].kernels == counts["decode"].kernels


MOST_KERNELS, MOST_BYTES = 1200, 8e9  # of a decode step, beside weights and KV cache
