"""The ranks of one run and their collectives. torchrun starts them; rank 0 leads.

Every rank schedules the same steps of the same requests. MLPs, experts and vocabulary are split
over all ranks; attention in one of two ways, between which three collectives of `Ranks` differ:

- tp, tensor-parallel: every rank runs all tokens with its part of the heads, so all ranks have the
  same KV cache. Hidden states are equal on all ranks bit for bit, since an all-reduce gives each
  rank the same sum.
- dp, data-parallel: every rank runs the tokens of its own sequences with all heads, and caches only
  these. Around what is split, tokens are all-gathered, and partial results reduce-scattered. All
  ranks know from the schedule how many tokens each has, and pad to the largest count.

Shape letters: T this rank's tokens, G those of all ranks, N sequences, V vocabulary.
"""

import contextlib
import logging
import os
import pickle
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import entrypoint
from errors import LaunchError, ParallelError, UsageError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.keys import FP8_BLOCK
from ref_dsinfer.members import Member, require_same
from ref_dsinfer.network import address_towards, check_interfaces, use_interface
from ref_dsinfer.presence import Presence
from ref_dsinfer.symmetric import SymmetricMemory

log = logging.getLogger(__name__)
# Followers wait in a broadcast while rank 0 has nothing to do, however long that is.
IDLE_TIMEOUT = timedelta(days=365)
# torchrun starts all ranks at once, and before the rendezvous they only read options and data.
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
WARN_AFTER = timedelta(seconds=20)  # of waiting at the rendezvous
SHUTDOWN_S = 10.0  # for process groups to be destroyed
_rendezvous_number = count()  # of this process: each has a store of its own


@dataclass(frozen=True)
class RankInfo:
    """What torchrun tells this process; without torchrun it is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine; also the number of its GPU
    local_world_size: int = 1  # ranks on this machine

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "RankInfo":
        """Read torchrun's variables. Raises: LaunchError where some are missing."""
        if "WORLD_SIZE" not in environment:
            return cls()
        try:
            return cls(
                rank=int(environment["RANK"]),
                world_size=int(environment["WORLD_SIZE"]),
                local_rank=int(environment["LOCAL_RANK"]),
                local_world_size=int(environment["LOCAL_WORLD_SIZE"]),
            )
        except KeyError as error:
            raise LaunchError(
                f"WORLD_SIZE is set, but not {error.args[0]}: start the script with torchrun"
            ) from error
        except ValueError as error:
            raise LaunchError(
                f"torchrun's variables are no numbers ({error}): start the script with torchrun"
            ) from error


def check(config: ModelConfig, world_size: int, attention: str = "tp") -> None:
    """Refuse a world size that the model's dimensions are no multiple of.

    Needs the configuration only, so that every rank can check it before the rendezvous.
    Raises: ParallelError.
    """
    shared = config.shared_experts * config.expert_intermediate
    sizes = {
        "vocabulary entries": config.vocab_size,
        "routed experts": config.experts,
        "dense MLP columns": config.dense_intermediate,
        "shared expert columns": shared,
    }
    if attention == "tp":
        sizes = {"attention heads": config.heads} | sizes
    for what, size in sizes.items():
        if size % world_size:
            raise ParallelError(f"{size} {what} can't be split over {world_size} processes")
    if not config.fp8 or world_size == 1:
        return
    blocks = {
        "dense MLP columns": config.dense_intermediate,
        "shared expert columns": shared,
    }
    if attention == "tp":
        blocks |= {
            "query rows": config.heads * (config.nope_dim + config.rope_dim),
            "key and value rows": config.heads * (config.nope_dim + config.v_dim),
            "attention outputs": config.heads * config.v_dim,
        }
    for what, size in blocks.items():
        if size // world_size % FP8_BLOCK:
            raise ParallelError(
                f"{size} {what} over {world_size} processes leave {size // world_size} each, which"
                f" cuts fp8 blocks of {FP8_BLOCK}"
            )


def choose_device(name: str, info: RankInfo) -> torch.device:
    """The device of this process; `name` is auto, cpu or cuda. Raises: UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU; use --device cpu, or check nvidia-smi")
    if info.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"{info.local_world_size} processes on a machine with {torch.cuda.device_count()} GPUs:"
            " lower --nproc_per_node"
        )
    return torch.device("cuda", info.local_rank)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def _rendezvous(info: RankInfo, settings: Mapping[str, str]) -> tuple[dist.Store, Presence]:
    """torchrun's store, once all ranks have met in it, and the watch over them. Raises as `meet`.

    torchrun ends the ranks of its own machine when one fails, but not those of other machines.
    """

    def open_store() -> dist.Store:
        common, _, _ = next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        return dist.PrefixStore(str(next(_rendezvous_number)), common)

    leader = os.environ.get("MASTER_ADDR", "")
    store, presence, _ = meet(open_store, info, leader, settings, RENDEZVOUS_TIMEOUT)
    return store, presence


def meet(
    open_store: Callable[[], dist.Store],
    info: RankInfo,
    leader: str,
    settings: Mapping[str, str],
    limit: timedelta,
) -> tuple[dist.Store, Presence, str]:
    """A store, once all ranks are registered in it, the watch over them, and this machine's address
    on the network that they share (empty where all are on one machine).

    `leader`: the first machine's name or address.
    Raises: LaunchError naming the missing ranks, or one whose `settings` are not rank 0's.
    """
    keys = [f"here/{rank}" for rank in range(info.world_size)]
    first = info.rank - info.local_rank
    if info.rank == first:
        log.setLevel(logging.WARNING)  # on every machine, not on rank 0's alone
    try:
        store = open_store()
        address = (address_towards(leader) or "") if first else ""
        process = f"process {os.getpid()} on {socket.gethostname()}"
        store.set(keys[info.rank], Member(process, address, settings).to_json())
        with contextlib.suppress(dist.DistStoreError):
            store.wait(keys, WARN_AFTER)
        if missing := _missing(store, keys):
            log.warning("still missing at rendezvous: %s", missing)
            with contextlib.suppress(dist.DistStoreError):
                store.wait(keys, limit - WARN_AFTER)
            missing = _missing(store, keys)
        members = [] if missing else [Member.from_json(store.get(key)) for key in keys]
    except dist.DistError as error:
        raise LaunchError(
            f"rank {info.rank} can't reach rank 0 at {leader} (see its output):"
            f" {str(error).splitlines()[0]}"
        ) from error
    if missing:
        raise LaunchError(f"missing at rendezvous after {limit.total_seconds():g} s: {missing}")
    require_same(members)
    elsewhere = next((member.address for member in members if member.address), "")
    if elsewhere and not first:  # this machine's own name may lead to another of its addresses
        address = leader = address_towards(elsewhere) or leader
    if elsewhere:
        use_interface(address)
    machine = range(first, first + info.local_world_size)
    names = [member.process for member in members]
    presence = Presence(info.rank, machine, names, store, limit.total_seconds(), leader)
    return store, presence, address


def _missing(store: dist.Store, keys: list[str]) -> str:
    """The ranks that are not registered yet; empty where all are."""
    missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
    if not missing:
        return ""
    return f"rank {', '.join(missing)} of {len(keys)} (see the output on its machine)"


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _collective(method: _Method) -> _Method:
    """A method of Ranks that all ranks must call. It raises EngineError where a rank is lost."""

    @wraps(method)
    def call(ranks: "Ranks", *args: Any) -> Any:
        try:
            return method(ranks, *args)
        except RuntimeError as error:
            if ranks.presence and (loss := ranks.presence.loss()):
                raise loss from error
            raise

    return cast(_Method, call)


class Ranks:
    """This rank and its collectives with the others, for tensor-parallel attention.

    All of them do nothing in a world of one.
    """

    def __init__(
        self,
        info: RankInfo,
        device: torch.device,
        symmetric_memory: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Initialise the process groups; every rank must call this. On the meta device, where a
        run is only calculated, there are none. `settings`: what must be the same on all ranks.

        `symmetric_memory`: GPUs of one machine all-reduce small tensors in it, if they can.
        Raises: LaunchError where ranks are missing or differ, or a variable names no network
        interface.
        """
        self.rank, self.world_size, self.device = info.rank, info.world_size, device
        self.local_world_size = info.local_world_size
        self.presence: Presence | None = None
        self._symmetric: SymmetricMemory | None = None
        if self.world_size == 1 or device.type == "meta":
            return
        on_gpu = device.type == "cuda"
        check_interfaces(on_gpu)
        if on_gpu:
            torch.cuda.set_device(device)
        store, self.presence = _rendezvous(info, settings or {})
        self._init_groups(store)
        one_machine = self.local_world_size == self.world_size
        if symmetric_memory and on_gpu and one_machine and self.dp_size == 1:
            self._init_symmetric()

    @_collective
    def _init_groups(self, store: dist.Store) -> None:
        on_gpu = self.device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            device_id=self.device if on_gpu else None,
            store=store,
            rank=self.rank,
            world_size=self.world_size,
        )
        self._control = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)

    @_collective
    def _init_symmetric(self) -> None:
        """Set up symmetric memory, unless a rank finds that it does not work here."""
        problem = ""
        memory: SymmetricMemory | None = None
        try:
            memory = SymmetricMemory(self.device, self.world_size)
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
        if self.minimum(memory is not None) and memory:
            memory.multicast = bool(self.minimum(memory.multicast))
            problem = "" if memory.is_right(self.rank) else "its sums are wrong"
        if self.minimum(not problem):
            self._symmetric = memory
        else:
            log.warning("all-reduce by NCCL, not in symmetric memory: %s", problem or "other ranks")

    @property
    def attn_tp_size(self) -> int:
        """Ranks over which the attention's heads are split."""
        return self.world_size

    @property
    def dp_size(self) -> int:
        """Ranks over which sequences are split, each with a KV cache of its own."""
        return 1

    @property
    def dp_rank(self) -> int:
        """Which of these ranks this one is."""
        return 0

    def reduce_heads(self, part_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum over all heads, from the sum over this rank's."""
        return self.all_reduce(part_TD, dtype)

    def gather_tokens(self, x_T: Tensor, width: int) -> Tensor:
        """The tokens of all data-parallel ranks [G, ...], each rank's padded with zeros to
        `width`."""
        return x_T

    def scatter_tokens(self, part_GD: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """The reverse for partial sums: their sum over ranks for this rank's `count` tokens,
        [T, D]."""
        return self.all_reduce(part_GD, dtype)

    @_collective
    def all_reduce(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum over ranks in fp32 and round once to `dtype`; the same bits on all ranks."""
        if self.world_size > 1:
            if self._symmetric and (total := self._symmetric.all_reduce(part, dtype)) is not None:
                return total
            part = part.float().contiguous()
            dist.all_reduce(part)
        return part.to(dtype)

    @_collective
    def gather_columns(self, part_NV: Tensor) -> Tensor:
        """All-gather along the last dimension: [N, V / world size] to [N, V]."""
        if self.world_size == 1:
            return part_NV
        count, size = part_NV.shape
        whole = part_NV.new_empty(self.world_size * count, size)
        dist.all_gather_single(whole, part_NV.contiguous())
        return whole.view(self.world_size, count, size).transpose(0, 1).reshape(count, -1)

    @_collective
    def broadcast_ids(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, on every rank; all must pass equally many."""
        if self.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(tensor, 0, group=self._control)
        return tensor.tolist()

    @_collective
    def minimum(self, number: int) -> int:
        """The smallest of the ranks' numbers, on every rank."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MIN, group=self._control)
        return int(tensor)

    @_collective
    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank; None costs one small message. Waits for rank 0."""
        if self.world_size == 1:
            return value
        data = pickle.dumps(value) if self.rank == 0 and value is not None else b""
        [size] = self.broadcast_ids([len(data)])
        if not size:
            return None
        buffer = torch.frombuffer(bytearray(data or size), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self._control)
        return value if self.rank == 0 else pickle.loads(buffer.numpy().tobytes())

    @_collective
    def barrier(self) -> None:
        """Wait until every rank is here, however long one of them loads."""
        if self.world_size > 1:
            dist.barrier(group=self._control)

    def shutdown(self) -> None:
        """Destroy the process groups; no collective may be called afterwards.

        NCCL waits for all that still uses its communicators, such as a CUDA graph, perhaps forever.
        A run does not: after SHUTDOWN_S the groups are left to the end of the process.
        """
        if not self.presence:
            return
        self.presence.leave()
        self._symmetric = None
        thread = threading.Thread(target=dist.destroy_process_group, daemon=True)
        thread.start()
        thread.join(SHUTDOWN_S)
        if thread.is_alive():
            entrypoint.exit_at_once("the process groups could not be destroyed")


class DataParallelRanks(Ranks):
    """The same for data-parallel attention."""

    @property
    def attn_tp_size(self) -> int:
        return 1

    @property
    def dp_size(self) -> int:
        return self.world_size

    @property
    def dp_rank(self) -> int:
        return self.rank

    def reduce_heads(self, part_TD: Tensor, dtype: torch.dtype) -> Tensor:
        return part_TD.to(dtype)

    @_collective
    def gather_tokens(self, x_T: Tensor, width: int) -> Tensor:
        if missing := width - len(x_T):  # else it would be a copy
            x_T = F.pad(x_T, (0, 0) * (x_T.dim() - 1) + (0, missing))
        x_G = x_T.new_empty(self.world_size * width, *x_T.shape[1:])
        dist.all_gather_single(x_G, x_T.contiguous())
        return x_G

    @_collective
    def scatter_tokens(self, part_GD: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        part_GD = part_GD.float().contiguous()
        sum_TD = part_GD.new_empty(len(part_GD) // self.world_size, part_GD.shape[1])
        dist.reduce_scatter_single(sum_TD, part_GD)
        return sum_TD[:count].to(dtype)


ATTENTION = {"tp": Ranks, "dp": DataParallelRanks}


def init_ranks(
    info: RankInfo,
    device: torch.device,
    attention: str,
    symmetric_memory: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Ranks:
    """Initialise this rank for one of ATTENTION; in a world of one both are plain attention."""
    kind = ATTENTION[attention] if info.world_size > 1 else Ranks
    return kind(info, device, symmetric_memory, settings)
