"""A CPU in the place of a CUDA device, for the tests in tests/gpu: pytest -p tests.cuda_on_cpu.

Tensors for the device are made on the CPU, where plain definitions take the place of kernels. What
is asked of torch.cuda is answered here, if torch's own signature takes the arguments. A graph
records operators and the tensors that they were called with, and replays these alone: what Python
computes around them stays as it was, and what waits for a value is refused, as on a GPU.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ref_dsinfer import cpu_kernels, fp8_format, gemm, moe, runner
from tests import flashinfer_on_cpu

FREE = 64 << 30  # bytes
WAITING = ("_local_scalar_dense", "nonzero", "masked_select")  # operators that read values


class OnCpu(TorchFunctionMode):
    """Makes on the CPU what is asked for on a CUDA device."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.device:
            return function(*args, **kwargs)
        named = {name: _on_cpu(value) for name, value in kwargs.items() if name != "pin_memory"}
        return function(*map(_on_cpu, args), **named)


def _on_cpu(value: Any) -> Any:
    named = isinstance(value, str) and value == "cuda"
    if named or (isinstance(value, torch.device) and value.type == "cuda"):
        return torch.device("cpu")
    return value


class Graph:
    """In the place of a CUDA graph."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def replay(self) -> None:
        assert self.calls
        for call in self.calls:
            call()

    def reset(self) -> None:
        self.calls.clear()


class Capture(TorchDispatchMode):
    """Records operators in a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operator._schema.name.split("::")[1]
        if name in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = operator(*args, **kwargs)
        inputs = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = _tensors(result)
        # Neither views of arguments nor what an operator was given to write to.
        own = [n for n, one in enumerate(made) if one.untyped_storage()._cdata not in inputs]

        def call() -> None:
            again = _tensors(operator(*args, **kwargs))
            for number in own:
                made[number].copy_(again[number])

        if own or operator._schema.is_mutable:
            self._graph.calls.append(call)
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def capture(graph: Graph, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    """In the place of `torch.cuda.graph`."""
    with Capture(graph):
        yield


class Event:
    """In the place of a CUDA event."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._timing = enable_timing

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        assert self._timing
        return 1.0


ANSWERS: dict[str, Callable[..., Any]] = {
    "device_count": lambda: 1,
    "empty_cache": lambda: None,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_name": lambda device=None: "a CPU",
    "graph_pool_handle": lambda: (0, 0),
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "mem_get_info": lambda device=None: (FREE, FREE),
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
}


def checked(real: Callable[..., Any], answer: Callable[..., Any]) -> Callable[..., Any]:
    """`answer`, for arguments that torch's own function takes."""
    signature = inspect.signature(real)

    def call(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return answer(*args, **kwargs)

    return call


def sort(experts_TA: Tensor, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`moe.plain_sort` as kernels do it: with room for every pair, so that no value is waited
    for."""
    local_TA = experts_TA - first
    elsewhere_TA = (local_TA < 0) | (local_TA >= count)
    sorted_P, order_P = local_TA.masked_fill(elsewhere_TA, count).flatten().sort(stable=True)
    ends_E = torch.searchsorted(sorted_P, torch.arange(count), right=True).int()
    places_TA = order_P.argsort().int().view(experts_TA.shape).masked_fill(elsewhere_TA, -1)
    return order_P // experts_TA.shape[1], places_TA, ends_E


def grouped(
    x_TI: Tensor, weight: Tensor, scale: Tensor | None, ends_E: Tensor, *rest: Any
) -> Tensor:
    """`gemm.plain_grouped`, which waits for the ends of fp8 groups, without waiting.

    Rows of no expert are zeros: torch leaves them uninitialised, and they are multiplied by 0.
    """
    if scale is not None:
        weight = fp8_format.dequantise(weight, scale, x_TI.dtype)
    y_PO = plain_grouped(x_TI, weight, None, ends_E, *rest)
    return y_PO.where((torch.arange(len(y_PO)) < ends_E[-1])[:, None], 0)


plain_grouped = gemm.plain_grouped


def pytest_configure() -> None:
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, checked(getattr(torch.cuda, name), answer))
    for name, stand_in in (("CUDAGraph", Graph), ("graph", capture), ("Event", Event)):
        real = getattr(torch.cuda, name)
        assert all(hasattr(real, method) for method in vars(stand_in) if method[0] != "_"), name
        setattr(torch.cuda, name, checked(real, stand_in) if name != "CUDAGraph" else stand_in)
    definitions: tuple[tuple[Any, str, Any], ...] = (
        (cpu_kernels, "library", lambda: None),  # not torch's operators, which a graph records
        (moe, "plain_sort", sort),
        (gemm, "plain_grouped", grouped),
        (runner, "CONTEXT_CHUNK", 8),  # tokens of the context that steps are warmed up with
    )
    for module, name, definition in definitions:
        assert hasattr(module, name)
        setattr(module, name, definition)
    sys.modules.update(flashinfer_on_cpu.stand_ins())
    OnCpu().__enter__()
