"""The table of engines."""

from importlib import import_module

from backends.types import Backend, BackendSpec, EngineConfig, Scenario
from backends.writable import make_writable
from errors import UsageError

SCENARIOS: tuple[Scenario, ...] = ("offline", "server", "interactive")

_TABLE = (
    BackendSpec(
        name="pytorch",
        target="backends.pytorch:PyTorchBackend",
        scenarios=SCENARIOS,
        torchrun=True,
    ),
    BackendSpec(
        name="vllm",
        target="backends.vllm:VllmBackend",
        scenarios=SCENARIOS,
        torchrun=False,
        attached="backends.vllm_server:VllmServer",
    ),
    BackendSpec(
        name="sglang",
        target="backends.sglang:SglangBackend",
        scenarios=SCENARIOS,
        torchrun=False,
        attached="backends.sglang_server:SglangServer",
    ),
    BackendSpec(
        name="echo",
        target="backends.echo:EchoEngine",
        scenarios=SCENARIOS,
        torchrun=False,
        hidden=True,
    ),
)


def names() -> list[str]:
    """The engines that a user may choose."""
    return [spec.name for spec in _TABLE if not spec.hidden]


def lookup(name: str) -> BackendSpec:
    """The row of `name`. Raises: UsageError naming the known engines."""
    for spec in _TABLE:
        if spec.name == name:
            return spec
    raise UsageError(f"unknown backend {name!r} (known: {', '.join(names())})")


def load(spec: BackendSpec, config: EngineConfig) -> Backend:
    """An engine, not yet started, or the client of running servers.

    Raises: ModuleNotFoundError where a package it needs is not installed (see `entrypoint`),
    LaunchError where no directory for temporary files is writable, what its class raises.
    """
    if not config.endpoints:
        make_writable()
    module, _, name = (spec.attached or spec.target if config.endpoints else spec.target).partition(
        ":"
    )
    backend: Backend = getattr(import_module(module), name)(config)
    return backend
