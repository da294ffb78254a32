"""Cache directories of engines and their libraries, made writable.

Engines keep caches and compiled kernels where environment variables say, or in the home directory.
Some fail at import where they can't write there: in a read-only image, or another user's home. Such
directories are replaced before an engine is imported.
"""

import getpass
import logging
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from errors import LaunchError

log = logging.getLogger(__name__)

# Directories that are written to by torch, Triton, vLLM, SGLang, FlashInfer, DeepGEMM, TileLang,
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
# Where they write in the home directory, if no variable says otherwise.
CACHES = ("flashinfer", "ref_dsinfer", "sglang", "torch_extensions", "tvm-ffi", "vllm")
IN_HOME = (
    *(f".cache/{name}" for name in CACHES),
    *(".config/vllm", ".triton", ".deep_gemm", ".tilelang", ".nv"),
)


def make_writable(environment: MutableMapping[str, str] = os.environ) -> None:
    """Point environment variables to writable directories, and warn of those that were not.

    The next run finds what was compiled there. Raises: LaunchError where no directory for temporary
    files is writable.
    """
    unwritable = []
    tmpdir = environment.get("TMPDIR")
    if tmpdir and not _usable(Path(tmpdir)):
        del environment["TMPDIR"]
        tempfile.tempdir = None  # tempfile then determines it again
        unwritable.append(f"{tmpdir} (TMPDIR)")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise LaunchError(f"{error.strerror}: set TMPDIR to a writable directory") from error
    if unwritable:
        environment["TMPDIR"] = str(temporary)

    home = Path(environment.get("HOME") or Path.home())
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    in_place = {name: environment[name] for name in VARIABLES if environment.get(name)}
    replaced = [name for name, path in in_place.items() if not _usable(Path(path).expanduser())]
    unwritable += [f"{in_place[name]} ({name})" for name in replaced]
    unusable = next((home / part for part in IN_HOME if not _usable(home / part)), None)
    if unusable:
        unwritable.append(f"{unusable} (HOME)")
        replaced.append("HOME")
    if replaced:
        folder = _folder(temporary)
        # downloaded models are still read from where they are
        environment.setdefault("HF_HOME", str(cache / "huggingface"))
        for name in replaced:
            (folder / name).mkdir(exist_ok=True)
            environment[name] = str(folder / name)
    if unwritable:
        log.warning(
            "can't write to %s; engines keep their caches and what they compile in %s instead",
            ", ".join(unwritable),
            _folder(temporary) if replaced else temporary,
        )
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        environment["USER"] = str(os.getuid())


def _usable(folder: Path) -> bool:
    """Whether files can be created in a folder, or the folder itself can be."""
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _folder(temporary: Path) -> Path:
    """A folder of this user's own."""
    folder = temporary / f"mlperf-caches-{os.getuid()}"
    folder.mkdir(0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="mlperf-caches-"))
    return folder
