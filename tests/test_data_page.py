"""The commands of docs/data.md that build data sets, run as they stand against a local hub."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data.prepare import formats
from data.prepare.sources import SOURCES
from data.problems import Problems
from data.samples import read_frame
from tests import forked
from tests.conftest import ASSISTANT, BOS, EOS, USER
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


@pytest.fixture
def model(echo_model: Path, tmp_path: Path) -> Path:
    """A model directory whose tokens are words: fast, as what is tokenized does not matter here."""
    folder = shutil.copytree(echo_model, tmp_path / "model")
    words = [BOS, EOS, USER, ASSISTANT, "other"]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, "other"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:-1])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def run(
    command: str, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command of the page; one that reads no hub in a fork, which has its packages."""
    name, *words = shlex.split(command)
    if "--sources" in words or "--input-file" in words:
        assert (name, *words[:2]) == ("python", "-m", "data.prepare")
        script = "data/prepare/__main__.py"
        return forked.run(script, *words[2:], root=folder, cwd=folder, env=environment)
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_page_builds_what_it_says(tmp_path: Path, model: Path) -> None:
    repositories = source_files.write_all(tmp_path / "repositories")
    folder = clone(tmp_path / "clone")
    data = folder / "data"
    shutil.copytree(repositories, folder / "sources")
    Hub.folder, Hub.refused = repositories, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "MLPERF_MODEL": str(model),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    }
    for block in BLOCKS:
        for command in block.replace("\\\n", "").splitlines():
            ended = run(command, folder, environment)
            assert ended.returncode == 0, command + ended.stdout + ended.stderr
        if not (folder / OFFICIAL).exists():  # the official file can't be here
            shutil.copy(data / "deepseek_r1_4388.pkl", folder / OFFICIAL)
    server.shutdown()
    server.server_close()

    whole = read_frame(data / "deepseek_r1_4388.pkl")
    assert len(whole) == 4388
    for name in ("from_cache", "from_folder"):  # the same sources give the same bytes
        for ending in (".pkl", ".parquet"):
            same = data / f"{name}{ending}"
            assert same.read_bytes() == (data / f"deepseek_r1_4388{ending}").read_bytes()
    like = read_frame(data / "like_official.pkl")
    assert like["text_input"].tolist() == whole["text_input"].tolist()
    assert len(read_frame(data / "subset_400.pkl")) == 400
    assert len(read_frame(data / "calibration_500.pkl")) == 500
    assert "3154" not in Problems(data / "livecodebench.sqlite")
    manifest = json.loads((data / "deepseek_r1_4388_manifest.json").read_text())
    assert manifest["rows"] == 4388
    again = json.loads((data / "from_cache_manifest.json").read_text())
    assert {**again, "files": None} == {**manifest, "files": None}


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
