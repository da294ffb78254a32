"""Several ranks under torchrun, on gloo."""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from benchmarks.r1 import R1
from data.samples import read_frame
from errors import LaunchError, ParallelError, UsageError
from ref_dsinfer import fp8, members, parallel
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.convert import convert
from ref_dsinfer.members import Member
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.parallel import RankInfo, Ranks, check, choose_device
from tests.effort import cases
from tests.multihost import Host, hosts, wait_until_gone
from tests.torchrun import Torchrun

ANSWERS = Path(__file__).with_name("rank_answers.py")
CLOSE = Path(__file__).with_name("rank_close.py")
SCHEDULES = Path(__file__).with_name("rank_schedules.py")
ROOT = Path(__file__).parents[2]
NODES = ROOT / "requirements" / "torchrun-nodes"  # as setup.sh copies it into environments


class Found(NamedTuple):
    """The results that all ranks have written."""

    answers: list[list[int]]
    logits: torch.Tensor

    @classmethod
    def of(cls, path: Path) -> "Found":
        """The results of one rank."""
        written = json.loads(path.read_text())
        return cls(written["answers"], torch.tensor(written["logits"]))

    def same_as(self, other: "Found") -> bool:
        torch.testing.assert_close(self.logits, other.logits, rtol=0, atol=1e-5)
        return self.answers == other.answers


def run_nodes(
    several: list[Host], ranks: int, leader: str, *options: tuple[object, ...]
) -> list[tuple[int, str]]:
    """Cases of ANSWERS on hosts with so many ranks each; exit code and standard error of each.

    `leader`: address or name of the first host.
    """
    torchrun = (sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}")
    address = (f"--nnodes={len(several)}", f"--master-addr={leader}", "--master-port=29511")
    python_path = f"{ROOT}:{NODES}"
    nodes = [
        host.start(
            *(*torchrun, *address, f"--node-rank={number}", ANSWERS, as_json(*options)),
            PYTHONPATH=python_path,
        )
        for number, host in enumerate(several)
    ]
    outputs = [node.communicate(timeout=120)[1] for node in nodes]
    return [(node.returncode, err) for node, err in zip(nodes, outputs, strict=True)]


def read_hosts(several: list[Host], ranks: int, output: str) -> Found:
    """Read the results that the ranks of each host have written to its own files."""
    found = [
        Found.of(host.tmp / f"{output}.{number * ranks + rank}")
        for number, host in enumerate(several)
        for rank in range(ranks)
    ]
    assert all(one.answers == found[0].answers for one in found)
    return found[0]


def read(world: int, output: Path) -> Found:
    """Read the results of all ranks, which must agree."""
    found = [Found.of(Path(f"{output}.{rank}")) for rank in range(world)]
    assert all(one.answers == found[0].answers for one in found)
    assert all(torch.equal(one.logits, found[0].logits) for one in found)
    return found[0]


def as_json(*options: tuple[object, ...]) -> str:
    """The cases of ANSWERS."""
    return json.dumps(options, default=str)


def answer(torchrun: Torchrun, world: int, *options: tuple[object, ...]) -> None:
    """Run the cases of ANSWERS on so many ranks."""
    ended = torchrun.run(world, ANSWERS, as_json(*options))
    assert ended.returncode == 0, ended.stderr


def one_process(model: Path, attention: str = "tp") -> Found:
    worker = runpy.run_path(str(ANSWERS))
    engine, answers = worker["answers"](model, attention, "float32", 0.0)
    assert len({token for answer in answers for token in answer}) > 20
    return Found(answers, torch.tensor(worker["logits"](engine)))


@pytest.fixture(scope="module")
def alone(random_model: Path) -> Found:
    return one_process(random_model)


@pytest.fixture(scope="module")
def two_ranks(
    torchrun: Torchrun,
    random_model: Path,
    drafting_model: Path,
    write_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of what two ranks have answered, and of models made for it; one start for all."""
    folder = tmp_path_factory.mktemp("two_ranks")
    inner = {"intermediate_size": 256, "moe_intermediate_size": 128}
    write_model(folder / "hf", num_attention_heads=3, num_key_value_heads=3, **inner)
    fp8.write_twin(folder / "hf", folder / "fp8")
    convert(drafting_model, folder / "drafting", 2)
    answer(
        torchrun,
        2,
        (random_model, folder / "tp", "tp"),
        (random_model, folder / "symmetric", "tp", "float32", 0.0, False, True, True),
        (random_model, folder / "tp drawn", "tp", "bfloat16", 0.8),
        (random_model, folder / "dp drawn", "dp", "bfloat16", 0.8),
        (folder / "fp8", folder / "dp of fp8", "dp"),
        (folder / "drafting", folder / "drafts", "tp", "float32", 0.0, True, True),
        (folder / "drafting", folder / "drafts drawn", "tp", "float32", 0.8, True),
    )
    return folder


@pytest.mark.slow
def test_two_ranks_give_the_tokens_of_one(two_ranks: Path, alone: Found) -> None:
    assert read(2, two_ranks / "tp").same_as(alone)
    assert read(2, two_ranks / "symmetric").same_as(alone)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["dp", "tp"][: cases(1, 2)])
def test_four_ranks_give_the_tokens_of_one(
    attention: str, torchrun: Torchrun, random_model: Path, alone: Found, tmp_path: Path
) -> None:
    convert(random_model, tmp_path / "converted", 4)
    fixed = attention == "dp"  # the shapes of CUDA graphs
    case = (tmp_path / "converted", tmp_path / "answers", attention, "float32", 0.0, False, fixed)
    answer(torchrun, 4, case)
    assert read(4, tmp_path / "answers").same_as(alone)


@pytest.mark.slow
def test_for_one_process_both_kinds_of_attention_are_one(random_model: Path, alone: Found) -> None:
    assert one_process(random_model, "dp").same_as(alone)


@pytest.mark.slow
def test_fp8_and_heads_that_do_not_divide(two_ranks: Path) -> None:
    """Data-parallel attention has its heads whole."""
    with pytest.raises(ParallelError, match="3 attention heads"):
        check(ModelConfig.read(two_ranks / "fp8"), 2, "tp")
    assert read(2, two_ranks / "dp of fp8").same_as(one_process(two_ranks / "fp8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machines", "ranks", "leader"), [(2, 2, "host0"), (4, 1, "10.77.0.1")][: cases(1, 2)]
)
def test_ranks_on_several_hosts_give_the_tokens_of_one(
    machines: int, ranks: int, leader: str, random_model: Path, alone: Found, tmp_path: Path
) -> None:
    """With files of their own, and names that lead to another network or to themselves."""
    with hosts(machines, tmp_path, [ROOT, Path(sys.prefix)]) as several:
        for host in several:
            shutil.copytree(random_model, host.tmp / "model")
        cases_of_both = [("/tmp/model", f"/tmp/{kind}", kind) for kind in ("tp", "dp")]
        for code, err in run_nodes(several, ranks, leader, *cases_of_both):
            assert code == 0, err
        assert read_hosts(several, ranks, "tp").same_as(alone)
        assert read_hosts(several, ranks, "dp").same_as(alone)
        wait_until_gone(several)
        assert [host.shared_memory() for host in several] == [[]] * machines


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["tp", "dp"])
def test_ranks_stay_together_where_sums_are_rounded_and_tokens_drawn(
    attention: str, two_ranks: Path, alone: Found
) -> None:
    drawn = read(2, two_ranks / f"{attention} drawn").answers
    assert drawn != alone.answers
    assert [len(answer) for answer in drawn[:7]] == [len(answer) for answer in alone.answers[:7]]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("world", "count"), [(2, cases(2, 16)), (4, cases(2, 6))])
def test_data_parallel_answers_do_not_depend_on_the_schedule(
    world: int, count: int, torchrun: Torchrun, random_model: Path, tmp_path: Path
) -> None:
    """With preempted sequences, fewer sequences than ranks, and all of a rank's aborted."""
    tests = runpy.run_path(str(Path(__file__).with_name("test_schedules.py")))
    answers = tests["answers_alone"](random_model)
    (tmp_path / "alone").write_text(json.dumps(list(answers.items())))
    ended = torchrun.run(world, SCHEDULES, random_model, tmp_path / "alone", 0, count)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > count // 8  # else preemption is not tried


@pytest.mark.slow
@pytest.mark.parametrize(("name", "temperature"), [("drafts", 0.0), ("drafts drawn", 0.8)])
def test_ranks_that_draft_give_the_tokens_of_one_that_does_not(
    name: str, temperature: float, drafting_model: Path, two_ranks: Path
) -> None:
    worker = runpy.run_path(str(ANSWERS))
    _, alone = worker["answers"](drafting_model, "tp", "float32", temperature)
    answers = read(2, two_ranks / name).answers
    answers[7] = answers[7][
        : len(alone[7])
    ]  # aborted after so many steps, which may give more tokens
    assert answers == alone


@pytest.mark.slow
def test_a_mistake_on_one_host_ends_the_others(random_model: Path, tmp_path: Path) -> None:
    """The second host has no model, which it finds out before the rendezvous."""
    with hosts(2, tmp_path, [ROOT, Path(sys.prefix)]) as several:
        shutil.copytree(random_model, several[0].tmp / "model")
        first, second = run_nodes(several, 1, "host0", ("/tmp/model", "/tmp/answers", "tp"))
        wait_until_gone(several)
    assert second[0] != 0
    assert second[1].count("error: ") == 1, second
    assert "error: /tmp/model/config.json does not exist" in second[1]
    assert first[0] != 0
    assert "torchrun: node 0: node 1 (host1) has ended before its part was done" in first[1]


def test_ranks_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model is found at the rendezvous, by every rank alike."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": "1"}
    variables |= {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "_rendezvous_number", count())
    ours = {"the model": "sha256:1", "attention": "tp", "dtype": "bfloat16"}
    theirs = Member("process 9 on host0", "", ours | {"the model": "sha256:2", "dtype": "float32"})
    dist.PrefixStore("0", store).set("here/0", theirs.to_json())
    with pytest.raises(LaunchError) as raised:
        Ranks(RankInfo(1, 2, 0, 1), torch.device("cpu"), settings=ours)
    assert re.fullmatch(
        r"rank 1 \(process \d+ on \S+\) does not fit rank 0 \(process 9 on host0\): dtype is"
        r" bfloat16 on it and float32 on rank 0, the model is sha256:1 on it and sha256:2 on rank"
        " 0;"
        " every host needs the same program, model and options",
        str(raised.value),
    )


def test_settings_are_of_all_that_decides_what_ranks_compute(
    random_model: Path, tmp_path: Path
) -> None:
    options = asdict(EngineOptions(threads=3))
    ours = members.settings(random_model, options)
    assert ours.keys() == {"the program", "torch", "the model", *options} - {"threads"}
    shutil.copytree(random_model, tmp_path / "model")
    assert members.settings(tmp_path / "model", options) == ours
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert members.settings(tmp_path / "model", options)["the model"] != ours["the model"]


@pytest.mark.slow
def test_ranks_missing_at_rendezvous_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parallel, "WARN_AFTER", timedelta(seconds=1))
    monkeypatch.setattr(parallel, "RENDEZVOUS_TIMEOUT", timedelta(seconds=2))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": "1"}
    variables |= {"WORLD_SIZE": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    missing = "rank 0, 2 of 3 (see the output on its machine)"
    with pytest.raises(LaunchError) as raised:
        Ranks(RankInfo(1, 3), torch.device("cpu"))
    assert str(raised.value) == f"missing at rendezvous after 2 s: {missing}"
    assert caplog.messages == [f"still missing at rendezvous: {missing}"]
    del store
    with pytest.raises(LaunchError, match="rank 1 can't reach rank 0"):
        Ranks(RankInfo(1, 3), torch.device("cpu"))


@pytest.mark.slow
def test_torchrun_names_the_missing_nodes() -> None:
    """Alone as node 0 or another one, with a taken port, and with other --nnodes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports = [listener.getsockname()[1]]
        for _ in range(3):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports.append(free.getsockname()[1])

        def node(port: int, rank: int, nodes: int, seconds: int) -> subprocess.Popen[str]:
            command = (
                f"-m torch.distributed.run --nnodes={nodes} --node-rank={rank}"
                f" --master-addr=127.0.0.1 --master-port={port} --rdzv-conf=timeout={seconds}"
            )
            return subprocess.Popen(
                [sys.executable, *command.split(), str(ANSWERS), "[]"],
                env=os.environ | {"PYTHONPATH": f"{ROOT}:{NODES}"},
                stderr=subprocess.PIPE,
                text=True,
            )

        started = [
            node(ports[0], 0, 2, 1),
            node(ports[1], 0, 3, 22),
            node(ports[2], 1, 2, 1),
            node(ports[3], 0, 2, 60),
            node(ports[3], 1, 3, 60),
        ]
        outputs = [one.communicate(timeout=200)[1].splitlines() for one in started]
    assert [one.returncode for one in started] == [LaunchError.exit_code] * 5
    assert outputs[0][-1].endswith(f"port {ports[0]} of this machine is taken (--master-port)")
    who = "node 1, 2 of 3 to join"
    waiting, gave_up = outputs[1]
    assert waiting == (
        f"torchrun: node 0: waiting for {who}; start the same command there with its --node-rank"
    )
    assert gave_up.endswith(f" s for {who}; start the same command there too")
    assert outputs[2] == [outputs[2][-1]]
    assert f"s for node 0 of 2 at 127.0.0.1:{ports[2]} ([Errno 111] " in outputs[2][-1]
    assert outputs[3] == ["torchrun: node 0: node 1 has --nnodes=3, this one 2"]
    assert outputs[4] == ["torchrun: node 1: node 0 has --nnodes=2, this one 3"]


def test_what_must_divide_is_checked(random_model: Path) -> None:
    config = ModelConfig.read(random_model)
    for world in (1, 2, 4):
        check(config, world)
    for world in (3, 5, 8):
        with pytest.raises(ParallelError, match=f"over {world} processes"):
            check(config, world)
    check(replace(config, heads=5), 4, "dp")
    with pytest.raises(ParallelError, match="6 routed experts can't be split over 4 processes"):
        check(replace(config, experts=6), 4, "dp")


def test_r1_splits_over_8_and_16_but_not_over_32() -> None:
    for attention in ("tp", "dp"):
        for world in (1, 2, 4, 8, 16):
            check(R1, world, attention)
        with pytest.raises(ParallelError, match="cuts fp8 blocks of 128"):
            check(R1, 32, attention)


def test_the_rank_comes_from_torchruns_environment() -> None:
    assert RankInfo.from_environment({}) == RankInfo()
    names = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert RankInfo.from_environment(names) == RankInfo(3, 8, 1, 2)
    with pytest.raises(LaunchError, match="torchrun"):
        RankInfo.from_environment(names | {"RANK": "x"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to find")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert choose_device("auto", RankInfo()) == torch.device("cpu")
    with pytest.raises(UsageError, match="no GPU"):
        choose_device("cuda", RankInfo())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["captured", "stuck"])
def test_results_do_not_wait_for_the_process_groups(
    kind: str, torchrun: Torchrun, tmp_path: Path
) -> None:
    """NCCL's communicators can't be destroyed before the CUDA graphs that hold them."""
    tiny, output = ROOT / "data" / "tiny", tmp_path / "answers.pkl"
    ended = torchrun.run(
        *(2, CLOSE, kind, "--model", tiny / "model", "--device", "cpu", "--num-samples", 4),
        *("--input-file", tiny / "final_output.pkl", "--output-file", output),
    )
    assert ended.returncode == 0, ended.stderr
    assert len(read_frame(output)) == 4
    assert ("could not be destroyed" in ended.stderr) == (kind == "stuck")
