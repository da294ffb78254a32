"""Attention of decoded tokens over latents in blocks, by flashinfer (arXiv 2501.01005).

`plain` of attention.py is its definition, `mla` our own kernel for it. flashinfer compiles its
kernels when they are first used, and divides each step's work among a GPU's processors on the
host, before the step. Tokens of one sequence that follow one another, a prompt's or drafts, are one
request there, so that their context is read once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from errors import UsageError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.decoding import Column

DTYPES = (torch.bfloat16, torch.float16)  # of queries and KV cache
LATENT, ROTATED = 128, 64  # the latent's and the rotated key's widths are multiples of these
MOST_HEADS = 128  # of a rank, and a power of 2: else tiles of queries begin within a token's heads
MOST_ROWS = 16_000  # of a step: flashinfer has room for 16,384 parts, some of divided contexts
WORKSPACE = 128 << 20  # bytes, as flashinfer advises


@dataclass(frozen=True)
class Requests:
    """A step's rows as flashinfer takes them, int32 on the host.

    A request's queries are rows that follow one another. The last one sees `lengths` tokens of the
    KV cache, each one before it a token less.
    """

    queries: Tensor  # [requests + 1], where each one's rows begin, and where the last one's end
    blocks: Tensor  # [requests + 1], the same of its part of `table`
    table: Tensor  # blocks of the KV cache
    lengths: Tensor  # [requests], tokens

    @classmethod
    def of(
        cls,
        owners: Column,
        lengths: Column,
        tables: NDArray[np.int64],
        block_size: int,
        count: int | None = None,
    ) -> "Requests":
        """Rows that see so many tokens (`lengths`), one at least, of the sequences with the block
        tables `tables[owners]`. `count`: of requests, of which the last may be empty."""
        follows = (owners[1:] == owners[:-1]) & (lengths[1:] == lengths[:-1] + 1)
        firsts = np.append(0, (~follows).nonzero()[0] + 1)
        ends = np.append(firsts[1:], len(owners))
        seen = lengths[ends - 1]
        held = -(-seen // block_size)
        stops = held.cumsum()
        columns = np.arange(stops[-1]) - (stops - held).repeat(held)
        table = tables[owners[firsts].repeat(held), columns]
        empty = 0 if count is None else count - len(seen)
        return cls(
            _int32(np.pad(np.append(0, ends), (0, empty), "edge")),
            _int32(np.pad(np.append(0, stops), (0, empty), "edge")),
            _int32(table),
            _int32(np.pad(seen, (0, empty))),
        )


def _int32(values: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))


class Plan:
    """Attention of the rows that it was last filled with."""

    def __init__(self, wrapper: Any, shape: dict[str, Any]) -> None:
        self._wrapper, self._shape = wrapper, shape

    def fill(self, requests: Requests) -> None:
        from flashinfer.mla import MLAPlanMetadata

        metadata = MLAPlanMetadata.csr(
            qo_indptr=requests.queries,
            kv_indptr=requests.blocks,
            kv_indices=requests.table,
            kv_len_arr=requests.lengths,
        )
        self._wrapper.plan(metadata=metadata, **self._shape)

    def __call__(self, q_NHL: Tensor, blocks_BSL: Tensor) -> Tensor:
        """As `mla.attend`. A CUDA graph can capture this if the plan has fixed addresses."""
        attended_NHC: Tensor = self._wrapper.run(query=q_NHL, kv_cache=blocks_BSL)
        return attended_NHC


class FlashInfer:
    """The library, for one shape of attention."""

    def __init__(
        self,
        config: ModelConfig,
        heads: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`heads`: of this rank."""
        import flashinfer
        from flashinfer.utils import is_sm90a_supported

        self.block_size, self.device = block_size, device
        # flashinfer's own first choices. Its "auto" would choose on Blackwell what can't be filled
        # again beside a CUDA graph.
        self._backend = "fa3" if is_sm90a_supported(device) else "fa2"
        self.name = f"flashinfer {flashinfer.__version__} {self._backend}"
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
        self._shape: dict[str, Any] = {
            "num_heads": heads,
            "head_dim_ckv": config.kv_lora,
            "head_dim_kpe": config.rope_dim,
            "page_size": block_size,
            "causal": True,
            "sm_scale": config.softmax_scale,
            "q_data_type": dtype,
            "kv_data_type": dtype,
        }

    def plan(self) -> Plan:
        """For a step of any size, once those before have ended."""
        from flashinfer.mla import BatchMLAPagedAttentionWrapper

        if self.device.type == "cuda":
            # The memory that is copied to the device may be that of a plan before.
            torch.cuda.synchronize(self.device)
        wrapper = BatchMLAPagedAttentionWrapper(self._workspace, backend=self._backend)
        return Plan(wrapper, self._shape)

    def fixed_plan(self, rows: int, table: Tensor) -> Plan:
        """For steps of so many rows and as many requests, always at the same addresses. `table`,
        int32 on the device, holds all requests' blocks; plans may share it that take turns."""
        from flashinfer.mla import BatchMLAPagedAttentionWrapper

        queries, blocks = (self._ids(rows + 1) for _ in range(2))
        wrapper = BatchMLAPagedAttentionWrapper(
            self._workspace,
            use_cuda_graph=True,
            qo_indptr=queries,
            kv_indptr=blocks,
            kv_indices=table,
            kv_len_arr=self._ids(rows),
            backend=self._backend,
        )
        return Plan(wrapper, self._shape)

    def _ids(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32, device=self.device)

    @torch.inference_mode()
    def try_out(self) -> None:
        """Attend once, which compiles the kernels. Raises: UsageError."""
        shape = self._shape
        width, dtype = shape["head_dim_ckv"] + shape["head_dim_kpe"], shape["q_data_type"]
        q_NHL = torch.zeros(1, shape["num_heads"], width, dtype=dtype, device=self.device)
        blocks_BSL = torch.zeros(1, self.block_size, width, dtype=dtype, device=self.device)
        zero = np.zeros(1, np.int64)
        try:
            plan = self.plan()
            plan.fill(Requests.of(zero, zero + 1, zero[None], self.block_size))
            plan(q_NHL, blocks_BSL)
            torch.cuda.synchronize(self.device)
        except Exception as error:  # whatever its compiler or its kernels raise
            line, *_ = [*str(error).splitlines(), type(error).__name__]
            raise UsageError(
                f"kernels flashinfer: {self.name} can't run here ({line}): use --kernels own"
            ) from error


def load(
    config: ModelConfig,
    heads: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    rows: int,
) -> FlashInfer:
    """The library, compiled and tried out. `heads` are a rank's, `rows` its largest step's.

    Raises: UsageError where it does not support these; ModuleNotFoundError (see `entrypoint`).
    """
    refuse_unsupported(config, heads, dtype, device, rows)
    torch.cuda.set_device(device)
    library = FlashInfer(config, heads, block_size, dtype, device)
    library.try_out()
    return library


def refuse_unsupported(
    config: ModelConfig, heads: int, dtype: torch.dtype, device: torch.device, rows: int
) -> None:
    """Raises: UsageError, for what can be known without the library."""
    instead = "use --kernels own"
    if device.type != "cuda":
        fault = f"needs a CUDA device, and this run is on {device.type}"
    elif dtype not in DTYPES:
        known = " and ".join(str(one).removeprefix("torch.") for one in DTYPES)
        fault = f"supports {known} only, and the KV cache is {str(dtype).removeprefix('torch.')}"
        instead = f"use --dtype bfloat16, or {instead.removeprefix('use ')}"
    elif config.kv_lora % LATENT or config.rope_dim % ROTATED:
        fault = (
            f"needs latents of a multiple of {LATENT} values and rotated keys of a multiple of"
            f" {ROTATED}, and this model's have {config.kv_lora} and {config.rope_dim}"
        )
    elif heads > MOST_HEADS or MOST_HEADS % heads:
        fault = f"needs 1, 2, 4 ... {MOST_HEADS} heads on a rank, and there are {heads}"
    elif rows > MOST_ROWS:
        fault = f"takes {MOST_ROWS} tokens in a step of a rank, and there may be {rows}"
        instead = f"lower --engine-arg step_tokens or --max-running, or {instead}"
    else:
        return
    raise UsageError(f"kernels flashinfer {fault}: {instead}")
