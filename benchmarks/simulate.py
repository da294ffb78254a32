"""What a step of DeepSeek-R1 does on one rank: kernels, bytes and collectives, counted.

The engine's own code runs with R1's configuration on torch's meta device, where tensors have shapes
and no values: counts are exact, and there are no times. Bytes are those of the tensors that a
kernel is given, so a gather of a few rows counts in full what it returns and not what it reads
from. Experts' buffers have room for every pair of token and expert; of these a rank's kernels touch
as many as it has experts, on average.

    python benchmarks/simulate.py [--ranks 8] [--attention dp] [--batch 64 512] [--explain]
"""

import argparse
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.r1 import R1
from ref_dsinfer import memory
from ref_dsinfer.attention import Attention
from ref_dsinfer.batch import Batch, Decodes, Prefill
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.layers import Head
from ref_dsinfer.model import Model
from ref_dsinfer.moe import Gate
from ref_dsinfer.sampler import greedy
from ref_dsinfer.scheduler import STEP_TOKENS, ceil_div

META = torch.device("meta")
BLOCK, CONTEXT = 64, 4096  # tokens
KINDS = ("decode", "mixed", "prompt", "idle", "verify", "draft")
# Operators that return memory without writing it.
UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass
class Counts:
    """What one step did on a rank."""

    # Name of each kernel launched, and the bytes it moves beside weights and KV cache.
    launches: list[tuple[str, int]] = field(default_factory=list)
    collectives: Counter[str] = field(default_factory=Counter)  # calls by name
    exchanged: Counter[str] = field(default_factory=Counter)  # bytes of their largest tensors
    peak: int = 0  # bytes of temporary tensors that were alive at once

    @property
    def kernels(self) -> Counter[str]:
        """Launches by name."""
        return Counter(name for name, _ in self.launches)

    @property
    def moved(self) -> Counter[str]:
        """Bytes by name."""
        total: Counter[str] = Counter()
        for name, size in self.launches:
            total[name] += size
        return total

    def seconds(self, bandwidth: float, least: float) -> float:
        """Of all kernels at so many bytes a second, but `least` seconds for each."""
        return sum(max(least, size / bandwidth) for _, size in self.launches)


class Trace(TorchDispatchMode):
    """Counts operators and collectives while it is entered; `kernel` counts Triton's."""

    def __init__(self, resident: list[Tensor], pairs: int, local: float) -> None:
        """`resident`: weights and KV cache. Tensors of `pairs` rows are used to a part of
        `local`."""
        super().__init__()
        self.counts = Counts()
        self._resident = {_storage(tensor) for tensor in resident}
        self._pairs, self._local = pairs, local
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        namespace, name = operator._schema.name.split("::")
        outs = {argument.name for argument in operator._schema.arguments if argument.is_out}
        read = {key: value for key, value in (kwargs or {}).items() if key not in outs}
        inputs, outputs = _tensors((args, read)), _tensors(result)
        for tensor in outputs:
            self._keep(tensor)
        if namespace == "c10d":
            self.counts.collectives[name] += 1
            self.counts.exchanged[name] += max(tensor.nbytes for tensor in inputs)
        elif (
            namespace == "aten"
            and name not in UNWRITTEN
            and not _is_view(operator, inputs, outputs)
        ):
            self.counts.launches.append((name, self._bytes(name, inputs, outputs)))
        return result

    def kernel(self, function: Any, *args: Any, **options: Any) -> None:
        """In the place of a Triton kernel's launch."""
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__.lstrip('_')}"
        named = dict(zip(function.arg_names, args, strict=False)) | options
        # What a variant does not read may be any tensor: each counts once.
        keys = {id(value): key for key, value in reversed(named.items())}
        parts = {key: named[key] for key in keys.values() if isinstance(named[key], Tensor)}
        size = sum(_used(key, named) * self._size(tensor) for key, tensor in parts.items())
        self.counts.launches.append((name, round(size)))

    def _bytes(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
        written = sum(map(self._size, outputs))
        if name in ("index", "embedding", "gather", "index_select"):  # read what they return
            return 2 * written
        if name == "index_put_":
            return 2 * self._size(inputs[-1])
        return written + sum(map(self._size, inputs))

    def _size(self, tensor: Tensor) -> int:
        """Bytes of a tensor, each once however often it is repeated in it."""
        if _storage(tensor) in self._resident:
            return 0
        size = min(tensor.nbytes, tensor.untyped_storage().nbytes())
        return int(size * self._local) if tensor.shape[:1] == (self._pairs,) else size

    def _keep(self, tensor: Tensor) -> None:
        """Count a tensor's memory while it is alive."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._resident:
            return
        self._alive[key] = storage.nbytes()
        weakref.finalize(storage, self._alive.pop, key, None)
        self.counts.peak = max(self.counts.peak, sum(self._alive.values()))


def _used(key: str, named: dict[str, Any]) -> float:
    """The part of a kernel's argument that is used: of decode attention's, which have room for the
    longest sequence, what CONTEXT needs. One chunk is no part."""
    if "chunk" not in named:
        return 1
    if key == "table_ptr":
        return ceil_div(CONTEXT, BLOCK) / named["columns"]
    if key in ("part_ptr", "sum_ptr"):
        chunks = ceil_div(CONTEXT, named["chunk"])
        return chunks / named["parts"] if chunks > 1 else 0
    return float(key != "out_ptr" or (named["chunk"] >= CONTEXT) == ("columns" in named))


def _is_view(operator: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether an operator only returns other views of its arguments."""
    known = {_storage(tensor) for tensor in inputs}
    unchanged = not operator._schema.is_mutable
    return unchanged and all(_storage(tensor) in known for tensor in outputs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def ranks_without_network(world_size: int) -> Iterator[None]:
    """A process group of so many ranks, of which only this one exists."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if world_size == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def kernels_counted(count: Callable[..., None]) -> Iterator[None]:
    """Triton's kernels are passed to `count` instead of being launched."""
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        count(function, *args, **options)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = launch


@dataclass(frozen=True)
class Simulation:
    """One rank's model, and the steps that it can run."""

    run: memory.Run
    model: Model
    cache: PagedCache

    @classmethod
    def of(cls, run: memory.Run) -> "Simulation":
        from ref_dsinfer.kernels import dense

        model = memory.on_meta(run)
        model.rotations = torch.empty(
            run.length, run.config.rope_dim // 2, dtype=torch.complex64, device=META
        )
        for module in model.modules():
            if isinstance(module, Attention):
                module.prepare()
            elif isinstance(module, Gate | Head):  # as `layers.narrow` leaves R1's
                module.weight.data = module.weight.bfloat16()
        cache = PagedCache(run.config, 1024, BLOCK, run.dtype, META)
        dense.arrivals(META)  # made once in a process
        return cls(run, model, cache)

    @torch.inference_mode()
    def step(self, kind: str, batch: int) -> Counts:
        """Run a step of `batch` sequences, of all ranks, and count what this rank does.

        `kind`, one of KINDS: a decode of each; the same beside a prompt, whose tokens are rows of
        the same graph (mixed); a long prompt, run eagerly, that fills the step; a decode on other
        ranks only (idle); a decode with drafts (verify), or one pass of the MTP layer over as many
        tokens (draft).
        """
        dp_size = self.model.ranks.dp_size
        sequences = ceil_div(batch, dp_size)
        tokens = sequences
        if kind in ("verify", "draft"):
            tokens = 4 * sequences
        elif kind in ("mixed", "prompt"):
            tokens = max(ceil_div(STEP_TOKENS, dp_size), sequences)
        own = 0 if kind == "idle" else tokens
        prefills = (Prefill(own, _ids(CONTEXT)),) if kind == "prompt" else ()
        columns = ceil_div(self.run.length, BLOCK)
        see = Decodes(_ids(own, columns), _ids(own)) if own and not prefills else None
        real_G = torch.empty(dp_size * tokens, dtype=torch.bool, device=META)
        step = Batch(_ids(own), _ids(own), _ids(own), see, prefills, tokens, real_G)
        config = self.run.config
        pairs = dp_size * tokens * config.active_experts
        local = 1 / self.run.world_size
        trace = Trace([*self._resident(), *_tensors(vars(step))], pairs, local)
        hidden_TD = torch.empty(own, config.hidden, dtype=self.run.dtype, device=META)
        with kernels_counted(trace.kernel), trace:
            if kind == "draft":
                hidden_TD = self.model.draft(step, hidden_TD, self.cache)
            else:
                hidden_TD = self.model(step, self.cache)
            sampled = {"verify": tokens, "prompt": 1}.get(kind, sequences)
            hidden_GD = self.model.ranks.gather_tokens(hidden_TD[:sampled], sampled)
            greedy(self.model.logits(hidden_GD), self.model.ranks)
        return trace.counts

    def _resident(self) -> list[Tensor]:
        unfolded = [
            tensor
            for module in self.model.modules()
            if isinstance(module, Attention)
            for tensor in (module.unfold, module.w_HKC, module.w_HWC)
        ]
        return [*self.model.parameters(), self.model.rotations, self.cache.blocks(0), *unfolded]


def _ids(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device=META)


def run_of(ranks: int, attention: str, batch: int, mtp: bool = False) -> memory.Run:
    """R1 on so many ranks, with room for `batch` sequences."""
    return memory.Run(
        replace(R1, mtp=mtp), torch.bfloat16, ranks, attention, 32_768, batch, STEP_TOKENS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--attention", choices=("tp", "dp"), action="append")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--explain", action="store_true", help="kernels and bytes by name")
    args = parser.parse_args()
    print("rank 0 of", args.ranks, "- bytes are those beyond weights and KV cache")
    print("attention  step    batch  kernels  moved GB  collectives  exchanged GB  peak GB")
    with ranks_without_network(args.ranks):
        for attention in args.attention or ("tp", "dp"):
            drafts = attention == "tp"  # which dp doesn't support
            simulation = Simulation.of(run_of(args.ranks, attention, max(args.batch), mtp=drafts))
            for batch in args.batch:
                for kind in KINDS if drafts else KINDS[:4]:
                    if kind == "idle" and drafts:
                        continue
                    counts = simulation.step(kind, batch)
                    print(
                        f"{attention:9}  {kind:6}  {batch:5}  {counts.kernels.total():7}"
                        f"  {counts.moved.total() / 1e9:8.2f}  {counts.collectives.total():11}"
                        f"  {counts.exchanged.total() / 1e9:12.3f}  {counts.peak / 1e9:7.2f}"
                    )
                    if args.explain:
                        moved = counts.moved
                        for name, launches in counts.kernels.most_common():
                            print(f"    {name:40}  {launches:6}  {moved[name] / 1e9:8.3f} GB")


if __name__ == "__main__":
    main()
