"""Convert and load: files, tensors in memory, and refusals."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from errors import CheckpointError, ModelError, OutputError, ParallelError
from ref_dsinfer import checkpoint, fp8, weight_files
from ref_dsinfer.attention import Attention
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.convert import convert
from ref_dsinfer.model import Model
from ref_dsinfer.moe import MoE
from ref_dsinfer.parallel import ATTENTION, RankInfo


def load(path: Path, rank: int = 0, world: int = 1, attention: str = "tp") -> Model:
    """One rank's part. No other rank is needed, since nothing is computed."""
    ranks = ATTENTION[attention](RankInfo(), torch.device("cpu"))
    ranks.rank, ranks.world_size = rank, world
    return Model.load(path, ModelConfig.read(path), torch.float32, ranks, 16)


def edit(path: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a checkpoint; None removes one."""
    file = path / "model.safetensors"
    tensors = load_file(file) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, file, {"format": "pt"})


@pytest.fixture
def copied(random_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_model, tmp_path / "copied"))


@pytest.fixture(scope="module")
def fp8_model(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> Path:
    """Block-fp8, with sizes that leave whole blocks to each of two ranks."""
    path = tmp_path_factory.mktemp("fp8")
    inner = {"intermediate_size": 256, "moe_intermediate_size": 128}
    heads = {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
    write_model(path / "hf", **inner, **heads)
    fp8.write_twin(path / "hf", path / "twin")
    return path / "twin"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_converted_and_direct_loads_are_the_same_bits(
    random_model: Path, tmp_path: Path, world: int
) -> None:
    files = convert(random_model, tmp_path, world)
    assert [file.name for file in files] == [
        f"model{r}-mp{world}.safetensors" for r in range(world)
    ]
    assert not list(tmp_path.glob(".*"))
    for rank in range(world):
        for attention in ATTENTION:
            direct = load(random_model, rank, world, attention)
            same_bits(direct, load(tmp_path, rank, world, attention))
            parts = world if attention == "tp" else 1
            assert attention_of(direct, 0).heads == 4 // parts


def test_fp8_converted_and_direct_loads_are_the_same_bits(fp8_model: Path, tmp_path: Path) -> None:
    convert(fp8_model, tmp_path, 2)
    for rank in range(2):
        same_bits(load(fp8_model, rank, 2), load(tmp_path, rank, 2))
        same_bits(load(fp8_model, rank, 2, "dp"), load(tmp_path, rank, 2, "dp"))
    with pytest.raises(ParallelError, match="cuts fp8 blocks of 128"):
        convert(fp8_model, tmp_path, 4)


def same_bits(one: Model, two: Model) -> None:
    ones, twos = dict(one.named_parameters()), dict(two.named_parameters())
    assert ones.keys() == twos.keys()
    for name, tensor in ones.items():
        assert torch.equal(tensor.view(torch.uint8), twos[name].view(torch.uint8)), name
    assert len(one.layers) == len(two.layers)
    for layer in range(len(one.layers)):
        assert torch.equal(attention_of(one, layer).unfold, attention_of(two, layer).unfold)


def attention_of(model: Model, layer: int) -> Attention:
    attention = model.layers[layer].self_attn
    assert isinstance(attention, Attention)
    return attention


def moe_of(model: Model, layer: int) -> MoE:
    mlp = model.layers[layer].mlp
    assert isinstance(mlp, MoE)
    return mlp


def test_ranks_hold_the_parts_of_the_whole(random_model: Path) -> None:
    whole = moe_of(load(random_model), 1)
    parts = [moe_of(load(random_model, rank, 2), 1) for rank in range(2)]
    experts = torch.cat([part.experts.gate_up_proj.weight for part in parts])
    assert torch.equal(experts, whole.experts.gate_up_proj.weight)
    up = torch.cat([part.shared_experts.gate_up_proj.weight for part in parts], dim=1)
    assert torch.equal(up, whole.shared_experts.gate_up_proj.weight)
    down = torch.cat([part.shared_experts.down_proj.weight for part in parts], dim=1)
    assert torch.equal(down, whole.shared_experts.down_proj.weight)


def test_a_written_file_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(5, dtype=torch.float32).to(torch.float8_e4m3fn),
        "wide": torch.rand(3, 7),
        "half": torch.rand(3, 3).bfloat16(),
        "none": torch.zeros(0, 4),
    }
    kinds = {"odd": "F8_E4M3", "wide": "F32", "half": "BF16", "none": "F32"}
    entries = [checkpoint.Entry(n, kinds[n], tuple(t.shape)) for n, t in tensors.items()]
    checkpoint.write(tmp_path / "x.safetensors", entries, reversed(tensors.items()))
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].float(), tensor.float())


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(4)
        raise KeyboardInterrupt

    entries = [checkpoint.Entry("a", "F32", (4,)), checkpoint.Entry("b", "F32", (4,))]
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "x.safetensors", entries, tensors())
    assert not list(tmp_path.iterdir())


def test_convert_drops_mtp_and_copies_what_lies_beside(copied: Path, tmp_path: Path) -> None:
    extra = {"model.layers.3.eh_proj.weight": torch.zeros(4, 4)}
    edit(copied, **extra)
    (copied / "tokenizer.json").write_text("{}")
    (copied / "chat_template.jinja").write_text("x")
    target = tmp_path / "out"
    convert(copied, target, 1)
    assert not extra.keys() & load_file(target / "model0-mp1.safetensors").keys()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (copied / name).read_bytes()
    load(copied)


def test_a_missing_rank_file_is_named_with_world_size_and_command(
    random_model: Path, tmp_path: Path
) -> None:
    convert(random_model, tmp_path, 2)
    (tmp_path / "model1-mp2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model1-mp2\.safetensors is missing") as caught:
        weight_files.locate(tmp_path, 2)
    assert "world size of 2" in str(caught.value)
    assert "ref_dsinfer.convert" in str(caught.value)


def test_weights_for_another_world_size_are_refused_unless_the_original_is_there(
    random_model: Path, copied: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    convert(random_model, target, 2)
    with pytest.raises(CheckpointError, match="for a world size of 2, this run has 4") as caught:
        weight_files.locate(target, 4)
    assert "--model-parallel 4" in str(caught.value)
    convert(copied, copied, 2)
    assert [file.name for file in weight_files.locate(copied, 4)] == ["model.safetensors"]


def test_a_directory_without_weights_is_refused(random_model: Path, tmp_path: Path) -> None:
    shutil.copy(random_model / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no Hugging Face weights"):
        weight_files.locate(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no Hugging Face weights"):
        convert(tmp_path, tmp_path / "out", 1)


def test_an_index_that_names_a_missing_file_is_refused(copied: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copied / weight_files.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"00001-of-00002.*missing"):
        weight_files.locate(copied, 1)
    (copied / weight_files.INDEX).write_text("[]")
    with pytest.raises(CheckpointError, match="index"):
        weight_files.locate(copied, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, "lacks 1 tensors, the first of them model.norm.weight"),
        ({"model.layers.1.mlp.experts.5.up_proj.weight": None}, "experts.5.up_proj"),
        ({"model.norm.weight": torch.ones(63)}, r"model.norm.weight has shape \[63\]"),
        ({"model.norm.bias": torch.ones(64)}, "model.norm.bias, which is no tensor of this model"),
        (
            {"model.layers.0.mlp.down_proj.weight": torch.ones(64, 96).to(torch.float8_e4m3fn)},
            "quantization_config",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    copied: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    edit(copied, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


def test_a_torn_file_is_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(copied)


@pytest.mark.parametrize("world", [3, 8])
def test_convert_refuses_what_does_not_divide(
    random_model: Path, tmp_path: Path, world: int
) -> None:
    with pytest.raises(ParallelError, match=f"over {world} processes"):
        convert(random_model, tmp_path / "out", world)
    assert not (tmp_path / "out").exists()


def test_convert_names_what_it_cannot_read_or_write(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        convert(tmp_path, tmp_path / "out", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        convert(random_model, tmp_path / "file" / "out", 1)
