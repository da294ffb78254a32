"""A sweep's points, from a file or the command line."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from errors import InputFileError, UsageError
from mlperf import launch
from mlperf.sweep import plan
from mlperf.sweep.__main__ import _varied
from tests.jobs import GIVEN, ROOT


def points(folder: Path, **table: Any) -> list[plan.Point]:
    table = {"options": GIVEN, "engines": {"echo": {}}, **table}
    return plan.points(table, "sweep.toml", folder)


def test_all_values_are_combined_for_each_engine(tmp_path: Path) -> None:
    made = points(
        tmp_path,
        vary={"mode": ["server", "offline"], "target-qps": [2, 0.5]},
        engines={
            "echo": {},
            "torch": {
                "backend": "pytorch",
                "processes": 2,
                "python": "env/bin/python",
                "options": ["--dtype", "float32"],
                "vary": {"target-qps": [8], "speculative": [True, False]},
            },
        },
    )
    assert [point.label for point in made] == [
        "echo mode=server target-qps=2",
        "echo mode=server target-qps=0.5",
        "echo mode=offline target-qps=2",
        "echo mode=offline target-qps=0.5",
        "torch mode=server target-qps=8 speculative=true",
        "torch mode=server target-qps=8 speculative=false",
        "torch mode=offline target-qps=8 speculative=true",
        "torch mode=offline target-qps=8 speculative=false",
    ]
    assert len({point.folder for point in made}) == 8
    assert made[1].command[1:] == [
        *(str(ROOT / "run_mlperf.py"), "--backend", "echo", *GIVEN),
        *("--mode", "server", "--target-qps", "0.5", "--log-dir", str(made[1].folder)),
    ]
    python, *words = made[4].command
    assert python == str(Path.cwd() / "env/bin/python")
    assert words[:5] == [
        *("-m", "torch.distributed.run", "--local-addr=127.0.0.1", "--nproc_per_node=2"),
        str(ROOT / "run_mlperf_mpi.py"),
    ]
    assert words[5:-2] == [
        *("--backend", "pytorch", *GIVEN, "--dtype", "float32"),
        *("--mode", "server", "--target-qps", "8", "--speculative"),
    ]


def test_a_folder_is_of_an_effective_configuration(tmp_path: Path) -> None:
    confs = [tmp_path / f"{name}.conf" for name in ("one", "two", "other")]
    for conf, rate in zip(confs, (1, 1, 2), strict=True):
        conf.write_text(f"deepseek-r1.Offline.target_qps = {rate}\n")

    def hash_of(*options: str, conf: Path = confs[0], **table: Any) -> str:
        [point] = points(tmp_path, options=[*GIVEN, "--user-conf", str(conf), *options], **table)
        return point.folder.name.rpartition("-")[2]

    first = hash_of("--max-running", "8")
    assert hash_of("--max-num-seqs", "8") == first  # another spelling
    assert hash_of(vary={"max-running": [8]}) == first
    assert hash_of("--max-running", "8", "--no-live", "--trace") == first  # measures the same
    assert hash_of("--max-running", "9") != first
    assert hash_of("--max-running", "8", engines={"e": {"backend": "pytorch"}}) != first
    assert hash_of("--max-running", "8", conf=confs[1]) == first  # the same in another file
    assert hash_of("--max-running", "8", conf=confs[2]) != first


def test_equal_points_are_one(tmp_path: Path) -> None:
    assert len(points(tmp_path, vary={"target-qps": [8, "8", 8.0]})) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"engines": {}}, "no engine"),
        ({"engines": {"ecko": {}}}, "ecko"),
        ({"engines": {"echo": 3}}, "engines.echo: must be a table"),
        ({"engines": {"echo": {"process": 2}}}, "engines.echo: unknown key 'process'"),
        ({"engines": {"echo": {"processes": True}}}, "processes must be a whole number"),
        ({"engines": {"echo": {"processes": -1}}}, "processes: -1 is below 0"),
        ({"option": []}, "sweep.toml: unknown key 'option'"),
        ({"options": ["--accuracy"]}, "options: --accuracy: leave it out"),
        ({"options": ["--output-dir=x"]}, "options: --output-dir: leave it out"),
        ({"options": [8]}, "8 must be text"),
        ({"vary": {"backend": ["vllm"]}}, "vary: --backend: leave it out"),
        ({"vary": {"target-qps": 8}}, "vary.target-qps: must be a list"),
        ({"vary": {"target-qps": []}}, "vary.target-qps: must be a list"),
        ({"vary": {"target-qps": [[8]]}}, "is neither text, a number nor"),
        ({"vary": {"target-qps": ["x"]}}, "echo target-qps=x: argument --target-qps: must be"),
        ({"vary": {"max-runing": [8]}}, "echo max-runing=8: unrecognized arguments"),
    ],
)
def test_what_is_refused_before_the_first_run(
    table: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        points(tmp_path, **table)
    assert list(tmp_path.iterdir()) == []


def test_files_that_can_t_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"none.toml: can't be read"):
        plan.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a =")
    with pytest.raises(InputFileError, match=r"bad.toml: not TOML"):
        plan.read(tmp_path / "bad.toml")
    with pytest.raises(InputFileError, match=r"none.pkl: can't be read"):
        points(tmp_path, options=[*GIVEN, "--input-file", str(tmp_path / "none.pkl")])


def test_values_on_the_command_line() -> None:
    assert _varied("target-qps=2,4") == ("target-qps", ["2", "4"])
    assert _varied("--eager=true,false") == ("eager", [True, False])
    assert _varied("engine-arg=a=1,b=2") == ("engine-arg", ["a=1", "b=2"])


def test_an_engine_has_the_environment_that_setup_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    for device in ("cpu", "cuda"):
        python = tmp_path / f".venv-vllm-{device}" / "bin" / "python"
        assert plan.environment("vllm") != python
        python.parent.mkdir(parents=True)
        python.touch()
        if device == "cpu":
            assert plan.environment("vllm") == python
    with pytest.raises(UsageError, match=r"vllm has several environments .*-cpu.*-cuda"):
        plan.environment("vllm")


def test_the_page_s_file_is_a_sweep(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    [table] = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", text, re.S)]
    for engine in table["engines"].values():
        engine["python"] = "python"
    assert len(plan.points(table, "docs/compare.md", tmp_path)) == 12
