"""Model directories with files of another kind, or with missing files."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from errors import CheckpointError, ModelError, UsageError
from ref_dsinfer import fp8
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.convert import convert
from ref_dsinfer.engine import Engine
from ref_dsinfer.keys import QUANTIZATION_CONFIG
from ref_dsinfer.model import Layer, Model
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.parallel import ATTENTION, RankInfo
from ref_dsinfer.weight_files import INDEX, check_for_others, locate

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 15614560\n"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
PROMPT = (3, 17, 44, 5, 80)


@pytest.fixture
def copied(random_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_model, tmp_path / "copied"))


def answer(model_dir: Path) -> list[int]:
    """Eight greedy tokens."""
    engine = Engine(model_dir, EngineOptions("cpu", "float32", max_model_len=64))
    engine.add(0, PROMPT, 8)
    tokens: list[int] = []
    while engine.busy:
        tokens += [token for output in engine.step() for token in output.token_ids]
    return tokens


def sharded(model_dir: Path, count: int, index: bool = False) -> list[Path]:
    """Split a checkpoint's one file into shards."""
    file = model_dir / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for number, (name, tensor) in enumerate(tensors.items()):
        parts[number % count][name] = tensor
    files = [model_dir / f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    for path, part in zip(files, parts, strict=True):
        save_file(part, path, {"format": "pt"})
    if index:
        names = {name: p.name for p, part in zip(files, parts, strict=True) for name in part}
        (model_dir / INDEX).write_text(json.dumps({"weight_map": names}))
    return files


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda _: POINTER, r"is a git-lfs pointer, not the file itself: run `git lfs pull`"),
        (lambda _: PAGE, r"is an HTML page"),
        (gzip.compress, r"is compressed by gzip: unpack it"),
        (lambda _: b"", r"is empty: download it again"),
        (lambda content: content[:5000], r"is cut short, 5000 of \d+ bytes or more"),
        (lambda content: content[:-1], r"is cut short, (\d+) of \d+ bytes or more"),
        (lambda content: content[:7], r"is cut short, 7 of \d+ bytes or more"),
        (lambda content: bytes(len(content)), r"is nothing but zero bytes"),
        (lambda content: b"\x93" + content, r"can't be read as safetensors"),
        (lambda content: content + b"x", r"can't be read as safetensors"),
    ],
)
def test_weight_files_of_another_kind_are_recognised_by_all_readers(
    copied: Path, tmp_path: Path, spoilt: Callable[[bytes], bytes], message: str
) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(spoilt(file.read_bytes()))
    for reader in (
        lambda: Engine(copied, EngineOptions("cpu", "float32")),
        lambda: convert(copied, tmp_path / "out", 1),
        lambda: fp8.write_twin(copied, tmp_path / "out"),
        lambda: check_for_others(copied),
    ):
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))} {message}"):
            reader()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a git-lfs pointer"),
        (PAGE, "is an HTML page"),
        (b"", "is empty"),
        (gzip.compress(b"{}", mtime=0), "is compressed by gzip"),
        (b'{"error": "Repository not found"}', "is a server's error message"),
        (b"Entry not found", "is text that begins 'Entry not found'"),
        (
            b'{"dim": 7168, "n_layers": 61}',
            "has the keys of DeepSeek's inference",
        ),
        (b'{"vocab_size": ', "can't be read as JSON"),
        (b"[" * 100_000, "can't be read as JSON"),
        (b"[]", "is not a JSON object"),
    ],
)
def test_a_config_json_of_another_kind_is_recognised(
    copied: Path, content: bytes, message: str
) -> None:
    (copied / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"/config\.json {message}"):
        ModelConfig.read(copied)


def test_an_index_of_another_kind_is_recognised(copied: Path) -> None:
    sharded(copied, 2, index=True)
    for content, message in (
        (POINTER, "is a git-lfs pointer"),
        (PAGE, "is an HTML page"),
        (b"{}", "is no safetensors index"),
        (b'{"weight_map": {"a": 3}}', "is no safetensors index"),
    ):
        (copied / INDEX).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"index\.json {message}"):
            locate(copied, 1)


def test_shards_are_read_without_their_index_once_all_are_there(copied: Path) -> None:
    expected = answer(copied)
    files = sharded(copied, 3)
    assert locate(copied, 1) == files
    assert answer(copied) == expected
    files[1].rename(copied / "aside")
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors is missing: of 3 .* 2"):
        locate(copied, 1)
    files[2].rename(copied / "model-00003-of-00004.safetensors")
    with pytest.raises(CheckpointError, match="shards of 00003 and of 00004"):
        locate(copied, 1)


def test_an_index_names_what_is_missing_or_leads_nowhere(copied: Path) -> None:
    files = sharded(copied, 3, index=True)
    files[0].unlink()
    files[2].unlink()
    with pytest.raises(
        CheckpointError, match=r"00001-of-00003\.safetensors, and 1 more is missing"
    ):
        locate(copied, 1)
    files[0].symlink_to(copied / "blobs" / "none")
    with pytest.raises(CheckpointError, match="a dangling symbolic link"):
        locate(copied, 1)


def test_weights_of_another_kind_are_named(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: download the model as safet"):
        locate(copied, 1)
    check_for_others(copied)  # which may read it


@pytest.mark.parametrize(
    "reader",
    [
        lambda source, target: Engine(source, EngineOptions("cpu")),
        lambda source, target: convert(source, target, 1),
        fp8.write_twin,
    ],
    ids=["engine", "convert", "fp8"],
)
def test_fp8_weights_without_quantization_config_are_an_error(
    tmp_path: Path, tiny_fp8: Path, reader: Callable[[Path, Path], object]
) -> None:
    raw = json.loads((tiny_fp8 / "config.json").read_text())
    quantization = raw.pop("quantization_config")
    (tiny_fp8 / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="in fp8, but config") as caught:
        reader(tiny_fp8, tmp_path / "out")
    assert json.loads(str(caught.value).partition("DeepSeek's is ")[2]) == quantization


def test_activations_scaled_by_powers_of_two_are_refused_where_they_are_rounded(
    tiny_fp8: Path,
) -> None:
    expected = answer(tiny_fp8)
    raw = json.loads((tiny_fp8 / "config.json").read_text())
    raw["quantization_config"]["scale_fmt"] = "ue8m0"
    (tiny_fp8 / "config.json").write_text(json.dumps(raw))
    assert answer(tiny_fp8) == expected
    with pytest.raises(UsageError, match="scale_fmt ue8m0"):
        Engine(tiny_fp8, EngineOptions("cpu", gemm="fp8"))


def test_a_quantization_config_without_fp8_weights_is_an_error(copied: Path) -> None:
    raw = json.loads((copied / "config.json").read_text())
    raw["quantization_config"] = QUANTIZATION_CONFIG
    (copied / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="as F32, but config"):
        Engine(copied, EngineOptions("cpu"))


@pytest.fixture
def tiny_fp8(tmp_path: Path) -> Path:
    tiny = Path(__file__).parents[2] / "data/tiny/model-fp8"
    return Path(shutil.copytree(tiny, tmp_path / "fp8"))


def test_frequencies_in_a_checkpoint_are_skipped(copied: Path, tmp_path: Path) -> None:
    """Also in files that were converted when they were kept."""
    expected = answer(copied)
    more = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(8) for n in range(3)}
    file = copied / "model.safetensors"
    save_file(load_file(file) | more, file, {"format": "pt"})
    assert answer(copied) == expected
    (made,) = convert(copied, tmp_path / "out", 1)
    assert not any("inv_freq" in name for name in load_file(made))
    assert answer(tmp_path / "out") == expected
    save_file(load_file(made) | more, made, {"format": "pt"})
    assert answer(tmp_path / "out") == expected


# DeepSeek's `inference/convert.py`, written down from its files: what follows a layer's number.
THEIRS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_a_proj": "attn.wq_a",
    "self_attn.q_a_layernorm": "attn.q_norm",
    "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.q_proj": "attn.wq",
    "self_attn.kv_a_proj_with_mqa": "attn.wkv_a",
    "self_attn.kv_a_layernorm": "attn.kv_norm",
    "self_attn.kv_b_proj": "attn.wkv_b",
    "self_attn.o_proj": "attn.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn.w1",
    "mlp.down_proj": "ffn.w2",
    "mlp.up_proj": "ffn.w3",
    "mlp.gate": "ffn.gate",
    "mlp.shared_experts.gate_proj": "ffn.shared_experts.w1",
    "mlp.shared_experts.down_proj": "ffn.shared_experts.w2",
    "mlp.shared_experts.up_proj": "ffn.shared_experts.w3",
}
OUTSIDE = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
ENDINGS = {"weight_scale_inv": "scale", "e_score_correction_bias": "bias"}
BY_ROW = ("embed", "head", "wq", "wq_b", "wkv_b", "w1", "w3")
BY_COLUMN = ("wo", "w2")


def deepseeks(model_dir: Path, target: Path, world: int) -> Path:
    """Write what DeepSeek's script makes of a checkpoint, with a config.json beside it."""
    target.mkdir()
    shutil.copy(model_dir / "config.json", target)
    tensors = load_file(model_dir / "model.safetensors")
    experts = ModelConfig.read(model_dir).experts
    for rank in range(world):
        mine = {}
        for name, tensor in tensors.items():
            module, _, ending = name.rpartition(".")
            expert = re.search(r"\.experts\.(\d+)\.", name)
            if layer := re.match(r"model\.layers\.(\d+)\.", module):
                part = module.removeprefix(layer[0])
                if expert:
                    part = part.replace(f"experts.{expert[1]}", "shared_experts")
                part = THEIRS[part]
                if expert:
                    part = part.replace("shared_experts", f"experts.{expert[1]}")
                theirs = f"layers.{layer[1]}.{part}"
            else:
                theirs = OUTSIDE[module]
            last = theirs.rpartition(".")[2]
            if expert:
                if int(expert[1]) // (experts // world) != rank:
                    continue
            elif last in BY_ROW or last in BY_COLUMN:
                tensor = tensor.chunk(world, 0 if last in BY_ROW else 1)[rank].contiguous()
            mine[f"{theirs}.{ENDINGS.get(ending, ending)}"] = tensor
        save_file(mine, target / f"model{rank}-mp{world}.safetensors")
    return target


def load(path: Path, rank: int, world: int, attention: str) -> dict[str, Tensor]:
    """One rank's weights. No other rank is needed, since nothing is computed."""
    ranks = ATTENTION[attention](RankInfo(), torch.device("cpu"))
    ranks.rank, ranks.world_size = rank, world
    model = Model.load(path, ModelConfig.read(path), torch.float32, ranks, 16)
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        tensors[f"unfold {number}"] = layer.self_attn.unfold
    return tensors


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.view(torch.uint8), two[name].view(torch.uint8)), name


def test_files_of_deepseeks_own_script_give_the_same_tokens(
    random_model: Path, tmp_path: Path
) -> None:
    assert answer(deepseeks(random_model, tmp_path / "one", 1)) == answer(random_model)


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}], ids=str)
def test_files_of_deepseeks_own_script_are_the_same_bits(
    write_model: Callable[..., Path], tmp_path: Path, changes: dict[str, None]
) -> None:
    model = write_model(tmp_path / "hf", **changes)
    two = deepseeks(model, tmp_path / "two", 2)
    for rank in range(2):
        for attention in ATTENTION:
            same_bits(load(two, rank, 2, attention), load(model, rank, 2, attention))


def test_fp8_files_of_deepseeks_own_script_are_the_same_bits(
    tiny_fp8: Path, tmp_path: Path
) -> None:
    raw = json.loads((tiny_fp8 / "config.json").read_text())
    (tiny_fp8 / "config.json").write_text(json.dumps(raw | {"num_nextn_predict_layers": 0}))
    edited = {
        name: tensor
        for name, tensor in load_file(tiny_fp8 / "model.safetensors").items()
        if f"layers.{raw['num_hidden_layers']}." not in name  # which the script leaves out
    }
    save_file(edited, tiny_fp8 / "model.safetensors", {"format": "pt"})
    one = deepseeks(tiny_fp8, tmp_path / "one", 1)
    same_bits(load(one, 0, 1, "tp"), load(tiny_fp8, 0, 1, "tp"))


def test_files_of_deepseeks_own_script_are_for_their_number_of_ranks(
    random_model: Path, tmp_path: Path
) -> None:
    two = deepseeks(random_model, tmp_path / "two", 2)
    with pytest.raises(CheckpointError, match="made for a world size of 2, this run has 1"):
        locate(two, 1)
    with pytest.raises(
        CheckpointError, match="one rank's weights, which only the pytorch backend reads"
    ):
        check_for_others(two)
    with pytest.raises(
        CheckpointError, match="one rank's weights, which only the pytorch backend reads"
    ):
        check_for_others(deepseeks(random_model, tmp_path / "one", 1))
    with pytest.raises(CheckpointError, match="but weights split for a world size of 2"):
        convert(two, tmp_path / "ours", 1)
    convert(random_model, tmp_path / "ours", 1)
    check_for_others(tmp_path / "ours")  # Hugging Face's names: others read it
    (two / "config.json").unlink()  # the script copies the tokenizer's files only
    with pytest.raises(
        ModelError, match="copy it from the Hugging Face directory that the weights"
    ):
        ModelConfig.read(two)
