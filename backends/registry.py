"""The table of engines. One not built yet is absent, not stubbed."""

from importlib import import_module

from backends.types import Backend, BackendSpec, Scenario
from ref_dsinfer.errors import EngineError, UsageError

SCENARIOS: tuple[Scenario, ...] = ("offline", "server", "interactive")

_TABLE = (
    BackendSpec(
        name="pytorch",
        target="backends.pytorch:PyTorchBackend",
        scenarios=SCENARIOS,
        torchrun=True,
        devices=("cpu", "cuda"),
    ),
    BackendSpec(
        name="echo",
        target="backends.echo:EchoEngine",
        scenarios=SCENARIOS,
        torchrun=False,
        devices=("cpu",),
        hidden=True,
    ),
)


def names() -> list[str]:
    """The engines a user may choose."""
    return [spec.name for spec in _TABLE if not spec.hidden]


def lookup(name: str) -> BackendSpec:
    """The row of `name`. Errors: UsageError naming the known engines."""
    for spec in _TABLE:
        if spec.name == name:
            return spec
    raise UsageError(f"unknown backend {name!r} (known: {', '.join(names())})")


def load(spec: BackendSpec) -> type[Backend]:
    """Import an engine's class. Errors: EngineError where a package it needs is not installed."""
    module, _, name = spec.target.partition(":")
    try:
        found: type[Backend] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise EngineError(
            f"backend {spec.name} needs the Python package {error.name}, which is not installed"
            f" (./setup.sh --backend {spec.name})"
        ) from error
    return found
