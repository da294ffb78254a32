"""Runs entry scripts in forks of one process that has already imported what they need.

Importing pandas and its like takes longer than the rest of a short run. Where a test is about the
start of a process itself (imports, encodings, interrupts), it needs a process of its own.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = [
    *("jinja2", "mlperf_loadgen", "pandas", "pyarrow.parquet", "tokenizers"),
    "transformers.tokenization_utils_tokenizers",  # what the prompts need of it
]

ENGINES = {"vllm": "vllm.v1.engine.async_llm", "sglang": "sglang.srt.server_args"}
# Of this tree: with what they import, nearly all that a run without an engine is made of.
MODULES = ["backends.echo", "data.inference", "grading.cli", "grading.evaluate"]
MODULES += ["mlperf.report_page.page", "mlperf.run", "mlperf.sut"]

_forks = multiprocessing.get_context("forkserver")


def run(
    script: str,
    *options: object,
    root: Path = ROOT,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a script of the tree `root` to its end, in `env` instead of this process's environment.

    Raises: subprocess.TimeoutExpired once it has run for `timeout` seconds.
    """
    words = [str(root / script), *map(str, options)]
    # heeded by the first call only, which starts the server: an engine takes long to import
    engines = [] if "--endpoint" in words else [ENGINES[word] for word in words if word in ENGINES]
    _forks.set_forkserver_preload([*PACKAGES, *engines, *MODULES])
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        variables = dict(os.environ if env is None else env)
        process = _forks.Process(
            target=_main, args=(words, str(root), str(cwd), variables, out, err)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(
            words, process.exitcode, out.read_text(), err.read_text()
        )


def _main(words: list[str], root: str, cwd: str, env: dict[str, str], out: Path, err: Path) -> None:
    """In the fork: what `python script` does once Python has started."""
    gc.freeze()  # else each collection of garbage looks at all that was imported, and copies it
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    if root != str(ROOT):  # another tree has modules of its own
        for name, module in [*sys.modules.items()]:
            path = Path(getattr(module, "__file__", None) or "/")
            if path.is_relative_to(ROOT) and not path.is_relative_to(sys.prefix):
                del sys.modules[name]
    sys.path.insert(0, root)
    runpy.run_path(words[0], run_name="__main__")
