"""The command, with a store and a hub on loopback."""

import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmark import REVISION
from data.fetch import command, hub, sources
from data.fetch.download import partial_of
from data.problems import Problems
from errors import FetchError, ModelError, OutputError, UsageError
from tests.data.fetch import server as faults
from tests.data.fetch.hub import publish
from tests.data.fetch.server import Server, serving
from tests.data.models import TEMPLATES, make_model
from tests.data.test_problems import row

ROOT = Path(__file__).parents[3]
ROWS = random.Random(1).randbytes(100_000)
CALIBRATION = random.Random(2).randbytes(20_000)
PROBLEMS, MORE_PROBLEMS = (
    "".join(json.dumps(row(str(number))) + "\n" for number in numbers).encode()
    for numbers in (range(100), range(100, 103))
)
LIST = f"{sources.ROWS_NAME}.md5"
Fetch = Callable[..., str]


def fill(server: Server, folder: Path) -> None:
    """Publish everything, in small."""
    sums = ""
    for name, content in ((sources.DATA_SET, ROWS), (sources.CALIBRATION, CALIBRATION)):
        server.files[f"/deepseek_r1/{name}"] = content
        sums += f"{hashlib.md5(content).hexdigest()}  ./{name}\n"
    server.files[f"/metadata/{LIST}"] = sums.encode()
    pointer = f"/metadata/{sources.ROWS_NAME}.uri"
    server.files[pointer] = b"https://inference.mlcommons-storage.org/deepseek_r1\n"
    files = {"test.jsonl": PROBLEMS, "test2.jsonl": MORE_PROBLEMS}
    publish(server, sources.problems("release_v2"), files)
    make_model(folder, "DeepSeek-R1", shards=0)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(ROWS[:50_000])
    publish(server, sources.model(), {file.name: file.read_bytes() for file in folder.iterdir()})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving() as one:
        fill(one, tmp_path / "published")
        yield one


@pytest.fixture
def fetch(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fetch:
    """Runs the command in a folder of its own, with an empty cache; returns what it prints."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*words: str, mirror: str | None = server.url) -> str:
        options = ("--mirror", mirror) if mirror else ()
        monkeypatch.setattr(sys, "argv", ["data.fetch", *words, *options])
        command.main()
        return capsys.readouterr().out

    return run


def test_everything_comes_and_is_right(fetch: Fetch, server: Server) -> None:
    assert fetch("--list").count("not here") == 4
    assert fetch() == "next: python -m data.fetch model\n"
    data = Path("data")
    assert (
        (data / sources.DATA_SET).read_bytes() == (data / "final_output.pkl").read_bytes() == ROWS
    )
    problems = Problems(data / "livecodebench.sqlite")
    assert "99" in problems
    assert "100" not in problems
    assert not (data / sources.CALIBRATION).exists()
    assert fetch("all") == "next: python run_mlperf.py --mode offline --accuracy\n"
    assert (data / sources.CALIBRATION).read_bytes() == CALIBRATION
    assert "not here" not in fetch("--list")
    requests = len(server.requests)
    lines = fetch("--verify", mirror=None).splitlines()
    assert [line.split(" ", 1)[1][:23] for line in lines] == [
        *["is the published file (" for _ in range(2)],
        *["has the published files" for _ in range(2)],
    ]
    assert len(server.requests) == requests


def test_what_is_there_is_not_fetched_again(fetch: Fetch, server: Server) -> None:
    fetch("all")
    requests = len(server.requests)
    fetch("all")
    again = [path for path, _ in server.requests[requests:]]
    assert not [path for path in again if "resolve" in path or "cdn" in path or "_r1" in path]


def test_more_problems(fetch: Fetch) -> None:
    fetch("problems", "--release", "release_v2")
    folder = sources.problems("release_v2").snapshot(hub.cache_folder())
    assert {path.name for path in folder.iterdir()} == {"test.jsonl", "test2.jsonl"}
    assert Problems("data/livecodebench.sqlite").read("102").tests[0].output == "1"
    with pytest.raises(FetchError, match=r"the hub has no test3\.jsonl"):
        fetch("problems", "--release", "release_v3")


def test_the_users_own_files_stay(fetch: Fetch) -> None:
    Path("data").mkdir()
    for name in ("final_output.pkl", "livecodebench.jsonl"):
        Path("data", name).write_bytes(b"mine")
    fetch()
    for name in ("final_output.pkl", "livecodebench.jsonl"):
        assert Path("data", name).read_bytes() == b"mine"
    assert not Path("data", "livecodebench.sqlite").exists()


def test_wrong_files_are_named_and_replaced(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    fetch("all")
    path = Path("data", sources.DATA_SET)
    path.write_bytes(b"wrong")
    blob = (sources.model().snapshot(hub.cache_folder()) / "model.safetensors").resolve()
    blob.write_bytes(ROWS[50_000:])
    with pytest.raises(FetchError, match=f"data/{sources.DATA_SET}: expected md5 .*, and it has"):
        fetch("--verify", "all", mirror=None)
    assert "model.safetensors: expected sha256" in caplog.text
    fetch("dataset")
    assert path.read_bytes() == ROWS


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--verify"], FetchError, "there is nothing to verify here"),
        (["--verify", "dataset"], FetchError, "the list of checksums can't be read: No such file"),
        (["--verify", "model"], ModelError, "python -m data.fetch model"),
        (["--verify", "problems"], FetchError, "snapshots/.*: not there"),
        (["--mirror", "/no/such/folder"], UsageError, "neither a folder nor an http"),
        (["--output-dir", "/proc/x"], OutputError, "/proc/x: can't be made"),
    ],
)
def test_what_can_not_be_done(
    fetch: Fetch, words: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fetch(*words, mirror=None)


def test_an_unknown_name_is_a_line(fetch: Fetch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fetch("weights")
    assert "there is no weights: choose from dataset, calibration" in capsys.readouterr().err


def test_another_model_is_named(fetch: Fetch, tmp_path: Path, server: Server) -> None:
    other = make_model(tmp_path / "other", "DeepSeek-R1-0528")
    with pytest.raises(ModelError, match=r"this is DeepSeek-R1-0528; the benchmark wants"):
        fetch("--verify", "model", "--model", str(other), mirror=None)
    template = json.dumps({"chat_template": TEMPLATES["DeepSeek-V3"]}).encode()
    publish(server, sources.model(), {"config.json": b"{}", "tokenizer_config.json": template})
    with pytest.raises(ModelError, match=f"this is an unknown model .* at revision {REVISION}"):
        fetch("model")


def test_a_list_without_the_file(fetch: Fetch, server: Server) -> None:
    server.files[f"/metadata/{LIST}"] = f"{'0' * 32}  other.pkl\n".encode()
    with pytest.raises(FetchError, match=f"{LIST} has no {sources.DATA_SET}, but: other.pkl"):
        fetch("dataset")


def test_room_is_looked_at_first(
    fetch: Fetch, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    with pytest.raises(OutputError, match="free some, or choose another folder"):
        fetch("dataset")
    assert not server.ranges(f"/deepseek_r1/{sources.DATA_SET}")


def test_a_second_fetch_is_kept_out_and_an_interrupted_one_continued(
    fetch: Fetch, server: Server
) -> None:
    path = f"/deepseek_r1/{sources.DATA_SET}"
    server.faults[path] = [faults.stall(60_000)]
    words = [sys.executable, "-m", "data.fetch", "dataset", "--mirror", server.url]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    partial = partial_of(Path("data", sources.DATA_SET))
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size == 60_000):
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(OutputError, match=rf"data: process {process.pid} on .* writes there"):
            fetch("calibration")
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=30)
    assert process.returncode == 130
    assert message.splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in message
    assert not Path("data", sources.DATA_SET).exists()
    fetch("dataset")
    assert server.ranges(path) == [None, "bytes=60000-"]


def test_progress_is_lines_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    from data.fetch.bars import progress_bar

    caplog.set_level(logging.INFO)
    with progress_bar(2000, "fetching", every_s=0) as seen:
        seen(1000)
    assert re.search(r"fetching: +50% 1\.00k/2\.00k \[", caplog.text), caplog.text


@pytest.mark.slow
def test_every_command_of_the_page(server: Server, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    fetching = page[page.index("## Fetching") :]
    blocks = [
        block for block in re.findall(r"```bash\n(.*?)```", fetching, re.S) if "data.fetch" in block
    ]
    assert len(blocks) >= 4
    (tmp_path / "disk").mkdir()
    env = {
        **os.environ,
        "MLPERF_MIRROR": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for block in blocks:
        script = block.replace("/media/disk", str(tmp_path / "disk"))
        if "--mirror" in script:  # the other machine
            env["HF_HOME"] = str(tmp_path / "other")
            (tmp_path / "data").rename(tmp_path / "first")
            server.shutdown()
        words = ["bash", "-ec", script]
        ended = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, script + ended.stdout + ended.stderr
    assert (tmp_path / "data" / "final_output.pkl").read_bytes() == ROWS
    assert (sources.model().snapshot(tmp_path / "other" / "hub") / "config.json").is_file()
