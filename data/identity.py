"""Which model a directory holds, told from its small files and the sizes of its weight files.

DeepSeek's models of 671 B parameters have the same architecture, the same tensors and, in
block-fp8, the same sizes: a wrong one loads and runs, and only its score is wrong. They differ in
the chat template and in few keys of config.json; derivatives differ in how their weights are
quantized. The marks are those of the public repositories of deepseek-ai and nvidia. A model with
another one's template, as most fine-tunes have, is taken for that: only revisions tell them apart.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import MODEL, REVISION
from data.prompts import CONFIG, TEMPLATE
from errors import ModelError
from ref_dsinfer.config import ARCHITECTURE, CONFIG_FILE, read_config
from ref_dsinfer.lookalike import read_object

R1 = MODEL.partition("/")[2]
FP8, FP4, BF16 = "block-fp8", "FP4", "bf16"
# Sizes that all of DeepSeek's models of 671 B parameters have, and no other model
SIZES = {
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "n_routed_experts": 256,
    "vocab_size": 129280,
}
FP8_BYTES = 688_586_727_753  # of all weight files, the MTP layer's included
SIZE_TOLERANCE = 0.02  # derivatives drop tensors or scale other layers
QUANTIZED = "hf_quant_config.json"  # what NVIDIA's Model Optimizer writes beside config.json
# How weights are stored, by the ends of tensors' names, the first that is found
SCALES = ((".weight_scale_inv", FP8), (".weight_scale_2", FP4), (".weight_packed", "packed"))
LOCAL_METADATA = Path(".cache", "huggingface", "download")  # of `hf download --local-dir`
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Identity:
    """What a model directory holds."""

    name: str | None  # such as DeepSeek-R1-0528; None if unknown
    weights: str | None  # FP8, FP4, BF16 or a quantization's name; None if unknown
    revision: str | None  # commit of its repository on the hub, if the directory says so
    unlike: str = ""  # why the name is unknown
    strays: tuple[str, ...] = ()  # files of another revision than `revision`

    def __str__(self) -> str:
        name = self.name or f"an unknown model ({self.unlike})"
        weights = f" in {self.weights}" if self.weights not in (FP8, None) else ""
        return name + weights + (f" at revision {self.revision}" if self.revision else "")

    def objections(self) -> Iterator[str]:
        """Why it is not the benchmark's model. Other weights than block-fp8 are no objection."""
        if self.name != R1:
            yield f"this is {self}; the benchmark wants {R1} at revision {REVISION}"
        elif self.revision not in (REVISION, None):
            yield f"this is revision {self.revision} of {R1}, not the benchmark's {REVISION}"
        if self.strays:
            more = f" and {len(self.strays) - 1} more" if len(self.strays) > 1 else ""
            yield f"{self.strays[0]}{more} is of another revision than the other files"


def identify(model_dir: str | Path) -> Identity:
    """Tell a model by config.json, the chat template, the weights' index and the files' sizes.

    Raises: ModelError if config.json, or another of these files, is there but can't be read.
    """
    folder = Path(model_dir)
    config = read_config(folder)
    name, unlike = _name(folder, config)
    weights = _weights(folder, config)
    size = _shard_bytes(folder) if name and weights == FP8 else None
    if size is not None and abs(size - FP8_BYTES) > SIZE_TOLERANCE * FP8_BYTES:
        name, unlike = None, f"{size} bytes of weights, where {name} has {FP8_BYTES}"
    revision, strays = _revision(folder)
    return Identity(name, weights, revision, unlike, strays)


def cached_revision(model_dir: str | Path) -> str | None:
    """The revision of a model in a Hugging Face cache, from its directory's path."""
    path = Path(model_dir).absolute()
    return path.name if path.parent.name == "snapshots" else None


def local_notes(folder: Path) -> dict[str, tuple[str, str]]:
    """What `hf download --local-dir` has noted of each file: its commit, and its checksum."""
    notes = {}
    for note in sorted((folder / LOCAL_METADATA).rglob("*.metadata")):
        lines = note.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) >= 2:
            file = note.relative_to(folder / LOCAL_METADATA).with_suffix("")
            notes[str(file)] = lines[0].strip(), lines[1].strip()
    return notes


def _name(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str]:
    """The model's name, or why it is unknown."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or ARCHITECTURE not in architectures:
        return None, f"{CONFIG_FILE} is not of the architecture {ARCHITECTURE}"
    for key, size in SIZES.items():
        if config.get(key) != size:
            return None, f"{key} {config.get(key)}, not {size}"
    if _quantization(config).get("scale_fmt") == "ue8m0":
        return "DeepSeek-V3.1", ""
    template = _template(folder)
    if template is None:
        return None, f"no chat template in {CONFIG} or {TEMPLATE}"
    if re.search(r"\bthinking\b", template):
        return "DeepSeek-V3.1", ""
    drops_thoughts = "</think>" in template
    if "is_last_user" in template:
        return "DeepSeek-R1-0528" if drops_thoughts else "DeepSeek-V3-0324", ""
    return R1 if drops_thoughts else "DeepSeek-V3", ""


def _template(folder: Path) -> str | None:
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    if not (folder / CONFIG).is_file():
        return None
    value = read_object(folder / CONFIG).get("chat_template")
    return value if isinstance(value, str) else None


def _weights(folder: Path, config: Mapping[str, Any]) -> str | None:
    """How the weights are stored; None if the directory has no index and says nothing."""
    if (folder / QUANTIZED).is_file():
        inner = read_object(folder / QUANTIZED).get("quantization")
        return _format(inner if isinstance(inner, Mapping) else {})
    if quantization := _quantization(config):
        return _format(quantization)
    names = _weight_map(folder)
    if names is None:
        return None
    for ending, stored in SCALES:
        if any(name.endswith(ending) for name in names):
            return stored
    return BF16


def _format(quantization: Mapping[str, Any]) -> str:
    text = json.dumps(quantization).lower()
    if "fp4" in text:
        return FP4
    if quantization.get("quant_method") == "fp8" and quantization.get("weight_block_size"):
        return FP8
    return str(quantization.get("quant_algo") or quantization.get("quant_method") or "quantized")


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    value = config.get("quantization_config")
    return value if isinstance(value, Mapping) else {}


def _weight_map(folder: Path) -> Mapping[str, str] | None:
    """File names by tensor, as the index has them; None without an index."""
    from ref_dsinfer.weight_files import INDEX

    path = folder / INDEX
    if not path.is_file():
        return None
    names = read_object(path).get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(one, str) for one in names.values()):
        raise ModelError(f"{path} is no safetensors index: it has no weight_map of files")
    return names


def _shard_bytes(folder: Path) -> int | None:
    """Bytes of the weight files; None where some are missing, which others report."""
    files = [folder / name for name in set((_weight_map(folder) or {}).values())]
    if not files or not all(file.is_file() for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def _revision(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """The revision of most files, and the files that are of another one.

    A cache has a directory for each revision; `hf download --local-dir` notes it for each file.
    """
    if revision := cached_revision(folder):
        return revision, ()
    commits = {
        file: commit
        for file, (commit, _) in local_notes(folder).items()
        if COMMIT.fullmatch(commit) and (folder / file).is_file()
    }
    if not commits:
        return None, ()
    values = list(commits.values())
    revision = max(sorted(set(values)), key=values.count)
    return revision, tuple(file for file, commit in commits.items() if commit != revision)
