"""The commands of docs/data.md that build data sets, run as they stand against a local hub."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from data.prepare import formats
from data.prepare.sources import SOURCES
from data.problems import Problems
from data.samples import read_frame
from tests.data.prepare import source_files
from tests.data.prepare.test_sources import Hub

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "data.md"
OFFICIAL = "data/mlperf_deepseek_r1_dataset_4388_fp8_eval.pkl"
PACKAGES = ("backends", "data", "ref_dsinfer")
BLOCKS = [
    block
    for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    if "data.prepare" in block
]


def clone(folder: Path) -> Path:
    """A copy of what the commands need, whose examples are those of the tests' sources."""
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.pkl", "*.parquet")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    code = (folder / "data" / "prepare" / "formats.py").read_text(encoding="utf-8")
    for name, digests in source_files.example_digests().items():
        for official, ours in zip(getattr(formats, name), digests, strict=True):
            assert code.count(official) == 1
            code = code.replace(official, ours)
    (folder / "data" / "prepare" / "formats.py").write_text(code, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_page_builds_what_it_says(
    tmp_path: Path,
) -> None:
    repositories = source_files.write_all(tmp_path / "repositories")
    folder = clone(tmp_path / "clone")
    shutil.copytree(repositories, folder / "sources")
    Hub.folder, Hub.refused = repositories, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "MLPERF_MODEL": "data/tiny/model",
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    }
    for block in BLOCKS:
        ended = subprocess.run(
            ["bash", "-ec", block],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, block + ended.stdout + ended.stderr
        if not (folder / OFFICIAL).exists():  # the official file can't be here
            shutil.copy(folder / "data" / "deepseek_r1_4388.pkl", folder / OFFICIAL)
    server.shutdown()
    server.server_close()

    whole = read_frame(folder / "data" / "deepseek_r1_4388.pkl")
    assert len(whole) == 4388
    for name in ("from_cache", "from_folder", "like_official"):
        same = read_frame(folder / "data" / f"{name}.pkl")
        assert same["text_input"].tolist() == whole["text_input"].tolist()
    assert len(read_frame(folder / "data" / "subset_400.pkl")) == 400
    assert len(read_frame(folder / "data" / "calibration_500.pkl")) == 500
    assert "3154" not in Problems(folder / "data" / "livecodebench.sqlite")
    manifest = json.loads((folder / "data" / "deepseek_r1_4388_manifest.json").read_text())
    assert manifest["rows"] == 4388


def test_the_page_tells_of_every_source() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, source in SOURCES.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"`{source.path}`" in row
        assert source.licence.split(" ")[0] in row
        assert source.repository in text
        assert len(source.revision) == 40


def test_the_page_has_commands() -> None:
    assert len(BLOCKS) == 4
