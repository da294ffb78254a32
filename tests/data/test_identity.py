"""Which model a directory holds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark import REVISION
from data.identity import R1, Identity, identify
from errors import ModelError
from tests.data.models import FORMATS, TEMPLATES, make_model
from tests.jobs import TINY

OTHER = "4236a6af538feda4548eca9ab308586007567f52"


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_model_and_its_derivatives(tmp_path: Path, name: str, weights: str) -> None:
    if name == "DeepSeek-V3.1" and weights != "block-fp8":
        assert identify(make_model(tmp_path / "own", name)).name == name
    identity = identify(make_model(tmp_path / "model", name, weights))
    assert identity == Identity(name, weights, None)
    [*objections] = identity.objections()
    assert bool(objections) == (name != R1)
    for objection in objections:
        derivative = f" in {weights}" if weights != "block-fp8" else ""
        assert objection == (
            f"this is {name}{derivative}; the benchmark wants DeepSeek-R1 at revision {REVISION}"
        )


def test_a_template_in_a_file_of_its_own_goes_first(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "DeepSeek-R1-0528")
    (folder / "chat_template.jinja").write_text(TEMPLATES[R1], encoding="utf-8")
    assert identify(folder).name == R1


def test_a_directory_without_weights_is_told_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "DeepSeek-V3-0324")
    for path in folder.glob("model*"):
        path.unlink()
    assert identify(folder) == Identity("DeepSeek-V3-0324", "block-fp8", None)


@pytest.mark.parametrize(
    ("alter", "unlike"),
    [
        (lambda f: change(f, "config.json", hidden_size=2048), "hidden_size 2048, not 7168"),
        (lambda f: change(f, "config.json", architectures=["LlamaForCausalLM"]), "architecture"),
        (lambda f: change(f, "config.json", architectures=None), "architecture"),
        (lambda f: change(f, "tokenizer_config.json", chat_template=None), "no chat template"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "no chat template"),
        (
            lambda f: (f / "model-00001-of-000003.safetensors").write_bytes(b"short"),
            "bytes of weights, where DeepSeek-R1 has 688586727753",
        ),
    ],
)
def test_what_is_unknown_says_why(
    tmp_path: Path, alter: Callable[[Path], object], unlike: str
) -> None:
    folder = make_model(tmp_path, R1)
    alter(folder)
    identity = identify(folder)
    assert identity.name is None
    assert unlike in identity.unlike
    [objection] = identity.objections()
    assert objection.startswith("this is an unknown model (")


def test_the_bundled_model_is_unknown() -> None:
    assert "hidden_size" in identify(TINY / "model").unlike


def test_the_revision_of_a_cache(tmp_path: Path) -> None:
    right = identify(make_model(tmp_path / "snapshots" / REVISION, R1))
    assert right.revision == REVISION
    assert not list(right.objections())
    wrong = identify(make_model(tmp_path / "snapshots" / OTHER, R1))
    assert list(wrong.objections()) == [
        f"this is revision {OTHER} of DeepSeek-R1, not the benchmark's {REVISION}"
    ]


def test_a_shard_of_another_revision_in_a_downloaded_directory(tmp_path: Path) -> None:
    folder = make_model(tmp_path, R1)
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    for path in folder.glob("*.*"):
        if path.is_file():
            (notes / f"{path.name}.metadata").write_text(f"{REVISION}\n{'0' * 64}\n1700000000.0\n")
    assert identify(folder) == Identity(R1, "block-fp8", REVISION)
    assert not list(identify(folder).objections())
    shard = "model-00002-of-000003.safetensors"
    (notes / f"{shard}.metadata").write_text(f"{OTHER}\n{'1' * 64}\n1700000000.0\n")
    assert list(identify(folder).objections()) == [
        f"{shard} is of another revision than the other files"
    ]


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str) -> None:
    folder = make_model(tmp_path, R1, "bf16")
    (folder / file).write_bytes(b"<html>")
    with pytest.raises(ModelError, match=f"{file} is an HTML page"):
        identify(folder)
