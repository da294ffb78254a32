"""Runs over several hosts: servers behind one name, torchrun's ranks, and parts of vLLM's and
SGLang's own, of which each is killed."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from data.journal import read_journal
from errors import EngineError, LaunchError
from tests.effort import THOROUGH
from tests.jobs import GIVEN, ROOT, sglang_scheduler
from tests.multihost import GONE_S, Host, hosts, wait_until_gone

SERVER = ROOT / "tests" / "backends" / "echo_server.py"
NODES = ROOT / "requirements" / "torchrun-nodes"  # as setup.sh copies it into environments
START_S = 240

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Lan = Callable[[int], list[Host]]


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """Makes so many hosts, that see this tree and this environment."""
    with ExitStack() as stack:
        shared = [ROOT, Path(sys.prefix)]
        yield lambda count: stack.enter_context(hosts(count, tmp_path, shared))


def wait_for(journal: Path, run: subprocess.Popen[str]) -> None:
    """Until a run has answers in its journal."""
    until = time.monotonic() + START_S
    while not (journal.exists() and journal.stat().st_size):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_servers_of_a_name_answer_as_one_and_without_the_one_that_dies(
    lan: Lan, echo_model: Path, data_set: Callable[[int], Path]
) -> None:
    first, second, third = lan(3)
    rows = data_set(60)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (first.tmp / name).write_bytes((echo_model / name).read_bytes())
    (first.tmp / "rows.parquet").write_bytes(rows.read_bytes())
    servers = [
        host.start("sh", "-c", f"sleep 600 | {sys.executable} {SERVER} 4:10 --listen 0.0.0.0:8000")
        for host in (first, second, third)
    ]
    for server in servers:
        assert server.stdout
        assert server.stdout.readline() == "8000\n"
    attached = ["--backend", "vllm", "--model", "/tmp", "--endpoint", "http://all-hosts:8000"]
    attached += ["--served-model", "echo", "--max-running", "6"]
    attached += ["--input-file", "/tmp/rows.parquet", "--output-dir", "/tmp"]
    few = first.run("prlimit", "--nofile=75", sys.executable, "run_mlperf.py", *attached)
    assert "error: up to 18 connections need as many file descriptors" in few.stderr
    run = first.start(sys.executable, "run_eval.py", *attached, "--max-new-tokens", "80")
    wait_for(first.tmp / "vllm_output.journal", run)
    for process in third.processes():
        process.kill()
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 0, stderr
    frame = pd.read_pickle(first.tmp / "vllm_output.pkl")
    assert len(frame) == 60
    assert set(frame.tok_model_output_len) == {80}
    assert "http://all-hosts:8000: 3 servers, at 10.77.0.1, 10.77.0.2, 10.77.0.3" in stderr
    lost = "http://all-hosts:8000 at 10.77.0.3 was lost: "
    assert re.search(rf"{re.escape(lost)}.*; of its requests, [1-6] were answered by oth", stderr)


class Run:
    """run_eval_mpi.py or run_mlperf_mpi.py on several hosts, a rank on each."""

    def __init__(self, several: list[Host], script: str, leader: str = "host0") -> None:
        self.hosts = several
        self.script = script
        self.journal = several[0].tmp / "output.journal"
        words = ["--output-file", "/tmp/output.pkl"]
        if "mlperf" in script:
            self.journal = several[0].tmp / "run" / "completions.journal"
            words = ["--mode", "offline", "--log-dir", "/tmp/run"]
        self._words = [*GIVEN, "--max-running", "4", "--device", "cpu", *words]
        self._address = (f"--nnodes={len(several)}", f"--master-addr={leader}")
        self.nodes: list[subprocess.Popen[str]] = []

    def start(self, host: int, *options: str) -> None:
        """Start one host's part."""
        self.nodes.append(
            self.hosts[host].start(
                *(sys.executable, "-m", "torch.distributed.run", *self._address),
                *(f"--node-rank={host}", "--nproc_per_node=1", "--master-port=29511"),
                *(self.script, *self._words, *options),
                PYTHONPATH=str(NODES),
            )
        )

    def wait(self) -> list[str]:
        """Until it has ended on all hosts, and left nothing. Returns what they printed."""
        outputs = [node.communicate(timeout=START_S)[1] for node in self.nodes]
        wait_until_gone(self.hosts)
        assert [host.shared_memory() for host in self.hosts] == [[] for _ in self.hosts]
        return outputs

    def process(self, host: int, what: str) -> psutil.Process | None:
        """A host's torchrun or rank, once it runs."""
        for process in self.hosts[host].processes():
            words = process.cmdline()
            if self.script in words and (what == "torchrun") == ("torch.distributed.run" in words):
                return process
        return None


EVERY = [
    (script, moment, host, what)
    for script in ("run_eval_mpi.py", "run_mlperf_mpi.py")
    for moment in ("running", "starting")
    for host in (1, 0)
    for what in ("rank", "torchrun")
]


@pytest.mark.engine
@pytest.mark.parametrize(("script", "moment", "host", "what"), EVERY if THOROUGH else EVERY[:1])
def test_a_killed_process_ends_the_run_on_all_hosts(
    script: str, moment: str, host: int, what: str, lan: Lan
) -> None:
    run = Run(lan(2), script)
    for number in (0, 1):
        run.start(number)
    if moment == "running":
        wait_for(run.journal, run.nodes[0])
    until = time.monotonic() + START_S
    while not all(run.process(number, "rank") for number in (0, 1)):
        assert time.monotonic() < until
        time.sleep(0.1)
    victim = run.process(host, what)
    assert victim
    victim.kill()
    wait_until_gone(run.hosts, GONE_S)
    outputs = run.wait()
    survivor = outputs[1 - host]
    rank = rf"rank {host} of 2 \(process \d+ on host{host}\)"
    named = rf"error: {rank} (died|failed)|node {host} \(host{host}\) has ended before"
    named += "|rank 1 can't reach rank 0 at host0"
    assert re.search(named, survivor), survivor
    assert all(node.returncode for node in run.nodes)
    ours = survivor.partition("torch/distributed/elastic")[0]  # before torchrun's own report
    assert "Traceback" not in ours
    if moment == "running":
        assert read_journal(run.journal)


@pytest.mark.engine
@pytest.mark.skipif(
    not THOROUGH, reason="THOROUGH=1 runs it: it starts up to four hosts, one of them late"
)
@pytest.mark.parametrize(
    ("count", "options"),
    [(2, ("--mode", "server", "--target-qps", "2")), (4, ("--attention", "dp"))],
)
def test_a_measurement_on_several_hosts_one_of_them_late(
    count: int, options: tuple[str, ...], lan: Lan
) -> None:
    run = Run(lan(count), "run_mlperf_mpi.py", "10.77.0.1")
    for number in range(count):
        if number == count - 1:
            time.sleep(40)
        run.start(number, "--num-samples", "8", *options)
    outputs = run.wait()
    assert [node.returncode for node in run.nodes] == [0] * count, outputs
    assert f"torchrun: node 0: waiting for node {count - 1} of {count} to join" in outputs[0]
    record = json.loads((run.journal.parent / "run.json").read_text())
    assert record["figures"]
    assert not list((run.hosts[1].tmp / "run").iterdir())  # each has tried to make it


@pytest.mark.engine
@pytest.mark.skipif(not THOROUGH, reason="THOROUGH=1 runs it; test_parallel.py has a quick one")
def test_hosts_that_were_started_otherwise_are_named_before_anything_is_loaded(lan: Lan) -> None:
    run = Run(lan(2), "run_eval_mpi.py")
    run.start(0)
    run.start(1, "--attention", "dp", "--seed", "3")
    outputs = run.wait()
    assert [node.returncode for node in run.nodes] == [1, 1]  # torchrun's own, for any error
    for output in outputs:
        assert re.search(
            r"error: rank 1 \(process \d+ on host1\) does not fit rank 0 \(process \d+ on host0\):"
            r" attention is dp on it and tp on rank 0, seed is 3 on it and 0 on rank 0;",
            output,
        )
        assert "loaded" not in output


def page_block(word: str) -> str:
    """The commands of docs/running.md with this word."""
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    [block] = [one for one in re.findall(r"```sh\n(.*?)```", page, re.S) if word in one]
    return str(block)


@pytest.mark.engine
@pytest.mark.sglang
@pytest.mark.skipif(
    not THOROUGH, reason="THOROUGH=1 runs it, as it starts two servers; test_engines.py has one"
)
def test_a_router_s_servers_answer_as_one_and_one_that_dies_ends_a_measurement(lan: Lan) -> None:
    pytest.importorskip("sglang_router")
    first, *others = lan(3)
    words = [sys.executable, "-m", "sglang.launch_server", "--model-path", GIVEN[1]]
    words += ["--host", "0.0.0.0", "--port", "8018", "--device", "cpu", "--dtype", "float32"]
    words += ["--context-length", "4102", "--max-total-tokens", "65536", "--disable-radix-cache"]
    words += ["--disable-overlap-schedule", "--sleep-on-idle", "--incremental-streaming-output"]
    for host in others:
        longer = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1", "TORCH_COMPILE_DISABLE": "1"}
        host.start("sh", "-c", 'exec "$@" >/tmp/server.log 2>&1', "sh", *words, **longer)
    until = time.monotonic() + ENGINES_S
    health = [f"http://{one.name}:8018/health" for one in others]
    while first.run("curl", "--silent", "--fail", "--fail-early", *health).returncode:
        assert time.monotonic() < until
        time.sleep(1)

    commands = page_block("sglang_router").replace("data/router.log", "/tmp/router.log")
    for word, ours in (("HOST1", "host1"), ("HOST2", "host2"), ("mlperf_results", "/tmp")):
        assert word in commands
        commands = commands.replace(word, ours)
    start, _, rest = commands.partition("python run_mlperf.py")
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    ended = first.run("bash", "-ec", commands, PATH=path)
    assert ended.returncode == 0, ended.stderr
    assert "SGLang's router, servers: 2" in ended.stderr
    assert "0 tokens reused" in ended.stdout

    answers = []
    for urls in ("http://host1:8018,http://host2:8018", "http://127.0.0.1:8030"):
        words = ["python", "run_eval.py", "--backend", "sglang", "--endpoint", urls, *GIVEN]
        words += ["--num-samples", "16", "--output-file", "/tmp/output.pkl"]
        ended = first.run("bash", "-ec", f"{start}{shlex.join(words)}\nkill $!", PATH=path)
        assert ended.returncode == 0, ended.stderr
        frame = pd.read_pickle(first.tmp / "output.pkl")
        answers.append([list(ids) for ids in frame.tok_model_output])
    assert answers[0] == answers[1]

    many = rest.replace("--num-samples 20", "--num-samples 200 --max-running 4")
    many = many.replace("/tmp/router", "/tmp/cut")
    run = first.start("bash", "-ec", f"{start}python run_mlperf.py{many}", PATH=path)
    wait_for(first.tmp / "cut" / "offline" / "performance" / "completions.journal", run)
    for process in others[1].processes():
        process.kill()
    _, stderr = run.communicate(timeout=GONE_S)
    assert run.returncode == EngineError.exit_code
    assert re.search(r"\nerror: endpoint http://127\.0\.0\.1:8030: row \d+ .*closed", stderr), (
        stderr
    )


FIRST = "10.77.0.1"
HOSTS = {"vllm": f"master_addr={FIRST}", "sglang": f"dist_init_addr={FIRST}:20000"}
SOON = {"vllm": ("--eager",), "sglang": ()}  # that make it start soon
ON_BOTH = pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in HOSTS]
)
ENGINES_S = 600  # for vLLM or SGLang to start and answer, on a busy machine
SEVERAL_STARTS = pytest.mark.skipif(
    not THOROUGH, reason="THOROUGH=1 runs it: it starts an engine on two hosts, again and again"
)


def on_hosts(
    engine: str,
    several: list[Host],
    *options: str,
    way: str = "--tensor-parallel",
    last: tuple[str, ...] = (),
) -> list[subprocess.Popen[str]]:
    """run_eval.py of an engine that spans these hosts, each of which has a part of each layer, or
    by another `way` some of the layers.

    `last`: options of the last host only.
    """
    words = [sys.executable, "run_eval.py", "--backend", engine, *GIVEN]
    words += SOON[engine] if way == "--tensor-parallel" else ()
    words += ["--dtype", "float32", "--num-samples", "8", "--output-file", "/tmp/output.pkl"]
    words += options
    if len(several) > 1:
        words += [way, "2", "--engine-arg", "nnodes=2"]
        words += ["--engine-arg", HOSTS[engine]]
    runs = []
    for rank, host in enumerate(several):
        join = ("--engine-arg", f"node_rank={rank}", "--join", *last) if rank else ()
        # else each host's workers, of all hosts on the same machine, use its first core
        runs.append(host.start(*words, *join, VLLM_CPU_OMP_THREADS_BIND="nobind"))
    return runs


def find(host: Host, word: str) -> psutil.Process:
    """The first process of a host that has this in its name or at its command's beginning."""
    for process in host.processes():
        with suppress(psutil.Error):  # one may end meanwhile
            if any(word in one for one in (process.name(), *process.cmdline()[:3])):
                return process
    raise AssertionError(f"{host.name} has no {word}")


@pytest.mark.engine
@SEVERAL_STARTS
@ON_BOTH
@pytest.mark.parametrize("way", ["--tensor-parallel", "--pipeline-parallel"])
def test_an_engine_answers_the_same_on_two_hosts_as_on_one(engine: str, way: str, lan: Lan) -> None:
    several = lan(2)
    answers = []
    for used in (several, several[1:]):
        runs = on_hosts(engine, used, way=way)
        outputs = [run.communicate(timeout=ENGINES_S)[1] for run in runs]
        assert [run.returncode for run in runs] == [0 for _ in runs], outputs
        wait_until_gone(used)
        assert [host.shared_memory() for host in used] == [[] for _ in used]
        frame = pd.read_pickle(used[0].tmp / "output.pkl")
        answers.append([list(ids) for ids in frame.tok_model_output])
    assert answers[0] == answers[1]


@pytest.mark.engine
@SEVERAL_STARTS
@ON_BOTH
@pytest.mark.parametrize("host", [1, 0])
@pytest.mark.parametrize("what", ["run", "worker"])
def test_a_killed_process_ends_an_engines_run_on_all_hosts(
    engine: str, host: int, what: str, lan: Lan
) -> None:
    several = lan(2)
    brief = ("--max-new-tokens", "24", "--num-samples", "64", "--max-running", "2")
    runs = on_hosts(engine, several, *brief)
    journal, until = several[0].tmp / "output.journal", time.monotonic() + ENGINES_S
    while not (journal.exists() and read_journal(journal)):
        assert all(run.poll() is None for run in runs), [run.communicate() for run in runs]
        assert time.monotonic() < until
        time.sleep(0.1)
    victim = find(several[host], "run_eval.py")
    if what == "worker":
        made = victim.children(recursive=True)
        victim = sglang_scheduler(made) if engine == "sglang" else find(several[host], "Worker")
    victim.kill()
    wait_until_gone(several, GONE_S)
    outputs = [run.communicate(timeout=10)[1] for run in runs]
    assert all(run.returncode for run in runs)
    died = "died without an error message" if what == "run" else "failed: see its own error message"
    assert re.search(
        rf"error: rank {host} of 2 \(process \d+ on host{host}\) {died}", outputs[1 - host]
    )
    assert [one.shared_memory() for one in several] == [[], []]
    assert "Traceback" not in "".join(outputs).split("ends with:")[0]


@pytest.mark.engine
@pytest.mark.skipif(not THOROUGH, reason="THOROUGH=1 runs it, as it imports an engine twice")
@ON_BOTH
def test_hosts_of_an_engine_that_differ_are_named_before_it_starts(engine: str, lan: Lan) -> None:
    for run in on_hosts(engine, lan(2), last=("--seed", "3")):
        _, stderr = run.communicate(timeout=ENGINES_S)
        assert run.returncode == LaunchError.exit_code
        assert re.search(r"rank 1 \(process \d+ on host1\) does not fit rank 0", stderr), stderr
        assert re.search(r"seed is 3 on it and 0 on rank 0", stderr), stderr
