"""Folders that engines write to, though nobody has asked for a file.

They keep caches and compile kernels where variables say or in the home, and some fail at their
import where they can't: in an image that is mounted read-only, in the home of another user. What
can't be written to is replaced before an engine is imported.
"""

import getpass
import logging
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from errors import LaunchError

log = logging.getLogger(__name__)

# What these name is written to: by torch, Triton, vLLM, SGLang, FlashInfer, DeepGEMM, TileLang,
# TVM, CUDA's driver, Numba, matplotlib and Hugging Face's libraries.
VARIABLES = (
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",
    "TRITON_HOME",
    "TRITON_CACHE_DIR",
    "VLLM_CACHE_ROOT",
    "VLLM_CONFIG_ROOT",
    "SGLANG_CACHE_DIR",
    "SGLANG_DG_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "DG_JIT_CACHE_DIR",
    "TILELANG_CACHE_DIR",
    "TVM_FFI_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "NUMBA_CACHE_DIR",
    "MPLCONFIGDIR",
    "HF_MODULES_CACHE",
)
# Where they write in the home, if no variable says otherwise.
CACHES = ("flashinfer", "ref_dsinfer", "sglang", "torch_extensions", "tvm-ffi", "vllm")
IN_HOME = (
    *(f".cache/{name}" for name in CACHES),
    *(".config/vllm", ".triton", ".deep_gemm", ".tilelang", ".nv"),
)


def make_writable(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let variables name folders that can be written to; each that did not is told in a warning.

    What is compiled there is found again by the next run. Raises: LaunchError where there is no
    place for temporary files.
    """
    lost = []
    asked = environment.get("TMPDIR")
    if asked and not _usable(Path(asked)):
        del environment["TMPDIR"]
        tempfile.tempdir = None  # it is looked for again
        lost.append(f"{asked} (TMPDIR)")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise LaunchError(
            f"{error.strerror}: let TMPDIR name one that can be written to"
        ) from error
    if lost:
        environment["TMPDIR"] = str(temporary)

    home = Path(environment.get("HOME") or Path.home())
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    in_place = {name: environment[name] for name in VARIABLES if environment.get(name)}
    replaced = [name for name, path in in_place.items() if not _usable(Path(path).expanduser())]
    lost += [f"{in_place[name]} ({name})" for name in replaced]
    unusable = next((home / part for part in IN_HOME if not _usable(home / part)), None)
    if unusable:
        lost.append(f"{unusable} (HOME)")
        replaced.append("HOME")
    if replaced:
        folder = _folder(temporary)
        # what was downloaded is read where it is
        environment.setdefault("HF_HOME", str(cache / "huggingface"))
        for name in replaced:
            (folder / name).mkdir(exist_ok=True)
            environment[name] = str(folder / name)
    if lost:
        log.warning(
            "can't write to %s; engines keep their caches and what they compile in %s instead",
            ", ".join(lost),
            _folder(temporary) if replaced else temporary,
        )
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as containers have them
        environment["USER"] = str(os.getuid())


def _usable(folder: Path) -> bool:
    """Whether files can be made in a folder, or it can be made."""
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _folder(temporary: Path) -> Path:
    """This user's, and nobody else's."""
    folder = temporary / f"mlperf-caches-{os.getuid()}"
    folder.mkdir(0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="mlperf-caches-"))
    return folder
