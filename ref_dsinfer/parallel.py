"""The processes of one run. torchrun starts them; rank 0 leads.

Every rank schedules the same steps of the same requests. MLPs, experts and vocabulary are split
over ranks; attention in one of two ways, which the model sees as three calls of `Ranks`:

- tp, tensor-parallel: every rank runs all tokens with its part of the heads, so the cache is on all
  ranks alike. Hidden states are whole on each, and equal bit for bit, since a reduction gives all
  ranks the same sum.
- dp, data-parallel: every rank runs the tokens of its own sequences with all heads, so the cache is
  the sum of all ranks'. Around what is split, tokens are gathered from all ranks, and the sums of
  partial results scattered to them. All ranks know from the schedule how many tokens each has, and
  pad theirs to the largest count.

Shape letters: T this rank's tokens, G those of all ranks, N sequences, V vocabulary.
"""

import contextlib
import logging
import os
import pickle
import socket
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

from errors import LaunchError, ParallelError, UsageError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.keys import FP8_BLOCK
from ref_dsinfer.network import check_interfaces
from ref_dsinfer.presence import Presence

log = logging.getLogger(__name__)
# Followers sit in a broadcast while rank 0 has nothing to do, however long that is.
IDLE_TIMEOUT = timedelta(days=365)
# torchrun starts all ranks at once, and before they meet they only read options and data.
MEET_TIMEOUT = timedelta(minutes=5)
NEWS_AFTER = timedelta(seconds=20)  # of waiting for others
_meetings = count()  # of this process


@dataclass(frozen=True)
class Place:
    """Where this process stands, from torchrun's environment; a lone process is rank 0 of 1."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine: which GPU it takes
    local_world: int = 1  # on this machine: how many share its cores

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """Read torchrun's variables. Errors: LaunchError if they are incomplete."""
        if "WORLD_SIZE" not in environment:
            return cls()
        try:
            return cls(
                rank=int(environment["RANK"]),
                world=int(environment["WORLD_SIZE"]),
                local_rank=int(environment["LOCAL_RANK"]),
                local_world=int(environment["LOCAL_WORLD_SIZE"]),
            )
        except (KeyError, ValueError) as error:
            raise LaunchError(f"WORLD_SIZE is set but {error}: start with torchrun") from error


def check(config: ModelConfig, world: int, attention: str = "tp") -> None:
    """Refuse to split a model that does not divide.

    Needs the configuration only, so every rank finds out by itself before it meets the others.
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
        if size % world:
            raise ParallelError(f"{size} {what} can't be split over {world} processes")
    if not config.fp8 or world == 1:
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
        if size // world % FP8_BLOCK:
            raise ParallelError(
                f"{size} {what} over {world} processes leave {size // world} each, which cuts "
                f"fp8 blocks of {FP8_BLOCK}"
            )


def choose_device(name: str, place: Place) -> torch.device:
    """The device of this process; `name` is auto, cpu or cuda. Errors: UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch finds no GPU")
    if place.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"{place.local_world} processes on a machine with {torch.cuda.device_count()} GPUs"
        )
    return torch.device("cuda", place.local_rank)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def _met(place: Place) -> tuple[dist.Store, Presence]:
    """torchrun's store, once all ranks have come to it, and who is there from then on.

    On one machine torchrun ends all ranks where one fails; nobody does on several.
    Errors: LaunchError naming who is missing.
    """
    keys = [f"here/{rank}" for rank in range(place.world)]
    first = place.rank - place.local_rank
    if place.rank == first:
        log.setLevel(logging.WARNING)  # each machine may have another person before it
    try:
        common, _, _ = next(dist.rendezvous("env://", timeout=MEET_TIMEOUT))
        store = dist.PrefixStore(str(next(_meetings)), common)
        store.set(keys[place.rank], f"process {os.getpid()} on {socket.gethostname()}")
        with contextlib.suppress(dist.DistStoreError):
            store.wait(keys, NEWS_AFTER)
        if missing := _missing(store, keys):
            log.warning("waiting for %s", missing)
            with contextlib.suppress(dist.DistStoreError):
                store.wait(keys, MEET_TIMEOUT - NEWS_AFTER)
            missing = _missing(store, keys)
        names = [] if missing else [store.get(key).decode() for key in keys]
    except dist.DistError as error:
        raise LaunchError(
            f"rank {place.rank} can't reach rank 0, whose machine may say why: {error}"
        ) from error
    if missing:
        raise LaunchError(f"after {MEET_TIMEOUT.seconds} s there is still no {missing}")
    machine = range(first, first + place.local_world)
    return store, Presence(place.rank, machine, names, store, MEET_TIMEOUT.seconds)


def _missing(store: dist.Store, keys: list[str]) -> str:
    """Which ranks have not come, in words; empty where all have."""
    missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
    if not missing:
        return ""
    return f"rank {', '.join(missing)} of {len(keys)} (what is printed where it runs says why)"


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _with_others(method: _Method) -> _Method:
    """A method of Ranks in which others take part. Errors: EngineError where one has gone."""

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
    """This process among the others, and what they say to each other; attention is tp."""

    def __init__(self, place: Place, device: torch.device) -> None:
        """Meet the other ranks: all of them must come here. A lone process meets nobody.

        Errors: LaunchError where some don't come, or a variable names no network interface.
        """
        self.rank, self.world, self.device = place.rank, place.world, device
        self.local_world = place.local_world
        self.presence: Presence | None = None
        if self.world == 1:
            return
        on_gpu = device.type == "cuda"
        check_interfaces(on_gpu)
        if on_gpu:
            torch.cuda.set_device(device)
        store, self.presence = _met(place)
        self._join(store)

    @_with_others
    def _join(self, store: dist.Store) -> None:
        """Connect with the others."""
        on_gpu = self.device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            device_id=self.device if on_gpu else None,
            store=store,
            rank=self.rank,
            world_size=self.world,
        )
        self._control = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)

    @property
    def head_parts(self) -> int:
        """In how many parts the attention's heads are split."""
        return self.world

    @property
    def shares(self) -> int:
        """In how many shares the sequences are split, each with a cache of its own."""
        return 1

    @property
    def own_share(self) -> int:
        """The share whose tokens this rank runs."""
        return 0

    def all_heads(self, part_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum over all heads, of a sum over this rank's."""
        return self.reduce(part_TD, dtype)

    def all_tokens(self, x_T: Tensor, width: int) -> Tensor:
        """The tokens of all ranks [G, ...], those of each padded with zeros to `width`."""
        return x_T

    def own_tokens(self, part_GD: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Of what `all_tokens` has become: the ranks' sum for the `count` of this rank, [T, D]."""
        return self.reduce(part_GD, dtype)

    @_with_others
    def reduce(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum every rank's part in fp32 and round once to `dtype`; the same bits on all ranks."""
        if self.world > 1:
            part = part.float().contiguous()
            dist.all_reduce(part)
        return part.to(dtype)

    @_with_others
    def gather(self, part_NV: Tensor) -> Tensor:
        """Put the ranks' parts [N, V / world] beside each other: [N, V] on every rank."""
        if self.world == 1:
            return part_NV
        count, size = part_NV.shape
        whole = part_NV.new_empty(self.world * count, size)
        dist.all_gather_single(whole, part_NV.contiguous())
        return whole.view(self.world, count, size).transpose(0, 1).reshape(count, -1)

    @_with_others
    def agree(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, on every rank; all must pass equally many."""
        if self.world == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(tensor, 0, group=self._control)
        return tensor.tolist()

    @_with_others
    def lowest(self, number: int) -> int:
        """The lowest of the ranks' numbers, on every rank."""
        if self.world == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MIN, group=self._control)
        return int(tensor)

    @_with_others
    def share(self, value: Any = None) -> Any:
        """Rank 0's value, on every rank; None costs one small message. Waits for rank 0."""
        if self.world == 1:
            return value
        data = pickle.dumps(value) if self.rank == 0 and value is not None else b""
        [size] = self.agree([len(data)])
        if not size:
            return None
        buffer = torch.frombuffer(bytearray(data or size), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self._control)
        return value if self.rank == 0 else pickle.loads(buffer.numpy().tobytes())

    @_with_others
    def barrier(self) -> None:
        """Wait until every rank is here, however long one of them loads."""
        if self.world > 1:
            dist.barrier(group=self._control)

    def leave(self) -> None:
        """Part from the others; nothing of this object may be used afterwards."""
        if self.presence:
            self.presence.leave()
            dist.destroy_process_group()


class DataParallelRanks(Ranks):
    """Ranks whose attention is dp."""

    @property
    def head_parts(self) -> int:
        return 1

    @property
    def shares(self) -> int:
        return self.world

    @property
    def own_share(self) -> int:
        return self.rank

    def all_heads(self, part_TD: Tensor, dtype: torch.dtype) -> Tensor:
        return part_TD.to(dtype)

    @_with_others
    def all_tokens(self, x_T: Tensor, width: int) -> Tensor:
        x_T = F.pad(x_T, (0, 0) * (x_T.dim() - 1) + (0, width - len(x_T)))
        x_G = x_T.new_empty(self.world * width, *x_T.shape[1:])
        dist.all_gather_single(x_G, x_T.contiguous())
        return x_G

    @_with_others
    def own_tokens(self, part_GD: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        part_GD = part_GD.float().contiguous()
        sum_TD = part_GD.new_empty(len(part_GD) // self.world, part_GD.shape[1])
        dist.reduce_scatter_single(sum_TD, part_GD)
        return sum_TD[:count].to(dtype)


ATTENTION = {"tp": Ranks, "dp": DataParallelRanks}


def meet(place: Place, device: torch.device, attention: str) -> Ranks:
    """Meet the other ranks, as one of ATTENTION; for a lone process both are plain attention."""
    return (ATTENTION[attention] if place.world > 1 else Ranks)(place, device)
