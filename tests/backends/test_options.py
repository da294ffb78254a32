import argparse
import shutil
from pathlib import Path

import pytest

import benchmark
from backends import options
from backends.registry import lookup
from backends.types import OPTIONS, EngineConfig
from errors import LaunchError, LengthError, ModelError, UsageError
from ref_dsinfer import cpu, gemm, kernels


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLPERF_BACKEND", "MLPERF_MODEL", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def parse(*words: object, torchrun: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_engine_options(parser, torchrun)
    return parser.parse_args([str(one) for one in words])


def test_options_become_a_configuration(tmp_path: Path) -> None:
    args = parse(
        *("--backend", "echo", "--model", tmp_path, "--device", "cpu", "--dtype", "float32"),
        *("--max-model-len", 512, "--max-running", 3, "--seed", 9),
        *("--engine-arg", "a=1", "--engine-arg", "b=x=y"),
    )
    assert options.engine_config(args, lookup("echo"), 2, coalesce=True) == EngineConfig(
        *(str(tmp_path), "cpu", "float32", 512, 3),
        tensor_parallel=2,
        seed=9,
        coalesce=True,
        options={"a": "1", "b": "x=y"},
    )


def test_defaults_are_those_of_the_configuration(tmp_path: Path) -> None:
    args = parse("--backend", "echo", "--model", tmp_path)
    assert options.engine_config(args, lookup("echo")) == EngineConfig(str(tmp_path))
    assert args.max_new_tokens == 20_000


def test_the_environment_chooses_where_options_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parse()
    assert parse(torchrun=True).backend == "pytorch"
    monkeypatch.setenv("MLPERF_BACKEND", "echo")
    monkeypatch.setenv("MLPERF_MODEL", "/models/r1")
    assert parse().backend == "echo"
    assert parse().model == "/models/r1"
    assert parse("--backend", "pytorch").backend == "pytorch"


@pytest.mark.parametrize(
    "options",
    [
        ("--engine-arg", "alone"),
        ("--engine-arg", "=1"),
        ("--max-running", "0"),
        ("--memory-share", "1.5"),
        ("--eager", "--compile"),
        ("--max-new-tokens", "-1"),
        ("--dtype", "int4"),
        ("--attention", "ep"),
    ],
)
def test_bad_values_are_refused(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--backend", "echo", *options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache: Path, name: str, revision: str) -> Path:
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    return folder / "snapshots" / revision


def test_a_model_in_the_cache_is_found_by_name_and_revision(cache: Path) -> None:
    other = snapshot(cache, benchmark.MODEL, "f" * 40)
    with pytest.raises(ModelError, match=benchmark.REVISION):  # main is another revision
        options.find_model(benchmark.MODEL)
    assert options.find_model(benchmark.MODEL, "f" * 40) == str(other)
    pinned = snapshot(cache, benchmark.MODEL, benchmark.REVISION)
    assert options.find_model(benchmark.MODEL) == str(pinned)


def test_a_model_that_is_not_here_is_named_with_the_way_to_get_it(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"\(`hf download some/model`, or give"):
        options.find_model("some/model")
    with pytest.raises(
        ModelError, match=f"`python -m data.fetch model` gets revision {benchmark.REVISION}"
    ):
        options.find_model(benchmark.MODEL)


@pytest.mark.parametrize("name", ["/no/such", "nowhere", "./a/b", "a/b/c"])
def test_a_missing_directory_is_not_looked_up(name: str) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        options.find_model(name)


def test_each_script_is_held_to_its_way_of_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    pytorch, echo = parse("--backend", "pytorch"), parse("--backend", "echo")
    assert options.choose_backend(pytorch, torchrun=False)[1] == 1
    with pytest.raises(LaunchError, match="torchrun"):
        options.choose_backend(pytorch, torchrun=True)

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert options.choose_backend(pytorch, torchrun=True)[1] == 4
    with pytest.raises(LaunchError, match="_mpi"):
        options.choose_backend(pytorch, torchrun=False)
    with pytest.raises(UsageError, match="echo"):
        options.choose_backend(echo, torchrun=True)


@pytest.mark.parametrize(
    ("engine", "words", "message"),
    [
        ("pytorch", ("--tensor-parallel", 2), "pytorch does not support --tensor-parallel"),
        ("pytorch", ("--eager", "--kv-dtype", "fp8"), "does not support --eager, --kv-dtype"),
        ("pytorch", ("--endpoint", "http://localhost:1"), "does not support --endpoint"),
        ("vllm", ("--attention", "dp"), "vllm does not support --attention"),
        ("vllm", ("--served-model", "r1"), "does not support --served-model"),
        (
            "vllm",
            ("--endpoint", "http://localhost:1", "--eager", "--engine-arg", "a=1"),
            "--eager, --engine-arg: with --endpoint the server decides",
        ),
    ],
)
def test_an_option_that_the_engine_does_not_know(
    engine: str, words: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    args = parse("--backend", engine, "--model", tmp_path, *words)
    with pytest.raises(UsageError, match=message):
        options.engine_config(args, lookup(engine))


def test_options_of_an_engine_with_its_own_processes(tmp_path: Path) -> None:
    args = parse(
        *("--backend", "vllm", "--model", tmp_path, "--tensor-parallel", 2, "--data-parallel", 4),
        *("--pipeline-parallel", 3, "--expert-parallel", "--memory-share", 0.5, "--compile"),
        *("--kv-dtype", "fp8", "--quantization", "fp8", "--start-timeout", 60),
    )
    assert options.engine_config(args, lookup("vllm")) == EngineConfig(
        str(tmp_path),
        tensor_parallel=2,
        pipeline_parallel=3,
        data_parallel=4,
        expert_parallel=True,
        memory_share=0.5,
        kv_dtype="fp8",
        quantization="fp8",
        compile=True,
        start_timeout=60,
    )


def test_torchrun_s_processes_become_the_tensor_parallel_size(tmp_path: Path) -> None:
    args = parse("--model", tmp_path, "--attention", "dp", torchrun=True)
    config = options.engine_config(args, lookup("pytorch"), 4)
    assert (config.attention, config.tensor_parallel) == ("dp", 4)


def test_endpoints_of_servers(tmp_path: Path) -> None:
    urls = ("http://a:1", "http://b:2")
    args = parse(
        *("--backend", "vllm", "--model", tmp_path, "--endpoint", ", ".join(urls)),
        *("--served-model", "r1", "--max-running", 9),
    )
    config = options.engine_config(args, lookup("vllm"))
    assert (config.endpoints, config.served_model, config.max_running) == (urls, "r1", 9)


def test_endpoints_come_from_files_too_and_add_up(tmp_path: Path) -> None:
    listed = tmp_path / "servers"
    listed.write_text("# two of them\nhttp://b:1\n\n  http://c:1  # the second\n")
    words = ("--endpoint", f"http://a:1,@{listed}", "--endpoint", "http://d:1")
    args = parse("--backend", "vllm", *words)
    assert args.endpoints == tuple(f"http://{name}:1" for name in "abcd")


@pytest.mark.parametrize("text", [None, b"# none\n", b"\xff\xfe"])
def test_a_file_without_endpoints_is_refused(
    text: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "servers"
    if text is not None:
        listed.write_bytes(text)
    with pytest.raises(SystemExit) as ended:
        parse("--backend", "vllm", "--endpoint", f"@{listed}")
    assert ended.value.code == UsageError.exit_code
    assert f"argument --endpoint: {listed} " in capsys.readouterr().err


def test_the_model_s_length_is_its_config_s(echo_model: Path, tmp_path: Path) -> None:
    assert options.model_length(EngineConfig(str(echo_model))) == 163_840
    assert options.model_length(EngineConfig(str(echo_model), max_model_len=7)) == 7
    with pytest.raises(LengthError, match="163841"):
        options.model_length(EngineConfig(str(echo_model), max_model_len=163_841))


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"max_position_embeddings": "long"}'])
def test_a_model_without_a_length_is_refused(
    echo_model: Path, tmp_path: Path, text: str | None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(echo_model, folder)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        options.model_length(EngineConfig(str(folder)))


def test_choices_are_those_of_the_engine_in_this_tree() -> None:
    """`types` must not import torch, which `gemm` does, and so lists them once more."""
    assert OPTIONS["dtype"].choices == cpu.DTYPES
    assert OPTIONS["gemm"].choices == gemm.ARITHMETICS
    assert OPTIONS["kernels"].choices == kernels.KERNELS
