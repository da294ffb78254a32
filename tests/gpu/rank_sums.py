"""Sums over two GPUs in symmetric memory, by each of its algorithms, beside NCCL's and as a CUDA
graph. What each rank of test_ranks runs under torchrun."""

import torch

import entrypoint
from ref_dsinfer import symmetric
from ref_dsinfer.parallel import RankInfo, Ranks, choose_device


def main() -> None:
    info = RankInfo.from_environment()
    ranks = Ranks(info, choose_device("cuda", info), symmetric_memory=True)
    memory = ranks._symmetric
    assert memory, "no symmetric memory"
    generator = torch.Generator().manual_seed(info.rank)
    for multicast in {False, memory.multicast}:
        memory.multicast = multicast
        for rows in (1, 7, 64):
            part = torch.randn(rows, 7168, generator=generator).to(ranks.device).bfloat16()
            size = part.numel() * 4
            assert symmetric.algorithm(size, info.world_size, multicast)
            sums = [ranks.all_reduce(part, dtype) for dtype in (torch.float32, torch.bfloat16)]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                replayed = ranks.all_reduce(part, torch.float32)
            for _ in range(3):
                graph.replay()
            ranks._symmetric = None
            expected = ranks.all_reduce(part, torch.float32)
            ranks._symmetric = memory
            # Of two numbers there is one sum, whoever adds them up.
            assert torch.equal(sums[0], expected)
            assert torch.equal(replayed, expected)
            assert torch.equal(sums[1], expected.bfloat16())
            torch.cuda.synchronize()
            graph.reset()
    ranks.shutdown()


if __name__ == "__main__":
    entrypoint.run(main)
