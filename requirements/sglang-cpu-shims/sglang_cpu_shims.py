"""Shims that let SGLang serve DeepSeek-V3 on a CPU without its compiled kernels, and start sooner.

A .pth file imports this module when Python starts, so that child processes have it too; SGLang
calls `register` as a plugin in each of its processes. Each shim stands aside once it isn't needed.
"""

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoMetaOperators:
    """Makes torchvision._meta_registrations empty where torchvision's operators can't be loaded.

    torchvision built for CUDA can't load them beside a CPU torch, and fails to import because it
    describes them all the same. SGLang imports it for image models only.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision._meta_registrations":
            return None
        extension = sys.modules.get("torchvision.extension")  # imported just before
        if extension is None or extension._has_ops():
            return None
        return ModuleSpec(name, _NoMetaOperators)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        pass


sys.meta_path.insert(0, _NoMetaOperators)


def register() -> None:
    _rope_without_vllm()
    _latent_attention_in_torch()
    _forked_processes()


def _rope_without_vllm() -> None:
    """SGLang's rope imports a vLLM kernel on a plain CPU and then takes its torch path."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        stub = ModuleType("vllm._custom_ops")
        stub.rotary_embedding = None  # type: ignore[attr-defined]
        sys.modules.setdefault(stub.__name__, stub)


def _latent_attention_in_torch() -> None:
    """torch_native has no handler for MLA; the default one takes a path it can't run."""
    from sglang.srt.models.deepseek_common import attention_backend_handler as handlers
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    registry = handlers.AttentionBackendRegistry
    if "torch_native" not in registry._handlers:
        registry.register("torch_native", lambda attention, batch: AttnForwardMethod.MLA)


def _forked_processes() -> None:
    """SGLang spawns its processes, as CUDA needs it, and each imports SGLang for many seconds."""
    multiprocessing.set_start_method = partial(_set_start_method, multiprocessing.set_start_method)


def _set_start_method(original: Callable[..., None], method: str, force: bool = False) -> None:
    original("fork" if method == "spawn" else method, force)
