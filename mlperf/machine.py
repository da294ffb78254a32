"""What can be read from a Linux machine about itself: processors, memory, accelerators, cards."""

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GIB = 1 << 30
_QUERY = ("name", "memory.total", "driver_version", "clocks.max.sm")
_QUERY_S = 60  # nvidia-smi takes seconds, on machines with many GPUs more
_SECTOR = 512  # bytes, the unit of /sys/block/*/size


@dataclass(frozen=True)
class Accelerator:
    """A GPU."""

    name: str
    memory_mib: int
    driver: str  # its version
    clock_mhz: int  # of its multiprocessors, at most


@dataclass(frozen=True)
class Machine:
    """A machine; None or an empty value: it can't be read here."""

    cpu: str  # model name
    sockets: int
    cores: int  # of each socket
    clock_mhz: int | None  # at most
    caches: Mapping[str, str] = field(default_factory=dict)  # size by name, such as L2
    memory_bytes: int = 0
    system: str = ""  # distribution and kernel
    network_cards: tuple[str, ...] = ()  # the name of each interface, and its speed
    disks: tuple[tuple[str, int], ...] = ()  # kind and bytes of each
    accelerators: tuple[Accelerator, ...] = ()


def read(root: Path = Path("/")) -> Machine:
    """Read this machine. `root`: the folder in which /proc and /sys are."""
    fields = _cpu_fields(_text(root / "proc/cpuinfo"))
    sockets = {one["physical id"] for one in fields if "physical id" in one}
    cores = {(one.get("physical id"), one.get("core id")) for one in fields if "core id" in one}
    clock = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # kHz
    count = max(len(sockets), 1)
    return Machine(
        cpu_model(root),
        count,
        (len(cores) or len(fields)) // count,
        int(clock) // 1000 if clock.isdecimal() else None,
        _caches(root),
        _memory(root),
        _system(root),
        _network_cards(root),
        _disks(root),
        _accelerators(),
    )


def identity(root: Path = Path("/")) -> dict[str, Any]:
    """The kind of machine, in a moment: equal on machines that are the same system."""
    gpus = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    names = [match[1] for path in gpus if (match := re.search(r"Model:\s*(.+)", _text(path)))]
    return {"cpu": cpu_model(root), "accelerators": names}


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's model name, or its architecture if /proc has no name."""
    fields = _cpu_fields(_text(root / "proc/cpuinfo"))
    return fields[0].get("model name", platform.machine()) if fields else platform.machine()


def _cpu_fields(text: str) -> list[dict[str, str]]:
    """The fields of each logical processor."""
    return [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block)}
        for block in (part.splitlines() for part in text.split("\n\n"))
        if block
    ]


def _caches(root: Path) -> dict[str, str]:
    sizes = {}
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu0/cache/index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_text(folder / "type"), "")
        sizes[f"L{_text(folder / 'level')}{kind}"] = _text(folder / "size")
    return sizes


def _memory(root: Path) -> int:
    match = re.search(r"MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"))
    return int(match[1]) * 1024 if match else 0


def _system(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release"), re.MULTILINE)
    return f"{match[1] if match else platform.system()}, Linux {platform.release()}"


def _network_cards(root: Path) -> tuple[str, ...]:
    """Interfaces with a device behind them, unlike bridges and loopback."""
    cards = []
    for folder in sorted(root.glob("sys/class/net/*")):
        if (folder / "device").exists():
            speed = _text(folder / "speed")  # Mbit/s; -1 if the link is down
            known = speed.isdecimal() and int(speed) > 0
            cards.append(f"{folder.name} {int(speed) / 1000:g} Gbit/s" if known else folder.name)
    for folder in sorted(root.glob("sys/class/infiniband/*")):
        cards.append(f"{folder.name} {_text(folder / 'ports/1/rate')}".strip())
    return tuple(cards)


def _disks(root: Path) -> tuple[tuple[str, int], ...]:
    disks = []
    for folder in sorted(root.glob("sys/block/*")):
        size = _text(folder / "size")
        if (folder / "device").exists() and size.isdecimal() and int(size):
            rotating = _text(folder / "queue/rotational") == "1"
            kind = "NVMe SSD" if folder.name.startswith("nvme") else "HDD" if rotating else "SSD"
            disks.append((kind, int(size) * _SECTOR))
    return tuple(disks)


def ask_gpus(*fields: str) -> list[list[str]]:
    """What nvidia-smi says of each GPU, in its units; nothing if there is no such program or it
    fails. CUDA itself must not be initialized before an engine forks."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in ended.stdout.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _accelerators() -> tuple[Accelerator, ...]:
    return tuple(
        Accelerator(name, _number(memory), driver, _number(clock))
        for name, memory, driver, clock in ask_gpus(*_QUERY)
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0  # [N/A]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
